"""From rollouts to one batch: the place where every weight of an optimizer step is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longthought.core.protocols import Weighting
from longthought.core.types import Batch, Rollout, TokenIds, rows_of


def batch_of(
    rollouts: Sequence[Rollout],
    advantages: Float[Tensor, " n"],
    weighting: Weighting,
    trained: Bool[Tensor, " n"],
) -> Batch:
    """Lay rollouts out as rows: prompt, then reply.

    advantages: (N,), shared by the tokens of a reply.  trained: (N,) bool; a reply that is not trained leaves the loss
    *and* its denominator (``weighting`` sees an empty row), but its reward has already counted in the baseline.
    """
    sequences: list[TokenIds] = [r.prompt + r.completion.token_ids for r in rollouts]
    rows = rows_of(sequences)
    position = torch.arange(rows.tokens.shape[1])
    prompts = torch.tensor([len(r.prompt) for r in rollouts])
    mask = (position >= prompts[:, None]) & (position < rows.lengths[:, None])
    logp_old = torch.zeros(rows.tokens.shape)
    for row, rollout in enumerate(rollouts):
        logp_old[row, prompts[row] : rows.lengths[row]] = torch.tensor(rollout.completion.logprobs)
    weight = weighting(mask & trained[:, None])
    advantage = torch.where(mask, advantages[:, None].to(weight.dtype), 0.0)
    return Batch(rows.tokens, rows.lengths, mask, weight, advantage, logp_old)


def informative(batch: Batch) -> Batch:
    """The rows that can move the weights under an objective without KL and entropy terms: advantage × weight ≠ 0.

    Dropping the others changes no gradient, since the weights were decided before.
    """
    assert batch.advantage is not None
    return batch.select(((batch.advantage != 0) & (batch.weight != 0)).any(1).nonzero().squeeze(-1))


def with_reference(batch: Batch, logp_ref: Float[Tensor, "n t"]) -> Batch:
    """The batch with the reference's log-probs, (N, T)."""
    return replace(batch, logp_ref=logp_ref)


def documents(sequences: Sequence[TokenIds], masks: Sequence[Sequence[bool]] | None = None) -> Batch:
    """Rows for next-token prediction, every trained token weighing the same. The first token is never trained."""
    rows = rows_of(list(sequences))
    position = torch.arange(rows.tokens.shape[1])
    mask = (position < rows.lengths[:, None]) & (position > 0)
    if masks is not None:
        chosen = torch.zeros_like(mask)
        for row, flags in enumerate(masks):
            chosen[row, : len(flags)] = torch.tensor(flags)
        mask &= chosen
    return Batch(rows.tokens, rows.lengths, mask, mask / mask.sum().clamp(min=1))
