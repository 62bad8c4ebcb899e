"""Verifiers that grade many replies at once, and how to ask any verifier for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from longthought.core.protocols import Verifier
from longthought.core.types import Message, Problem, Verdict

Pair: TypeAlias = tuple[Problem, Message]


@runtime_checkable
class BatchVerifier(Protocol):
    """A verifier that is faster on many pairs than on one after the other. As it, it never raises."""

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict: ...

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs, in order: what one call for each would say."""
        ...


def many(verifier: Verifier, pairs: Sequence[Pair]) -> list[Verdict]:
    """Grade all pairs, at once where the verifier can."""
    if isinstance(verifier, BatchVerifier):
        return verifier.many(pairs)
    return [verifier(problem, reply) for problem, reply in pairs]
