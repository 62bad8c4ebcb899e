"""What can be measured of one seed: levels, differences, gains. Each of these makes a function of the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np

from longthought.algorithms.statistics import cluster_bootstrap, majority_at_k, mean_interval, pass_at_k
from longthought.core.errors import SettingsError
from longthought.evaluation.findings_read import Array, Played, Seed, Table, Value
from longthought.evaluation.findings_rules import Measure
from longthought.evaluation.readings import Row, attempt
from longthought.evaluation.report_data import Estimate

_SHARES: Final = ("correct", "mixed", "format", "repeated")


def level(column: str, stage: str) -> Measure:
    """The mean of a column of an evaluation; the interval of a share ends where shares do."""

    def measure(seed: Seed) -> Estimate | None:
        table = seed.table(stage)
        if table is None:
            return None
        mean = mean_of(table.means(column))
        if column not in _SHARES or mean.low is None or mean.high is None:
            return mean
        return Estimate(mean.value, max(0.0, mean.low), min(1.0, mean.high))

    return measure


def paired(column: str, better: str, worse: str) -> Measure:
    """The mean of one evaluation minus that of another, problem by problem."""
    return _paired(lambda table: table.means(column), better, worse)


def pass_gap(k: int, better: str, worse: str) -> Measure:
    """pass@k of one evaluation minus that of another, problem by problem; of the largest k there is, if fewer."""
    return _paired(partial(passed, k=k), better, worse)


def vote_gain(stage: str, k: int) -> Measure:
    """What the majority of k has over a single try, problem by problem."""

    def measure(seed: Seed) -> Estimate | None:
        table = seed.table(stage)
        return None if table is None else mean_of(voted(table, k) - table.means("correct"))

    return measure


def share_of_gain(part: str, whole: str, start: str) -> Measure:
    """Which share of the gain of ``whole`` over ``start`` another model has; None unless there is a gain."""

    def measure(seed: Seed) -> Estimate | None:
        tables = [seed.table(stage) for stage in (start, whole, part)]
        found = [table for table in tables if table is not None]
        if len(found) < len(tables):
            return None
        _check_same(*found)
        values = np.stack([table.means("correct") for table in found], axis=1)
        gain = mean_of(values[:, 1] - values[:, 0])
        if gain.low is None or gain.low <= 0:
            return None
        return Estimate(_share(values), *cluster_bootstrap(values, _share))

    return measure


def early(stage: str, other: str, steps: int | None = None) -> Measure:
    """Accuracy over the first steps of a stage of RL minus that over as many steps of another, on training prompts.

    steps None: all that the shorter one has: the difference of the areas under the curves, by step.
    """

    def measure(seed: Seed) -> Estimate | None:
        one, two = seed.played(stage), seed.played(other)
        if one is None or two is None:
            return None
        ends = [max(played.steps, default=0) for played in (one, two)]
        until = min([*ends, *([] if steps is None else [steps])])
        return apart(*(_groups(played, _correct, 0, until) for played in (one, two)))

    return measure


def growth(stage: str, value: Value, was: tuple[float, float], now: tuple[float, float]) -> Measure:
    """The mean in one stretch of a stage of RL minus that in an earlier one; ends as shares of the steps."""

    def measure(seed: Seed) -> Estimate | None:
        played = seed.played(stage)
        return None if played is None else apart(played.groups(value, *now), played.groups(value, *was))

    return measure


def stretch_gap(value: Value, stage: str, other: str, first: float, last: float) -> Measure:
    """The mean in a stretch of one stage of RL minus that in the same stretch of another."""

    def measure(seed: Seed) -> Estimate | None:
        one, two = seed.played(stage), seed.played(other)
        if one is None or two is None:
            return None
        return apart(one.groups(value, first, last), two.groups(value, first, last))

    return measure


def stretch(value: Value, stage: str, first: float, last: float) -> Measure:
    """The mean in a stretch of a stage of RL."""

    def measure(seed: Seed) -> Estimate | None:
        played = seed.played(stage)
        groups = [] if played is None else played.groups(value, first, last)
        return mean_of(np.array(groups)) if len(groups) > 1 else None

    return measure


def forced_gap(stage: str, way: str, more: int | None, less: int) -> Measure:
    """Accuracy under one amount of forcing minus that under another, problem by problem; more None: the largest."""

    def measure(seed: Seed) -> Estimate | None:
        found = seed.forced(stage)
        amounts = sorted(amount for known, amount in found or {} if known == way)
        top = max(amounts, default=less) if more is None else more
        if found is None or top not in amounts or less not in amounts or top == less:
            return None
        return mean_of(found[way, top]["means"] - found[way, less]["means"])

    return measure


def forced_apart(stage: str, way: str, other: str, amount: int) -> Measure:
    """Accuracy under one way of forcing minus that under another, as often, problem by problem."""

    def measure(seed: Seed) -> Estimate | None:
        found = seed.forced(stage) or {}
        ends = [found.get((one, amount)) for one in (way, other)]
        known = [end["means"] for end in ends if end is not None]
        return mean_of(known[0] - known[1]) if len(known) == len(ends) else None

    return measure


def forced_level(stage: str, way: str, amount: int, what: str) -> Measure:
    """``accuracy``, ``tokens`` or ``touched`` under one amount of forcing."""

    def measure(seed: Seed) -> Estimate | None:
        found = (seed.forced(stage) or {}).get((way, amount))
        if found is None:
            return None
        value = found[what]
        return value if isinstance(value, Estimate) else Estimate(float(value))

    return measure


def tokens_sampled(*stages: str) -> Measure:
    """Tokens that stages of RL have sampled together."""

    def measure(seed: Seed) -> Estimate | None:
        every = [seed.played(stage) for stage in stages]
        known = [played for played in every if played is not None]
        if len(known) < len(every):
            return None
        return Estimate(float(sum(row["length"] for played in known for row in played.rows)))

    return measure


def passed(table: Table, k: int) -> Array:
    """(P,) pass@k of every problem; of all samples where there are fewer than k."""
    right = table.values["correct"]
    n = right.shape[1]
    return np.array([pass_at_k(n, int(c), min(k, n)) for c in right.sum(axis=1)])


@lru_cache(maxsize=64)
def _voted(answers: tuple[tuple[str | None, ...], ...], right: tuple[tuple[bool, ...], ...], k: int) -> Array:
    return np.array([majority_at_k(given, row, k) for given, row in zip(answers, right, strict=True)])


def voted(table: Table, k: int) -> Array:
    """(P,) How often the majority of k answers is right."""
    right = tuple(tuple(map(bool, row)) for row in table.values["correct"].tolist())
    return _voted(table.answers, right, min(k, table.values["correct"].shape[1]))


def length_of(correct: bool) -> Value:
    """Tokens of the replies that are right, or of those that are wrong."""
    return lambda row: float(row["length"]) if row["correct"] is correct else None


def shaping(name: str) -> Value:
    """A summand of the reward beside the task's."""
    return lambda row: dict(row["shaping"]).get(name)


def score_part(name: str) -> Value:
    """A part of the task's score."""
    return lambda row: dict(row["parts"]).get(name)


def mean_of(values: Array) -> Estimate:
    """The mean with its interval; without one for fewer than two values."""
    if len(values) < 2:
        return Estimate(float(values.mean()))
    return Estimate(float(values.mean()), *mean_interval([[float(value)] for value in values]))


def apart(now: Sequence[float], was: Sequence[float]) -> Estimate | None:
    """The difference of two means of independent values; None unless there are two of each."""
    if len(now) < 2 or len(was) < 2:
        return None
    ends = [mean_of(np.array(values)) for values in (now, was)]
    reach = math.hypot(*(one.value - one.low for one in ends if one.low is not None))
    gap = ends[0].value - ends[1].value
    return Estimate(gap, gap - reach, gap + reach)


def safely(measure: Measure, seed: Seed, label: str) -> Estimate | None:
    """What is measured; None, with a warning, where what it reads is damaged or not as this asks for."""
    found: Estimate | None = attempt(f"seed {seed.number}, {label}", partial(measure, seed), None)
    return found


def _paired(read: Callable[[Table], Array], better: str, worse: str) -> Measure:
    def measure(seed: Seed) -> Estimate | None:
        one, two = seed.table(better), seed.table(worse)
        if one is None or two is None:
            return None
        _check_same(one, two)
        return mean_of(read(one) - read(two))

    return measure


def _check_same(*tables: Table) -> None:
    if any(table.problems != tables[0].problems for table in tables):
        raise SettingsError("two evaluations can be compared only on the same problems in the same order")


def _share(values: Any) -> float:
    """(P, 3) of start, whole and part."""
    start, whole, part = values.mean(axis=0)
    return float((part - start) / (whole - start)) if whole > start else math.inf


def _groups(played: Played, value: Value, after: int, until: int) -> list[float]:
    end = max(played.steps, default=1)
    return played.groups(value, after / end, until / end)


def _correct(row: Row) -> float:
    return float(row["correct"])
