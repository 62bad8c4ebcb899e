"""Sampler and learner are not one policy: weights for the gap between μ, which sampled, and π_old, its recomputation.

Inference engines round differently than the learner, so tokens come from μ, not from π_old, and w = π_old / μ is their
importance weight. Each correction takes (logp_old, logp_sampler, mask), (N, T) each, and gives detached weights (N, T),
0 outside the mask. Log-ratios are clamped to ±20; one that is not finite is refused.

Apply one by multiplying the *advantage* column: GRPO, GSPO, CISPO, SAPO and REINFORCE are positively homogeneous in A,
so this weighs their policy-gradient term and leaves KL, entropy and imitation alone. The loss keeps its denominator:
tokens of weight 0 still count there, as in TRL and OpenRLHF. ``MirrorDescent`` is not homogeneous: its square would
keep the weight 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longthought.algorithms.divergence import LIMIT, log_ratio
from longthought.core.errors import SettingsError


class Correction(Protocol):
    """Weights of tokens, (N, T), for logp_old, logp_sampler and mask."""

    def __call__(self, logp_old: Tensor, logp_sampler: Tensor, mask: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Truncated:
    """TIS: w clamped to [floor, cap] per token.

    The weight of a token ignores those before it, so a bias is left even without the cap; its variance is small.
    Source: Yao et al. 2025, https://fengyao.notion.site/off-policy-rl (C = 2).
    """

    cap: float = 2.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_bounds("Truncated", self.floor, self.cap)

    def __call__(self, logp_old: Tensor, logp_sampler: Tensor, mask: Tensor, /) -> Tensor:
        return torch.where(mask, _weights(logp_old, logp_sampler, mask).clamp(self.floor, self.cap), 0.0)


@dataclass(frozen=True, slots=True)
class Masked:
    """IcePop, MIS: w per token inside [low, high], 0 outside.

    Source: Ring-1T, arXiv:2510.18855 (0.5 and 5).
    """

    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        _check_bounds("Masked", self.low, self.high)

    def __call__(self, logp_old: Tensor, logp_sampler: Tensor, mask: Tensor, /) -> Tensor:
        w = _weights(logp_old, logp_sampler, mask)
        return torch.where(mask & (w >= self.low) & (w <= self.high), w, 0.0)


@dataclass(frozen=True, slots=True)
class SequenceTruncated:
    """min(Π w, cap), the same for all tokens of a reply. Unbiased without the cap, but of huge variance.

    TRL's ``sequence_truncate``, verl's ``rollout_is="sequence"``.
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        _check_bounds("SequenceTruncated", 0.0, self.cap)

    def __call__(self, logp_old: Tensor, logp_sampler: Tensor, mask: Tensor, /) -> Tensor:
        total = _gaps(logp_old, logp_sampler, mask).sum(1, keepdim=True).clamp(-LIMIT, LIMIT)
        return torch.where(mask, total.exp().clamp(max=self.cap), 0.0)


@dataclass(frozen=True, slots=True)
class SequenceMasked:
    """Keep a reply whose *geometric mean* of w is inside [low, high], with ``within`` as its weights, or 1.

    A product grows with the length, a geometric mean does not, so one threshold fits all lengths.
    OpenRLHF's ``seq-mask-tis`` multiplies kept replies by the unbounded w; ``within=Truncated()`` bounds it.
    """

    low: float = 0.99
    high: float = 1.01
    within: Correction | None = None

    def __post_init__(self) -> None:
        _check_bounds("SequenceMasked", self.low, self.high)

    def __call__(self, logp_old: Tensor, logp_sampler: Tensor, mask: Tensor, /) -> Tensor:
        gaps = _gaps(logp_old, logp_sampler, mask)
        mean = (gaps.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()
        inside = self.within(logp_old, logp_sampler, mask) if self.within else torch.ones_like(gaps)
        return torch.where(mask & (mean >= self.low) & (mean <= self.high), inside, 0.0)


def correction_metrics(
    weights: Float[Tensor, "n t"],
    logp_old: Float[Tensor, "n t"],
    logp_sampler: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
) -> dict[str, float]:
    """Means over the masked tokens of the step; all 0 when there are none.

    correction_mean: mean weight.  correction_kept: share of tokens with a weight above 0.  correction_effective:
    effective sample size (Σw)² / Σw² as a share of the tokens.  sampler_kl: k3 estimate of KL(μ‖π_old), nats per token.
    """
    count = int(mask.sum())
    if count == 0:
        return dict.fromkeys(("correction_mean", "correction_kept", "correction_effective", "sampler_kl"), 0.0)
    w = weights[mask].double()
    gaps = _gaps(logp_old, logp_sampler, mask)[mask].double().clamp(-LIMIT, LIMIT)
    squares = float(w.square().sum())
    return {
        "correction_mean": float(w.mean()),
        "correction_kept": float((w > 0).double().mean()),
        "correction_effective": float(w.sum()) ** 2 / (squares * count) if squares else 0.0,
        "sampler_kl": float((gaps.expm1() - gaps).mean()),
    }


def _gaps(logp_old: Tensor, logp_sampler: Tensor, mask: Tensor) -> Tensor:
    """log π_old - log μ, 0 outside the mask. Raises SettingsError when one inside is not finite."""
    gaps = torch.where(mask, log_ratio(logp_old, logp_sampler).detach(), 0.0)
    if not gaps.isfinite().all():
        raise SettingsError("correction: a token of the policy has a log-probability that is not finite")
    return gaps


def _weights(logp_old: Tensor, logp_sampler: Tensor, mask: Tensor) -> Tensor:
    return _gaps(logp_old, logp_sampler, mask).clamp(-LIMIT, LIMIT).exp()


def _check_bounds(owner: str, low: float, high: float) -> None:
    if not 0.0 <= low <= 1.0 <= high < float("inf"):
        raise SettingsError(
            f"{owner}: bounds must hold 1, the weight of equal policies, in between; got {low} and {high}"
        )
