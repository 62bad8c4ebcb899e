"""A run of many stages for a terminal: what each stage took, and what the models can do.

Gains are over the nearest model before, on the road of each, that was measured so.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longthought.evaluation.headline import (
    brief,
    decimal,
    difference,
    duration,
    number,
    percent,
    points,
    printable,
    shown_parts,
    with_interval,
)
from longthought.evaluation.report_data import Estimate
from longthought.evaluation.road_data import Measurement, Road, Stop


def road_tables(road: Road) -> RenderableType:
    """The road, and a table of models for each task. In nothing that was read any markup acts."""
    return Group(_road(road), *(table for task in road.tasks for table in _measured(road, task)))


def _road(road: Road) -> Table:
    table = _table("The road", ("stage", "began with", "used and made", "time"))
    for stop in road.stops:
        if stop.makes != "measurement":
            table.add_row(*map(_text, _cells(stop)))
    return table


def _cells(stop: Stop) -> tuple[str, str, str, str]:
    given = [stop.origin, *(f"{role}: {name}" for role, name in stop.beside)]
    state = "" if stop.finished else "\nnot finished"
    spent = duration(stop.seconds) if stop.seconds is not None else ""
    name = f"{stop.name}\n{stop.what}{state}"
    return name, "\n".join(filter(None, given)), brief(stop), spent


def _measured(road: Road, task: str) -> Iterator[Table]:
    found = [one for one in road.measurements if one.task == task]
    table = _table(task, ("model", "pass@1", "gain, points", "format", "mixed", "tokens"))
    for one in found:
        table.add_row(*map(_text, _numbers(one)))
    yield table
    parts = shown_parts(found)
    if parts:
        table = _table(f"{task}: parts of the score", ("model", *parts))
        for one in found:
            table.add_row(*map(_text, (one.model, *(_part(one, name) for name in parts))))
        yield table


def _numbers(one: Measurement) -> tuple[str, ...]:
    summary = one.summary
    gain = points(one.gain.accuracy).replace(" points", "") if one.gain is not None else ""
    shares = (percent(share.value) if share is not None else "" for share in (summary.format_rate, summary.mixing))
    length = number(summary.length.value) if summary.length is not None else ""
    return (one.model, with_interval(summary.accuracy, percent), gain, *shares, length)


def _part(one: Measurement, name: str) -> str:
    """``0.75 (+0.60)``: the mean, and the gain over the model before."""
    value = one.summary.parts.get(name)
    gain = one.gain.parts.get(name) if one.gain is not None else None
    shown = decimal(value.value) if value is not None else ""
    return f"{shown} ({difference(Estimate(gain.value))})" if gain is not None else shown


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=_text(title), title_justify="left", box=SIMPLE_HEAD)
    for name in names:
        table.add_column(_text(name))
    return table


def _text(text: str) -> Text:
    return Text(printable(text))
