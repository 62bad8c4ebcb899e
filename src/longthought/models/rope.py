"""Rotary position embeddings (RoFormer, arXiv:2104.09864, equation 15), halves rotated as in Hugging Face models."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def angles(
    head_dim: int, positions: int, theta: float
) -> tuple[Float[Tensor, "{positions} {head_dim}"], Float[Tensor, "{positions} {head_dim}"]]:
    """cos and sin of m·θ^(−2i/C) for every position m: two (positions, C) tables, the C/2 angles repeated."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(
    x: Float[Tensor, "s h c"], cos: Float[Tensor, "s 1 c"], sin: Float[Tensor, "s 1 c"]
) -> Float[Tensor, "s h c"]:
    """x cos + (−x₂, x₁) sin.  x: (S, heads, C); cos, sin: (S, 1, C)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
