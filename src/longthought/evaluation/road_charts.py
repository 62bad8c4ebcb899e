"""What is drawn of a road: its models side by side, and how each of them learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from longthought.evaluation.charts import Column, Panel, Series
from longthought.evaluation.headline import shown_parts
from longthought.evaluation.report_data import Curve, Estimate
from longthought.evaluation.road_data import Measurement, Road, Stop

_MOST_PARTS = 5
_IN_A_ROW = 4


class _Drawn(NamedTuple):
    """A panel of one stage: its title, the axis, curves with their labels, and the factor of the values."""

    title: str
    ylabel: str
    curves: tuple[tuple[str, str], ...]
    scale: float = 1.0


_RL: Final = (
    _Drawn("Accuracy", "correct answers (%)", (("accuracy", "all prompts"),), 100.0),
    _Drawn("Length", "tokens per answer", (("length", "all prompts"),)),
    _Drawn("Format and mixing", "answers (%)", (("format_rate", "right format"), ("mixing", "mixed languages")), 100.0),
    _Drawn("Reward", "as trained", (("reward", "all prompts"),)),
)
_LOSSES: Final = (
    _Drawn("", "nats per token", (("nll", "training"), ("held_out_loss", "held out"))),
    _Drawn("", "KL to the teacher (nats)", (("kl", "training"), ("held_out_kl", "held out"))),
    _Drawn("", "judged right (%)", (("accuracy", "training"), ("held_out_accuracy", "held out")), 100.0),
)


def measured_models(road: Road) -> list[str]:
    """The models that were evaluated, in the order in which they were made."""
    made = [stop.name for stop in road.stops]
    names = dict.fromkeys(one.model for one in road.measurements)
    return sorted(names, key=lambda name: made.index(name) if name in made else -1)


def columns(road: Road) -> list[Column]:
    """pass@1, format, mixing and length, over the numbers of the models."""
    return [
        _column(road, "pass@1", "solved (%)", 100.0, lambda one: one.summary.accuracy),
        _column(road, "Right format", "answers (%)", 100.0, lambda one: one.summary.format_rate),
        _column(road, "Mixed languages", "answers (%)", 100.0, lambda one: one.summary.mixing),
        _column(road, "Length", "tokens", 1.0, lambda one: one.summary.length),
    ]


def part_columns(road: Road) -> list[Column]:
    """Further parts of the score."""
    return [
        _column(road, name.capitalize(), "mean", 1.0, partial(_of_part, name))
        for name in shown_parts(road.measurements)[:_MOST_PARTS]
    ]


def _of_part(name: str, one: Measurement) -> Estimate | None:
    return one.summary.parts.get(name)


def _column(
    road: Road, title: str, xlabel: str, scale: float, read: Callable[[Measurement], Estimate | None]
) -> Column:
    return Column(title, xlabel, tuple(_series(road, task, scale, read) for task in road.tasks))


def _series(road: Road, task: str, scale: float, read: Callable[[Measurement], Estimate | None]) -> Series:
    known = [(row, found) for row, name in enumerate(measured_models(road)) if (found := _last(road, name, task, read))]
    value, low, high = (
        (
            [None if number is None else scale * number for number in bound]
            for bound in zip(*((one.value, one.low, one.high) for _, one in known))
        )
        if known
        else ([], [], [])
    )
    return Series(task, [row for row, _ in known], value, low, high)


def _last(road: Road, name: str, task: str, read: Callable[[Measurement], Estimate | None]) -> Estimate | None:
    one = road.measured(name, task)
    return read(one) if one is not None else None


def rl_rows(stop: Stop) -> list[tuple[str, list[Panel]]]:
    """Rows of panels with their titles: how a stage of RL went, parts of its score, and the watch over its rewards."""
    if "reward" not in stop.curves or "length" not in stop.curves:
        return []
    usual = [panel for drawn in _RL if (panel := _panel(stop, _by_task(stop, drawn))).measured]
    return [
        ("", usual),
        *(("Parts of the score", row) for row in _in_rows(_parts(stop))),
        *(("What is paid for, and judgements that are not", row) for row in _in_rows(_looks(stop))),
    ]


def _by_task(stop: Stop, drawn: _Drawn) -> _Drawn:
    """With a line for each task of a mixture, where the panel has one line."""
    if len(drawn.curves) > 1:
        return drawn
    [(name, _)] = drawn.curves
    tasks = ((other, other.partition("/")[2]) for other in stop.curves if other.startswith(f"{name}/"))
    return drawn._replace(curves=(*drawn.curves, *tasks))


def _parts(stop: Stop) -> list[Panel]:
    """Parts of the task's score and summands of the reward; those of single tasks beside the mean of all."""
    whole = [name for name in stop.curves if name.startswith(("part/", "shaping/")) and name.count("/") == 1]
    return [
        _panel(stop, _by_task(stop, _Drawn(name.partition("/")[2], "mean", ((name, "all prompts"),))))
        for name in whole
        if name not in ("part/accuracy", "part/format")
    ]


def _looks(stop: Stop) -> list[Panel]:
    """For each judgement of the watch: it, and what the reward pays for the same replies."""
    names = dict.fromkeys(name.split("/")[1] for name in stop.curves if name.count("/") == 2 and name[:5] == "look/")
    ends = (("proxy", "what is paid"), ("judged", "judgement"))
    drawn = [_Drawn(name, "mean", tuple((f"look/{name}/{end}", label) for end, label in ends)) for name in names]
    return [panel for one in drawn if (panel := _panel(stop, one)).measured]


def _in_rows(panels: list[Panel]) -> list[list[Panel]]:
    return [panels[start : start + _IN_A_ROW] for start in range(0, len(panels), _IN_A_ROW)]


def losses(road: Road) -> list[Panel]:
    """How every other stage learned: the loss in training and on what was held out."""
    found = []
    for stop in road.stops:
        if rl_rows(stop):
            continue
        drawn = next((one for one in reversed(_LOSSES) if _fits(stop, one)), None)
        if drawn is not None:
            found.append(_panel(stop, drawn._replace(title=f"{stop.name}: {stop.what}")))
    return found


def _fits(stop: Stop, drawn: _Drawn) -> bool:
    """What is held out tells which loss a stage has; a stage that holds nothing out has the first kind."""
    first, held = (name for name, _ in drawn.curves)
    return held in stop.curves or (drawn is _LOSSES[0] and first in stop.curves)


def _panel(stop: Stop, drawn: _Drawn) -> Panel:
    lines = [_line(label, stop.curves[name], drawn.scale) for name, label in drawn.curves if name in stop.curves]
    return Panel(drawn.title, "step", drawn.ylabel, tuple(line for line in lines if line.measured))


def _line(label: str, curve: Curve, scale: float) -> Series:
    def scaled(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else scale * value for value in values]

    return Series(label, curve.steps, scaled(curve.values), scaled(curve.low), scaled(curve.high))
