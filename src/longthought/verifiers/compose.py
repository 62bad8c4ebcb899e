"""Verifiers made of verifiers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longthought.core.errors import SettingsError
from longthought.core.protocols import Verifier
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.batch import Pair, many


@dataclass(frozen=True)
class Weighted:
    """The weighted sum of named parts: ``Weighted({"math": (Math(), 1.0), "language": (…, 0.1)})``.

    A part without a value leaves the total without one: a missing grade is not 0. The evidence names every part.
    """

    parts: Mapping[str, tuple[Verifier, float]]

    def __post_init__(self) -> None:
        _refuse_empty(self.parts)
        for name, (_, weight) in self.parts.items():
            if not math.isfinite(weight):
                raise SettingsError(f"the weight of {name!r} is {weight}: must be finite")

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.many([(problem, reply)])[0]

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs, each part asked once for all of them."""
        columns = [many(verifier, pairs) for verifier, _ in self.parts.values()]
        return [self._sum(row) for row in zip(*columns)]

    def _sum(self, row: Sequence[Verdict]) -> Verdict:
        evidence = _told(self.parts, row)
        total = 0.0
        for verdict, (_, weight) in zip(row, self.parts.values()):
            if verdict.value is None:
                return Verdict(None, verdict.outcome, evidence)
            total += weight * verdict.value
        unread = all(verdict.outcome is Outcome.UNPARSABLE for verdict in row)
        return Verdict(total, Outcome.UNPARSABLE if unread else Outcome.GRADED, evidence)


@dataclass(frozen=True, init=False)
class _Several(ABC):
    """Verifiers that are given one after the other."""

    verifiers: tuple[Verifier, ...]

    def __init__(self, *verifiers: Verifier) -> None:
        _refuse_empty(verifiers)
        object.__setattr__(self, "verifiers", verifiers)

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.many([(problem, reply)])[0]

    @abstractmethod
    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]: ...


class First(_Several):
    """The first of its verifiers that grades; the last one's word where none does. Later ones see only what is left."""

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs."""
        verdicts: list[Verdict] = many(self.verifiers[0], pairs)
        for verifier in self.verifiers[1:]:
            left = [number for number, verdict in enumerate(verdicts) if verdict.outcome is not Outcome.GRADED]
            for number, verdict in zip(left, many(verifier, [pairs[number] for number in left])):
                verdicts[number] = verdict
        return verdicts


class All(_Several):
    """1.0 when every verifier says 1.0, 0.0 when one says less; absent when that hangs on a missing value."""

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs."""
        return [_decided(row, 0.0, _numbered(row)) for row in zip(*(many(one, pairs) for one in self.verifiers))]


class Any(_Several):
    """1.0 when one verifier says 1.0, 0.0 when all say less; absent when that hangs on a missing value."""

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs."""
        return [_decided(row, 1.0, _numbered(row)) for row in zip(*(many(one, pairs) for one in self.verifiers))]


@dataclass(frozen=True)
class Threshold:
    """1.0 where a verifier's value is ``least`` or more, else 0.0. An absent value stays absent."""

    verifier: Verifier
    least: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.least):
            raise SettingsError(f"least={self.least}: must be finite")

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.many([(problem, reply)])[0]

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs."""
        return [self._cut(verdict) for verdict in many(self.verifier, pairs)]

    def _cut(self, verdict: Verdict) -> Verdict:
        if verdict.value is None:
            return verdict
        return Verdict(float(verdict.value >= self.least), verdict.outcome, f"{verdict.value:g}; {verdict.evidence}")


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A reply on which two verifiers differ."""

    problem: Problem
    reply: Message
    verdicts: tuple[Verdict, Verdict] = field(compare=False)


def disagreements(one: Verifier, other: Verifier, pairs: Sequence[Pair]) -> list[Disagreement]:
    """The pairs that two verifiers value differently, an absent value and 0 included."""
    rows = zip(pairs, many(one, pairs), many(other, pairs))
    return [Disagreement(*pair, (a, b)) for pair, a, b in rows if a.value != b.value]


def _decided(row: Sequence[Verdict], decisive: float, evidence: str) -> Verdict:
    """``decisive`` when one verdict suffices for it, else the opposite; absent when that is not known."""
    for verdict in row:
        if verdict.value is not None and (verdict.value >= 1.0) == (decisive == 1.0):
            return Verdict(decisive, Outcome.GRADED, evidence)
    missing = next((verdict for verdict in row if verdict.value is None), None)
    if missing is not None:
        return Verdict(None, missing.outcome, evidence)
    return Verdict(1.0 - decisive, Outcome.GRADED, evidence)


def _told(names: Mapping[str, object], row: Sequence[Verdict]) -> str:
    parts = zip(names, row)
    return "; ".join(f"{name} {_value(verdict)} ({verdict.evidence})" for name, verdict in parts)


def _numbered(row: Sequence[Verdict]) -> str:
    return _told({str(number): None for number in range(1, len(row) + 1)}, row)


def _value(verdict: Verdict) -> str:
    return str(verdict.outcome) if verdict.value is None else f"{verdict.value:g}"


def _refuse_empty(parts: Sequence[object] | Mapping[str, object]) -> None:
    if not parts:
        raise SettingsError("a verifier made of verifiers needs at least one")
