"""The report of a run: one HTML file that opens offline and shows nothing that was not measured.

The page holds its style and its charts, loads nothing, and runs nothing: every string that comes from a model or a
setting is escaped, and a content security policy forbids scripts in case one were not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from longthought.evaluation.charts import SMOOTHING, Bar, bars, chart, dots_picture, picture_svg
from longthought.evaluation.curves import (
    RESULTS,
    CurvePanel,
    other_curves,
    pass_at_k,
    picture_panels,
    specialist_curves,
)
from longthought.evaluation.headline import NOT_MEASURED, number, percent, rows, sentence, with_interval
from longthought.evaluation.page import PAGE, cell, figure, missing, safe, spoken, table
from longthought.evaluation.report_data import (
    Curve,
    DocumentKind,
    Estimate,
    EvaluationSummary,
    GateCheck,
    Reply,
    ReportData,
    TimePart,
    Transcript,
)
from longthought.evaluation.road_charts import columns, measured_models
from longthought.evaluation.road_page import road_sections, time_by_stage
from longthought.evaluation.terminal import terminal_summary, verdict

__all__ = [
    "Curve",
    "DocumentKind",
    "Estimate",
    "EvaluationSummary",
    "GateCheck",
    "Reply",
    "ReportData",
    "TimePart",
    "Transcript",
    "picture",
    "terminal_summary",
    "write_report",
]

_OPEN_TRANSCRIPTS = 2


def write_report(data: ReportData, path: Path) -> None:
    """Write the report to ``path``; a reader never sees half a file. Equal data gives equal bytes."""
    sections = _sections(data)
    links = "".join(f'<a href="#{name}">{safe(title)}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{i}. {safe(title)}</h2>\n{content}</section>\n'
        for i, (name, title, content) in enumerate(sections, 1)
    )
    task = f'<p class="task">{safe(data.task)}</p>' if data.task else ""
    page = PAGE.substitute(title=safe(data.title), task=task, links=links, body=body)
    _write(path, page)


def _sections(data: ReportData) -> tuple[tuple[str, str, str], ...]:
    """(id, title, content) of each."""
    settings = ("settings", "Settings, and how to run it again", _settings(data))
    seen = ("seen", "What the base had seen", _seen(data))
    if data.road is not None:
        time = ("time", "Where the time went", time_by_stage(data.road) + _machine(data))
        return (*road_sections(data, data.road), *((seen,) if data.seen else ()), time, settings)
    return (
        ("result", "Result", _result(data)),
        ("curves", "While it learned", _curves(data)),
        ("pass-at-k", "pass@k: what it can do with more tries", _pass_at_k(data)),
        ("transcripts", "Answers before and after", _transcripts(data)),
        *((seen,) if data.own_base else ()),
        ("time", "Where the time went", _time(data)),
        settings,
    )


def picture(data: ReportData, path: Path) -> None:
    """Write accuracy, length, rejected attempts and pass@k, side by side, to an SVG file; of a road, all its models."""
    if data.road is not None and data.road.measurements:
        _write(path, dots_picture(measured_models(data.road), columns(data.road)))
        return
    _write(path, picture_svg(picture_panels(data)))


def _result(data: ReportData) -> str:
    body = []
    for row in rows(data):
        cells = [row.base, row.trained, row.change]
        merged = row.trained is None and row.change is None
        shown = f'<td colspan="3">{safe(row.base)}</td>' if merged else "".join(cell(text or "") for text in cells)
        body.append(f'<tr><th scope="row">{safe(row.label)}</th>{shown}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "base", "trained", "change"))
    note = (
        "pass@1 is the share of single tries that are right. In brackets: the 95 % interval. All numbers of this table "
        "are from problems that were held out of training."
    )
    numbers = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    headline = f'<p class="headline">{safe(sentence(data))}</p>'
    return f'{headline}<div class="scroll">{numbers}</div><p class="reading">{note}</p>'


def _curves(data: ReportData) -> str:
    introduction = (
        f"Shaded: the 95 % interval of each step. In long runs the faint line is each step, the heavy one the mean of "
        f"{SMOOTHING} neighbouring steps. Diamonds: the test problems, with their 95 % interval."
    )
    for_all = "".join(_curve(panel, data) for panel in RESULTS)
    special = "".join(_curve(panel, data) for panel in (*specialist_curves(data), *other_curves(data)))
    return (
        f'<p class="reading">{introduction}</p><div class="charts">{for_all}</div>'
        f"<details><summary>For the specialist: KL, clipping, gradient, log-probabilities</summary>"
        f'<div class="charts">{special}</div></details>'
    )


def _curve(panel: CurvePanel, data: ReportData) -> str:
    drawn = panel.panel(data)
    if drawn.measured:
        return figure(chart(drawn), panel.reading)
    return figure(f'<p class="chart-title">{safe(panel.title)}</p>{missing()}', panel.reading)


def _pass_at_k(data: ReportData) -> str:
    drawn = pass_at_k(data)
    reading = (
        "pass@k is the chance that at least one of k tries is right. Where the lines meet, training only made "
        "likelier what the base could already find; where the trained line is above, it solves more in k tries."
    )
    models = [dict(model.pass_at_k) if model is not None else {} for model in (data.base, data.trained)]
    ks = sorted(set(models[0]) | set(models[1]))
    rungs = [(f"{k}", *(with_interval(model.get(k), percent) for model in models)) for k in ks]
    drawing = figure(chart(drawn) if drawn.measured else missing(), reading)
    return f'<div class="charts">{drawing}<div>{table(("k", "base", "trained"), rungs, kind="numbers")}</div></div>'


def _transcripts(data: ReportData) -> str:
    if not data.transcripts:
        return missing()
    shown = []
    for position, transcript in enumerate(data.transcripts):
        replies = (("base", transcript.before), ("trained", transcript.after))
        verdicts = " → ".join(NOT_MEASURED if reply is None else verdict(reply) for _, reply in replies)
        sides = "".join(spoken(name, reply, data.rejection_words) for name, reply in replies)
        shown.append(
            f"<details{' open' if position < _OPEN_TRANSCRIPTS else ''}><summary>{safe(transcript.prompt)} "
            f'<span class="quiet">{safe(transcript.problem)} · {verdicts}</span></summary>'
            f'<div class="sides">{sides}</div></details>'
        )
    note = "The same problems before and after training. Marked words reject an attempt of the model's own."
    return f'<p class="reading">{note}</p>{"".join(shown)}'


def _seen(data: ReportData) -> str:
    paragraphs = "".join(f"<p>{safe(part.strip())}</p>" for part in data.seen.split("\n\n") if part.strip())
    kinds = [(kind.name, percent(kind.share), kind.example) for kind in data.document_kinds]
    checks = [
        (c.check, number(c.measured), c.needed, {True: "yes", False: "no", None: NOT_MEASURED}[c.passed])
        for c in data.gate
    ]
    return (
        f"{paragraphs or missing()}<h3>Documents of the corpus</h3>"
        f"{table(('kind', 'share', 'example'), kinds, kind='examples')}<h3>Readiness gate</h3>"
        '<p class="reading">What a base must be able to do before RL with rule rewards can teach it anything.</p>'
        f"{table(('check', 'measured', 'needed', 'passed'), checks)}"
    )


def _time(data: ReportData) -> str:
    entries = [Bar(part.stage, f"{part.stage} · {part.part}", part.seconds) for part in data.time_parts]
    drawn = bars(entries, "wall-clock time (s)", "Time by stage and part") if entries else missing()
    reading = "Each bar is the wall-clock time of one part, with its share of the whole."
    speeds = [(what, number(speed)) for what, speed in data.speeds]
    return f"{figure(drawn, reading, 'wide')}<h3>Speed</h3>{table(('', 'tokens per second'), speeds)}{_machine(data)}"


def _machine(data: ReportData) -> str:
    return (
        f"<h3>Machine</h3>{table(('', ''), sorted(data.machine.items()))}"
        f"<h3>Versions</h3>{table(('', ''), sorted(data.versions.items()))}"
    )


def _settings(data: ReportData) -> str:
    command = f"<pre>{safe(data.command)}</pre>" if data.command else missing()
    settings = table(("setting", "value"), sorted(flatten(data.settings)), kind="settings")
    return f"<h3>Command</h3>{command}<h3>Settings</h3>{settings}"


def flatten(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of nested mappings and dataclasses: ``{"rl": {"lr": 0.1}}`` → ``[("rl.lr", "0.1")]``."""
    flat: list[tuple[str, str]] = []
    for name, value in settings.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = {type(value).__name__: {f.name: getattr(value, f.name) for f in fields(value)}}
        if isinstance(value, Mapping) and value:
            flat += flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", _plain(value)))
    return flat


def _plain(value: object) -> str:
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(map(str, value)))  # the order of a set differs between processes
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
