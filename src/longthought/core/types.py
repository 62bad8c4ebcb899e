"""The nouns. Frozen data; nothing here runs.

Letters used in shapes all over the package: N sequences, T positions, G rollouts of one problem, S packed tokens,
V vocabulary, D width, H query heads, K key/value heads, C head width, L layers.

Names used for log-probabilities: ``logp`` under the current policy, ``logp_old`` under the policy that sampled,
``logp_ref`` under the frozen reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import chain
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
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
    """How to sample. Token k of a sample depends on (seed, prompt, sample number, k) and on nothing else.

    A reply ends after the first of ``stop_tokens``, after the token that completes one of the strings ``stop``, or
    after ``max_tokens``. ``temperature`` 0 is greedy.

    What changes the distribution, in the order of application, which is that of ``transformers.generate``:
    logit_bias: pairs (token, what is added to its logit).
    repetition_penalty: divides positive and multiplies negative logits of tokens in prompt and reply; 1 is off.
    bad_tokens: never drawn.
    min_tokens: before these, no stop token is drawn and no stop string ends the reply.
    processors: a user's own, each (tokens so far, prompt included; logits (V,)) → logits (V,), a pure function.
    temperature, then top_k (0 is off), top_p (1 is off), min_p (0 is off); these three do nothing at temperature 0.

    top_logprobs: for every token, also report the n most likely ones.
    """

    count: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_tokens: tuple[int, ...] = ()
    processors: tuple[Callable[[Sequence[int], Tensor], Tensor], ...] = ()
    top_logprobs: int = 0

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p may give probability zero to tokens that the policy can say."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from softmax(logits / temperature) itself, as a policy gradient assumes."""
        changed = self.logit_bias or self.bad_tokens or self.min_tokens or self.processors
        return not (changed or self.truncates or self.repetition_penalty != 1)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler returns: tokens and their log-probs under the distribution that they were drawn from.

    The stop token, or the token that completed a stop string, is the last one. ``version`` counts the optimizer steps
    of the weights.

    ``logprobs`` are those of ``softmax(logits / temperature)`` when ``SamplingParams.is_plain``, the policy's own.
    Otherwise they are those after every penalty and truncation, renormalised: right for importance weights of what was
    sampled, and not the policy's. At temperature 0 they are reported at T = 1, without truncation.
    ``alternatives``: with ``top_logprobs`` n, for every token the n most likely (token, log-prob), best first; fewer
    where fewer could be drawn.
    ``routing``: the experts that every token which was fed has chosen, prompt included: (prompt + reply − 1, L_r, K_r)
    int16, of the routed layers in order; None unless the engine was told to record them.
    """

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    finish: Finish
    version: int = 0
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    routing: NDArray[np.int16] | None = field(default=None, compare=False, repr=False)


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
    routing: (N, T, L_r, K_r) int16, the experts that the tokens chose when they were sampled; −1 where that is not
    known, as of a row's last token.
    """

    tokens: Tensor
    lengths: Tensor
    routing: Tensor | None = field(default=None, kw_only=True)

    def select(self, index: Tensor) -> Self:
        """The rows named by ``index`` (n,), every column cut alike, padding trimmed to their longest."""
        width = int(self.lengths[index].max()) if len(index) else 0
        columns: dict[str, Any] = {f.name: _cut(getattr(self, f.name), index, width) for f in fields(self)}
        return type(self)(**columns)

    def to(self, device: torch.device) -> Self:
        """The same rows on another device."""
        columns: dict[str, Tensor | None] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if c is None else c.to(device) for name, c in columns.items()}
        return type(self)(**moved)


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
    returns, value_old: what a critic learns, and what it said when the replies were sampled.
    imitation: weight of the token in a term that imitates right replies.
    """

    mask: Tensor
    weight: Tensor
    advantage: Tensor | None = None
    logp_old: Tensor | None = None
    logp_ref: Tensor | None = None
    returns: Tensor | None = None
    value_old: Tensor | None = None
    imitation: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pairs(Batch):
    """Rows of two sequences end to end: a prompt with the better reply, then the same prompt with the worse one.

    mask: True on the last token of each, where a reward model is read.  weight: half of the pair's on each.
    margin: (N,) by which the better reply should be ahead.
    """

    margin: Tensor = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What the policy says about a batch: log-prob and entropy (nats) of every token, (N, T), float32 or wider.

    values: of a critic, V of the state before every token, (N, T); its other two columns are zero.
    ahead: (N, T, D), what the modules that predict further say of the same tokens: log-probs by module k from the state
    k tokens further back, zero where there is none.
    """

    logp: Tensor
    entropy: Tensor
    values: Tensor | None = None
    ahead: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """``value`` and every metric are weighted *sums*: those of micro-batches add up to those of the batch."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Update(NamedTuple):
    """What an optimizer step saw: its metrics, and what the policy said of every row before the weights moved.

    ``output``: (N, T), on the CPU, rows as in the batch of the step, zero where nothing was asked.
    """

    metrics: Metrics
    output: PolicyOutput


def rows_of(sequences: list[TokenIds]) -> Rows:
    """Pad token sequences on the right."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max(initial=0))), dtype=np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(chain.from_iterable(sequences), np.int64)
    return Rows(torch.from_numpy(tokens), torch.from_numpy(lengths))
