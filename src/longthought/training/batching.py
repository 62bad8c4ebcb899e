"""From rollouts to one batch: the place where every weight of an optimizer step is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longthought.core.errors import DataError
from longthought.core.protocols import Weighting
from longthought.core.types import Batch, Rollout, TokenIds, rows_of


def lay_out(rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts as rows, prompt and then reply, with the sampler's log-probs, and the experts of every token if it has
    recorded them; nothing is weighted or credited yet."""
    sequences: list[TokenIds] = [r.prompt + r.completion.token_ids for r in rollouts]
    rows = rows_of(sequences)
    position = torch.arange(rows.tokens.shape[1])
    prompts = torch.tensor([len(r.prompt) for r in rollouts])
    mask = (position >= prompts[:, None]) & (position < rows.lengths[:, None])
    logp_old = torch.zeros(rows.tokens.shape)
    for row, rollout in enumerate(rollouts):
        logp_old[row, prompts[row] : rows.lengths[row]] = torch.tensor(rollout.completion.logprobs)
    blank = torch.zeros(rows.tokens.shape)
    return Batch(
        rows.tokens, rows.lengths, mask, blank, None, logp_old, routing=_routing(rollouts, rows.tokens.shape[1])
    )


def _routing(rollouts: Sequence[Rollout], width: int) -> Int[Tensor, "n t l k"] | None:
    """The experts that the tokens chose, −1 where none is known; None if that is everywhere."""
    known = [(row, r) for row, r in enumerate(rollouts) if r.completion.routing is not None]
    if not known:
        return None
    first = known[0][1].completion.routing
    assert first is not None
    laid = torch.full((len(rollouts), width, *first.shape[1:]), -1, dtype=torch.int16)
    for row, rollout in known:
        routing, fed = rollout.completion.routing, len(rollout.prompt) + len(rollout.completion.token_ids) - 1
        assert routing is not None
        if routing.shape != (fed, *first.shape[1:]):
            raise DataError(
                f"{rollout.problem.id}: the sampler recorded experts of shape {routing.shape}; {fed} tokens were fed, "
                f"and those of the first rollout are {first.shape[1:]} each"
            )
        laid[row, :fed] = torch.from_numpy(routing)
    return laid


def weighted(laid: Batch, index: Int[Tensor, " n"], weighting: Weighting, trained: Bool[Tensor, " n"]) -> Batch:
    """The rows of one optimizer step with their final weights.

    trained: (n,) of the chosen rows; a reply that is not trained leaves the loss *and* its denominator (``weighting``
    sees an empty row), but its reward has already counted in the baseline.
    """
    part = laid.select(index)
    return replace(part, weight=weighting(part.mask & trained[:, None]))


def batch_of(
    rollouts: Sequence[Rollout],
    advantages: Float[Tensor, " n"],
    weighting: Weighting,
    trained: Bool[Tensor, " n"],
) -> Batch:
    """One optimizer step's rollouts. advantages: (N,), shared by the tokens of a reply.  trained: see ``weighted``."""
    laid = lay_out(rollouts)
    batch = weighted(laid, torch.arange(len(rollouts)), weighting, trained)
    return replace(batch, advantage=shared_by_tokens(advantages, batch.mask))


def shared_by_tokens(advantages: Float[Tensor, " n"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """The advantage of a reply on each of its tokens, (N, T) float32."""
    return torch.where(mask, advantages[:, None].float(), 0.0)


def informative(batch: Batch) -> Batch:
    """The rows that can move the weights under an objective without KL and entropy terms: advantage × weight ≠ 0.

    Dropping the others changes no gradient, since the weights were decided before.
    """
    return batch.select(moving(batch).nonzero().squeeze(-1))


def moving(batch: Batch) -> Bool[Tensor, " n"]:
    """Which rows ``informative`` keeps."""
    assert batch.advantage is not None
    return ((batch.advantage != 0) & (batch.weight != 0)).any(1)


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
