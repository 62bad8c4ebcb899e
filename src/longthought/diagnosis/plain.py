"""The policy computed once more, without any of the code that samples and trains: one row, no packing, no cache.

What the sampler and the learner say is compared with this, and not only with each other: two that are wrong in the same
way agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longthought.core.types import TokenIds
from longthought.models.transformer import Transformer


class Said(NamedTuple):
    """What the policy says of n tokens, (n,) each: their log-probs, the entropy there, Σ p² and the variance of p of
    what is drawn, which tell how likely draws should be."""

    logp: Tensor
    entropy: Tensor
    likely: Tensor
    spread: Tensor


def logits_of(model: Transformer, tokens: TokenIds, start: int) -> Tensor:
    """The logits that predict ``tokens[start:]``, (S − start, V), float32 or wider, with their gradient; start ≥ 1."""
    given = torch.tensor(tokens, dtype=torch.int64, device=model.lm_head.weight.device)
    hidden = model(given, torch.arange(len(tokens), device=given.device), _Plain())
    logits: Tensor = hidden[start - 1 : -1] @ model.lm_head.weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def said(logits: Tensor, tokens: TokenIds, temperature: float) -> Said:
    """The softmax of logits / temperature, written out.  logits: (n, V) of ``logits_of``; tokens: those that follow."""
    logp = (logits / temperature).log_softmax(-1)
    p = logp.exp()
    squares = p.square().sum(-1)
    drawn = logp.gather(-1, _column(logits, tokens)).squeeze(-1)
    return Said(drawn, -(p * logp).sum(-1), squares, p.pow(3).sum(-1) - squares.square())


def logprobs_of(logits: Tensor, tokens: TokenIds, temperature: float) -> Tensor:
    """``said(…).logp`` alone, (n,), in one pass."""
    z = logits / temperature
    return z.gather(-1, _column(logits, tokens)).squeeze(-1) - z.logsumexp(-1)


def _column(logits: Tensor, tokens: TokenIds) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]


class _Plain:
    """Causal attention over one row.  q: (S, H, C), k: (S, K, C), v: (S, K, C_v) → (S, H, C_v)."""

    keeps = False

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, /) -> Tensor:
        del layer
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhc,khc->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        future = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
        return torch.einsum("hqk,khc->qhc", scores.masked_fill(future, float("-inf")).softmax(-1), v)
