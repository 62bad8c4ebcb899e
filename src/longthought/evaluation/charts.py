"""Charts as SVG text: the same bytes for the same numbers, readable on a light and on a dark page.

Text and axes take the colour of the page (``currentColor``); the colours of the data have enough contrast on both. Text
stays text, so that a chart is small, searchable, and needs no font of its own.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longthought.evaluation.headline import duration, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#3a86c8", "#d9772b", "#2e9d72", "#b05aa0", "#8c8f5a", "#7d8590")
SMOOTHING = 9
INK = "#010203"  # replaced by the colour of the page
_MOST_POINTS = 400
_FEW = 20
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
HOUSE_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longthought",
    "svg.image_inline": True,
    "text.parse_math": False,  # a label may hold a dollar sign
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the layout is the same on every machine
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "path.simplify": True,
}

Numbers = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One line with an optional band, or points with error bars. ``None`` leaves a gap."""

    label: str
    x: Sequence[float]
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()

    @property
    def measured(self) -> bool:
        """Whether there is any value to draw."""
        return any(value is not None and math.isfinite(value) for value in self.y)


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. ``log2``: the x axis counts doublings and names every x of the first line."""

    title: str
    xlabel: str
    ylabel: str
    lines: tuple[Series, ...] = ()
    points: tuple[Series, ...] = ()
    log2: bool = False

    @property
    def measured(self) -> bool:
        """Whether there is any value to draw."""
        return any(series.measured for series in (*self.lines, *self.points))


@dataclass(frozen=True, slots=True)
class Column:
    """One measure of many things that stand below each other: series over their numbers, each with its intervals."""

    title: str
    xlabel: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; bars of one group share a colour and an entry in the legend."""

    group: str
    label: str
    value: float


def line_with_band(
    x: Sequence[float],
    series: Sequence[tuple[str, Numbers, Numbers, Numbers]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> str:
    """Inline SVG of lines over a common x; each series is (label, y, low, high), with empty bounds for no band."""
    lines = tuple(Series(label, x, y, low, high) for label, y, low, high in series)
    return chart(Panel(title, xlabel, ylabel, lines))


def pass_at_k_chart(series: Sequence[Series], title: str = "pass@k") -> str:
    """Inline SVG of pass@k (in per cent) over k = 1, 2, 4 … on an axis of doublings."""
    return chart(pass_at_k_panel(series, title))


def pass_at_k_panel(series: Sequence[Series], title: str) -> Panel:
    """The panel of ``pass_at_k_chart``."""
    return Panel(title, "k (tries per problem)", "solved problems (%)", tuple(series), log2=True)


def chart(panel: Panel) -> str:
    """Inline SVG of one panel, as wide as the element that holds it."""
    return _inline(_panels([panel], (5.4, 3.1)), panel.title)


def strip(panels: Sequence[Panel], title: str) -> str:
    """Inline SVG of panels side by side."""
    return _inline(_panels(panels, (3.2 * len(panels), 2.5)), title)


def dots(names: Sequence[str], columns: Sequence[Column], title: str) -> str:
    """Inline SVG: a line for every name, from top to bottom; a column of points with intervals for every measure."""
    return _inline(_dots(names, columns, transparent=True), title)


def dots_picture(names: Sequence[str], columns: Sequence[Column]) -> str:
    """The same as a stand-alone SVG file on white."""
    svg = _dots(names, columns, transparent=False)
    return svg[svg.index("<svg") :].replace(INK, "#24292f")


def bars(entries: Sequence[Bar], xlabel: str, title: str) -> str:
    """Inline SVG of horizontal bars in the given order, each with its value and its share of the sum."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        groups = list(dict.fromkeys(entry.group for entry in entries))
        total = sum(entry.value for entry in entries) or 1.0
        for row, entry in enumerate(entries):
            colour = PALETTE[groups.index(entry.group) % len(PALETTE)]
            first = all(earlier.group != entry.group for earlier in entries[:row])
            axes.barh(row, entry.value, color=colour, height=0.7, label=_short(entry.group) if first else None)
            text = f"{duration(entry.value)} · {100 * entry.value / total:.0f} %"
            axes.annotate(text, (entry.value, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(entries)), [_short(entry.label) for entry in entries])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        axes.set_title(title)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(groups))

    return _inline(_render(draw, (8.6, 1.1 + 0.3 * len(entries)), transparent=True), title)


def picture_svg(panels: Sequence[Panel], width: float = 12.4, height: float = 3.0) -> str:
    """A stand-alone SVG file with the panels side by side on white, in inches. Empty panels say so."""
    svg = _panels(panels, (width, height), transparent=False)
    return svg[svg.index("<svg") :].replace(INK, "#24292f")


def _panels(panels: Sequence[Panel], size: tuple[float, float], transparent: bool = True) -> str:
    def draw(figure: Figure) -> None:
        for position, panel in enumerate(panels):
            _draw(figure.add_subplot(1, len(panels), position + 1), panel)

    return _render(draw, size, transparent)


def _dots(names: Sequence[str], columns: Sequence[Column], transparent: bool) -> str:
    most = max((len(column.series) for column in columns), default=1)
    height = 1.2 + (0.24 + 0.1 * most) * len(names)

    def draw(figure: Figure) -> None:
        widths = [1.6, *[1.0] * (len(columns) - 1)]
        every = figure.subplots(1, len(columns), sharey=True, width_ratios=widths, squeeze=False)[0]
        for axes, column in zip(every, columns):
            _draw_column(axes, column, len(names))
        every[0].set_yticks(range(len(names)), [_short(name) for name in names])
        every[0].set_ylim(len(names) - 0.5, -0.5)
        if most > 1:
            figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)

    return _render(draw, (9.9, height + 0.2 * most), transparent)


def _draw_column(axes: Any, column: Column, rows: int) -> None:
    axes.set_title(_short(column.title))
    axes.set_xlabel(column.xlabel)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    between = [row + 0.5 for row in range(rows - 1)]
    axes.hlines(between, 0, 1, transform=axes.get_yaxis_transform(), color=INK, alpha=0.1, linewidth=0.6)
    values = [v for s in column.series for v in (*s.y, *s.low) if v is not None and math.isfinite(v)]
    for number, series in enumerate(column.series):
        if not series.measured:
            continue
        x = _floats(series.y)
        low, high = (_floats(bound or [None] * len(x)) for bound in (series.low, series.high))
        reach = list(zip(*((_reach(v - a), _reach(b - v)) for v, a, b in zip(x, low, high))))
        at = [row + 0.5 * ((number + 0.5) / len(column.series) - 0.5) for row in series.x]
        style = {"color": PALETTE[number % len(PALETTE)], "fmt": "o", "markersize": 4.5, "elinewidth": 1.3}
        axes.errorbar(x, at, xerr=reach, label=_short(series.label), **style)
    axes.margins(x=0.08)
    if values and min(values) >= 0:
        axes.set_xlim(left=0)


def _draw(axes: Any, panel: Panel) -> None:
    axes.set_title(printable(panel.title))
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if not panel.measured:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for number, line in enumerate(panel.lines):
        _draw_line(axes, line, PALETTE[number % len(PALETTE)], markers=panel.log2)
    for number, series in enumerate(panel.points):
        _draw_points(axes, series, PALETTE[(1 + number) % len(PALETTE)])
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    _scale(axes, panel)
    if len(panel.lines) + len(panel.points) > 1:
        axes.legend(loc="best")


def _scale(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator  # noqa: PLC0415

    seen = [v for s in (*panel.lines, *panel.points) for v in (*s.y, *s.low) if v is not None and math.isfinite(v)]
    axes.margins(y=0.1)
    if seen and min(seen) >= 0:
        axes.set_ylim(bottom=0)
    if panel.log2:
        ticks = sorted({x for line in panel.lines for x in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        steps = [x for s in (*panel.lines, *panel.points) for x in s.x]
        if min(steps) == max(steps):
            axes.set_xlim(steps[0] - 1, steps[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _draw_line(axes: Any, line: Series, colour: str, markers: bool) -> None:
    x, y = _thin(line.x), _floats(line.y)
    smooth = len(y) > 4 * SMOOTHING
    if len(line.low):
        axes.fill_between(x, _thin(_floats(line.low)), _thin(_floats(line.high)), color=colour, alpha=0.16, linewidth=0)
    marker = "o" if markers or len(y) <= _FEW else None  # a value between two gaps shows only as a marker
    axes.plot(
        x,
        _thin(y),
        color=colour,
        linewidth=0.7 if smooth else 1.7,
        alpha=0.45 if smooth else 1.0,
        marker=marker,
        markersize=3.5,
        label=None if smooth else _short(line.label),
    )
    if smooth:
        axes.plot(x, _thin(running_mean(y, SMOOTHING)), color=colour, linewidth=1.9, label=_short(line.label))


def _draw_points(axes: Any, series: Series, colour: str) -> None:
    y = _floats(series.y)
    style = {"color": colour, "fmt": "D", "markersize": 4.5, "linewidth": 0, "elinewidth": 1.1, "capsize": 2.5}
    if not len(series.low):
        axes.errorbar(series.x, y, label=_short(series.label), **style)
        return
    bounds = zip(y, _floats(series.low), _floats(series.high))
    below, above = zip(*((_reach(value - low), _reach(high - value)) for value, low, high in bounds))
    axes.errorbar(series.x, y, yerr=[below, above], label=_short(series.label), **style)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the ``width`` values around each one, fewer at the ends; NaN are left out."""
    half = width // 2
    means = []
    for centre in range(len(values)):
        near = [v for v in values[max(0, centre - half) : centre + half + 1] if not math.isnan(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _reach(length: float) -> float:
    return max(0.0, length) if math.isfinite(length) else 0.0


def _floats(values: Numbers) -> list[float]:
    return [math.nan if value is None or not math.isfinite(value) else float(value) for value in values]


def _thin(values: Sequence[float]) -> list[float]:
    """At most ``_MOST_POINTS`` values: every n-th and the last."""
    stride = math.ceil(len(values) / _MOST_POINTS) or 1
    kept = list(values[::stride])
    return kept if stride == 1 or (len(values) - 1) % stride == 0 else [*kept, values[-1]]


def _short(label: str) -> str:
    # matplotlib drops legend entries that begin with an underscore
    text = printable(label).lstrip("_") or "(no name)"
    return text if len(text) <= 40 else text[:39] + "…"


def _render(draw: Any, size: tuple[float, float], transparent: bool) -> str:
    from matplotlib import rc_context, rcdefaults, rcParams  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # the reader's matplotlibrc must not change the report
        rcParams.update(HOUSE_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts draw the text, not ours
        figure = Figure(figsize=size, layout="constrained", facecolor="none" if transparent else "white")
        draw(figure)
        target = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing)
    return _slim(target.getvalue())


def _slim(svg: str) -> str:
    """Shorter numbers, the reader's fonts, no metadata, no style sheet that would leak into the page."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    svg = svg.replace("'DejaVu Sans'", _FONT)
    svg = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda attribute: _rounded(attribute.group()), svg)
    return re.sub(r"\n\s*", "\n", svg)


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d{2,}", lambda digits: f"{float(digits.group()):.1f}", text)


def _inline(svg: str, title: str) -> str:
    """For use inside HTML: no namespaces, no fixed size, ids that are unique on the page."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="([^"]*)"', head)
    box = view.group(1) if view else "0 0 1 1"
    digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="c{digest}-{m.group(1)}"' if m.group(1) in used else "", body)
    body = re.sub(r'((?:href="|url\()#)', rf"\g<1>c{digest}-", body)
    start = f'<svg viewBox="{box}" stroke-linejoin="round" role="img" aria-label="{html.escape(printable(title))}">'
    return start + body.replace(INK, "currentColor").strip()
