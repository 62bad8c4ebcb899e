"""Bias against variance of the estimators, one dot each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from longthought.core.errors import SettingsError
from longthought.diagnosis.lab import Measured
from longthought.evaluation import charts
from longthought.runs.files import plain_errors

_INK = "#24292f"
_FORMATS = {".svg": "svg", ".png": "png"}
_REACH = 9  # pixels from a dot to the nearest label


def draw(measured: Sequence[Measured], file: Path, title: str) -> None:
    """Write the picture. Those without a gradient are named below it.

    Raises SettingsError for a file that is neither .svg nor .png, RunError when it cannot be written.
    """
    check_format(file)
    from matplotlib import rc_context, rcdefaults, rcParams  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context():
        rcdefaults()
        style = {name: _INK if value == charts.INK else value for name, value in charts.HOUSE_STYLE.items()}
        rcParams.update({**style, "svg.fonttype": "path"})
        figure = Figure(figsize=(9.6, 6.4), facecolor="white", dpi=150)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.08, 0.11, 0.88, 0.82))
        _points(axes, [one for one in measured if math.isfinite(one.steps) and one.steps > 0], title)
        silent = [one.name for one in measured if not math.isfinite(one.steps)]
        if silent:
            figure.text(0.08, 0.015, f"no gradient: {', '.join(silent)}", fontsize=8)
        with plain_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(
                file, format=_FORMATS[file.suffix], metadata={"Date": None} if file.suffix == ".svg" else None
            )


def check_format(file: Path) -> None:
    """Raises SettingsError for a file that is neither .svg nor .png."""
    if file.suffix not in _FORMATS:
        raise SettingsError(f"--plot {file}: the name must end in {' or '.join(_FORMATS)}")


def _points(axes: Any, shown: Sequence[Measured], title: str) -> None:
    axes.set_xscale("log")
    axes.set_title(title)
    axes.set_xlabel("variance: steps until the mean gradient is known to 10 %")
    axes.set_ylabel("bias: angle to the true gradient (degrees)")
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    for number, (label, holds) in enumerate((("reward", False), ("KL alone", True))):
        part = [one for one in shown if one.name.startswith("kl_") == holds]
        if part:
            x, y = [one.steps for one in part], [one.angle for one in part]
            error = [one.angle_error for one in part]
            axes.errorbar(
                x, y, yerr=error, fmt="o", markersize=5, elinewidth=0.8, color=charts.PALETTE[number], label=label
            )
    if shown:
        axes.margins(0.12)
        _ticks(axes, max(one.angle for one in shown))
        axes.legend(loc="upper left")
        _labels(axes, shown)


def _ticks(axes: Any, largest: float) -> None:
    """Angles on a scale of square roots: most are small, and those are of interest."""
    import numpy as np  # noqa: PLC0415
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axes.set_yscale(
        "function", functions=(lambda y: np.sign(y) * np.sqrt(np.abs(y)), lambda y: np.sign(y) * np.square(y))
    )
    axes.set_ylim(-0.02 * max(largest, 1.0), 1.25 * max(largest, 1.0))
    axes.set_yticks([tick for tick in (0, 1, 2, 5, 10, 20, 45, 90, 180) if tick <= 1.25 * max(largest, 1.0)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for place in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        place("{x:g}")


def _labels(axes: Any, shown: Sequence[Measured]) -> None:
    """Names beside the dots: the nearest free place around each, with a thin line where it is not at the dot itself."""
    figure = axes.figure
    axes.set_xlim(axes.get_xlim())  # from here on nothing moves the dots
    renderer = figure.canvas.get_renderer()
    spots = {one.name: axes.transData.transform((one.steps, one.angle)) for one in shown}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots.values()]
    frame = axes.get_window_extent(renderer)
    around = sorted(product(range(-20, 20), range(-60, 61)), key=lambda step: abs(step[0]) * 3 + abs(step[1]))
    for one in sorted(shown, key=lambda one: (one.angle, one.steps)):
        text = axes.text(one.steps, one.angle, one.name, fontsize=7.5, va="center")
        size = text.get_window_extent(renderer)
        x, y = spots[one.name]
        for right, up in around:
            left = x + _REACH + 12 * right if right >= 0 else x - _REACH - size.width + 12 * (right + 1)
            middle = y + 6 * up
            box = (left, middle - size.height / 2 - 1, left + size.width, middle + size.height / 2 + 1)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if inside and not any(_meet(box, other) for other in taken):
                break
        taken.append(box)
        text.set_position(axes.transData.inverted().transform((left, middle)))
        if abs(middle - y) > 10 or abs(right) > 1:
            near = (box[0] if right >= 0 else box[2], middle)
            ends = axes.transData.inverted().transform([(x, y), near])
            axes.plot(*zip(*ends), color=_INK, alpha=0.35, linewidth=0.5)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
