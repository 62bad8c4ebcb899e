"""The sections of a report page that tell of a run of many stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

from longthought.evaluation.charts import Bar, bars, chart, dots, strip
from longthought.evaluation.headline import (
    NOT_MEASURED,
    decimal,
    difference,
    duration,
    facts,
    flops,
    number,
    percent,
    points,
    road_sentence,
    shown_parts,
    with_interval,
)
from longthought.evaluation.page import cell, figure, missing, safe, spoken, table
from longthought.evaluation.report_data import Estimate, ReportData
from longthought.evaluation.road_charts import columns, losses, measured_models, part_columns, rl_rows
from longthought.evaluation.road_data import Gain, Measurement, Road, Stop
from longthought.evaluation.terminal import verdict

_PARTS_READING = "Further parts of the score of the same replies: what the task knows, and may not have paid for."
_RL_READING = (
    "Each point is the mean of one step's rollouts on training prompts; shaded: its 95 % interval. Compare accuracy "
    "with length and mixing: a reward that rises while what it stands for does not is being hacked."
)
_LOSS_READING = "Where the line of what is held out turns up while the other goes on falling, the stage memorises."
_ROAD_READING = (
    "One line for each stage that made something. Gains are over the nearest model before it that was measured, in "
    "points of pass@1, paired by problem, with their 95 % interval: green or red where that leaves out zero. FLOP "
    "counts products with the model's matrices alone: 2 for each number that a token sampled meets, 6 for each that a "
    "token learned from meets; prompts that are read, teachers, references and judges are left out."
)
_MEASURED_READING = (
    "pass@1 is the share of single tries that are right, of problems held out of training. In brackets: the 95 % "
    "interval, clustered by problem. Gains, in points, are over the nearest model before it that was measured "
    "so, and over the first one of its road, paired by problem."
)
_DOTS_READING = (
    "Each point is one model, from top to bottom in the order in which they were made, with its 95 % interval."
)


def road_sections(data: ReportData, road: Road) -> Iterator[tuple[str, str, str]]:
    """(id, title, content) of each section."""
    yield "result", "Result", _result(road)
    yield "road", "The road: what each stage began with, used, cost and gained", _road(road)
    tables = "".join(_measured(road, task) for task in road.tasks)
    reading = f'<p class="reading">{_MEASURED_READING}</p>'
    yield "measured", "What was measured", reading + tables if tables else missing()
    yield "curves", "How reinforcement learning went", _curves(road)
    yield "losses", "How the other stages learned", _losses(road)
    yield "data", "What was kept of what was sampled", _dropped(road)
    yield "transcripts", "The same problems along the road", _transcripts(data, road)


def time_by_stage(road: Road) -> str:
    """Bars of the seconds of every stage."""
    kinds = {"model": "training", "reward model": "training", "measurement": "evaluation", "data": "making data"}
    entries = [
        Bar(kinds.get(s.makes, "other"), s.name, s.seconds) for s in road.stops if s.seconds and isfinite(s.seconds)
    ]
    drawn = bars(entries, "wall-clock time (s)", "Time by stage") if entries else missing()
    return figure(drawn, "Each bar is the wall-clock time of one stage, with its share of the whole.", "wide")


def _result(road: Road) -> str:
    headline = f'<p class="headline">{safe(road_sentence(road))}</p>'
    if not road.measurements:
        return headline + missing()
    models, parts = measured_models(road), part_columns(road)
    drawn = figure(dots(models, columns(road), "Models along the road"), _DOTS_READING, "dots")
    if parts:
        drawn += figure(dots(models, parts, "Parts of the score along the road"), _PARTS_READING, "dots")
    return headline + drawn


def _road(road: Road) -> str:
    head = ("stage", "began with", "used and made", "cost", *road.tasks)
    rows = [_stop(stop, road) for stop in road.stops if stop.makes != "measurement"]
    if not rows:
        return missing()
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="road"><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'</div><p class="reading">{_ROAD_READING}</p>'
    )


def _stop(stop: Stop, road: Road) -> str:
    size = [f"{stop.parameters:,} parameters"] if stop.parameters else []
    state = [] if stop.finished else ["not finished"]
    name = f'<th scope="row">{safe(stop.name)}{_quiet([stop.what, *size, *state])}</th>'
    given = _lines([stop.origin] if stop.origin else []) + _quiet([f"{role}: {what}" for role, what in stop.beside])
    spent = [duration(stop.seconds) if stop.seconds is not None else NOT_MEASURED]
    spent += [flops(stop.flops)] if stop.flops is not None else []
    gained = "".join(_gained(road.measured(stop.name, task)) for task in road.tasks)
    used = f'<td class="used quiet">{safe(" · ".join(facts(stop)))}</td>'
    return f"<tr>{name}<td>{given}</td>{used}<td>{_lines(spent)}</td>{gained}</tr>"


def _gained(one: Measurement | None) -> str:
    if one is None:
        return "<td></td>"
    shown = _lines([with_interval(one.summary.accuracy, percent)])
    return f"<td>{shown}{_signed(one.gain, _accuracy, points)}</td>"


def _accuracy(gain: Gain) -> Estimate:
    return gain.accuracy


def _signed(gain: Gain | None, read: Callable[[Gain], Estimate | None], show: Callable[[Estimate], str]) -> str:
    """A difference, coloured where its interval leaves out zero, and to which model."""
    found = read(gain) if gain is not None else None
    if gain is None or found is None:
        return ""
    way = "quiet"
    if found.low is not None and found.high is not None:
        way = "up" if found.low > 0 else "down" if found.high < 0 else "quiet"
    return f'<div class="{way}">{safe(show(found).replace(" points", ""))} over {safe(gain.against)}</div>'


def _measured(road: Road, task: str) -> str:
    found = [one for one in road.measurements if one.task == task]
    parts = shown_parts(found)
    usual = ("right format", "mixed languages", "tokens", "cut")
    head = ("model", "pass@1", "gain", *usual, *parts, "problems × samples")
    rows = []
    for one in found:
        summary, total = one.summary, one.total
        far = total if total is not None and (one.gain is None or total.against != one.gain.against) else None
        cells = [
            f'<th scope="row">{safe(one.model)}{_quiet([one.stage])}</th>',
            _stacked(summary.accuracy, percent),
            f"<td>{_signed(one.gain, _accuracy, points)}{_signed(far, _accuracy, points)}</td>",
            *(_stacked(share, percent) for share in (summary.format_rate, summary.mixing)),
            _stacked(summary.length, number),
            _stacked(summary.cut, percent),
            *(_part(one, name) for name in parts),
            cell(f"{summary.problems:,} × {summary.samples:,}"),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    return (
        f'<h3>{safe(task)}</h3><div class="scroll"><table class="road numbers"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _stacked(estimate: Estimate | None, show: Callable[[float | None], str], below: str = "") -> str:
    """A value with its interval underneath."""
    value, _, interval = with_interval(estimate, show).partition(" [")
    return f"<td>{_lines([value])}{_quiet([f'[{interval}' if interval else ''])}{below}</td>"


def _part(one: Measurement, name: str) -> str:
    return _stacked(
        one.summary.parts.get(name), decimal, _signed(one.gain, lambda gain: gain.parts.get(name), difference)
    )


def _curves(road: Road) -> str:
    shown = []
    for stop in road.stops:
        rows = rl_rows(stop)
        if not rows:
            continue
        shown.append(f"<h3>{safe(stop.name)}</h3>{_quiet([stop.note])}")
        for title, panels in rows:
            named = f'<p class="chart-title">{safe(title)}</p>' if title else ""
            shown.append(named + figure(strip(panels, f"{stop.name} {title}".strip()), _RL_READING, "strip"))
    return "".join(shown) or missing()


def _losses(road: Road) -> str:
    panels = losses(road)
    drawn = "".join(figure(chart(panel), _LOSS_READING) for panel in panels)
    return f'<div class="charts">{drawn}</div>' if panels else missing()


def _dropped(road: Road) -> str:
    shown = []
    for stop in road.stops:
        if stop.makes != "data":
            continue
        reasons = [(f"{count:,}", reason) for reason, count in stop.dropped]
        counts = "".join(f"<li>{safe(fact)}</li>" for fact in facts(stop))
        lost = f"<p>Not kept:</p>{table(('samples', 'why'), reasons)}" if reasons else ""
        shown.append(f"<h3>{safe(stop.name)}</h3><ul>{counts}</ul>{lost}")
    return "".join(shown) or missing()


def _transcripts(data: ReportData, road: Road) -> str:
    shown = []
    for position, asked in enumerate(road.asked):
        verdicts = " → ".join(verdict(reply) for _, reply in asked.replies)
        sides = "".join(spoken(model, reply, data.rejection_words) for model, reply in asked.replies)
        shown.append(
            f"<details{'' if position else ' open'}><summary>{safe(asked.prompt)} "
            f'<span class="quiet">{safe(asked.task)} · {safe(asked.problem)} · {verdicts}</span></summary>'
            f'<div class="sides">{sides}</div></details>'
        )
    return "".join(shown) or missing()


def _lines(texts: list[str]) -> str:
    return "".join(f"<div>{safe(text)}</div>" for text in texts)


def _quiet(texts: list[str]) -> str:
    return "".join(f'<div class="quiet">{safe(text)}</div>' for text in texts if text)
