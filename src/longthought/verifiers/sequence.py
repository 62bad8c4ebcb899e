"""Answers that are several integers, or a string of bits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 1000

_NUMBERS = re.compile(r"[0-9]{1,18}(?:(?:\s*,\s*|\s+)[0-9]{1,18})*", re.ASCII)
_BITS = re.compile(r"[01](?:[\s,]*[01])*", re.ASCII)
_BRACKETS = {"[": "]", "(": ")"}


def integers(answer: str, gold: Sequence[int]) -> Verdict:
    """1.0 when ``answer`` is the non-negative integers ``gold`` in order, else 0.0 with the reason. Never raises.

    Integers are ASCII digits, separated by white space or by one comma, in one pair of ``[]`` or ``()`` or none.
    Anything else, and more than ``MAX_CHARS`` characters, is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    text = answer.strip()
    if text and _BRACKETS.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    if not _NUMBERS.fullmatch(text):
        return _unparsable("not a list of integers")
    return _compared([int(number) for number in re.findall("[0-9]+", text)], list(gold))


def bits(answer: str, gold: str) -> Verdict:
    """1.0 when ``answer`` is the bits ``gold`` (like ``"0110"``) in order, else 0.0 with the reason. Never raises.

    White space and commas between bits do not count. Anything else than 0 and 1, and more than ``MAX_CHARS``
    characters, is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    if not _BITS.fullmatch(answer.strip()):
        return _unparsable("not a string of 0 and 1")
    return _compared(re.findall("[01]", answer), list(gold))


def _compared(given: Sequence[int | str], gold: Sequence[int | str]) -> Verdict:
    if len(given) != len(gold):
        return Verdict(0.0, Outcome.GRADED, f"{len(given)} values, not {len(gold)}")
    wrong = sum(a != b for a, b in zip(given, gold))
    if wrong:
        return Verdict(0.0, Outcome.GRADED, f"{wrong} of {len(gold)} values are wrong")
    return Verdict(1.0, Outcome.GRADED, "all values are right")


def _unparsable(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
