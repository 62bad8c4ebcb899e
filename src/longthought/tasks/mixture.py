"""Several tasks as one, in shares that hold over every stretch of problems, not only on average."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from math import gcd, isfinite, lcm

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import BatchTask, Task
from longthought.core.types import Problem, Score

_LONGEST_PERIOD = 1 << 16


@dataclass(frozen=True)
class Mixture:
    """Tasks and their weights, of any sum.

    Which task is asked at an index follows from the weights and the seed: after any number of draws, every part was
    drawn as often as its share says, to less than one draw, and its own problems are asked in order 0, 1, 2 … without a
    gap. The order is periodic; where the weights, as decimals, ask for a period of more than 65,536 draws, shares are
    rounded to about that many parts, but none to 0.

    A problem's id is that of its part, behind the part's name; parts of one name are numbered (``countdown-2``). Every
    part is graded by its own task. Tasks from files keep splits apart by content, whichever file it stands in.

    Raises ``SettingsError`` on no parts, a part given twice, and weights that are not positive numbers.
    """

    parts: tuple[tuple[Task, float], ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parts:
            raise SettingsError("mixture: there are no parts; give (task, weight) pairs")
        tasks = [task for task, _ in self.parts]
        for number, (task, weight) in enumerate(self.parts):
            if not (isfinite(weight) and weight > 0):
                raise SettingsError(f"mixture: the weight of {task.name} is {weight}; it must be a positive number")
            if any(task is other or task == other for other in tasks[:number]):
                raise SettingsError(f"mixture: {task.name} is given twice with the same settings; add up its weights")
            if "/" in task.name:
                raise SettingsError(f"mixture: the task name {task.name!r} holds a /, which separates the parts of ids")
        if len(set(self.names)) < len(tasks):
            raise SettingsError(f"mixture: the names {', '.join(self.names)} are not different; rename a task")

    @property
    def name(self) -> str:
        """The names of the parts, joined by ``+``."""
        return "+".join(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every part, numbered where it has come before."""
        names = [task.name for task, _ in self.parts]
        before = [names[:number].count(name) for number, name in enumerate(names)]
        return tuple(f"{name}-{count + 1}" if count else name for name, count in zip(names, before))

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split. Raises ``DataError`` on a negative index, and what the part raises."""
        if index < 0:
            raise DataError(f"{self.name}: problem {index} of {split!r} does not exist; problems are counted from 0")
        part, own = self.draw(index)
        problem = self.parts[part][0].problem(split, own)
        return replace(problem, id=f"{self.names[part]}/{problem.id}")

    def draw(self, index: int) -> tuple[int, int]:
        """The part that is asked at ``index``, and how often it was asked before."""
        order, before, counts = draws(tuple(weight for _, weight in self.parts), self.seed)
        period, place = divmod(index, len(order))
        part = order[place]
        return part, period * counts[part] + before[place]

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score replies by the task that the problem is from. Raises ``DataError`` when it is from none."""
        part, own = self._own(problem)
        return self.parts[part][0].grade(own, replies)

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        """As ``grade`` for every group, in order; the groups of one part together where it can."""
        owned = [(*self._own(problem), replies) for problem, replies in groups]
        graded: list[Iterator[list[Score]]] = []
        for number, (task, _) in enumerate(self.parts):
            mine = [(problem, replies) for part, problem, replies in owned if part == number]
            if isinstance(task, BatchTask):
                graded.append(iter(task.grade_together(mine) if mine else []))
            else:
                graded.append(iter([task.grade(problem, replies) for problem, replies in mine]))
        return [next(graded[part]) for part, _, _ in owned]

    def _own(self, problem: Problem) -> tuple[int, Problem]:
        """The part that a problem is from, and the problem as that part stated it."""
        name, _, identity = problem.id.partition("/")
        if name not in self.names:
            raise DataError(f"problem {problem.id!r} is from none of the parts {', '.join(self.names)}")
        return self.names.index(name), replace(problem, id=identity)


@lru_cache(maxsize=64)
def draws(weights: tuple[float, ...], seed: int) -> tuple[array[int], array[int], list[int]]:
    """One period: the part of every draw, how often that part was drawn before in it, and the draws of every part.

    Of the parts that may be drawn without getting ahead of their share, the one is drawn that would soonest fall
    behind; then no part is ever off by more than 1 − 1/(2k − 2) draws, k being the number of parts. Ties go by
    the seed.

    Source: Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980.
    """
    counts = _apportioned(weights)
    parts, period = range(len(counts)), sum(counts)
    ties = [blake2b(f"{seed}/{part}".encode(), digest_size=8).digest() for part in parts]
    slack = max(1, 2 * len(counts) - 2)
    drawn, common = [0] * len(counts), lcm(*counts)
    order, before = array("I"), array("Q")
    for draw in range(1, period + 1):
        # both sides times slack · period; owed = share · draws − draws so far
        owed = [slack * (counts[part] * draw - drawn[part] * period) for part in parts]
        ready = [part for part in parts if owed[part] >= period]
        part = min(
            (((slack - 1) * period - owed[part]) * (common // counts[part]), ties[part], part) for part in ready
        )[2]
        order.append(part)
        before.append(drawn[part])
        drawn[part] += 1
    return order, before, counts


def _apportioned(weights: Sequence[float]) -> list[int]:
    """Integers in the ratio of the weights as they are written in decimals, rounded where their sum is too large."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    if sum(whole) // gcd(*whole) <= _LONGEST_PERIOD:
        return [count // gcd(*whole) for count in whole]
    return [max(1, round(weight / sum(exact) * _LONGEST_PERIOD)) for weight in exact]
