"""Answers that are one integer."""

from __future__ import annotations

import re

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 200

_INTEGER = re.compile(r"([+-]?)\s*([0-9]+)")


def integer(answer: str, gold: int) -> Verdict:
    """1.0 when ``answer`` is the integer ``gold``, else 0.0 with the reason. Never raises.

    An integer is ASCII digits with an optional sign (``-``, ``−`` or ``+``), white space around either; ``3.0``,
    ``1e3``, ``1,000``, ``x = 3`` and more than ``MAX_CHARS`` characters are ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return Verdict(0.0, Outcome.UNPARSABLE, f"longer than {MAX_CHARS} characters")
    match = _INTEGER.fullmatch(answer.strip().replace("−", "-"))
    if match is None:
        return Verdict(0.0, Outcome.UNPARSABLE, "not one integer")
    value = int(match[1] + match[2])
    if value != gold:
        return Verdict(0.0, Outcome.GRADED, f"{value}, not {gold}")
    return Verdict(1.0, Outcome.GRADED, f"is {gold}")
