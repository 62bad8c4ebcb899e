"""How hard a model finds problems: many replies to each, and the share that is right.

Source: Kimi k1.5 (arXiv:2501.12599, section 2.1). Checkpoint in, a set of prompts out::

    prompts/
    ├── prompts.jsonl     {"problem", "messages", "answer", "info", "sampled", "right", "cut", "ungraded"}, one a line
    ├── report.json       counts
    ├── report.txt        the same for a person
    └── provenance.json   what made them, and the SHA-256 of every other file
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import CUT, Group, Message, Problem
from longthought.engine.engine import EngineSettings
from longthought.evaluation.evaluate import distinct
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes
from longthought.runs.place import Place
from longthought.runs.settings import fingerprint_of
from longthought.stages.example_set import ExampleSet, SetFolder, write_report, writing
from longthought.stages.judgement_set import said
from longthought.stages.rejection_sampling import PROMPTS
from longthought.stages.sampled import Sampled
from longthought.stages.sifting import bars, histogram
from longthought.tasks.prompt_set import Chosen, Ends, Order, Rated, Ratings

_COUNTS: Final = "counts"  # of every problem so far, in the training state


@dataclass(frozen=True)
class PromptSet(SetFolder):
    """The folder of such a set, and the task that its problems are from."""

    origin: Task

    def ratings(self) -> Ratings:
        """Every problem with its counts. Raises DataError where a file was altered since it was written."""
        self.verify()
        return Ratings([_rated(line, where) for line, where in _lines(self.path / PROMPTS)])

    def task(
        self, low: float = 0.0, high: float = 1.0, ends: Ends = "both", order: Order = "mixed", seed: int = 0
    ) -> Chosen:
        """A task that asks the problems whose pass rate lies between two bounds; ``ends``: which of these belong to it.

        Problems that no reply was graded of have no rate, and are left out.

        Example: ``prompts.task(0.2, 0.8)``; what GRPO can learn from is ``prompts.task(ends="neither")``.

        Raises:
            SettingsError: the bounds can hold nothing.
            DataError: no problem lies there, the set was altered, is of another task, or of no training split.
        """
        told = self.provenance()
        if told.get("task") != self.origin.name:
            raise DataError(f"{self.path} holds problems of {told.get('task')}, not of {self.origin.name}")
        if told.get("split") != "train":
            raise DataError(
                f"{self.path} holds problems of the {told.get('split')} split: evaluations are not for training"
            )
        ratings = self.ratings()
        chosen = ratings.between(low, high, ends)
        if not len(chosen):
            raise DataError(
                f"{self.path}: none of {len(ratings):,} problems has a pass rate from {low:g} to {high:g} "
                f"(ends={ends!r})\n{described(self.report())}"
            )
        return Chosen(self.origin, chosen, order, seed)


@dataclass(frozen=True, kw_only=True)
class MeasureDifficulty(Sampled):
    """``samples`` replies to each of ``prompts`` problems of a split; makes a ``PromptSet``.

    split: train, for prompts to train on; dev and test can be looked at, and give no task.
    Everything else: see ``Sampled``.
    """

    called: ClassVar[str] = "difficulty"

    prompts: int = field(default=256, kw_only=False)
    samples: int = field(default=10, kw_only=False)
    split: Literal["train", "dev", "test"] = "train"
    seed: int = 0
    prompts_per_round: int = 64
    engine: EngineSettings = EngineSettings()
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in ("train", "dev", "test"):
            raise SettingsError(f"difficulty: split={self.split!r}; choose train, dev or test")

    def run(self, given: Checkpoint, place: Place) -> PromptSet:
        return self.write(self._rated(self._sampled(given, place), place), given, place)

    def load(self, place: Place) -> PromptSet:
        return PromptSet(place.path / "prompts", self.task)

    def measure(self, sampler: Sampler, renderer: Renderer, place: Place) -> list[Rated]:
        """As ``sample``, and how often every problem was solved."""
        return self._rated(self.sample(sampler, renderer, place), place)

    def write(self, rated: Sequence[Rated], given: Checkpoint, place: Place) -> PromptSet:
        """The set of what was measured."""
        report = _report(rated)
        provenance = {
            "stage": "difficulty",
            "task": self.task.name,
            "split": self.split,
            "from": given.fingerprints(),
            "model": fingerprint_of(given.fingerprints()),
            "seed": self.seed,
            "settings": describe(self),
        }
        with writing(place.path / "prompts", provenance) as made:
            (made / PROMPTS).write_bytes(b"".join(json_bytes(_line(one)) + b"\n" for one in rated))
            write_report(made, report, described(report))
        if not self.quiet:
            print(described(report), file=sys.stderr)
        return self.load(place)

    def _problems(self) -> list[Problem]:
        return distinct(self.task, self.split, self.prompts)

    def _keep(self, step: int, groups: list[Group], place: Place, values: dict[str, Any]) -> Mapping[str, float]:
        _trace(step, groups, place)
        counts = values.setdefault(_COUNTS, [])
        counts += [_counts(group) for group in groups]
        return {"right": sum(count[0] for count in counts) / len(counts) / self.samples}

    def _rated(self, problems: Sequence[Problem], place: Place) -> list[Rated]:
        state = place.load_state()
        assert state is not None  # it was sampled
        counts = zip(problems, state.values[_COUNTS], strict=True)
        return [Rated(problem, self.samples, *row) for problem, row in counts]


def ratings_of(made: ExampleSet, task: Task) -> Ratings:
    """How often each prompt of a rejection sampling was solved, at no cost: its ``prompts.jsonl``.

    It names problems and does not state them: ``task`` is asked for them again, so give the one that was sampled, or
    that with its seed. What was not graded counts as wrong there.

    Raises DataError where the file was altered, or names a problem that the task does not ask.
    """
    made.verify()
    rows = list(_lines(made.path / PROMPTS))
    problems = {problem.id: problem for problem in distinct(task, "train", len(rows))} if rows else {}
    found = []
    for row, where in rows:
        problem = problems.get(str(row.get("problem")))
        if problem is None:
            raise DataError(f"{where}: {task.name} does not ask {row.get('problem')!r} now: give the task as it was")
        found.append(Rated(problem, *_whole(row, where, "sampled", "right")))
    return Ratings(found)


def described(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"{report['sampled']:,} replies to {report['prompts']:,} prompts: {report['right']:,} right, "
        f"{report['cut']:,} cut, {report['ungraded']:,} not graded",
        *bars(report["pass_rates"]),
    ]
    if report["unrated"]:
        lines.append(f"{report['unrated']:,} prompts of which no reply was graded have no rate")
    return "\n".join(lines)


def _report(rated: Sequence[Rated]) -> dict[str, Any]:
    rates = [one.rate for one in rated if one.rate is not None]
    sums = {name: sum(getattr(one, name) for one in rated) for name in ("sampled", "right", "cut", "ungraded")}
    return {"prompts": len(rated), **sums, "pass_rates": histogram(rates), "unrated": len(rated) - len(rates)}


def _trace(step: int, groups: Sequence[Group], place: Place) -> None:
    """All replies of a round into the trace store, and the log."""
    blank = [[None] * len(group) for group in groups]
    place.trace(step, groups, rewards=[[one.score.value for one in g] for g in groups], advantages=blank, shaping={})
    rollouts = [one for group in groups for one in group]
    place.log(
        step,
        {
            "right": sum(one.score.correct for one in rollouts) / len(rollouts),
            "cut": sum(one.completion.finish in CUT for one in rollouts) / len(rollouts),
            "length": sum(len(one.completion.token_ids) for one in rollouts) / len(rollouts),
        },
    )


def _counts(group: Group) -> list[int]:
    """Right, cut, ungraded."""
    return [
        sum(one.score.value is not None and one.score.correct for one in group),
        sum(one.completion.finish in CUT for one in group),
        sum(one.score.value is None for one in group),
    ]


def _line(one: Rated) -> dict[str, Any]:
    problem = one.problem
    return {
        "problem": problem.id,
        "messages": said(problem.messages),
        "answer": problem.answer,
        "info": dict(problem.info),
        "sampled": one.sampled,
        "right": one.right,
        "cut": one.cut,
        "ungraded": one.ungraded,
    }


def _rated(row: Mapping[str, Any], where: str) -> Rated:
    try:
        messages = tuple(Message(**one) for one in row["messages"])
        problem = Problem(str(row["problem"]), messages, str(row["answer"]), dict(row["info"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} holds no rated problem: {error}") from error
    return Rated(problem, *_whole(row, where, "sampled", "right", "cut", "ungraded"))


def _whole(row: Mapping[str, Any], where: str, *names: str) -> list[int]:
    """The counts of a line."""
    found = [row.get(name) for name in names]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in found):
        raise DataError(f"{where}: {', '.join(names)} must be whole numbers")
    return found  # type: ignore[return-value]


def _lines(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file of JSON lines, and where each stands."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is no JSON object")
        yield row, f"{file}, line {number}"
