"""Countdown: reach a target from a few numbers, each used exactly once. Unlimited, seeded, exactly graded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import ClassVar, Final, get_args

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.countdown_search import chains, solve
from longthought.tasks.grading import TaggedForm, grade_reply
from longthought.tasks.settings import check_format_weight, check_languages, check_operations
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers.countdown import grade

PROMPTS: Final = {"en": "use {numbers} make {target}", "zh": "用 {numbers} 得 {target}"}


@dataclass(frozen=True)
class Countdown:
    """Problems of ``count`` distinct numbers from 1..``largest`` with a target in 1..``target``.

    A problem is a number set, then a target drawn uniformly from those the set reaches by a left-to-right chain
    ``( a op b ) op c …`` with every result before the last an integer in 0..``intermediate``. So every problem is
    solvable; the verifier accepts any other expression too. Splits ("train", "dev", "test") are disjoint by number
    set, whatever the seed and the level. Languages alternate with the index. The reward is
    ``accuracy + format_weight · format`` (see ``tasks.grading``).

    form: of a reply: ``think_answer``, or ``summary``, in which ``<answer>…</answer>`` may have words around it.

    Example: ``Countdown.level(2).problem("train", 0).messages[0].content`` is like ``"use 9 4 3 make 33"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split or where
    the settings leave a split without a problem.
    """

    count: int = 3
    largest: int = 20
    target: int = 99
    intermediate: int = 99
    operations: str = "+-*"
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1
    form: TaggedForm = "think_answer"

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if not 2 <= self.count <= 6:
            raise SettingsError(f"countdown: count is {self.count}; choose 2 to 6 numbers")
        if self.largest < self.count:
            raise SettingsError(f"countdown: largest is {self.largest}; {self.count} distinct numbers need more")
        if min(self.target, self.intermediate) < 1:
            raise SettingsError("countdown: target and intermediate must be at least 1")
        check_operations(self.name, self.operations)
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)
        if self.form not in get_args(TaggedForm):
            raise SettingsError(f"countdown: form is {self.form!r}; choose one of {', '.join(get_args(TaggedForm))}")

    @classmethod
    def level(cls, number: int) -> Countdown:
        """Presets from easy (1) to hard (6): more numbers, larger ranges, division from level 3 on."""
        presets = (
            cls(3, 10, 60, 60),
            cls(),
            cls(3, 50, 99, 999, "+-*/"),
            cls(4, 50, 99, 999, "+-*/"),
            cls(5, 75, 499, 999, "+-*/"),
            cls(6, 99, 999, 999, "+-*/"),
        )
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"countdown: level is {number}; choose 1 to {cls.levels}")
        return presets[number - 1]

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "countdown"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        language = self.languages[index % len(self.languages)]
        sets = proposals(split, lambda: draw.sample(range(1, self.largest + 1), self.count), self.split_of)
        return next(
            self._stated(numbers, draw.choice(sorted(targets)), language)
            for numbers in sets
            if (targets := self.reachable(numbers))
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the exact verifier. Raises ``DataError`` when the problem is not one of Countdown."""
        try:
            numbers = [int(n) for n in problem.info["numbers"].split()]
            target = int(problem.info["target"])
        except (KeyError, ValueError) as error:
            raise DataError(f"problem {problem.id!r} is no countdown problem: it lacks numbers or target") from error

        def verify(answer: str) -> Verdict:
            return grade(answer, numbers, target)

        return [grade_reply(reply, verify, self.format_weight, self.form) for reply in replies]

    def parse(self, prompt: str) -> Problem | None:
        """The problem that a prompt of this task states, of any split and solvable or not; None for other text."""
        for language in self.languages:
            pattern = PROMPTS[language].format(numbers=r"(?P<numbers>\d+(?: \d+)*)", target=r"(?P<target>\d+)")
            found = re.fullmatch(pattern, " ".join(prompt.split()), re.ASCII)
            if found:
                return self._stated([int(n) for n in found["numbers"].split()], int(found["target"]), language)
        return None

    def reachable(self, numbers: Sequence[int]) -> dict[int, str]:
        """Every target in 1..``target`` that a chain of ``numbers`` reaches, with one such chain as expression."""
        return dict(_reachable(tuple(sorted(numbers)), self.target, self.intermediate, self.operations))

    def solve(self, numbers: Sequence[int], target: int) -> str | None:
        """An expression that the verifier accepts, a chain where there is one; None when no expression exists.

        Fractions may appear on the way. Raises ``DataError`` unless there are 1 to 6 positive numbers.
        """
        return self.reachable(numbers).get(target) or solve(numbers, target, self.operations)

    def split_of(self, numbers: Sequence[int]) -> str:
        """The split that a number set belongs to, in any order, at every level and seed."""
        return split_of(self.name, " ".join(map(str, sorted(numbers))))

    def size(self, split: str) -> int:
        """How many distinct (number set, target) problems a split holds. Enumerates all sets: meant for count 3."""
        sets = combinations(range(1, self.largest + 1), self.count)
        return sum(len(self.reachable(numbers)) for numbers in sets if self.split_of(numbers) == split)

    def _stated(self, numbers: Sequence[int], target: int, language: str) -> Problem:
        shown = " ".join(map(str, numbers))
        identity = "-".join(map(str, sorted(numbers)))
        return Problem(
            id=f"{self.name}/{identity}/{target}/{language}",
            messages=(Message("user", PROMPTS[language].format(numbers=shown, target=target)),),
            answer=str(target),
            info={"numbers": shown, "target": str(target), "language": language},
        )


@lru_cache(maxsize=65_536)
def _reachable(numbers: tuple[int, ...], target: int, intermediate: int, operations: str) -> dict[int, str]:
    found = chains(numbers, intermediate, target, operations)
    return {value: found[value] for value in sorted(found) if value >= 1}
