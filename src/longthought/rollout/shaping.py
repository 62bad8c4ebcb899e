"""Summands of the reward beside the task's own. Each is a small frozen value with a name and a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longthought.algorithms.shaping import (
    length_reward,
    overlong_penalty,
    repetition_penalties,
    repetition_penalty,
)
from longthought.core.errors import SettingsError
from longthought.core.types import Rollout
from longthought.verifiers.language import consistency


@dataclass(frozen=True, slots=True)
class LanguageConsistency:
    """weight · share of the words of the reasoning that are in the problem's language.

    A reply without words earns nothing. DeepSeek-R1 (arXiv:2501.12948), section 2.3.2.
    """

    weight: float
    name: str = "language"

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        shares = [consistency(r.text.partition("</think>")[0], r.problem.info.get("language", "en")) for r in group]
        return [self.weight * (share or 0.0) for share in shares]


@dataclass(frozen=True, slots=True)
class Repetition:
    """−weight · (1 − distinct n-grams / n-grams) of the reply's tokens."""

    weight: float
    n: int = 10
    name: str = "repetition"

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        return [repetition_penalty(r.completion.token_ids, self.n, -self.weight) for r in group]


@dataclass(frozen=True, slots=True)
class TokenRepetition:
    """−weight on every token that repeats an n-gram of the reply: a reward of single tokens (``Method.dense``).

    With its own discount in ``Discounted`` it stays near the tokens that earned it. Demystifying Long CoT
    (arXiv:2502.03373): 40-grams, 0.05, γ = 0.99.
    """

    weight: float = 0.05
    n: int = 40
    name: str = "repetition"

    def __call__(self, group: Sequence[Rollout], /) -> list[list[float]]:
        return [repetition_penalties(r.completion.token_ids, self.n, -self.weight) for r in group]


@dataclass(frozen=True, slots=True)
class Overlong:
    """DAPO's soft punishment (arXiv:2503.14476, equation 13): from 0 to −weight over the last ``cache`` tokens."""

    maximum: int
    cache: int
    weight: float = 1.0
    name: str = "overlong"

    def __post_init__(self) -> None:
        if not 0 < self.cache < self.maximum:
            raise SettingsError(f"overlong: cache={self.cache} must lie between 0 and the maximum of {self.maximum}")

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        return [self.weight * overlong_penalty(len(r.completion.token_ids), self.maximum, self.cache) for r in group]


@dataclass(frozen=True, slots=True)
class Length:
    """weight · Kimi k1.5's length reward (arXiv:2501.12599, section 2.3.3): shorter right answers earn more."""

    weight: float
    name: str = "length"

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        lengths = [len(r.completion.token_ids) for r in group]
        return [self.weight * value for value in length_reward(lengths, [r.score.correct for r in group])]
