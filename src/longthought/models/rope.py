"""Rotary position embeddings (RoFormer, arXiv:2104.09864, equation 15), halves rotated as in Hugging Face models."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.core.errors import SettingsError


@dataclass(frozen=True)
class LinearScaling:
    """ω / factor: positions are squeezed into the context of pretraining (arXiv:2306.15595)."""

    factor: float
    rope_type: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        _positive(self)

    def __call__(self, frequency: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        return frequency / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow angles are divided by ``factor``, fast ones kept, those between interpolated (Llama 3.1, arXiv:2407.21783).

    An angle turns P ω / 2π times in the P = ``original_max_position_embeddings`` positions of pretraining: it is slow
    below ``low_freq_factor`` turns and fast above ``high_freq_factor``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    rope_type: ClassVar[str] = "llama3"

    def __post_init__(self) -> None:
        _positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise SettingsError(
                f"low_freq_factor={self.low_freq_factor} must be below high_freq_factor={self.high_freq_factor}"
            )

    def __call__(self, frequency: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        fast = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - fast) * frequency / self.factor + fast * frequency


RopeScaling = LinearScaling | Llama3Scaling
"""How the angles of a model were stretched to a longer context. Calling it maps frequencies (C/2,) to frequencies."""


def angles(
    head_dim: int, positions: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Tensor, "{positions} {head_dim}"], Float[Tensor, "{positions} {head_dim}"]]:
    """cos and sin of m·θ^(−2i/C) for every position m: two (positions, C) tables, the C/2 angles repeated.

    ``scaling`` maps the frequencies θ^(−2i/C) to those of a model that was stretched to a longer context.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is not None:
        frequency = scaling(frequency)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64, device="cpu"), frequency)
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)


def rotate(
    x: Float[Tensor, "s h c"], cos: Float[Tensor, "s 1 c"], sin: Float[Tensor, "s 1 c"]
) -> Float[Tensor, "s h c"]:
    """x cos + (−x₂, x₁) sin.  x: (S, heads, C); cos, sin: (S, 1, C)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _positive(scaling: RopeScaling) -> None:
    for field in fields(scaling):
        if not getattr(scaling, field.name) > 0:
            raise SettingsError(f"{field.name}={getattr(scaling, field.name)} of the rotary embedding must be above 0")
