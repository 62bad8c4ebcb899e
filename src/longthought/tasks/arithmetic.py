"""Integer arithmetic: the value of a parenthesised expression. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score
from longthought.tasks.grading import grade_integers
from longthought.tasks.settings import check_format_weight, check_languages, check_operations
from longthought.tasks.splits import problem_random, proposals, split_of

PROMPTS: Final = {"en": "compute {expression}", "zh": "求 {expression}"}


class _Term(NamedTuple):
    """An expression, its value, and a canonical form in which the operands of + and * are sorted."""

    shown: str
    value: int
    canonical: str


@dataclass(frozen=True)
class Arithmetic:
    """Expressions of ``operands`` numbers from 1..``largest``, every result on the way an integer in 0..``bound``.

    Division is exact. Splits are disjoint by expression up to the order of the operands of + and *, whatever the seed
    and the level. Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Arithmetic().problem("train", 0).messages[0].content`` is like ``"compute ( 7 + 1 ) * 4"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    operands: int = 3
    largest: int = 20
    bound: int = 99
    operations: str = "+-*"
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 2 <= self.operands <= 32:
            raise SettingsError(f"arithmetic: operands is {self.operands}; choose 2 to 32")
        if self.largest < 2 or self.bound < self.largest:
            raise SettingsError("arithmetic: largest must be at least 2 and bound not below it")
        check_operations(self.name, self.operations)
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Arithmetic:
        """Presets from easy (1) to hard (6): more operands, larger results, division from level 4 on."""
        presets = (
            cls(2, 20, 99),
            cls(3, 20, 99),
            cls(4, 20, 999),
            cls(5, 50, 999, "+-*/"),
            cls(7, 99, 9_999, "+-*/"),
            cls(10, 99, 99_999, "+-*/"),
        )
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"arithmetic: level is {number}; choose 1 to {cls.levels}")
        return presets[number - 1]

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "arithmetic"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        terms = proposals(split, lambda: self._term(draw, self.operands), self._split_of)
        term = next(term for term in terms if term is not None)
        language = self.languages[index % len(self.languages)]
        return Problem(
            id=f"{self.name}/{term.shown.replace(' ', '')}/{language}",
            messages=(Message("user", PROMPTS[language].format(expression=term.shown)),),
            answer=str(term.value),
            info={"expression": term.shown, "canonical": term.canonical, "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact value. Raises ``DataError`` when the problem's answer is no integer."""
        return grade_integers(problem, replies, self.format_weight)

    def solve(self, problem: Problem) -> str:
        """The value of the expression. Raises ``DataError`` when the problem is not one of this task."""
        try:
            return str(_value(problem.info["expression"].split()))
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise DataError(f"problem {problem.id!r} is no arithmetic expression") from error

    def _split_of(self, term: _Term | None) -> str:
        return split_of(self.name, term.canonical) if term else ""

    def _term(self, draw: Random, operands: int) -> _Term | None:
        """A random expression; None where no operation keeps the result in range."""
        if operands == 1:
            number = draw.randint(1, self.largest)
            return _Term(str(number), number, str(number))
        cut = draw.randrange(1, operands)
        left, right = self._term(draw, cut), self._term(draw, operands - cut)
        if left is None or right is None:
            return None
        for operation in draw.sample(self.operations, len(self.operations)):
            value = _result(left.value, operation, right.value)
            if value is not None and 0 <= value <= self.bound:
                return _joined(left, operation, right, value)
        return None


def _value(words: Sequence[str]) -> int:
    """The value of a fully bracketed expression, word by word on two stacks."""
    numbers: list[int] = []
    signs: list[str] = []
    for word in ("(", *words, ")"):
        if word == ")" and signs[-1] != "(":
            right, sign = numbers.pop(), signs.pop()
            value = _result(numbers.pop(), sign, right)
            if value is None:
                raise ValueError("a division with a remainder")
            numbers.append(value)
        if word == ")":
            signs.pop()
        elif word.isdecimal():
            numbers.append(int(word))
        else:
            signs.append(word)
    (value,) = numbers
    return value


def _result(left: int, operation: str, right: int) -> int | None:
    if operation == "/":
        return left // right if right and left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[operation]


def _joined(left: _Term, operation: str, right: _Term, value: int) -> _Term:
    forms = [left.canonical, right.canonical]
    if operation in "+*":
        forms.sort()
    shown = f"{_bracketed(left.shown)} {operation} {_bracketed(right.shown)}"
    return _Term(shown, value, f"({forms[0]}{operation}{forms[1]})")


def _bracketed(expression: str) -> str:
    return f"( {expression} )" if " " in expression else expression
