"""How the tokens of a step are averaged: mask (N, T) bool → weights (N, T) float32.

Call these once per optimizer step, on the whole batch and after every filter; a loss is then a plain weighted sum, and
any split into micro-batches has the same gradient. N counts the rows with at least one token: a reply that was filtered
out leaves the denominator too. A mask without tokens gives zeros.

    function        weight of a token of row i     paper                          verl's name
    sequence_mean   1 / (N |oᵢ|)                   GRPO (DeepSeekMath)            seq-mean-token-mean
    token_mean      1 / Σⱼ|oⱼ|                     DAPO                           token-mean
    sequence_sum    1 / N                          RLOO, REINFORCE, Kimi k1.5     seq-mean-token-sum
    constant        1 / (N · length)               Dr. GRPO                       seq-mean-token-sum-norm
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longthought.core.errors import SettingsError


def weighted_sum(x: Float[Tensor, "*n"], weight: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Σ weight · x over everything, where weight 0 wins against NaN and infinity in ``x``. Scalar."""
    return torch.where(weight != 0, x * weight, 0.0).sum()


def sequence_mean(mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """1 / (N |oᵢ|): every reply counts the same, so a token of a long reply counts less. Sums to 1.

    Source: GRPO, DeepSeekMath, arXiv:2402.03300, equation 3.
    """
    tokens = mask.sum(dim=1, keepdim=True)
    return _divide(mask, _rows(mask) * tokens)


def token_mean(mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """1 / Σ|oⱼ|: every token of the step counts the same. Sums to 1.

    Source: DAPO, arXiv:2503.14476, equation 12.
    """
    return _divide(mask, mask.sum())


def sequence_sum(mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """1 / N: the log-probability of a reply is the sum over its tokens. Sums to the mean length.

    Source: REINFORCE; RLOO, arXiv:2402.14740; Kimi k1.5, arXiv:2501.12599, equation 3.
    """
    return _divide(mask, _rows(mask))


def constant(mask: Bool[Tensor, "n t"], length: int) -> Float[Tensor, "n t"]:
    """1 / (N · length), ``length`` a fixed number of tokens such as the limit of generation, never the padded width.

    Raises SettingsError when length < 1. As a Weighting: ``functools.partial(constant, length=1024)``.
    Source: Dr. GRPO, arXiv:2503.20783, appendix.
    """
    if length < 1:
        raise SettingsError(f"constant: length must be a positive number of tokens, got {length}")
    return _divide(mask, _rows(mask) * length)


def positive_mean(mask: Bool[Tensor, "n t"], positive: Bool[Tensor, " n"]) -> Float[Tensor, "n t"]:
    """1 / Σ|oⱼ| over the replies that are ``positive``, (N, T), (N,) → (N, T): the column of ``objective.Imitation``.

    Source: VAPO, arXiv:2504.05118, section 4.3.
    """
    return token_mean(mask & positive[:, None])


def _rows(mask: Tensor) -> Tensor:
    return mask.any(dim=1).sum()


def _divide(mask: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(mask, 1.0 / denominator.double().clamp(min=1.0), 0.0).float()
