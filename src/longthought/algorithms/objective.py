"""What an optimizer step minimises. The fields of an objective are its hyperparameters, its call is the equation.

    NLL                        likelihood          REINFORCE   no ratio
    GRPO (PPO, DAPO, RLOO)     ratio per token     CISPO       ratio per token, truncated and detached
    GSPO                       ratio per reply     SAPO        ratio per token, gated softly
    MirrorDescent              squared log-ratio   ValueLoss   a critic
    KL · Entropy · Imitation   terms to add        Sum         adds objectives
    MultiToken                 and of what predicts further tokens

Every objective is a sum over tokens of ``batch.weight`` times a loss per token, so the loss and every metric of
micro-batches add up to those of the batch. Some need sums over a reply, so a micro-batch holds whole rows. Where the
weight is 0 nothing is read: NaN there reaches neither loss nor gradient.

Metrics are weighted sums as well. They are means where the weights sum to 1 (``sequence_mean``, ``token_mean``); with
other weightings divide by the sum of the weights.

    ratio             ρ = π / π_old
    clip_low_share    tokens whose gradient the lower bound stops (ρ < 1 - ε_low and A < 0)
    clip_high_share   tokens whose gradient the upper bound stops (ρ > 1 + ε_high and A > 0)
    entropy           entropy of the policy, nats
    kl                the chosen estimate of KL(π‖π_ref), nats; only with beta > 0
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.algorithms.columns import check, entropy_metric, live_rows, policy_columns, read, share, where
from longthought.algorithms.divergence import LIMIT, log_ratio, ratio
from longthought.algorithms.multi_token import MultiToken as MultiToken
from longthought.algorithms.terms import KL as KL
from longthought.algorithms.terms import Entropy as Entropy
from longthought.algorithms.terms import Estimator, check_estimator, estimate
from longthought.algorithms.terms import Imitation as Imitation
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective
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
        (logp,) = where(batch.weight != 0, policy.logp)
        value = -weighted_sum(logp, batch.weight)
        return Loss(value, {"nll": value.detach(), **entropy_metric(policy, batch)})


@dataclass(frozen=True, slots=True)
class GRPO:
    """Clipped surrogate per token, minus beta · KL estimate to the reference, plus an entropy bonus. PPO when beta = 0.

    clip_low, clip_high: ε of the bounds 1 - ε_low and 1 + ε_high.  beta: weight of the KL term.  kl: its estimator, see
    ``divergence`` for what each pulls along; GRPO's own, ``k3``, along the *forward* KL.  entropy_bonus: weight of the
    entropy, which the policy must then give with its gradient.  dual_clip: c > 1, the bound of ρ where A < 0; None for
    no bound.  It adds the metric dual_clip_share.
    Source: DeepSeekMath, arXiv:2402.03300, equation 3; DeepSeek-R1, arXiv:2501.12948, equation 1; clip-higher: DAPO,
    arXiv:2503.14476, section 3.1; dual clip: Ye et al., arXiv:1912.09729.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    entropy_bonus: float = 0.0
    dual_clip: float | None = None
    kl: Estimator = "k3"

    def __post_init__(self) -> None:
        _check_clip("GRPO", self.clip_low, self.clip_high)
        check("GRPO.beta", self.beta, lambda x: x >= 0, "at least 0")
        check_estimator("GRPO.kl", self.kl)
        if not self.beta and self.kl != "k3":
            raise SettingsError(f"GRPO.kl={self.kl!r} changes nothing while beta is 0; set beta, or leave kl out")
        check("GRPO.entropy_bonus", self.entropy_bonus, lambda x: x >= 0, "at least 0")
        if self.dual_clip is not None:
            check("GRPO.dual_clip", self.dual_clip, lambda x: x > 1, "above 1, or None for no dual clip")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"} | ({"logp_ref"} if self.beta else set()))

    @property
    def silent_without_advantage(self) -> bool:
        return not self.beta and not self.entropy_bonus

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = batch.weight != 0
        logp, old, advantage = policy_columns(self, policy, batch, live)
        rho = ratio(logp, old)
        gain = _clipped(rho, advantage, self.clip_low, self.clip_high)
        metrics = _clip_metrics(rho, advantage, batch, self.clip_low, self.clip_high) | entropy_metric(policy, batch)
        if self.dual_clip is not None:
            gain = torch.where(advantage < 0, torch.maximum(gain, self.dual_clip * advantage), gain)
            metrics["dual_clip_share"] = share((rho > self.dual_clip) & (advantage < 0), batch)
        if self.beta:
            (ref,) = where(live, read(self, batch, "logp_ref"))
            kl = estimate(self.kl, logp, old, ref)
            gain = gain - self.beta * kl
            metrics["kl"] = weighted_sum(kl, batch.weight).detach()
        if self.entropy_bonus:
            (entropy,) = where(live, policy.entropy)
            gain = gain + self.entropy_bonus * entropy
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class REINFORCE:
    """- A log π per token, no ratio: the policy gradient of the policy that sampled, so for one update per batch.

    With several updates the ratio is missing: take ``CISPO``, which is this with a truncated importance weight.
    Source: Williams 1992.
    """

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        logp, advantage = where(batch.weight != 0, policy.logp, read(self, batch, "advantage"))
        return Loss(-weighted_sum(advantage * logp, batch.weight), entropy_metric(policy, batch))


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
        live = live_rows(batch)
        logp, old, advantage = policy_columns(self, policy, batch, live)
        gaps = log_ratio(logp, old)
        level = gaps.detach().sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp(min=1)
        s = level.clamp(-LIMIT, LIMIT).exp() * (gaps - gaps.detach()).exp()
        gain = _clipped(s, advantage, self.clip_low, self.clip_high)
        metrics = _clip_metrics(s, advantage, batch, self.clip_low, self.clip_high) | entropy_metric(policy, batch)
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class CISPO:
    """REINFORCE with a truncated, detached importance weight: sg(clip(ρ, floor, cap)) · A · log π. No gradient is lost.

    cap, floor: bounds on ρ itself, not distances to 1. TRL's ``epsilon_high`` is the cap; verl and slime write
    1 + ε_high and 1 - ε_low. The paper has no floor (0).
    ``clip_high_share`` counts the tokens with ρ > cap, and with a floor ``clip_low_share`` those below it, whatever the
    sign of A.  Source: MiniMax-M1, arXiv:2506.13585, equations 4 and 5.
    """

    cap: float = 5.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check("CISPO.cap", self.cap, lambda x: x >= 1, "at least 1: it bounds the ratio itself, not its distance to 1")
        check("CISPO.floor", self.floor, lambda x: 0 <= x <= 1, "in [0, 1]: it bounds the ratio itself")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = batch.weight != 0
        logp, old, advantage = policy_columns(self, policy, batch, live)
        rho = ratio(logp, old).detach()
        gain = rho.clamp(self.floor, self.cap) * advantage * logp
        metrics = {
            "ratio": weighted_sum(rho, batch.weight),
            "clip_high_share": share((rho > self.cap) & (advantage != 0), batch),
            **entropy_metric(policy, batch),
        }
        if self.floor:
            metrics["clip_low_share"] = share((rho < self.floor) & (advantage != 0), batch)
        return Loss(-weighted_sum(gain, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class SAPO:
    """A soft gate in place of the clip: maximise 4/τ · σ(τ (ρ - 1)) · A, τ by the sign of A.

    At ρ = 1 the gradient is that of ρA; it fades on both sides, faster with a larger τ, and reaches 0 nowhere.
    tau_positive, tau_negative: τ where A > 0, and elsewhere.  Source: arXiv:2511.20347.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        check("SAPO.tau_positive", self.tau_positive, lambda x: x > 0, "above 0")
        check("SAPO.tau_negative", self.tau_negative, lambda x: x > 0, "above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        logp, old, advantage = policy_columns(self, policy, batch, batch.weight != 0)
        rho = ratio(logp, old)
        tau = torch.where(advantage > 0, self.tau_positive, self.tau_negative)
        gain = 4 / tau * torch.sigmoid(tau * (rho - 1)) * advantage
        metrics = {"ratio": weighted_sum(rho.detach(), batch.weight), **entropy_metric(policy, batch)}
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
        check("MirrorDescent.tau", self.tau, lambda x: x > 0, "above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = live_rows(batch)
        logp, old, advantage = policy_columns(self, policy, batch, live)
        gaps = log_ratio(logp, old)
        total = gaps.detach().sum(1, keepdim=True)
        square = total * (gaps - gaps.detach() / 2)  # value: D dₜ / 2, gradient: D ∇dₜ; summed over t: those of D² / 2
        metrics = {"log_ratio": weighted_sum(total.expand_as(gaps), batch.weight), **entropy_metric(policy, batch)}
        return Loss(weighted_sum(self.tau * square - advantage * logp, batch.weight), metrics)


@dataclass(frozen=True, slots=True)
class Sum:
    """Objectives added up, such as ``Sum((GSPO(), KL(beta=0.04)))``. Their metrics stand side by side."""

    terms: tuple[Objective, ...]

    def __post_init__(self) -> None:
        kinds = [type(term) for term in self.terms]
        if len(kinds) < 2 or len(set(kinds)) < len(kinds):
            raise SettingsError(f"Sum: give at least two objectives of different kinds, got {list(self.terms)}")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(term.reads for term in self.terms))

    @property
    def silent_without_advantage(self) -> bool:
        return all(term.silent_without_advantage for term in self.terms)

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        losses = [term(policy, batch) for term in self.terms]
        metrics = {name: value for loss in losses for name, value in loss.metrics.items()}
        return Loss(torch.stack([loss.value for loss in losses]).sum(), metrics)


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """What a critic minimises: ½ max((V - R)², (V_old + clamp(V - V_old, ±clip) - R)²) per token; ½ (V - R)² unclipped.

    clip: in units of the value, so it must fit the rewards; None for no clipping.
    Metrics: value, return, return_square, value_error, value_error_square (``explained_variance`` reads the last four),
    and with a clip value_clip_share, the tokens whose gradient it stops.
    Source: Schulman et al., arXiv:1707.06347, section 6.1 (code: OpenAI baselines, ppo2).
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None:
            check("ValueLoss.clip", self.clip, lambda x: x > 0, "above 0, or None for no clipping")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"returns"} | ({"value_old"} if self.clip is not None else set()))

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        if policy.values is None:
            raise SettingsError("ValueLoss needs a critic, but the model's output has no values")
        live = batch.weight != 0
        value, target = where(live, policy.values, read(self, batch, "returns"))
        square, stopped = (value - target).square(), {}
        if self.clip is not None:
            (old,) = where(live, read(self, batch, "value_old"))
            near = old + (value - old).clamp(-self.clip, self.clip)
            bound = (near - target).square()
            stopped["value_clip_share"] = share((bound > square) & ((value - old).abs() > self.clip), batch)
            square = torch.maximum(square, bound)
        return Loss(0.5 * weighted_sum(square, batch.weight), _value_metrics(value, target, batch) | stopped)


def explained_variance(metrics: Mapping[str, float]) -> float:
    """1 - Var(R - V) / Var(R) from the means that ``ValueLoss`` logs: 1 is perfect, 0 a constant, NaN if R is constant.

    metrics: the weighted means, that is, the sums of the whole step divided by the sum of its weights.
    """
    spread = metrics["return_square"] - metrics["return"] ** 2
    left = metrics["value_error_square"] - metrics["value_error"] ** 2
    return 1.0 - left / spread if spread > 1e-12 * max(metrics["return_square"], 1e-12) else math.nan


def _clipped(rho: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(rho * advantage, rho.clamp(1 - low, 1 + high) * advantage)


def _clip_metrics(rho: Tensor, advantage: Tensor, batch: Batch, low: float, high: float) -> dict[str, Tensor]:
    rho = rho.detach()
    return {
        "ratio": weighted_sum(rho, batch.weight),
        "clip_low_share": share((rho < 1 - low) & (advantage < 0), batch),
        "clip_high_share": share((rho > 1 + high) & (advantage > 0), batch),
    }


def _value_metrics(value: Tensor, target: Tensor, batch: Batch) -> dict[str, Tensor]:
    error = (target - value).detach()
    columns = {
        "value": value.detach(),
        "return": target,
        "return_square": target.square(),
        "value_error": error,
        "value_error_square": error.square(),
    }
    return {name: weighted_sum(column, batch.weight) for name, column in columns.items()}


def _check_clip(owner: str, low: float, high: float) -> None:
    check(f"{owner}.clip_low", low, lambda x: 0 < x <= 1, "in (0, 1]")
    check(f"{owner}.clip_high", high, lambda x: x > 0, "above 0")
