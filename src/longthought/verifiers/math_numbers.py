"""Answers that are one plain number, read exactly: no parser, no floating point."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 120

_WRAPPED = re.compile(
    r"(?:\\text|\\mathrm|\\mathbf|\\textbf|\\boldsymbol)\s*\{\s*([^{}]*?)\s*\}|\{\s*([^{}]*?)\s*\}|\$([^$]*)\$"
)
_SPACING = re.compile(r"\\[,!;: ]|\\(?:left|right|displaystyle|quad)(?![a-zA-Z])|~")
_NUMBER = re.compile(r"([+-]?)\s*(?:\\?\$\s*)?([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)?(\.[0-9]*)?")
_BASED = re.compile(r"([0-9A-Z]+)_\{?([0-9]{1,2})\}?")
_RATIO = re.compile(
    r"([+-]?)\s*(?:\\[dtc]?frac\s*(?:\{\s*([+-]?)\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])\s*([0-9]))"
    r"|([0-9]+)\s*/\s*([0-9]+))"
)


@dataclass(frozen=True, slots=True)
class Exact:
    """A number as written.

    rounded: it was written with a decimal point, so digits may have been cut off.  base: it names its base.
    """

    value: Fraction
    rounded: bool = False
    base: int | None = None


def exact(latex: str) -> Exact | None:
    """The number that a text is, else None: integer, decimal, fraction; ``1,234``, ``\\$5``, ``\\frac12``, ``7_8``."""
    if len(latex) > MAX_CHARS:
        return None
    text = _SPACING.sub("", latex).strip()
    while (whole := _WRAPPED.fullmatch(text)) is not None:
        text = next(group for group in whole.groups() if group is not None)
    if not text.isascii():
        return None
    if (based := _BASED.fullmatch(text)) is not None:
        return _in_base(based[1], int(based[2]))
    if (ratio := _RATIO.fullmatch(text)) is not None:
        return _ratio(ratio)
    number = _NUMBER.fullmatch(text.rstrip("."))
    if number is None or not (number[2] or len(number[3] or "") > 1):
        return None
    digits = (number[2] or "0").replace(",", "") + (number[3] or "")
    value = Fraction(digits)
    return Exact(-value if number[1] == "-" else value, "." in digits)


def _ratio(match: re.Match[str]) -> Exact | None:
    sign, inner, *digits = match.groups()
    above, below = (int(group) for group in digits if group)
    if below == 0:
        return None
    value = Fraction(above, below)
    return Exact(-value if (sign == "-") != (inner == "-") else value)


def _in_base(digits: str, base: int) -> Exact | None:
    try:
        return Exact(Fraction(int(digits, base)), base=base)
    except ValueError:  # a digit that the base does not have, or no base at all
        return None


def same(prediction: Exact, gold: Exact) -> bool | None:
    """Whether two numbers are equal; None where cut off digits, or a base that one of them names, leave it open."""
    if (prediction.base is None) != (gold.base is None):
        return None
    if prediction.value == gold.value:
        return True
    if (prediction.rounded or gold.rounded) and abs(prediction.value - gold.value) < Fraction(1, 100_000):
        return None
    return False
