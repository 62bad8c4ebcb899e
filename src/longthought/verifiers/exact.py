"""Answers that are compared as they are written: one integer, a number, a text, a list of texts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict

MAX_CHARS = 200
MAX_TEXT = 20_000

_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_MARKED = re.compile(r"(?i)####|\banswers?\b\s*(?:(?:is|are)\b\s*:?|[:=])\**")
_NUMERAL = re.compile(
    r"(?<![\w.,])([+-]?)\s*[$€£]?\s*([1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(\.[0-9]+)?"
    r"(?:\s*/\s*([0-9]+))?(?![\w]|[.,/][0-9])"
)
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


@dataclass(frozen=True)
class Exact:
    """The reply's text is the problem's answer: after NFKC, with white space made single and a last full stop dropped.

    case: capitals count.  whitespace: so does white space inside the text (never around it).
    """

    case: bool = False
    whitespace: bool = False

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        gold = self.normal(problem.answer)
        if not gold:
            return Verdict(None, Outcome.NO_GOLD, "the problem's answer is empty")
        if len(reply.content) > MAX_TEXT:
            return Verdict(0.0, Outcome.UNPARSABLE, f"longer than {MAX_TEXT} characters")
        said = self.normal(reply.content)
        if not said:
            return Verdict(0.0, Outcome.UNPARSABLE, "empty")
        equal = said == gold
        return Verdict(float(equal), Outcome.GRADED, f"{said[:80]!r} {'is' if equal else 'is not'} {gold[:80]!r}")

    def normal(self, text: str) -> str:
        """A text as it is compared."""
        text = unicodedata.normalize("NFKC", text).strip().removesuffix(".").rstrip()
        if not self.whitespace:
            text = " ".join(text.split())
        return text if self.case else text.casefold()


@dataclass(frozen=True)
class Number:
    """The number that the reply ends with, exactly: integer, decimal or fraction, ``1,234`` and ``$5.00`` included.

    It is the one in the last ``\\boxed{}``, else the one after the last ``####``, "answer is" or "Answer:", else the
    only one of the reply; several different ones are wrong. The gold answer is read alike (GSM8K's ``#### 1,234``).

    tolerance: the largest absolute difference that is still right.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SettingsError(f"tolerance={self.tolerance}: must be finite and not negative")

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        golds = _numbers(problem.answer)
        if len(golds) != 1:
            return Verdict(None, Outcome.NO_GOLD, f"the problem's answer is not one number: {problem.answer[:80]!r}")
        said = _numbers(reply.content)
        if not said:
            return Verdict(0.0, Outcome.UNPARSABLE, "no number")
        if len(said) > 1:
            return Verdict(0.0, Outcome.GRADED, f"{len(said)} different numbers")
        equal = abs(said[0] - golds[0]) <= Fraction(self.tolerance)
        return Verdict(
            float(equal), Outcome.GRADED, f"{_short(said[0])} {'is' if equal else 'is not'} {_short(golds[0])}"
        )


@dataclass(frozen=True)
class SetMatch:
    """The reply's list of answers is the gold list: the same members, in any order unless ``ordered``.

    multiset: members count as often as they stand there; else once. The items are compared as :class:`Exact` does;
    braces, brackets or parentheses around the whole list do not count.
    """

    separator: str = ","
    ordered: bool = False
    multiset: bool = False
    case: bool = False

    def __post_init__(self) -> None:
        if not self.separator:
            raise SettingsError("separator: must not be empty")

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        gold, said = self.items(problem.answer), self.items(reply.content[: MAX_TEXT + 1])
        if not gold:
            return Verdict(None, Outcome.NO_GOLD, "the problem's answer holds no item")
        if len(reply.content) > MAX_TEXT or not said:
            return Verdict(0.0, Outcome.UNPARSABLE, "no list that can be read")
        if self.ordered:
            equal = said == gold
        else:
            equal = Counter(said) == Counter(gold) if self.multiset else set(said) == set(gold)
        missing, excess = [list((Counter(a) - Counter(b)).keys())[:5] for a, b in ((gold, said), (said, gold))]
        evidence = "the same" if equal else f"missing {missing}, too many {excess}"
        return Verdict(float(equal), Outcome.GRADED, evidence[:300])

    def items(self, text: str) -> list[str]:
        """The members of a list as they are compared."""
        boxed = _BOXED.findall(text)
        text = (boxed[-1] if boxed else text).strip()
        if text[:1] + text[-1:] in ("{}", "[]", "()"):
            text = text[1:-1]
        normal = Exact(case=self.case).normal
        return [item for part in text.split(self.separator) if (item := normal(part))]


def _numbers(text: str) -> list[Fraction]:
    """The different numbers of the place where the answer stands."""
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    elif marks := list(_MARKED.finditer(text)):
        text = text[marks[-1].end() :].strip().partition("\n")[0]
    text = text[-MAX_TEXT:].replace("\\$", "$").replace("\\!", "").replace("{,}", ",").replace("−", "-")
    return list(dict.fromkeys(_fractions(text)))


def _fractions(text: str) -> Sequence[Fraction]:
    found = []
    for sign, whole, decimals, below in (match.groups() for match in _NUMERAL.finditer(text)):
        digits = (whole or "").replace(",", "") + (decimals or "")
        if digits and len(digits) <= MAX_CHARS and len(below or "") <= MAX_CHARS and (below is None or int(below)):
            found.append(Fraction(sign + digits) / int(below or 1))
    return found


def _short(number: Fraction) -> str:
    return str(number)[:80]
