"""Findings as JSON, as Markdown, as a page that opens offline, and as a table for the terminal."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from longthought.evaluation.findings_rules import RULE, Measured, Result, Unit
from longthought.evaluation.page import PAGE, figure, missing, safe
from longthought.evaluation.report_data import Estimate
from longthought.runs.files import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

JSON, MARKDOWN, HTML = "findings.json", "findings.md", "findings.html"
_MISSING: Final = "not measured"
_COLOUR: Final = {"reproduced": "green", "reproduced in part": "yellow", "opposite": "red"}
_ENLARGED: Final = 1.8  # pixels for each point of a plot
_TITLE: Final = "The papers' findings at laptop scale"


def write(results: Sequence[Result], folder: Path) -> None:
    """``findings.json``, ``findings.md`` and ``findings.html``. Equal results give equal bytes."""
    for name, text in ((JSON, as_json(results)), (MARKDOWN, markdown(results)), (HTML, page(results))):
        write_atomic(folder / name, text.encode())


def as_json(results: Sequence[Result]) -> str:
    """Everything but the plots."""
    content = {"rule": RULE, "findings": [_plain(result) for result in results]}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def markdown(results: Sequence[Result]) -> str:
    """A table of verdicts, then a section for every finding."""
    lines = [f"# {_TITLE}", "", RULE, "", "| | finding | verdict |", "|---|---|---|"]
    lines += [f"| {one.key} | {one.title} | {one.verdict} |" for one in results]
    for one in results:
        lines += ["", f"## {one.key}. {one.title}: {one.verdict}", "", one.paper, ""]
        lines += _markdown_table(one)
    return "\n".join(lines) + "\n"


def page(results: Sequence[Result]) -> str:
    """One HTML file that loads nothing."""
    links = "".join(f'<a href="#{one.key}">{safe(one.key)}</a>' for one in results)
    rows = "".join(
        f'<tr><th scope="row">{safe(one.key)}</th><td><a href="#{one.key}">{safe(one.title)}</a></td>'
        f"{_verdict(one.verdict)}</tr>"
        for one in results
    )
    body = f"<p>{safe(RULE)}</p>" + _table(("", "finding", "verdict"), rows) + "".join(map(_section, results))
    told = Counter(one.verdict for one in results)
    task = f'<p class="task">{safe(", ".join(f"{count} {verdict}" for verdict, count in told.most_common()))}</p>'
    return PAGE.substitute(title=safe(_TITLE), task=task, links=links, body=body)


def terminal(results: Sequence[Result]) -> Table:
    """Finding, what the paper says, what was measured, verdict."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=_TITLE, show_lines=True, expand=False)
    for head in ("finding", "the paper", "measured, per seed [95 %]", "verdict"):
        table.add_column(head, overflow="fold")
    for one in results:
        measured = "\n".join(f"{claim.label}: {_seeds(claim)}{_aside(claim, one)}" for claim in one.claims)
        verdict = Text(one.verdict, style=_COLOUR.get(one.verdict, ""))
        table.add_row(Text(f"{one.key}. {one.title}"), Text(one.paper), Text(measured), verdict)
    return table


def shown(estimate: Estimate | None, unit: Unit, sign: bool = True) -> str:
    """``+3.2 [1.0, 5.4] points``; ``48.4 [45.1, 51.7] %``; sign: a plus before what is positive."""
    if estimate is None or not math.isfinite(estimate.value):
        return _MISSING
    scale = 100.0 if unit in ("points", "percent") else 1.0
    name = {"points": " points", "percent": " %", "tokens": " tokens"}.get(unit, "")
    value = _written(scale * estimate.value, unit, sign and unit != "ratio")
    if estimate.low is None or estimate.high is None:
        return value + name
    low, high = (_written(scale * bound, unit, sign and unit != "ratio") for bound in (estimate.low, estimate.high))
    return f"{value} [{low}, {high}]{name}"


def _written(value: float, unit: Unit, sign: bool) -> str:
    digits = 2 if unit in ("number", "ratio") else 0 if abs(value) >= 1000 else 1
    text = f"{value:,.{digits}f}".replace("-", "−")
    return f"+{text}" if sign and value > 0 else text


def _seeds(one: Measured) -> str:
    told = [shown(estimate, one.unit, one.verdict is not None) for estimate in one.by_seed.values()]
    return "; ".join(told) or _MISSING


def _aside(claim: Measured, result: Result) -> str:
    return f" ({claim.verdict})" if claim.verdict != result.verdict else ""


def _cells(result: Result) -> tuple[list[int], list[tuple[list[str], str]]]:
    """Seeds, and for every quantity the cells of its row with the verdict."""
    every = (*result.claims, *result.beside)
    seeds = sorted({seed for one in every for seed in one.by_seed})
    rows: list[tuple[list[str], str]] = []
    for one in every:
        values = [shown(one.by_seed.get(seed), one.unit, one.verdict is not None) for seed in seeds]
        above = f" > {shown(Estimate(one.threshold), one.unit)}" if one.threshold else ""
        rows.append(([one.label + above, *values], one.verdict or ""))
    return seeds, rows


def _markdown_table(result: Result) -> list[str]:
    seeds, rows = _cells(result)
    head = ["claim, or beside it", *(f"seed {seed}" for seed in seeds), "verdict"]
    lines = [head, ["---"] * len(head), *([*cells, verdict] for cells, verdict in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _section(result: Result) -> str:
    seeds, rows = _cells(result)
    body = "".join(
        f'<tr><th scope="row">{safe(cells[0])}</th>'
        + "".join(f'<td class="{"quiet" if text == _MISSING else ""}">{safe(text)}</td>' for text in cells[1:])
        + _verdict(verdict)
        + "</tr>"
        for cells, verdict in rows
    )
    drawn = _drawn(result) if result.plot else missing()
    return (
        f'<section id="{safe(result.key)}"><h2>{safe(result.key)}. {safe(result.title)}: {safe(result.verdict)}</h2>'
        f"<p>{safe(result.paper)}</p>{_table(('claim, or beside it', *(f'seed {s}' for s in seeds), 'verdict'), body)}"
        f"{drawn}</section>\n"
    )


def _drawn(result: Result) -> str:
    """The plot, all of them in one size of letters however many panels they have."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ', result.plot)
    width = f' style="max-width: {_ENLARGED * float(box[1]):.0f}px"' if box else ""
    return f"<div{width}>{figure(result.plot, result.reading, 'strip')}</div>"


def _table(head: Sequence[str], rows: str) -> str:
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _verdict(verdict: str) -> str:
    colour = {"reproduced": "right", "opposite": "wrong"}.get(verdict, "")
    return f'<td class="{colour}">{safe(verdict)}</td>'


def _plain(result: Result) -> dict[str, Any]:
    def one(measured: Measured) -> dict[str, Any]:
        told: dict[str, Any] = {"label": measured.label, "unit": measured.unit}
        if measured.verdict is not None:
            told |= {"threshold": measured.threshold, "verdict": measured.verdict}
        seeds = {
            str(seed): {"value": _finite(e.value), "low": _finite(e.low), "high": _finite(e.high)}
            for seed, e in measured.by_seed.items()
        }
        return told | {"by_seed": seeds}

    return {
        "key": result.key,
        "title": result.title,
        "paper": result.paper,
        "verdict": result.verdict,
        "claims": [one(claim) for claim in result.claims],
        "beside": [one(quantity) for quantity in result.beside],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
