"""Modular chains: carry one number through many small steps. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from random import Random
from typing import ClassVar, Final, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score
from longthought.tasks.grading import grade_integers
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of

PROMPTS: Final = {"en": "find x : {chain}", "zh": "求 x : {chain}"}


class _Chain(NamedTuple):
    """``x = start``, then ``x = x · factor + summand mod modulus`` for every step."""

    modulus: int
    start: int
    steps: tuple[tuple[int, int], ...]

    @property
    def shown(self) -> str:
        """Example: ``x = 3 ; x = x * 5 + 2 mod 7``."""
        lines = [f"x = x * {factor} + {summand} mod {self.modulus}" for factor, summand in self.steps]
        return " ; ".join((f"x = {self.start}", *lines))

    @property
    def end(self) -> int:
        """The last value of x, in 0..modulus-1."""
        x = self.start
        for factor, summand in self.steps:
            x = (x * factor + summand) % self.modulus
        return x


@dataclass(frozen=True)
class Chains:
    """Chains of ``steps`` affine maps modulo ``modulus``: the length of the reasoning needed is set exactly.

    Starts and summands are 0..modulus-1, factors have no divisor in common with the modulus, and no step leaves every x
    as it is: so the end depends on every step and on the start. Splits are disjoint by the whole chain, whatever the
    seed and the level. Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Chains().problem("train", 0).messages[0].content`` is like
    ``"find x : x = 3 ; x = x * 5 + 2 mod 10 ; x = x * 7 + 0 mod 10"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split.
    """

    steps: int = 2
    modulus: int = 10
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 1 <= self.steps <= 1000:
            raise SettingsError(f"chains: steps is {self.steps}; choose 1 to 1000")
        if not 3 <= self.modulus <= 10_000:
            raise SettingsError(f"chains: modulus is {self.modulus}; choose 3 to 10000")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Chains:
        """Presets from easy (1) to hard (6): 1, 2, 4, 8, 16, 32 steps, modulo 10, and 97 from level 5 on."""
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"chains: level is {number}; choose 1 to {cls.levels}")
        return cls(steps=2 ** (number - 1), modulus=10 if number < 5 else 97)

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "chains"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        chain = next(proposals(split, lambda: self._chain(draw), lambda c: split_of(self.name, c.shown)))
        language = self.languages[index % len(self.languages)]
        steps = ",".join(f"{factor}.{summand}" for factor, summand in chain.steps)
        return Problem(
            id=f"{self.name}/{chain.modulus}/{chain.start}/{steps}/{language}",
            messages=(Message("user", PROMPTS[language].format(chain=chain.shown)),),
            answer=str(chain.end),
            info={"chain": chain.shown, "steps": str(self.steps), "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact value. Raises ``DataError`` when the problem's answer is no integer."""
        return grade_integers(problem, replies, self.format_weight)

    def solve(self, problem: Problem) -> str:
        """The last value of x, from the chain. Raises ``DataError`` when the problem is not one of this task."""
        try:
            first, *steps = problem.info["chain"].split(" ; ")
            x = int(first.removeprefix("x = "))
            for step in steps:
                factor, summand, modulus = (int(word) for word in step.split() if word.isdecimal())
                x = (x * factor + summand) % modulus
        except (KeyError, ValueError, ZeroDivisionError) as error:
            raise DataError(f"problem {problem.id!r} is no modular chain") from error
        return str(x)

    def _chain(self, draw: Random) -> _Chain:
        steps = tuple(self._step(draw) for _ in range(self.steps))
        return _Chain(self.modulus, draw.randrange(self.modulus), steps)

    def _step(self, draw: Random) -> tuple[int, int]:
        while True:
            factor, summand = draw.randrange(1, self.modulus), draw.randrange(self.modulus)
            if gcd(factor, self.modulus) == 1 and (factor, summand) != (1, 0):
                return factor, summand
