"""What the lab measured, for a terminal: a table, and what it says in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from longthought.diagnosis.lab import Measured
from longthought.diagnosis.toy import Toy

_STYLE = {"yes": "green", "scale only": "green", "unclear": "yellow", "no": "red", "no gradient": "red"}
_NEARLY = 1.0  # degrees that are no matter
_APART = 1.15  # factors of the problems that differ by less are called equal


def table(measured: Sequence[Measured], title: str) -> Table:
    """One line per estimator."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("estimator", no_wrap=True)
    made.add_column("unbiased?", no_wrap=True)
    for name in ("angle °", "scale", "bias", "variance", "steps"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("note")
    for one in measured:
        cells = (_angle(one), f"{one.scale:.3f}", _bias(one), f"{one.variance:.2f}", _steps(one), note(one))
        made.add_row(one.name, Text(one.unbiased, style=_STYLE[one.unbiased]), *cells)
    return made


def note(one: Measured) -> str:
    """Signs and weights of the problems: where the estimator pulls the wrong way, which problem it prefers."""
    if one.unbiased == "no gradient":
        return "pulls nowhere on average"
    known = [factor for factor in one.per_problem if math.isfinite(factor)]
    wrong = [str(i + 1) for i, factor in enumerate(one.per_problem) if factor < -0.01]
    if wrong:
        return f"pulls the wrong way on problem {', '.join(wrong)}"
    if len(known) < 2 or min(known) <= 0 or max(known) / min(known) < _APART:
        return ""
    best, least = (one.per_problem.index(edge(known)) + 1 for edge in (max, min))
    return f"weighs problem {best} {max(known) / min(known):.1f} × problem {least}"


def reading(measured: Sequence[Measured], toy: Toy) -> list[str]:
    """Five sentences at most, each from the numbers."""
    kept = [one for one in measured if one.unbiased != "no gradient"]
    lines = [_who_is_right(measured), *_most_biased(kept), *_problems(kept, toy), *_price(kept), *_silent(measured)]
    return lines[:5]


def _who_is_right(measured: Sequence[Measured]) -> str:
    exact = [one.name for one in measured if one.unbiased == "yes"]
    scaled = [f"{one.name} × {one.scale:.2f}" for one in measured if one.unbiased == "scale only"]
    parts = [f"Unbiased: {', '.join(exact) or 'none'}."]
    if scaled:
        parts.append(f"Right but for a constant, which the learning rate takes up: {', '.join(scaled)}.")
    unclear = [one.name for one in measured if one.unbiased == "unclear"]
    if unclear:
        parts.append(f"No error of direction above the noise of sampling: {', '.join(unclear)}.")
    return " ".join(parts)


def _most_biased(measured: Sequence[Measured]) -> list[str]:
    found = sorted(
        (one for one in measured if one.unbiased == "no" and one.angle > _NEARLY), key=lambda one: -round(one.angle, 3)
    )
    if not found:
        return []
    named = ", ".join(f"{one.name} {one.angle:.0f}°" for one in found[:3])
    return [f"Farthest from the true direction: {named}; no number of samples mends that."]


def _problems(measured: Sequence[Measured], toy: Toy) -> list[str]:
    found = [one for one in measured if "weighs problem" in note(one)]
    if not found or len(toy.theta) < 2:
        return []
    factors = {one.name: [f for f in one.per_problem if math.isfinite(f)] for one in found}
    worst = max(found, key=lambda one: round(max(factors[one.name]) / min(factors[one.name]), 3))
    weights = ", ".join(
        f"× {factor:.2f} where {rate:.0%} of the replies are right"
        for factor, rate in zip(worst.per_problem, toy.success)
    )
    return [f"{worst.name} does not weigh problems alike: {weights}. It climbs another hill than the mean reward."]


def _price(measured: Sequence[Measured]) -> list[str]:
    right = [one for one in measured if one.unbiased in ("yes", "scale only") and math.isfinite(one.steps)]
    if len(right) < 2:
        return []
    cheap, dear = min(right, key=lambda one: one.steps), max(right, key=lambda one: one.steps)
    return [
        f"What freedom from bias costs: {cheap.name} needs {cheap.steps:.0f} steps for a gradient known to 10 %, "
        f"{dear.name} {dear.steps:.0f}."
    ]


def _silent(measured: Sequence[Measured]) -> list[str]:
    names = [one.name for one in measured if one.unbiased == "no gradient"]
    return [f"No gradient at all, only noise: {', '.join(names)}."] if names else []


def _angle(one: Measured) -> str:
    if math.isnan(one.angle):
        return "-"
    return f"{one.angle:.1f}" + (f" ± {one.angle_error:.1f}" if one.how == "sampled" else "")


def _bias(one: Measured) -> str:
    return f"{one.bias:.3f}" + (f" ± {one.bias_error:.3f}" if one.how == "sampled" else "")


def _steps(one: Measured) -> str:
    return f"{math.ceil(one.steps):,}" if math.isfinite(one.steps) else "∞"
