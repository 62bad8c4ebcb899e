"""Iterated squares: ``x → x² + c mod m``, many times. No step can be left out. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Final, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score
from longthought.tasks.grading import grade_integers
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of

PROMPTS: Final = {
    "en": (
        "start with x = {start} . replace x by the remainder of x * x + {summand} divided by {modulus} . "
        "do this {steps} times in all . what is x at the end ? answer with one integer ."
    ),
    "zh": (
        "从 x = {start} 开始。把 x 换成 x * x + {summand} 除以 {modulus} 的余数。"
        "一共做 {steps} 次。最后 x 是多少？答案写成一个整数。"
    ),
}


class _Squares(NamedTuple):
    """``x = start``, then ``steps`` times ``x = x² + summand mod modulus``."""

    start: int
    summand: int
    modulus: int
    steps: int

    @property
    def orbit(self) -> list[int]:
        """All values of x, the start first."""
        values = [self.start]
        for _ in range(self.steps):
            values.append((values[-1] ** 2 + self.summand) % self.modulus)
        return values

    @property
    def canonical(self) -> str:
        """Without the steps: a chain and its continuation belong together."""
        return f"{self.start} {self.summand} {self.modulus}"


@dataclass(frozen=True)
class Squares:
    """``steps`` maps ``x → x² + c mod modulus`` from a start in 2..modulus-1: a reasoning whose length is set exactly.

    There is no shortcut: no value of x occurs twice, so that no cycle can be used, and c is neither 0 nor -2, for which
    the end has a closed form. Splits are disjoint by start, c and modulus, whatever the seed, the level and the number
    of steps. Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Squares().problem("train", 0).messages[0].content`` is like ``"start with x = 5 . replace x by the
    remainder of x * x + 3 divided by 91 . do this 2 times in all . …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings allow too few problems.
    """

    steps: int = 2
    modulus: int = 91
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 11 <= self.modulus <= 10**9:
            raise SettingsError(f"squares: modulus is {self.modulus}; choose 11 to 10^9")
        if self.steps < 1 or self.steps > 1000 or self.steps**2 > 4 * self.modulus:
            raise SettingsError(
                f"squares: steps is {self.steps}; choose 1 to 1000 and at most 2 √modulus: x comes round after that"
            )
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Squares:
        """Presets from easy (1) to hard (6): 1 to 32 steps; the modulus is prime at levels 1, 3 and 6."""
        presets = ((1, 59), (2, 91), (4, 211), (8, 899), (16, 9_991), (32, 99_991))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"squares: level is {number}; choose 1 to {cls.levels}")
        return cls(*presets[number - 1])

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "squares"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        drawn = proposals(split, lambda: self._squares(draw), lambda s: split_of(self.name, s.canonical))
        squares = next(squares for squares in drawn if len(set(squares.orbit)) == self.steps + 1)
        language = self.languages[index % len(self.languages)]
        info = {field: str(value) for field, value in squares._asdict().items()}
        return Problem(
            id="/".join((self.name, *info.values(), language)),
            messages=(Message("user", PROMPTS[language].format(**info)),),
            answer=str(squares.orbit[-1]),
            info={**info, "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact value. Raises ``DataError`` when the problem's answer is no integer."""
        return grade_integers(problem, replies, self.format_weight)

    def solve(self, problem: Problem) -> str:
        """The end of the chain. Raises ``DataError`` when the problem is not one of this task."""
        try:
            return str(_Squares(*(int(problem.info[field]) for field in _Squares._fields)).orbit[-1])
        except (KeyError, ValueError) as error:
            raise DataError(f"problem {problem.id!r} is no chain of squares") from error

    def _squares(self, draw: Random) -> _Squares:
        summand = draw.randrange(1, self.modulus - 2)
        return _Squares(draw.randrange(2, self.modulus), summand, self.modulus, self.steps)
