"""Plots of findings: of curves, the mean over the seeds with the range that they span; of models, a point per seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from longthought.evaluation.charts import Column, Panel, Series, dots, strip
from longthought.evaluation.findings_measures import forced_level, mean_of, passed, safely, voted
from longthought.evaluation.findings_measures import level as level_of
from longthought.evaluation.findings_read import Seed, Table, Value
from longthought.evaluation.readings import attempt, optional
from longthought.evaluation.report_data import Estimate

Plot = Callable[[Sequence[Seed]], str]
Points = Callable[[Seed], Mapping[float, float]]

TIMES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Line(NamedTuple):
    """One line of a panel: a curve of every seed."""

    label: str
    points: Points


class Drawn(NamedTuple):
    """A panel: what its axes are called, and its lines."""

    title: str
    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    log2: bool = False


def curves(title: str, *drawn: Drawn) -> Plot:
    """Panels side by side; empty if nothing of it was measured."""

    def plot(seeds: Sequence[Seed]) -> str:
        panels = [_panel(one, seeds) for one in drawn]
        return strip(panels, title) if any(panel.measured for panel in panels) else ""

    return plot


def models(title: str, names: Sequence[str], *columns: tuple[str, str, float], asked: str = "_countdown") -> Plot:
    """A line for each model, a column for each (title, column of the evaluation, factor), and points for the seeds."""

    def plot(seeds: Sequence[Seed]) -> str:
        drawn = [
            Column(head, "%" if scale == 100 else "", tuple(_points(seed, names, asked, name, scale) for seed in seeds))
            for head, name, scale in columns
        ]
        known = any(series.measured for column in drawn for series in column.series)
        return dots(names, drawn, title) if known else ""

    return plot


def logged(name: str, stage: str, scale: float = 1.0) -> Points:
    """A metric of a stage over its steps."""

    def points(seed: Seed) -> dict[float, float]:
        rows = ((row["step"], optional(row.get(name))) for row in seed.metrics(stage))
        return {step: scale * value for step, value in rows if value is not None}

    return points


def played(value: Value, stage: str) -> Points:
    """A value of the rollouts of a stage over its steps."""

    def points(seed: Seed) -> dict[float, float]:
        found = seed.played(stage)
        return {} if found is None else {float(step): mean for step, mean in found.curve(value).items()}

    return points


def passing(stage: str) -> Points:
    """pass@k, in per cent, over k."""
    return partial(_over_times, read=passed, stage=stage)


def voting(stage: str) -> Points:
    """How often the majority of k is right, in per cent, over k."""
    return partial(_over_times, read=voted, stage=stage)


def forced(stage: str, way: str) -> Points:
    """Accuracy, in per cent, over the amount of forcing."""

    def points(seed: Seed) -> dict[float, float]:
        amounts = sorted(amount for known, amount in seed.forced(stage) or {} if known == way)
        found = {amount: forced_level(stage, way, amount, "accuracy")(seed) for amount in amounts}
        return {amount: 100 * one.value for amount, one in found.items() if one is not None}

    return points


def _over_times(seed: Seed, read: Callable[[Table, int], object], stage: str) -> dict[float, float]:
    table = seed.table(stage)
    if table is None:
        return {}
    most = table.values["correct"].shape[1]
    return {k: 100 * mean_of(read(table, k)).value for k in TIMES if k <= most}  # type: ignore[arg-type]


def _panel(drawn: Drawn, seeds: Sequence[Seed]) -> Panel:
    lines = tuple(line for one in drawn.lines if (line := _across(one, seeds)) is not None)
    return Panel(drawn.title, drawn.xlabel, drawn.ylabel, lines, log2=drawn.log2)


def _across(line: Line, seeds: Sequence[Seed]) -> Series | None:
    """The mean over the seeds at every x that all of them have; the band spans them."""
    nothing: Mapping[float, float] = {}
    every = [attempt(f"seed {seed.number}, {line.label}", partial(line.points, seed), nothing) for seed in seeds]
    known = [found for found in every if found]
    if not known:
        return None
    xs = sorted(set.intersection(*(set(found) for found in known)))
    ys = [[found[x] for found in known] for x in xs]
    mean = [sum(values) / len(values) for values in ys]
    if len(known) == 1:
        return Series(line.label, xs, mean)
    return Series(line.label, xs, mean, [min(values) for values in ys], [max(values) for values in ys])


def _points(seed: Seed, names: Sequence[str], asked: str, column: str, scale: float) -> Series:
    found = [safely(level_of(column, f"{name}{asked}"), seed, name) for name in names]
    return _series(f"seed {seed.number}", found, scale)


def _series(label: str, found: Sequence[Estimate | None], scale: float) -> Series:
    def scaled(value: float | None) -> float | None:
        return None if value is None else scale * value

    return Series(
        label,
        list(range(len(found))),
        [None if one is None else scaled(one.value) for one in found],
        [None if one is None else scaled(one.low) for one in found],
        [None if one is None else scaled(one.high) for one in found],
    )
