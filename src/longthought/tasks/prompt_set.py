"""Problems with how often a model solved them, and tasks that ask some of them.

Source: Kimi k1.5 (arXiv:2501.12599, section 2.1): how often a model solves a problem in ten tries is its difficulty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from typing import Literal, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import BatchTask, Task
from longthought.core.types import Problem, Score
from longthought.tasks.permutation import permuted

Ends: TypeAlias = Literal["both", "low", "high", "neither"]
Order: TypeAlias = Literal["mixed", "hard"]


@dataclass(frozen=True, slots=True)
class Rated:
    """A problem, and what became of the replies to it.

    sampled: how many replies.  right, cut (ended by a limit), ungraded (nothing could be graded): how many of them.
    Raises ``DataError`` on counts that cannot be.
    """

    problem: Problem
    sampled: int
    right: int
    cut: int = 0
    ungraded: int = 0

    def __post_init__(self) -> None:
        if min(self.right, self.cut, self.ungraded) < 0 or max(self.right + self.ungraded, self.cut) > self.sampled:
            raise DataError(
                f"problem {self.problem.id!r}: of {self.sampled} replies {self.right} are right, {self.ungraded} not "
                f"graded and {self.cut} cut: that cannot be"
            )

    @property
    def rate(self) -> float | None:
        """Share of right replies among those that were graded; None where none was."""
        graded = self.sampled - self.ungraded
        return self.right / graded if graded else None

    def within(self, low: float, high: float, ends: Ends) -> bool:
        """Whether the rate lies between two bounds; ``ends``: which of them belong to it."""
        rate = self.rate
        if rate is None:
            return False
        above = rate >= low if ends in ("both", "low") else rate > low
        return above and (rate <= high if ends in ("both", "high") else rate < high)


class Ratings:
    """Rated problems in order. ``fingerprint`` is a SHA-256 over all of them, so that a run notices another set."""

    def __init__(self, rated: Sequence[Rated]) -> None:
        self._rated = tuple(rated)

    def __len__(self) -> int:
        return len(self._rated)

    def __iter__(self) -> Iterator[Rated]:
        return iter(self._rated)

    def __getitem__(self, number: int) -> Rated:
        return self._rated[number]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ratings) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Ratings({len(self)}, fingerprint={self.fingerprint[:12]!r})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of problems and counts, in order."""
        found = sha256()
        for one in self:
            problem = one.problem
            said = [(message.role, message.content, message.reasoning) for message in problem.messages]
            told = [problem.id, said, problem.answer, dict(problem.info), one.sampled, one.right, one.cut, one.ungraded]
            raw = json.dumps(told, sort_keys=True).encode()
            found.update(len(raw).to_bytes(8, "big") + raw)
        return found.hexdigest()

    def between(self, low: float, high: float, ends: Ends = "both") -> Ratings:
        """Those whose rate lies between two bounds. Raises SettingsError on bounds that hold nothing."""
        check_bounds(low, high, ends)
        return Ratings([one for one in self if one.within(low, high, ends)])


def check_bounds(low: float, high: float, ends: Ends) -> None:
    """Raise SettingsError unless some rate could lie between the bounds."""
    if ends not in ("both", "low", "high", "neither"):
        raise SettingsError(f"pass rates: ends={ends!r}; choose both, low, high or neither")
    if not 0 <= low <= high <= 1 or (low == high and ends != "both"):
        raise SettingsError(f"pass rates: from {low} to {high}, with ends={ends!r}: no rate in [0, 1] lies there")


@dataclass(frozen=True)
class _Told:
    """What is asked for training is chosen; all else is the business of the task that it is chosen from."""

    task: Task

    @property
    def name(self) -> str:
        """That of the task: the ids of the problems begin with it."""
        return self.task.name

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score replies as the task does."""
        return self.task.grade(problem, replies)

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        """As ``grade`` for every group, in order; together where the task can."""
        if isinstance(self.task, BatchTask):
            return self.task.grade_together(groups)
        return [self.task.grade(problem, replies) for problem, replies in groups]


@dataclass(frozen=True)
class Chosen(_Told):
    """Asks the problems of ``rated`` for training, without end; evaluations are those of the task.

    order: ``mixed``: each once per epoch, in an order that seed and epoch choose.  ``hard``: those with the lowest pass
    rate first, in every epoch; equal ones by the seed.
    """

    rated: Ratings
    order: Order = "mixed"
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.rated):
            raise DataError(f"{self.name}: no problem was chosen")
        if self.order not in ("mixed", "hard"):
            raise SettingsError(f"{self.name}: order={self.order!r}; choose mixed or hard")

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split. Raises ``DataError`` on a negative index, and what the task raises."""
        if split != "train":
            return self.task.problem(split, index)
        if index < 0:
            raise DataError(f"{self.name}: problem {index} of 'train' does not exist; problems are counted from 0")
        epoch, place = divmod(index, len(self.rated))
        if self.order == "hard":
            return self._hard_first[place].problem
        key = blake2b(f"{self.seed}/{epoch}".encode(), digest_size=32).digest()
        return self.rated[permuted(place, len(self.rated), key)].problem

    @cached_property
    def _hard_first(self) -> list[Rated]:
        def rank(one: Rated) -> tuple[float, bytes]:
            lot = blake2b(f"{self.seed}/{one.problem.id}".encode("utf-8", "replace"), digest_size=8).digest()
            return (1.0 if one.rate is None else one.rate), lot

        return sorted(self.rated, key=rank)


@dataclass(frozen=True)
class Later(_Told):
    """A task whose training begins ``start`` problems later: other ones than those that were asked before."""

    start: int

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SettingsError(f"{self.name}: start={self.start} must be at least 0")

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split. Raises ``DataError`` on a negative index, and what the task raises."""
        if index < 0:
            raise DataError(f"{self.name}: problem {index} of {split!r} does not exist; problems are counted from 0")
        return self.task.problem(split, index + self.start if split == "train" else index)
