"""What an optimizer step minimises. The fields of an objective are its hyperparameters, its call is the equation.

Every objective is a sum over tokens of ``batch.weight`` times a loss per token, so the loss and every metric of
micro-batches add up to those of the batch. Some need sums over a reply, so a micro-batch holds whole rows. Where the
weight is 0 nothing is read: NaN there reaches neither loss nor gradient.

Metrics are weighted sums as well. They are means where the weights sum to 1 (``sequence_mean``, ``token_mean``); with
other weightings divide by the sum of the weights.

    ratio             ρ = π / π_old
    clip_low_share    tokens whose gradient the lower bound stops (ρ < 1 - ε_low and A < 0)
    clip_high_share   tokens whose gradient the upper bound stops (ρ > 1 + ε_high and A > 0)
    entropy           entropy of the policy, nats
    kl                k3 estimate of KL(π‖π_ref), nats; only with beta > 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.algorithms.divergence import LIMIT, k3, log_ratio, ratio
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Loss, PolicyOutput


def clipped_surrogate(
    logp: Float[Tensor, "n t"], logp_old: Float[Tensor, "n t"], advantage: Float[Tensor, "n t"], low: float, high: float
) -> Float[Tensor, "n t"]:
    """PPO: min(ρA, clip(ρ, 1 - low, 1 + high) A) per token, to be maximised. All (N, T).

    Source: Schulman et al., arXiv:1707.06347, equation 7; low ≠ high: DAPO, arXiv:2503.14476, equation 10.
    """
    return _clipped(ratio(logp, logp_old), advantage, low, high)


@dataclass(frozen=True, slots=True)
class NLL:
    """Negative log-likelihood, - log π(oₜ): pretraining and supervised fine-tuning. Metrics: nll, entropy."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        (logp,) = _where(batch.weight != 0, policy.logp)
        value = -weighted_sum(logp, batch.weight)
        return Loss(value, {"nll": value.detach(), **_entropy(policy, batch)})


@dataclass(frozen=True, slots=True)
class GRPO:
    """Clipped surrogate per token, minus beta · k3 to the reference, plus an entropy bonus.

    clip_low, clip_high: ε of the bounds 1 - ε_low and 1 + ε_high.  beta: weight of the KL term; as a loss k3 pulls
    along the *forward* KL.  entropy_bonus: weight of the entropy, which the policy must then give with its gradient.
    dual_clip: c > 1, the bound of ρ where A < 0; None for no bound.  It adds the metric dual_clip_share.
    Source: DeepSeekMath, arXiv:2402.03300, equation 3; DeepSeek-R1, arXiv:2501.12948, equation 1; clip-higher: DAPO,
    arXiv:2503.14476, section 3.1; dual clip: Ye et al., arXiv:1912.09729.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    entropy_bonus: float = 0.0
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        _check_clip("GRPO", self.clip_low, self.clip_high)
        _check("GRPO.beta", self.beta, lambda x: x >= 0, "at least 0")
        _check("GRPO.entropy_bonus", self.entropy_bonus, lambda x: x >= 0, "at least 0")
        if self.dual_clip is not None:
            _check("GRPO.dual_clip", self.dual_clip, lambda x: x > 1, "above 1, or None for no dual clip")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"} | ({"logp_ref"} if self.beta else set()))

    @property
    def silent_without_advantage(self) -> bool:
        return not self.beta and not self.entropy_bonus

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = batch.weight != 0
        logp, old, advantage = _columns(self, policy, batch, live)
        rho = ratio(logp, old)
        gain = _clipped(rho, advantage, self.clip_low, self.clip_high)
        metrics = _clip_metrics(rho, advantage, batch, self.clip_low, self.clip_high) | _entropy(policy, batch)
        if self.dual_clip is not None:
            gain = torch.where(advantage < 0, torch.maximum(gain, self.dual_clip * advantage), gain)
            metrics["dual_clip_share"] = _share((rho > self.dual_clip) & (advantage < 0), batch)
        if self.beta:
            kl = k3(logp, *_where(live, _read(self, batch, "logp_ref")))
            gain = gain - self.beta * kl
            metrics["kl"] = weighted_sum(kl, batch.weight).detach()
        if self.entropy_bonus:
            (entropy,) = _where(live, policy.entropy)
            gain = gain + self.entropy_bonus * entropy
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class GSPO:
    """Clipped surrogate whose ratio is that of the whole reply, s = exp(mean over its tokens of log ρ).

    Token form: sg(s) · π / sg(π) per token, whose gradient is that of the paper's equation 5 for weights that are equal
    inside a row, and which allows an advantage per token. With ε = 0.2 nothing ever clips.
    Source: arXiv:2507.18071, equations 5, 7 and 13; ε from section 5.1.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        _check_clip("GSPO", self.clip_low, self.clip_high)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = _live_rows(batch)
        logp, old, advantage = _columns(self, policy, batch, live)
        gaps = log_ratio(logp, old)
        level = gaps.detach().sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp(min=1)
        s = level.clamp(-LIMIT, LIMIT).exp() * (gaps - gaps.detach()).exp()
        gain = _clipped(s, advantage, self.clip_low, self.clip_high)
        metrics = _clip_metrics(s, advantage, batch, self.clip_low, self.clip_high) | _entropy(policy, batch)
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class CISPO:
    """REINFORCE with a capped, detached importance weight: sg(min(ρ, cap)) · A · log π. No token loses its gradient.

    cap: bound on ρ itself (TRL's ``epsilon_high``; verl and slime write 1 + ε_high). There is no lower bound.
    ``clip_high_share`` counts the tokens with ρ > cap, whatever the sign of A.
    Source: MiniMax-M1, arXiv:2506.13585, equations 4 and 5.
    """

    cap: float = 5.0

    def __post_init__(self) -> None:
        _check("CISPO.cap", self.cap, lambda x: x >= 1, "at least 1: it bounds the ratio itself, not its distance to 1")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = batch.weight != 0
        logp, old, advantage = _columns(self, policy, batch, live)
        rho = ratio(logp, old).detach()
        gain = rho.clamp(max=self.cap) * advantage * logp
        metrics = {
            "ratio": weighted_sum(rho, batch.weight),
            "clip_high_share": _share((rho > self.cap) & (advantage != 0), batch),
            **_entropy(policy, batch),
        }
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class MirrorDescent:
    """Kimi k1.5: minimise - A log π(y) + τ/2 (log π(y)/π_old(y))², both logs summed over the tokens of a reply y.

    π_old is the policy at the start of the iteration, which sampled and towards which it is regularised; the paper also
    resets the optimizer then. The paper pairs it with ``group_centered`` and ``sequence_sum``. The square is spread
    over the tokens as D·dₜ, D the detached sum of the log-ratios dₜ, so that any weighting applies. The metric
    ``log_ratio`` is the weighted sum of D.
    Source: arXiv:2501.12599, section 2.3.2, equation 3.
    """

    tau: float

    def __post_init__(self) -> None:
        _check("MirrorDescent.tau", self.tau, lambda x: x > 0, "above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = _live_rows(batch)
        logp, old, advantage = _columns(self, policy, batch, live)
        gaps = log_ratio(logp, old)
        total = gaps.detach().sum(1, keepdim=True)
        square = total * (gaps - gaps.detach() / 2)  # value: D dₜ / 2, gradient: D ∇dₜ; summed over t: those of D² / 2
        metrics = {"log_ratio": weighted_sum(total.expand_as(gaps), batch.weight), **_entropy(policy, batch)}
        return Loss(weighted_sum(self.tau * square - advantage * logp, batch.weight), metrics)


def _clipped(rho: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(rho * advantage, rho.clamp(1 - low, 1 + high) * advantage)


def _where(live: Tensor, *columns: Tensor) -> list[Tensor]:
    """The columns with 0 where nothing is trained, so that garbage there enters neither value nor gradient."""
    return [torch.where(live, column, 0.0) for column in columns]


def _columns(objective: object, policy: PolicyOutput, batch: Batch, live: Tensor) -> list[Tensor]:
    """logp, logp_old and advantage, 0 outside ``live``."""
    return _where(live, policy.logp, _read(objective, batch, "logp_old"), _read(objective, batch, "advantage"))


def _live_rows(batch: Batch) -> Tensor:
    """The tokens of replies that are trained at all, (N, T) bool."""
    return batch.mask & (batch.weight != 0).any(dim=1, keepdim=True)


def _read(objective: object, batch: Batch, name: str) -> Tensor:
    column: Tensor | None = getattr(batch, name)
    if column is None:
        raise SettingsError(
            f"{type(objective).__name__} needs the column {name!r}, but the batch has none; "
            "fill every column that its `reads` names"
        )
    return column


def _share(tokens: Tensor, batch: Batch) -> Tensor:
    return weighted_sum(tokens.to(batch.weight.dtype), batch.weight)


def _clip_metrics(rho: Tensor, advantage: Tensor, batch: Batch, low: float, high: float) -> dict[str, Tensor]:
    rho = rho.detach()
    return {
        "ratio": weighted_sum(rho, batch.weight),
        "clip_low_share": _share((rho < 1 - low) & (advantage < 0), batch),
        "clip_high_share": _share((rho > 1 + high) & (advantage > 0), batch),
    }


def _entropy(policy: PolicyOutput, batch: Batch) -> dict[str, Tensor]:
    return {"entropy": weighted_sum(policy.entropy.detach(), batch.weight)}


def _check_clip(owner: str, low: float, high: float) -> None:
    _check(f"{owner}.clip_low", low, lambda x: 0 < x <= 1, "in (0, 1]")
    _check(f"{owner}.clip_high", high, lambda x: x > 0, "above 0")


def _check(field: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
        raise SettingsError(f"{field} must be {wanted}, got {value!r}")
