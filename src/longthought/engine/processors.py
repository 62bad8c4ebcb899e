"""From logits to what is sampled from: penalties, bans, temperature and truncation, over the rows of a batch at once.

The order and the arithmetic are those of ``transformers.generate`` (``_get_logits_processor``), so that a model has the
same distribution here and there:

    logit_bias → repetition_penalty → bad_tokens → min_tokens → processors → temperature → top_k → top_p → min_p

Greedy decoding (temperature 0) takes the arg max after ``processors``; the last four are then without effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from longthought.core.errors import SettingsError
from longthought.core.types import SamplingParams


class LogitProcessor(Protocol):
    """A user's own processor, for one row: the tokens so far, prompt included, and logits (V,) → logits (V,).

    It must be a function of its arguments alone: rows are played in any order, in several processes.
    """

    def __call__(self, tokens: Sequence[int], logits: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class History:
    """What steps may know of R rows.

    generated: (R,) tokens drawn so far.  seen: (R, V) True for tokens that occur in the prompt or the reply; only the
    repetition penalty reads it.  tokens: of every row, prompt included, None for a row that nobody waits for; only a
    user's processors read it.
    """

    generated: Int64[Tensor, " r"]
    seen: Bool[Tensor, "r v"] | None = None
    tokens: Sequence[Sequence[int] | None] = ()


class Step(Protocol):
    """One step of the way: logits (R, V) → logits (R, V), never in place."""

    def __call__(self, logits: Tensor, history: History, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class LogitBias:
    """logits + bias.  bias: (V,)."""

    bias: Tensor

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        return logits + self.bias


@dataclass(frozen=True)
class RepetitionPenalty:
    """A token that has occurred has its logit divided by the penalty if positive, multiplied if negative.

    Source: CTRL, arXiv:1909.05858, section 4.1, in the form of ``transformers``, which mends its sign.
    """

    penalty: float

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        assert history.seen is not None
        punished = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return torch.where(history.seen, punished, logits)


@dataclass(frozen=True, eq=False)
class BadTokens:
    """Tokens that are never drawn.  banned: (V,) bool."""

    banned: Tensor

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        return logits.masked_fill(self.banned, -math.inf)


@dataclass(frozen=True, eq=False)
class MinTokens:
    """No stop token among the first ``least`` tokens of a reply.  stops: (V,) bool."""

    least: int
    stops: Tensor

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        early = history.generated < self.least
        return logits.masked_fill(early[:, None] & self.stops, -math.inf)


@dataclass(frozen=True)
class Custom:
    """A user's processor, row by row. Raises SettingsError when it returns anything but logits of its row's shape."""

    processor: LogitProcessor

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        changed = logits.clone()
        for row, tokens in enumerate(history.tokens):
            if tokens is not None:
                changed[row] = self._checked(self.processor(tokens, changed[row]), logits[row])
        return changed

    def _checked(self, made: object, row: Tensor) -> Tensor:
        if not isinstance(made, Tensor) or made.shape != row.shape:
            what = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, Tensor) else repr(made)
            raise SettingsError(
                f"processors: {self.processor!r} returned {what}; it must return the logits of one row, "
                f"a tensor of shape {tuple(row.shape)}"
            )
        return made


@dataclass(frozen=True)
class Temperature:
    """logits / T."""

    temperature: float

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        return logits / self.temperature


@dataclass(frozen=True)
class TopK:
    """The k most likely tokens, and all that tie with the last of them; all tokens where k exceeds V."""

    k: int

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        least = logits.topk(min(self.k, logits.shape[-1])).values[:, -1:]
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True)
class TopP:
    """The fewest most likely tokens whose probabilities reach p; the one that crosses it stays. Ties may be parted.

    Source: nucleus sampling, arXiv:1904.09751, section 3.1.
    """

    p: float

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        ascending, order = logits.sort(dim=-1)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - self.p  # what lies below a token, itself included
        tail[:, -1] = False
        return logits.masked_fill(torch.empty_like(tail).scatter_(-1, order, tail), -math.inf)


@dataclass(frozen=True)
class MinP:
    """Tokens at least p times as likely as the most likely one.  Source: arXiv:2407.01082, section 3."""

    p: float

    def __call__(self, logits: Float[Tensor, "r v"], history: History, /) -> Float[Tensor, "r v"]:
        probability = logits.softmax(-1)
        most = probability.max(-1, keepdim=True)
        unlikely = (probability < self.p * most.values).scatter(-1, most.indices, False)
        return logits.masked_fill(unlikely, -math.inf)


def steps_of(params: SamplingParams, vocabulary: int, device: torch.device) -> tuple[Step, ...]:
    """The steps that ``params`` asks for, in order; none at temperature 1 and 0 when all else is at its default."""
    steps: list[Step] = []
    if params.logit_bias:
        bias = torch.zeros(vocabulary, device=device)
        bias[_index((token for token, _ in params.logit_bias), device)] = torch.tensor(
            [value for _, value in params.logit_bias], dtype=bias.dtype, device=device
        )
        steps.append(LogitBias(bias))
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenalty(params.repetition_penalty))
    if params.bad_tokens:
        steps.append(BadTokens(_marked(params.bad_tokens, vocabulary, device)))
    if params.min_tokens and params.stop_tokens:
        steps.append(MinTokens(params.min_tokens, _marked(params.stop_tokens, vocabulary, device)))
    steps += map(Custom, params.processors)
    return (*steps, *(_warpers(params) if params.temperature else ()))


def _warpers(params: SamplingParams) -> list[Step]:
    """What only sampling has."""
    steps: list[Step] = []
    if params.temperature != 1:
        steps.append(Temperature(params.temperature))
    if params.top_k:
        steps.append(TopK(params.top_k))
    if params.top_p < 1:
        steps.append(TopP(params.top_p))
    if params.min_p:
        steps.append(MinP(params.min_p))
    return steps


def process(logits: Float[Tensor, "r v"], history: History, steps: Sequence[Step]) -> Float[Tensor, "r v"]:
    """Logits (R, V) of any float type after all steps, float32 or wider."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for step in steps:
        scores = step(scores, history)
    return scores


def seen_tokens(tokens: Sequence[Sequence[int]], vocabulary: int, device: torch.device) -> Bool[Tensor, "r v"]:
    """True where a token occurs in a row: R sequences → (R, V)."""
    seen = torch.zeros(len(tokens), vocabulary, dtype=torch.bool, device=device)
    rows = _index((row for row, some in enumerate(tokens) for _ in some), device)
    seen[rows, _index((token for some in tokens for token in some), device)] = True
    return seen


def _marked(tokens: Sequence[int], vocabulary: int, device: torch.device) -> Tensor:
    return seen_tokens([tokens], vocabulary, device)[0]


def _index(numbers: Iterable[int], device: torch.device) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64, device=device)
