"""Exact searches for Countdown: all left-to-right chains, and any expression whatever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import gcd
from typing import NamedTuple, TypeAlias

from longthought.core.errors import DataError

Numbers: TypeAlias = tuple[int, ...]
Ratio: TypeAlias = tuple[int, int]
"""Numerator and positive denominator without a common divisor: several times faster as a key than ``Fraction``."""


def chains(numbers: Sequence[int], intermediate: int, target: int, operations: str) -> dict[int, str]:
    """Results in 0..``target`` of chains ``( a op b ) op c …`` that use every number once, each with one such chain.

    Every result before the last is an integer in 0..``intermediate``. Dynamic programming over sets of used numbers:
    at most 2^n · (intermediate + 1) states.
    """
    everything = (1 << len(numbers)) - 1
    found: dict[int, dict[int, str]] = {1 << i: {n: str(n)} for i, n in enumerate(numbers)}
    for used in range(1, everything):  # a set precedes its supersets
        for i, number in enumerate(numbers):
            if used >> i & 1:
                continue
            into = found.setdefault(used | 1 << i, {})
            limit = target if used | 1 << i == everything else intermediate
            for value, chain in found[used].items():
                for operation in operations:
                    result = _integer(value, operation, number)
                    if result is not None and 0 <= result <= limit and result not in into:
                        into[result] = f"{_bracketed(chain)} {operation} {number}"
    return found[everything]


def _integer(left: int, operation: str, right: int) -> int | None:
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right
    if operation == "*":
        return left * right
    return left // right if right and left % right == 0 else None


def _bracketed(expression: str) -> str:
    return f"( {expression} )" if " " in expression else expression


def solve(numbers: Sequence[int], target: int, operations: str = "+-*/") -> str | None:
    """An expression over exact fractions that uses every number once and gives ``target``; None if none exists.

    Goal-directed: the larger part of a split is asked for the value that the smaller part lacks, so only parts of three
    numbers are ever enumerated. Raises ``DataError`` unless there are 1 to 6 positive numbers.
    """
    if not 1 <= len(numbers) <= 6 or min(numbers) < 1:
        raise DataError(f"can solve for 1 to 6 positive numbers, not for {list(numbers)}")
    return _Search(operations).expression(tuple(sorted(numbers)), (target, 1))


class _Step(NamedTuple):
    """What the larger part must give so that, joined with the smaller part, it gives the goal."""

    goal: Ratio
    operation: str
    larger_first: bool


class _Search:
    """Answers "can these numbers give this value?", remembering sub-answers by multiset and value."""

    def __init__(self, operations: str) -> None:
        self.operations = operations
        self._values: dict[Numbers, dict[Ratio, str]] = {}
        self._answers: dict[tuple[Numbers, Ratio], str | None] = {}

    def expression(self, numbers: Numbers, goal: Ratio) -> str | None:
        if len(numbers) <= 3:
            return self.values(numbers).get(goal)
        key = (numbers, goal)
        if key not in self._answers:
            self._answers[key] = self._split(numbers, goal)
        return self._answers[key]

    def values(self, numbers: Numbers) -> dict[Ratio, str]:
        """All values of at most three numbers, each with an expression."""
        if len(numbers) == 1:
            return {(numbers[0], 1): str(numbers[0])}
        if numbers not in self._values:
            self._values[numbers] = dict(self._joined(numbers))
        return self._values[numbers]

    def _joined(self, numbers: Numbers) -> Iterator[tuple[Ratio, str]]:
        for smaller, larger in _parts(numbers):
            for a, left in self.values(smaller).items():
                for b, right in self.values(larger).items():
                    yield from self._results(a, left, b, right)
                    yield from self._results(b, right, a, left)

    def _results(self, a: Ratio, left: str, b: Ratio, right: str) -> Iterator[tuple[Ratio, str]]:
        for operation in self.operations:
            if operation != "/" or b[0]:
                yield _apply(a, operation, b), f"{_bracketed(left)} {operation} {_bracketed(right)}"

    def _split(self, numbers: Numbers, goal: Ratio) -> str | None:
        for smaller, larger in _parts(numbers):
            for value, expression in self.values(smaller).items():
                for step in _steps(goal, value, self.operations):
                    rest = self.expression(larger, step.goal)
                    if rest is not None:
                        first, second = (rest, expression) if step.larger_first else (expression, rest)
                        return f"{_bracketed(first)} {step.operation} {_bracketed(second)}"
                if value == goal == (0, 1) and set("*/") & set(self.operations):
                    operation = "*" if "*" in self.operations else "/"
                    anything = f" {operation} ".join(map(str, larger))  # not 0, so that 0 may be divided by it
                    return f"{_bracketed(expression)} {operation} {_bracketed(anything)}"
        return None


def _parts(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """All ways to cut a multiset in two, the smaller part first, each once."""
    seen: set[Numbers] = set()
    positions = range(len(numbers))
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(positions, size):
            smaller = tuple(numbers[i] for i in chosen)
            if smaller not in seen:
                seen.add(smaller)
                yield smaller, tuple(numbers[i] for i in positions if i not in chosen)


def _apply(a: Ratio, operation: str, b: Ratio) -> Ratio:
    """``a op b`` in lowest terms; ``b`` is not 0 where it divides."""
    (p, q), (r, s) = a, b
    if operation == "+":
        above, below = p * s + r * q, q * s
    elif operation == "-":
        above, below = p * s - r * q, q * s
    elif operation == "*":
        above, below = p * r, q * s
    else:
        above, below = (p * s, q * r) if r > 0 else (-p * s, -q * r)
    common = gcd(above, below)
    return above // common, below // common


def _steps(goal: Ratio, value: Ratio, operations: str) -> Iterator[_Step]:
    """Solve ``x op value = goal`` and ``value op x = goal`` for x."""
    if "+" in operations:
        yield _Step(_apply(goal, "-", value), "+", True)
    if "-" in operations:
        yield _Step(_apply(goal, "+", value), "-", True)
        yield _Step(_apply(value, "-", goal), "-", False)
    if "*" in operations and value[0]:
        yield _Step(_apply(goal, "/", value), "*", True)
    if "/" in operations and value[0]:
        yield _Step(_apply(goal, "*", value), "/", True)
        if goal[0]:
            yield _Step(_apply(value, "/", goal), "/", False)
