"""One seed of recipe ``findings``, read from its run folder: evaluations, rollouts of RL, and forced thoughts.

What is not finished is None; what is damaged, too, with a warning.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from longthought.core.errors import RunDamaged
from longthought.evaluation.behaviours import Lexicon, count, reasoning_of
from longthought.evaluation.readings import Row, attempt, log
from longthought.evaluation.report_data import Estimate
from longthought.runs import traces
from longthought.runs.place import METRICS, TRACES
from longthought.runs.record import Record
from longthought.runs.run import STAGE
from longthought.verifiers.format import extract_answer

Array: TypeAlias = npt.NDArray[np.float64]
Value: TypeAlias = Callable[[Row], float | None]

EVALUATION: Final = "evaluation"
FORCING: Final = "forcing/forcing.json"
MEASURES: Final = ("correct", "length", "rejections", "reflections", "mixed", "format", "repeated")
_ATTEMPT = re.compile(r"\d[\d +\-*/()]*=[\d +\-*/()=]*\d")
_EXPRESSION = re.compile(r"[\d +\-*/()]{1,200}")
_PLAYED = ("step", "group", "problem", "correct", "length", "parts", "shaping")


@dataclass(frozen=True)
class Table:
    """Replies of one evaluation. ``problems`` and the rows of all columns are in one order, (P, n).

    values: by the names in MEASURES, and by those of the score's parts.
    answers: canonical; None where there is none.
    """

    problems: tuple[str, ...]
    values: Mapping[str, Array]
    answers: tuple[tuple[str | None, ...], ...]

    def means(self, name: str) -> Array:
        """(P,) Raises KeyError for a part that the scores do not have."""
        found: Array = self.values[name].mean(axis=1)
        return found


class Seed:
    """A run of one seed, finished or not."""

    def __init__(self, record: Record) -> None:
        self.number = int(record.settings.get("seed", 0))
        self.settings = record.settings
        self._stages = {stage.name: stage.path for stage in record.stages() if stage.finished}
        self._known: dict[tuple[str, str], Any] = {}

    def table(self, stage: str) -> Table | None:
        """The replies of an evaluation."""
        return self._once("table", stage, _table)  # type: ignore[no-any-return]

    def played(self, stage: str) -> Played | None:
        """The rollouts of a stage of RL."""
        return self._once("played", stage, lambda path: Played(path / TRACES))  # type: ignore[no-any-return]

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The lines of the log of a stage."""
        return self._once("metrics", stage, partial(log, name=METRICS)) or []

    def forced(self, stage: str) -> Mapping[tuple[str, int], Mapping[str, Any]] | None:
        """What came of every way of forcing, by way and amount."""
        return self._once("forced", stage, _forced)  # type: ignore[no-any-return]

    def _once(self, kind: str, stage: str, read: Callable[[Path], Any]) -> Any:
        path = self._stages.get(stage)
        if path is None:
            return None
        if (kind, stage) not in self._known:
            self._known[kind, stage] = attempt(path, partial(read, path), None)
        return self._known[kind, stage]


class Played:
    """The rollouts of a stage of RL, step by step."""

    def __init__(self, folder: Path) -> None:
        self.steps = traces.steps(folder)
        self._folder = folder

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All rollouts, in order. Raises RunDamaged."""
        found: list[dict[str, Any]] = []

        def damaged(error: RunDamaged) -> None:
            raise error

        for table in traces.scan(self._folder, self.steps, _PLAYED, lambda table: table, damaged):
            found += table.to_pylist()
        return found

    def groups(self, value: Value, first: float = 0.0, last: float = 1.0) -> list[float]:
        """Means over the rollouts of each group in a stretch of the run, its ends as shares of the steps.

        Rollouts of which the value is None are left out, and so are groups of such.
        """
        end = max(self.steps, default=0)
        return [mean for step, mean in self._means(value) if first * end < step <= last * end]

    def curve(self, value: Value) -> dict[int, float]:
        """Means over the groups of each step."""
        found: defaultdict[int, list[float]] = defaultdict(list)
        for step, mean in self._means(value):
            found[step].append(mean)
        return {step: sum(means) / len(means) for step, means in found.items()}

    def _means(self, value: Value) -> list[tuple[int, float]]:
        found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for row in self.rows:
            one = value(row)
            if one is not None:
                found[row["step"], row["group"]].append(one)
        return [(step, sum(values) / len(values)) for (step, _), values in sorted(found.items())]


def seeds_in(folder: Path) -> list[Seed]:
    """The runs in the folders of ``folder``, by their seeds; what is no run of recipe ``findings`` is passed over."""
    found: dict[int, Seed] = {}
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (place / "run.json").is_file():
            record = attempt(place, partial(Record.read, place), None)
            if record is not None:
                seed = Seed(record)
                found.setdefault(seed.number, seed)
    return [found[number] for number in sorted(found)]


def canonical(answer: str | None) -> str | None:
    """An expression with the summands of every sum and the factors of every product sorted, brackets where needed.

    Other text as it is, in single spaces; None for none. Equal ones are the same answer, ``3 + 4 * 2`` and
    ``( 2 * 4 ) + 3``; what they are worth is not looked at, which would be a verifier's work.
    """
    text = " ".join((answer or "").split())
    if not text or not _EXPRESSION.fullmatch(text):
        return text or None
    try:
        return _sorted_text(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def repeated_attempts(text: str) -> float:
    """Share of the attempts of a thought, such as ``9 * 4 = 36 - 3 = 33``, that were made before in it."""
    attempts = Counter(" ".join(found.split()) for found in _ATTEMPT.findall(reasoning_of(text)))
    total = attempts.total()
    return 1 - len(attempts) / total if total else 0.0


def _table(stage: Path) -> Table:
    asked = json.loads((stage / STAGE).read_text(encoding="utf-8"))["stage"]
    lexicon = Lexicon(*(frozenset(map(str, asked["lexicon"][name])) for name in ("rejections", "reflections")))
    wanted = ["problem", "group", "text", "correct", "length", "parts"]
    groups: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in traces.read(stage / EVALUATION).select(wanted).to_pylist():
        groups[row["group"]].append(row)
    rows = [groups[number] for number in sorted(groups)]
    values = [[_values(row, lexicon) for row in group] for group in rows]
    names = set.intersection(*(set(one) for group in values for one in group))
    return Table(
        tuple(group[0]["problem"] for group in rows),
        {name: np.array([[one[name] for one in group] for group in values], dtype=np.float64) for name in names},
        tuple(tuple(canonical(extract_answer(row["text"])) for row in group) for group in rows),
    )


def _values(row: Row, lexicon: Lexicon) -> dict[str, float]:
    parts = dict(row["parts"])
    language = row["problem"].rpartition("/")[2]
    seen = count(row["text"], lexicon, language if language in ("en", "zh") else "en")
    own = (
        float(row["correct"]),
        float(row["length"]),
        float(seen.rejected),
        float(seen.reflections),
        float(seen.mixed),
        parts.get("format", 0.0),
        repeated_attempts(row["text"]),
    )
    return {**parts, **dict(zip(MEASURES, own, strict=True))}


def _forced(stage: Path) -> dict[tuple[str, int], dict[str, Any]]:
    ways = json.loads((stage / FORCING).read_text(encoding="utf-8"))["ways"]
    return {
        (str(one["way"]), int(one["amount"])): {
            **one,
            "accuracy": Estimate(**one["accuracy"]),
            "tokens": Estimate(**one["tokens"]),
            "means": np.array(one["accuracy_by_problem"], dtype=np.float64),
        }
        for one in ways
    }


def _sorted_text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError("no plain expression")
    for kind, sign in ((ast.Add, " + "), (ast.Mult, " * ")):
        if isinstance(node.op, kind):
            return f"( {sign.join(sorted(_parts(node, kind)))} )"
    signs: Mapping[type[ast.operator], str] = {ast.Sub: "-", ast.Div: "/"}
    if type(node.op) not in signs:
        raise ValueError("no plain expression")
    return f"( {_sorted_text(node.left)} {signs[type(node.op)]} {_sorted_text(node.right)} )"


def _parts(node: ast.expr, kind: type[ast.operator]) -> Sequence[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, kind):
        return [*_parts(node.left, kind), *_parts(node.right, kind)]
    return [_sorted_text(node)]
