"""Verifiers that grade many replies at once, and how to ask any verifier for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from longthought.core.protocols import BatchVerifier, Verifier
from longthought.core.types import Message, Problem, Verdict

Pair: TypeAlias = tuple[Problem, Message]


def many(verifier: Verifier, pairs: Sequence[Pair]) -> list[Verdict]:
    """Grade all pairs, at once where the verifier can."""
    if isinstance(verifier, BatchVerifier):
        return verifier.many(pairs)
    return [verifier(problem, reply) for problem, reply in pairs]
