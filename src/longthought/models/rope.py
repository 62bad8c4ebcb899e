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
    magnitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _positive(self)

    def __call__(self, frequency: Float[Tensor, " c"], theta: float) -> Float[Tensor, " c"]:
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
    magnitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise SettingsError(
                f"low_freq_factor={self.low_freq_factor} must be below high_freq_factor={self.high_freq_factor}"
            )

    def __call__(self, frequency: Float[Tensor, " c"], theta: float) -> Float[Tensor, " c"]:
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        fast = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - fast) * frequency / self.factor + fast * frequency


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071, section 3.2): slow angles are divided by ``factor`` s, fast ones kept, by a ramp between.

    The ramp runs over the numbers of the frequencies, from the one that turns ``beta_fast`` times in the P =
    ``original_max_position_embeddings`` positions of pretraining to the one that turns ``beta_slow`` times; with
    ``truncate`` these two are rounded outwards. Rotated vectors grow by m(mscale) / m(mscale_all_dim), and the scores
    of latent attention by m(mscale_all_dim)² beside, with m(a) = 0.1 a ln s + 1 (DeepSeek-V2, arXiv:2405.04434,
    section 3.1.4). attention_factor: what rotated vectors grow by, if it is given; without the two mscales it is m(1).
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    rope_type: ClassVar[str] = "yarn"

    def __post_init__(self) -> None:
        _positive(self)
        if self.beta_fast <= self.beta_slow:
            raise SettingsError(f"beta_fast={self.beta_fast} must be above beta_slow={self.beta_slow}")

    @property
    def magnitude(self) -> float:
        """What the rotated parts of queries and keys are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._m(self.mscale) / self._m(self.mscale_all_dim)
        return self._m(1.0)

    @property
    def sharpness(self) -> float:
        """What the scores of latent attention are multiplied with: m(mscale_all_dim)²."""
        return self._m(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _m(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

    def __call__(self, frequency: Float[Tensor, " c"], theta: float) -> Float[Tensor, " c"]:
        low, high = (
            self._number(self.beta_fast, len(frequency), theta),
            self._number(self.beta_slow, len(frequency), theta),
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(frequency) - 1)
        number = torch.arange(len(frequency), dtype=frequency.dtype, device=frequency.device)
        slow = ((number - low) / (high - low or 0.001)).clamp(0, 1)
        return slow * frequency / self.factor + (1 - slow) * frequency

    def _number(self, turns: float, count: int, theta: float) -> float:
        """Of the frequency θ^(−i / count) that turns so often in the context of pretraining."""
        return count * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
"""How the angles of a model were stretched to a longer context.

Calling it maps frequencies (C/2,) of base θ to frequencies; ``magnitude`` is what rotated vectors grow by.
"""


def angles(
    head_dim: int, positions: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Tensor, "{positions} {head_dim}"], Float[Tensor, "{positions} {head_dim}"]]:
    """cos and sin of m·θ^(−2i/C) for every position m: two (positions, C) tables, the C/2 angles repeated.

    ``scaling`` maps the frequencies θ^(−2i/C) to those of a model that was stretched to a longer context; both tables
    are multiplied with its magnitude.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is not None:
        frequency = scaling(frequency, theta)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64, device="cpu"), frequency)
    size = 1.0 if scaling is None else scaling.magnitude
    return (size * angle.cos()).float().repeat(1, 2), (size * angle.sin()).float().repeat(1, 2)


def rotate(
    x: Float[Tensor, "s h c"], cos: Float[Tensor, "s 1 c"], sin: Float[Tensor, "s 1 c"]
) -> Float[Tensor, "s h c"]:
    """x cos + (−x₂, x₁) sin.  x: (S, heads, C); cos, sin: (S, 1, C)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def deinterleaved(x: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
    """Numbers that stand in pairs, (x₀, x₁), (x₂, x₃), …, as two halves: (x₀, x₂, …, x₁, x₃, …)."""
    halves: Tensor = x.unflatten(-1, (-1, 2)).transpose(-1, -2)
    return halves.flatten(-2)


def _positive(scaling: RopeScaling) -> None:
    for field in fields(scaling):
        value = getattr(scaling, field.name)
        if value is not None and not isinstance(value, bool) and not (value > 0 and math.isfinite(value)):
            raise SettingsError(f"{field.name}={value} of the rotary embedding must be above 0")
