"""Which rollouts of a stage to look at: conditions, order, and what the matching ones have in common.

Only the columns that a condition reads are read from the disk, so that a stage of a quarter of a million rollouts is
listed in about a second. Text is searched by Arrow's RE2, whose time is linear in the text whatever the pattern.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from longthought.core.errors import RunDamaged, RunError, SettingsError
from longthought.core.types import Finish, Outcome
from longthought.runs import traces

LISTED = ("step", "group", "sample", "length", "finish", "correct", "outcome", "reward", "advantage", "left_out")
ORDERS = ("step", "reward", "advantage", "length")
_LONGEST_PATTERN = 1000
_BOUND = re.compile(r"(>=|<=|!=|==|>|<|=)?\s*([^\s<>=!]+)")
_SIGNS: dict[str, Callable[[pa.ChunkedArray, float], pa.ChunkedArray]] = {
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "=": pc.equal,
    "!=": pc.not_equal,
}


class Id(NamedTuple):
    """The name of a rollout within its stage, written ``step:group:sample``."""

    step: int
    group: int
    sample: int

    def __str__(self) -> str:
        return f"{self.step}:{self.group}:{self.sample}"

    @classmethod
    def parse(cls, text: str) -> Id:
        """Raises SettingsError for what is no ``step:group:sample``."""
        if not re.fullmatch(r"[0-9]{1,18}(:[0-9]{1,9}){2}", text, re.ASCII):
            raise SettingsError(f"{text!r} names no rollout: write step:group:sample, for example 40:3:1")
        return cls(*map(int, text.split(":")))


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition on a number: ``>0.5``, ``<=1``, ``=0``, ``!=0``, ``0..1`` (both ends included), or ``none``."""

    sign: str
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def parse(cls, text: str, what: str) -> Bound:
        """Raises SettingsError, with the ways to write one."""
        if text.strip() == "none":
            return cls("none")
        low, dots, high = text.partition("..")
        found = _BOUND.fullmatch(text.strip())
        try:
            if dots:
                return cls("..", _finite(low), _finite(high))
            if found:
                return cls({None: "=", "==": "="}.get(found[1], found[1]), _finite(found[2]))
        except ValueError:
            pass
        raise SettingsError(f"{what} {text!r} is no condition: write for example '>0.5', '<=1', '=0', '0..1' or none")

    def holds(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each value; a missing one meets only ``none``."""
        if self.sign == "none":
            return pc.is_null(column)
        if self.sign == "..":
            return pc.and_(pc.greater_equal(column, self.low), pc.less_equal(column, self.high))
        return _SIGNS[self.sign](column, self.low)


@dataclass(frozen=True, slots=True)
class Steps:
    """A choice of steps: ``40``, ``30..40``, ``30..``, ``..40`` or ``last``."""

    first: int | None = None
    final: int | None = None
    last: bool = False

    @classmethod
    def parse(cls, text: str) -> Steps:
        """Raises SettingsError, with the ways to write one."""
        if text == "last":
            return cls(last=True)
        found = re.fullmatch(r"([0-9]{0,18})(\.\.)?([0-9]{0,18})", text, re.ASCII)
        if not found or not (found[1] or found[3]) or (found[1] and found[3] and not found[2]):
            raise SettingsError(f"--step {text!r} is no step: write for example 40, 30..40, 30.. or last")
        first = int(found[1]) if found[1] else None
        return cls(first, (int(found[3]) if found[3] else None) if found[2] else first)

    def of(self, there: Sequence[int]) -> list[int]:
        """The chosen ones of the steps that are there. Raises RunError when none is."""
        chosen = [
            s for s in there if (self.first is None or s >= self.first) and (self.final is None or s <= self.final)
        ]
        chosen = chosen[-1:] if self.last else chosen
        if not chosen:
            raise RunError(f"there is no trace of these steps; there are {count(len(there), 'step')}: {spans(there)}")
        return chosen


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions that a rollout must meet, all of them; the order of those that do, the highest first.

    outcomes, finishes: one of these; empty for any.  correct, trained: None for any.  problem: its id, in which ``*``
    stands for anything.  text: a regular expression (RE2) that is found in what the model wrote.
    ``reverse``: the lowest first. Rollouts without the value come last either way.

    Raises SettingsError for a name or a pattern that does not exist.
    """

    steps: Steps = Steps()
    numbers: tuple[tuple[str, Bound], ...] = ()
    outcomes: tuple[str, ...] = ()
    finishes: tuple[str, ...] = ()
    correct: bool | None = None
    trained: bool | None = None
    problem: str = ""
    text: str = ""
    sort: str = "step"
    reverse: bool = False

    def __post_init__(self) -> None:
        _known("--outcome", self.outcomes, [str(outcome) for outcome in Outcome])
        _known("--finish", self.finishes, [str(finish) for finish in Finish])
        _known("--sort", (self.sort,), ORDERS)
        if len(self.text) > _LONGEST_PATTERN:
            raise SettingsError(f"--text: a pattern of {len(self.text):,} characters; at most {_LONGEST_PATTERN:,}")
        try:
            pc.match_substring_regex(pa.array([""]), self.text)
        except pa.ArrowException as error:
            raise SettingsError(
                f"--text {self.text!r} is no regular expression (RE2: no look-around, no references): {error}"
            ) from error

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns beside ``LISTED`` that the conditions need."""
        return tuple(name for name, asked in (("problem", self.problem), ("text", self.text)) if asked)

    def keep(self, table: pa.Table) -> pa.Table:
        """The rows that meet all conditions, with the columns of ``LISTED`` and ``row``."""
        for name, bound in self.numbers:
            table = table.filter(bound.holds(table[name]))
        for name, values in (("outcome", self.outcomes), ("finish", self.finishes)):
            if values:
                table = table.filter(pc.is_in(table[name], pa.array(values)))
        if self.correct is not None:
            table = table.filter(pc.equal(table["correct"], self.correct))
        if self.trained is not None:
            table = table.filter(pc.equal(pc.equal(table["left_out"], ""), self.trained))
        if self.problem:
            table = table.filter(pc.match_substring_regex(table["problem"], _wildcards(self.problem)))
        if self.text:
            table = table.filter(pc.match_substring_regex(table["text"], self.text))
        return table.select([*LISTED, "row"])


@dataclass(frozen=True, slots=True)
class Listing:
    """The rollouts that match, in order: a table of ``LISTED`` and ``row``; among how many, of which steps.

    damaged: what could not be read, in plain words.
    """

    table: pa.Table
    looked_at: int
    steps: tuple[int, ...]
    damaged: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def ids(self, first: int, count: int) -> list[tuple[Id, int]]:
        """Names and row numbers of ``count`` rollouts from number ``first``."""
        part = self.table.slice(first, count)
        columns = (part[name].to_pylist() for name in ("step", "group", "sample", "row"))
        return [(Id(step, group, sample), row) for step, group, sample, row in zip(*columns)]


def look(folder: Path, query: Query) -> Listing:
    """The rollouts in a folder of traces that meet the query.

    Raises RunError when there is no trace of the steps, or no rollout of the problem in them; RunDamaged when no file
    of them can be read.
    """
    chosen = query.steps.of(traces.steps(folder))
    damaged: list[RunDamaged] = []
    seen: list[int] = []

    def keep(table: pa.Table) -> pa.Table:
        seen.append(table.num_rows)
        return query.keep(table)

    found = list(traces.scan(folder, chosen, (*LISTED, *query.reads), keep, damaged.append))
    if damaged and not seen:
        raise damaged[0]
    table = pa.concat_tables(found) if found else _empty()
    if query.problem and not table.num_rows:
        _refuse_unknown_problem(folder, chosen, query.problem)
    return Listing(_ordered(table, query), sum(seen), tuple(chosen), tuple(map(str, damaged)), _facts(table))


def rows_of(
    folder: Path,
    ids: Sequence[tuple[Id, int]],
    columns: Sequence[str] | None,
    missed: Callable[[RunError], None],
) -> list[dict[str, Any]]:
    """The rollouts with these names and row numbers, in their order; ``columns`` None: all.

    What is damaged, or gone since it was listed, is told to ``missed``, once for a file, and left out.
    """
    numbers: dict[int, list[int]] = {}
    for name, row in ids:
        numbers.setdefault(name.step, []).append(row)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for step, rows in numbers.items():
        try:
            found |= {(step, row): content for row, content in zip(rows, traces.fetch(folder, step, rows, columns))}
        except RunError as error:
            missed(error)
    return [found[name.step, row] for name, row in ids if (name.step, row) in found]


def groups_of(folder: Path, step: int, groups: Container[int]) -> list[dict[str, Any]]:
    """All rollouts of these groups of a step, with the listed columns and their text. Raises RunError, RunDamaged."""
    rows = [row for group, _, row in places(folder, step) if group in groups]
    return traces.fetch(folder, step, rows, (*LISTED, "text"))


def whole(folder: Path, wanted: Id) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A rollout with all columns, and its group.

    Raises RunError, with what there is, when there is no such rollout; RunDamaged.
    """
    (content,) = traces.fetch(folder, wanted.step, [find(folder, wanted)])
    return content, groups_of(folder, wanted.step, {wanted.group})


def find(folder: Path, wanted: Id) -> int:
    """The row number of a rollout. Raises RunError, with what there is, when there is none; RunDamaged."""
    there = traces.steps(folder)
    if wanted.step not in there:
        raise RunError(
            f"there is no trace of step {wanted.step}; there are {count(len(there), 'step')}: {spans(there)}"
        )
    groups: dict[int, dict[int, int]] = {}
    for group, sample, row in places(folder, wanted.step):
        groups.setdefault(group, {})[sample] = row
    if wanted.group not in groups:
        raise RunError(f"step {wanted.step} has no group {wanted.group}; its groups: {spans(sorted(groups))}")
    if wanted.sample not in groups[wanted.group]:
        samples = spans(sorted(groups[wanted.group]))
        raise RunError(f"group {wanted.group} of step {wanted.step} has no sample {wanted.sample}; it has {samples}")
    return groups[wanted.group][wanted.sample]


def places(folder: Path, step: int) -> list[tuple[int, int, int]]:
    """(group, sample, row) of every rollout of a step. Raises RunDamaged."""
    damaged: list[RunDamaged] = []
    tables = list(traces.scan(folder, [step], ("group", "sample"), lambda table: table, damaged.append))
    if damaged:
        raise damaged[0]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def spans(numbers: Sequence[int]) -> str:
    """``1..3, 7`` for 1, 2, 3, 7; the middle of a long list is left out."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(a) if a == b else f"{a}..{b}" for a, b in runs]
    return ", ".join(shown if len(shown) < 9 else [*shown[:4], "…", *shown[-3:]])


def count(number: int, noun: str) -> str:
    """``1 step``, ``2,000 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _facts(table: pa.Table) -> dict[str, Any]:
    """What the rollouts have in common: means, and how often each outcome, finish and reason occurs."""
    return {
        "rollouts": table.num_rows,
        "reward": _mean(table["reward"]),
        "advantage": _mean(table["advantage"]),
        "length": _mean(table["length"]),
        "correct": _mean(table["correct"].cast(pa.float64())),
        **{name: _tally(table[name]) for name in ("outcome", "finish", "left_out")},
    }


def _mean(column: pa.ChunkedArray) -> float | None:
    mean: float | None = pc.mean(column).as_py()
    return mean


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    counted = Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()})
    return {name: number for name, number in counted.most_common() if name is not None}


def _ordered(table: pa.Table, query: Query) -> pa.Table:
    keys = [("group", "ascending"), ("sample", "ascending")]
    first = (query.sort, "ascending" if query.reverse else "descending")
    return table.sort_by([first, *([("step", "descending")] if query.sort != "step" else []), *keys])


def _empty() -> pa.Table:
    fields = [traces.SCHEMA.field(name) for name in LISTED]
    return pa.schema([*fields, pa.field("row", pa.int32())]).empty_table()


def _refuse_unknown_problem(folder: Path, steps: Sequence[int], problem: str) -> None:
    """Raises RunError unless some rollout of the steps is of the problem (and fails another condition)."""
    names: set[str] = set()
    for table in traces.scan(folder, steps, ("problem",), lambda table: table, lambda _: None):
        names |= set(table["problem"].unique().to_pylist())
    if pc.any(pc.match_substring_regex(pa.array(sorted(names), pa.string()), _wildcards(problem))).as_py():
        return
    near = get_close_matches(problem, sorted(names), 3, 0.3) or sorted(names)[:3]
    raise RunError(f"no rollout of these steps is of the problem {problem!r}; there are for example: {', '.join(near)}")


def _wildcards(problem: str) -> str:
    """A regular expression for an id in which ``*`` stands for anything."""
    return rf"\A(?s:{'.*'.join(re.escape(part) for part in problem.split('*'))})\z"


def _known(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingsError(f"{option} {name!r}: {hint}there are {', '.join(known)}")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(text)
    return number
