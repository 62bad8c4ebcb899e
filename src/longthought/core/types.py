"""The nouns. Frozen data; nothing here runs.

Letters used in shapes all over the package: N sequences, T positions, G rollouts of one problem, S packed tokens,
V vocabulary, D width, H query heads, K key/value heads, C head width, L layers.

Names used for log-probabilities: ``logp`` under the current policy, ``logp_old`` under the policy that sampled,
``logp_ref`` under the frozen reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

TokenIds: TypeAlias = tuple[int, ...]
Metrics: TypeAlias = Mapping[str, float]


class Outcome(StrEnum):
    """What became of an attempt to grade. Only ``GRADED`` and ``UNPARSABLE`` carry a value."""

    GRADED = "graded"
    UNPARSABLE = "unparsable"  # the reply holds no answer that could be read: value 0
    NO_GOLD = "no_gold"  # the problem's own answer cannot be read: the fault is not the reply's
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    INVALID = "invalid"  # the verifier returned something that is no grade


class Finish(StrEnum):
    """Why a completion ended, as told by the sampler and never inferred from its tokens."""

    STOP = "stop"  # the model emitted an end token (it is the last of ``token_ids``)
    LENGTH = "length"  # ``max_tokens`` were generated
    BUDGET = "budget"  # the context window or a token budget was exhausted
    STOP_STRING = "stop_string"  # a stop string of the caller appeared


CUT = frozenset({Finish.LENGTH, Finish.BUDGET})
"""The finish reasons of a completion that was not allowed to end by itself."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``reasoning`` is what stood between ``<think>`` and ``</think>``.

    Example: ``Message("assistant", "( 9 * 4 ) - 3", reasoning="try 9 * 4 = 36 - 3 = 33 yes")``
    """

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with what a verifier needs to grade a reply.

    Example: ``Problem("countdown/3-4-9/33/en", (Message("user", "use 9 4 3 make 33"),), "33",
    {"numbers": "9 4 3", "target": "33", "language": "en"})``
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    info: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grade with its evidence. ``value`` is None when nothing could be graded (timed out, crashed)."""

    value: float | None
    outcome: Outcome
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a task makes of one reply.

    ``value`` is the task reward (None: absent, the sample leaves baseline and loss), ``correct`` whether the answer is
    right, ``parts`` the named summands of the reward, ``verdict`` the evidence.
    """

    value: float | None
    correct: bool
    parts: Mapping[str, float]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Token k of a sample depends on (seed, prompt, sample number, k) and on nothing else."""

    count: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler returns: tokens (the stop token included) and their log-probs under the policy that sampled.

    ``logprobs`` are those of ``softmax(logits / temperature)``; ``version`` counts the optimizer steps of the weights.
    """

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    finish: Finish
    version: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled reply to one problem, graded. ``text`` is a view of the completion's tokens."""

    problem: Problem
    prompt: TokenIds
    completion: Completion
    text: str
    score: Score


Group: TypeAlias = tuple[Rollout, ...]
"""The G rollouts of one problem."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N token sequences, padded to T. Rows are cut by ``lengths``, never by comparing with a padding token.

    tokens: (N, T) int64.  lengths: (N,) int64.
    """

    tokens: Tensor
    lengths: Tensor

    def select(self, index: Tensor) -> Self:
        """The rows named by ``index`` (n,), every column cut alike, padding trimmed to their longest."""
        width = int(self.lengths[index].max()) if len(index) else 0
        columns: dict[str, Any] = {f.name: _cut(getattr(self, f.name), index, width) for f in fields(self)}
        return type(self)(**columns)


def _cut(column: Tensor | None, index: Tensor, width: int) -> Tensor | None:
    if column is None:
        return None
    rows = column[index]
    return rows[:, :width] if rows.dim() > 1 else rows


@dataclass(frozen=True, slots=True)
class Batch(Rows):
    """Columns that speak of ``tokens[:, t]``, each (N, T).

    mask: True on the tokens of the reply that the policy generated (the stop token included).
    weight: share of the token in the loss of the whole optimizer step; 0 where nothing is trained.
    advantage, logp_old, logp_ref: filled when the objective reads them.
    """

    mask: Tensor
    weight: Tensor
    advantage: Tensor | None = None
    logp_old: Tensor | None = None
    logp_ref: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What the policy says about a batch: log-prob and entropy (nats) of every token, (N, T), float32 or wider."""

    logp: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """``value`` and every metric are weighted *sums*: those of micro-batches add up to those of the batch."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def rows_of(sequences: list[TokenIds]) -> Rows:
    """Pad token sequences on the right."""
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
    tokens = torch.zeros(len(sequences), int(lengths.max()) if sequences else 0, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return Rows(tokens, lengths)
