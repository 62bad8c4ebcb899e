"""The report for a terminal: the same headline, curves as blocks, pass@k, two transcripts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from longthought.evaluation.behaviours import occurrences, reasoning_of
from longthought.evaluation.headline import (
    NOT_MEASURED,
    number,
    percent,
    printable,
    rows,
    sentence,
    with_interval,
)
from longthought.evaluation.report_data import CURVE_NAMES, Curve, EvaluationSummary, Reply, ReportData
from longthought.evaluation.road_terminal import road_tables

__all__ = ["BLOCKS", "marked", "printable", "sparkline", "terminal_summary", "verdict"]

BLOCKS = "▁▂▃▄▅▆▇█"
_TRANSCRIPTS = 2
_LONGEST_REPLY = 1200
_WIDTH = 32


def terminal_summary(data: ReportData) -> RenderableType:
    """What rich prints at the end of a run. In model output no markup and no control character acts."""
    head = Text(printable(data.title), style="bold"), Text(printable(sentence(data))), Text()
    if data.road is not None:
        return Group(*head, road_tables(data.road))
    return Group(
        *head,
        _headline(data),
        _curves(data),
        _pass_at_k(data),
        *_transcripts(data),
    )


def sparkline(values: Sequence[float | None], width: int = _WIDTH) -> str:
    """One block per bin of steps, from the least to the greatest value; a bin without a value is a space."""
    bins = [_mean(values[start:end]) for start, end in _cuts(len(values), width)]
    known = [value for value in bins if value is not None]
    if not known:
        return ""
    least, span = min(known), max(known) - min(known)
    return "".join(" " if value is None else _block(value, least, span) for value in bins)


def marked(text: str, words: frozenset[str]) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is one of the words *in the reasoning*; the pieces join to the text."""
    pieces, position = [], 0
    for start, end, _ in occurrences(reasoning_of(text), words):
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    return [*pieces, (text[position:], False)]


def verdict(reply: Reply) -> str:
    """``correct``, ``wrong`` or ``not graded``."""
    return "not graded" if reply.correct is None else "correct" if reply.correct else "wrong"


def _headline(data: ReportData) -> Table:
    table = Table(title="Result", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "base", "trained", "change"):
        table.add_column(name)
    for row in rows(data):
        table.add_row(*(Text(cell or "") for cell in (row.label, row.base, row.trained, row.change)))
    return table


def _curves(data: ReportData) -> RenderableType:
    names = [*CURVE_NAMES, *sorted(set(data.curves) - set(CURVE_NAMES))]
    table = Table(title="Over the RL steps", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "first", "", "last"):
        table.add_column(name)
    for name in names:
        table.add_row(*(Text(cell) for cell in _curve_cells(name, data.curves.get(name))))
    return table


def _curve_cells(name: str, curve: Curve | None) -> tuple[str, str, str, str]:
    label = printable(name).replace("_", " ")
    known = [] if curve is None else [v for v in curve.values if v is not None and math.isfinite(v)]
    if curve is None or not known:
        return label, NOT_MEASURED, "", ""
    return label, number(known[0]), sparkline(curve.values), number(known[-1])


def _pass_at_k(data: ReportData) -> RenderableType:
    models = [("base", data.base), ("trained", data.trained)]
    ks = sorted({k for _, model in models if model is not None for k, _ in model.pass_at_k})
    if not ks:
        return Text(f"pass@k: {NOT_MEASURED}")
    table = Table(title="pass@k", title_justify="left", box=SIMPLE_HEAD)
    for name in ("k", *(name for name, _ in models)):
        table.add_column(name)
    for k in ks:
        table.add_row(str(k), *(Text(_at(model, k)) for _, model in models))
    return table


def _at(model: EvaluationSummary | None, k: int) -> str:
    return with_interval(dict(model.pass_at_k).get(k) if model is not None else None, percent)


def _transcripts(data: ReportData) -> list[RenderableType]:
    if not data.transcripts:
        return [Text(f"Transcripts: {NOT_MEASURED}")]
    shown: list[RenderableType] = []
    for transcript in data.transcripts[:_TRANSCRIPTS]:
        body = Text(printable(transcript.prompt), style="bold")
        for name, reply in (("base", transcript.before), ("trained", transcript.after)):
            body.append(f"\n\n{name}: ", style="bold")
            body.append_text(_reply(reply, data.rejection_words))
        shown.append(Panel(body, title=Text(printable(transcript.problem)), title_align="left"))
    return shown


def _reply(reply: Reply | None, words: frozenset[str]) -> Text:
    if reply is None:
        return Text(NOT_MEASURED)
    colour = {True: "green", False: "red", None: "yellow"}[reply.correct]
    text = Text(f"{verdict(reply)}", style=colour)
    text.append(f" · {reply.tokens:,} tokens · {printable(reply.finish)} · {printable(reply.evidence)}\n", style="dim")
    left = _LONGEST_REPLY
    for piece, rejected in marked(printable(reply.text), words):
        text.append(piece[:left], style="bold magenta" if rejected else "default")
        left = max(0, left - len(piece))
    if len(reply.text) > _LONGEST_REPLY:
        text.append(f" … ({len(reply.text) - _LONGEST_REPLY:,} more characters)", style="dim")
    return text


def _cuts(length: int, width: int) -> list[tuple[int, int]]:
    bins = min(length, width)
    return [(i * length // bins, (i + 1) * length // bins) for i in range(bins)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _block(value: float, least: float, span: float) -> str:
    return BLOCKS[round((value - least) / span * (len(BLOCKS) - 1))] if span > 0 else BLOCKS[0]
