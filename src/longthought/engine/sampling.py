"""Drawing tokens: counter-based randomness, and the log-prob of what was drawn from the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """64 bits that name a sample: a function of (seed, prompt tokens, sample number) alone."""
    content = f"{seed}/{sample}/{','.join(map(str, prompt))}".encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def uniforms(key: int, count: int) -> Float64[Tensor, " {count}"]:
    """``count`` numbers in (0, 1), float64: SplitMix64 (Steele et al., 2014) at counters key + 1·γ, key + 2·γ, …"""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def draw(
    logits: Float[Tensor, "r v"], u: Float[Tensor, " r"], temperature: float
) -> tuple[Int64[Tensor, " r"], Float32[Tensor, " r"]]:
    """Tokens from softmax(logits / T) by inverting its distribution function at u, and their log-probs.

    temperature 0 takes the most likely token; its log-prob is then reported at T = 1.
    logits: (R, V); u: (R,) in (0, 1) → tokens (R,) int64, logp (R,) float32.
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        mass = logp.double().exp().cumsum(-1)
        tokens = torch.searchsorted(mass, (u.to(mass.device) * mass[:, -1])[:, None]).squeeze(-1)
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(-1)
