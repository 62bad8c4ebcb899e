"""Choosing one answer among many. A missing answer (None) never wins; ties go to the answer that appeared first."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, TypeVar

from longthought.core.errors import SettingsError

Answer = TypeVar("Answer", bound=Hashable)
How = Literal["last", "min", "prod", "mean"]


def majority(answers: Sequence[Answer | None]) -> Answer | None:
    """The most frequent answer, None when all are missing. Answers are compared with ==, so canonicalise them before.

    Source: self-consistency, Wang et al., arXiv:2203.11171.
    """
    return weighted(answers, [1.0] * len(answers))


def weighted(answers: Sequence[Answer | None], scores: Sequence[float]) -> Answer | None:
    """The answer with the largest sum of scores, None when all are missing.

    Scores are votes, so they should not be negative (a negative one is a vote against). Raises SettingsError when
    there is not one finite score per answer.  Source: weighted best-of-N, Li et al., arXiv:2206.02336.
    """
    if len(answers) != len(scores):
        raise SettingsError(f"weighted: {len(answers)} answers, but {len(scores)} scores")
    if not all(math.isfinite(score) for score in scores):
        raise SettingsError(f"weighted: every score must be finite, got {list(scores)}")
    ballots: dict[Answer, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            ballots.setdefault(answer, []).append(score)
    # fsum: the winner of a tie must not depend on the order in which floats were added. max keeps the first of equals.
    return max(ballots, key=lambda answer: math.fsum(ballots[answer]), default=None)


def aggregate(step_scores: Sequence[float], how: How) -> float:
    """One score of a path from those of its steps: the ``last``, the ``min``, the product (``prod``) or the ``mean``.

    Raises SettingsError for a path without steps, and for an unknown ``how``.
    Source: Snell et al., arXiv:2408.03314, section 5.1; Lightman et al., arXiv:2305.20050 (product and minimum).
    """
    if len(step_scores) == 0:
        raise SettingsError("aggregate: the path has no steps, so it has no score; leave it out of the choice")
    match how:
        case "last":
            return step_scores[-1]
        case "min":
            return min(step_scores)
        case "prod":
            return math.prod(step_scores)
        case "mean":
            return math.fsum(step_scores) / len(step_scores)
    raise SettingsError(f"aggregate: how must be one of last, min, prod, mean; got {how!r}")
