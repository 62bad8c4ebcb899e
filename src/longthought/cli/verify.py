"""``longthought verify``: grade a file of answers, and show where two verifiers differ."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, at_least
from longthought.core.errors import SettingsError

if TYPE_CHECKING:
    from longthought.core.protocols import Verifier
    from longthought.evaluation.verify_view import Findings
    from longthought.tasks.answers import Answers
    from longthought.tasks.grading import Grading

UNGRADED = 5
"""Exit code when a verifier could not grade some of the answers."""

_EPILOG = f"""columns are found by their names; --fields says which they are where that fails:
  prediction  prediction, response, completion, generated_text, model_answer … else output, text; a list holds several
  answer      answer, gold, ground_truth, target …; a solution with \\boxed; GSM8K's ####

exit codes: 0 every answer was graded, right or wrong; {UNGRADED} some could not be (timed_out, crashed, invalid,
no_gold); 2 an error; 130 stopped by the keyboard: what was graded before stands in FILE.part of --out FILE

  longthought verify answers.jsonl
  longthought verify answers.parquet --fields prediction=model_output,answer=target --verifier choice
  longthought verify answers.jsonl --verifier math --against mine.py:verify --out verdicts.jsonl
  longthought verify rollouts.jsonl --form think_answer --outcome timed_out,crashed --show 100"""


def parser() -> Parser:
    """The command line of ``verify``."""
    made = Parser(
        "verify",
        "Grade the answers of a file by rule; show the first that are wrong and the first that could not be graded.\n"
        "With a second verifier: where the two differ, and how often. A reply that cannot be read counts as wrong.",
        _EPILOG,
    )
    add = made.add_argument
    add("file", type=Path, metavar="FILE", help="predictions and golds: .jsonl, .json, .parquet, .csv or .tsv")
    add("--verifier", default="math", metavar="NAME", help="math, exact, number, choice, set, or mine.py:verify")
    add("--against", metavar="NAME", help="a second verifier, to compare with")
    add("--form", default="free", metavar="FORM", help="of a reply: free (default), think, think_answer, summary")
    add("--fields", default="", metavar="NAMES", help="columns, as prediction=output,answer=target,prompt=…,info=a+b")
    add("--bad", choices=("refuse", "skip"), default="refuse", help="what to do about rows that cannot be used")
    add("--deadline", type=float, metavar="S", help="most seconds for one answer (default: math 2, a function 5)")
    add("--workers", type=at_least(1), metavar="N", help="processes of a verifier (default: 2)")
    add("--show", type=at_least(0), default=20, metavar="N", help="answers to show of every kind (default: 20)")
    add("--outcome", metavar="KINDS", help="show only right, wrong, unparsable, no_gold, timed_out, crashed, invalid")
    add("--out", type=Path, metavar="FILE", help="write all verdicts there, as JSON lines")
    add("--json", action="store_true", help="print JSON, and nothing else, to standard output")
    return made


def execute(arguments: Namespace) -> int:
    """Grade and print."""
    from longthought.evaluation.verify_view import Findings
    from longthought.tasks.answers import AnswerFields, Answers
    from longthought.tasks.grading import Grading

    names = [name for name in (arguments.verifier, arguments.against) if name is not None]
    findings = Findings.of(names, arguments.show, _kinds(arguments.outcome))
    gradings = [Grading(verifier, arguments.form, 0.0) for verifier in _verifiers(names, arguments)]
    if arguments.file.exists() and not arguments.file.is_file():
        raise SettingsError(f"{arguments.file} is no regular file: give a file of answers")
    answers = Answers.read(arguments.file, AnswerFields.parse(arguments.fields), arguments.bad)
    _grade(answers, gradings, findings, arguments.out)
    if arguments.json:
        print(_json(answers, findings))
        return UNGRADED if findings.ungraded else 0
    print("\n".join([*_heading(answers), "", *findings.lines()]))
    if arguments.out:
        print(f"\nVerdicts: {arguments.out}")
    return UNGRADED if findings.ungraded else 0


def _kinds(names: str | None) -> frozenset[str] | None:
    from longthought.evaluation.verify_view import KINDS

    if names is None:
        return None
    chosen = frozenset(name.strip() for name in names.split(",") if name.strip())
    unknown = sorted(chosen.difference(KINDS))
    if unknown or not chosen:
        raise SettingsError(f"--outcome {names!r}: choose from {', '.join(KINDS)}, separated by commas")
    return chosen


def _verifiers(names: Sequence[str], arguments: Namespace) -> list[Verifier]:
    """The verifiers, with the deadline and the processes of the command line where they have any."""
    from dataclasses import replace

    from longthought.recipes.r1_zero import verifier_of

    given = {name: value for name in ("deadline", "workers") if (value := getattr(arguments, name)) is not None}
    found: list[Any] = [verifier_of(name) for name in names]
    bounded = [verifier for verifier in found if hasattr(verifier, "deadline")]
    if given and not bounded:
        raise SettingsError(f"--{next(iter(given))} changes nothing for {' and '.join(names)}: leave it out")
    return [replace(verifier, **given) if verifier in bounded else verifier for verifier in found]


def _grade(answers: Answers, gradings: Sequence[Grading], findings: Findings, out: Path | None) -> None:
    from longthought.runs.progress import progress
    from longthought.verifiers.math import Math

    for grading in gradings:
        if isinstance(grading.verifier, Math):
            grading.verifier.start()  # the imports of its workers are no part of the time per answer
    done = 0
    with _lines(out, answers.path) as write, progress("verify", answers.replies) as bar:
        for portion in answers.portions():
            asked = [(answered.problem, answered.replies) for answered in portion]
            columns, seconds = [], []
            for grading in gradings:
                began = time.perf_counter()
                columns.append(grading.together(asked))
                seconds.append(time.perf_counter() - began)
            size = sum(len(replies) for _, replies in asked)
            graded = findings.add(portion, columns, seconds)
            write([answer.verdicts([each / size for each in seconds]) for answer in graded])
            done += size
            bar.update(done, {"not graded": findings.ungraded})


@contextmanager
def _lines(out: Path | None, source: Path) -> Iterator[Callable[[Sequence[object]], None]]:
    """Write JSON lines into ``out`` + ``.part``, which becomes ``out`` at the end and stays if there is none."""
    from longthought.runs.files import json_bytes, plain_errors, sync

    if out is None:
        yield lambda records: None
        return
    if out.is_dir() or not out.parent.is_dir():
        what = f"{out} is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise SettingsError(f"--out: {what}; name a file")
    partial = out.with_name(f"{out.name}.part")
    if source.resolve() in (out.resolve(), partial.resolve()):
        raise SettingsError(f"--out {out} would write over the file to grade: name another file")
    with plain_errors(partial):
        file = partial.open("wb")

    def write(records: Sequence[object]) -> None:
        with plain_errors(partial):
            file.write(b"".join(json_bytes(record) + b"\n" for record in records))
            file.flush()

    try:
        with file:
            yield write
    except BaseException:
        print(f"longthought: the verdicts so far stand in {partial}", file=sys.stderr)
        raise
    with plain_errors(out):
        sync(partial)
        os.replace(partial, out)


def _heading(answers: Answers) -> Iterator[str]:
    """What was understood of the file."""
    from longthought.evaluation.trace_query import count
    from longthought.evaluation.trace_terminal import shown

    size = f"{count(answers.replies, 'prediction')} in {count(answers.rows, 'row')}"
    yield shown(f"{answers.path}: {size}; {answers.columns}")
    if answers.skipped:
        yield f"{count(sum(answers.skipped.values()), 'bad row')} skipped:"
        yield from (f"  {shown(line)}" for line in answers.bad)


def _json(answers: Answers, findings: Findings) -> str:
    import json

    about = {
        "file": str(answers.path),
        "columns": str(answers.columns),
        "rows": answers.rows,
        "predictions": answers.replies,
        "skipped": dict(answers.skipped),
        "bad": list(answers.bad),
    }
    return json.dumps({**about, **findings.facts()}, allow_nan=False, indent=1)
