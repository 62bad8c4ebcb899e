"""Columns of a batch, made up so that every term of an objective has something to say."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longthought.algorithms.weighting import positive_mean
from longthought.core.types import Batch, PolicyOutput
from longthought.stages.method import Method
from longthought.training.batching import weighted

PER_TOKEN = ("advantage", "logp_old", "logp_ref", "returns", "value_old", "imitation")


def off_policy(laid: Batch, logp: Tensor, method: Method, scale: float = 0.3) -> Batch:
    """Rows with weights and every optional column; ratios and KL are away from 1 and 0 by ``scale``.

    logp: (N, T) of the policy. Advantages have both signs inside and between rows. Deterministic.
    """
    rows, width = laid.tokens.shape
    batch = weighted(laid, torch.arange(rows), method.weighting, torch.ones(rows, dtype=torch.bool))
    row, place = torch.arange(rows)[:, None], torch.arange(width)[None]
    wave = torch.sin(1.7 * row + 0.9 * place).to(logp.dtype)
    sign = (1 - 2 * (row % 2)).to(logp.dtype)
    logp = logp.detach()
    given = {
        "advantage": sign * (1.0 + 0.3 * row / rows) + 0.2 * wave,
        "logp_old": logp - scale * (wave + 0.3 * sign),
        "logp_ref": logp + scale * torch.cos(0.8 * row + 1.3 * place).to(logp.dtype),
        "returns": wave + sign,
        "value_old": 0.5 * wave,
    }
    columns = {name: torch.where(laid.mask, column, 0.0) for name, column in given.items()}
    return replace(batch, **columns, imitation=positive_mean(laid.mask, torch.arange(rows) % 2 == 0))


def widened(batch: Batch, by: int, token: int) -> Batch:
    """The batch with more columns behind its longest row."""
    rows = len(batch.tokens)
    names = [name for name in ("mask", "weight", *PER_TOKEN) if getattr(batch, name) is not None]
    wider: dict[str, Tensor] = {
        name: torch.cat((getattr(batch, name), getattr(batch, name).new_zeros(rows, by)), 1) for name in names
    }
    tokens = torch.cat((batch.tokens, batch.tokens.new_full((rows, by), token)), 1)
    return replace(batch, tokens=tokens, **wider)


def littered(batch: Batch, tokens: int, value: float) -> Batch:
    """The batch with other tokens beyond its lengths, and ``value`` in every column where no reply stands.

    tokens: size of the vocabulary.
    """
    place = torch.arange(batch.tokens.shape[1])[None]
    beyond = place >= batch.lengths[:, None]
    litter = (place * 7 + batch.lengths[:, None] * 3 + 1) % tokens
    dirty = {
        name: torch.where(batch.mask, column, value)
        for name in PER_TOKEN
        if (column := getattr(batch, name)) is not None and name != "imitation"
    }
    return replace(batch, tokens=torch.where(beyond, litter, batch.tokens), **dirty)


def littered_output(policy: PolicyOutput, batch: Batch, value: float) -> PolicyOutput:
    """What the policy says, with ``value`` where no reply stands."""
    return PolicyOutput(*(torch.where(batch.mask, column, value) for column in (policy.logp, policy.entropy)))
