"""Credit per token: for methods whose advantage is not one number per reply.

What the replies of a step earned goes in as one ``Earned``; advantages (N, T) come out and, with a critic, the returns
(N, T) that it learns. Sums run in float64. Where ``mask`` is False, advantages and returns are 0 and nothing is read.
A reply whose reward is NaN is absent: its advantages are 0, its returns are the critic's own values, and it counts in
no mean and no deviation; give it the weight 0.

The reward of a reply comes at its last token. The token after t is the next *masked* one: tokens that the policy did
not write (tool output, padding) are skipped without a decay. A reply that ended by itself ends the episode, so V is 0
after it. One that a budget cut goes on where nobody looks: the critic's last V, ``final_values``, is the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longthought.algorithms.advantage import (
    TOLERANCE,
    BatchAdvantage,
    gae,
    group_centered,
    minus_baseline,
    optimal_baseline,
    per_group,
)
from longthought.algorithms.divergence import k1, k2, k3
from longthought.core.errors import SettingsError

Estimator: TypeAlias = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class Earned:
    """What N replies earned, and what was expected of them. T as in the batch of the step.

    rewards: (N,) of each reply, task and shaping; NaN where absent.  group: (N,) int64 number of the problem.
    mask: (N, T) bool, True on the tokens of the policy.  token_rewards: (N, T) summands that single tokens earned, such
    as the KL penalty.  cut: (N,) bool, a budget ended the reply.
    values: (N, T) V of the state before each token.  final_values: (N,) V of the state after the last one.
    baselines: (N,) for ``ReMax``, the reward of the greedy reply to the same problem.
    streams: more summands (N, T) by name, each with a discount of its own, for ``Discounted``.
    Raises SettingsError when shapes do not match, or where a number that is read is not finite.
    """

    rewards: Tensor
    group: Tensor
    mask: Tensor
    token_rewards: Tensor
    cut: Tensor
    values: Tensor | None = None
    final_values: Tensor | None = None
    baselines: Tensor | None = None
    streams: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rewards.dim() != 1 or self.mask.dim() != 2 or len(self.rewards) != len(self.mask):
            shapes = f"{tuple(self.rewards.shape)} and {tuple(self.mask.shape)}"
            raise SettingsError(f"Earned: rewards must be (N,) and mask (N, T), got {shapes}")
        if not self.mask.dtype == self.cut.dtype == torch.bool:
            raise SettingsError(f"Earned: mask and cut must be bool, got {self.mask.dtype} and {self.cut.dtype}")
        per_row = {name: getattr(self, name) for name in ("group", "cut", "final_values", "baselines")}
        per_token = {"token_rewards": self.token_rewards, "values": self.values, **self.streams}
        for columns, shape in ((per_row, self.rewards.shape), (per_token, self.mask.shape)):
            for name, column in columns.items():
                if column is not None and column.shape != shape:
                    raise SettingsError(f"Earned.{name} must have shape {tuple(shape)}, got {tuple(column.shape)}")
        _check_finite("rewards", self.rewards, self.present)
        _check_finite("final_values", self.final_values, self.present & self.cut & self.mask.any(1))
        for name, column in per_token.items():
            _check_finite(name, column, self.live)

    @property
    def present(self) -> Tensor:
        """Replies with a reward, (N,) bool."""
        return ~self.rewards.isnan()

    @property
    def live(self) -> Tensor:
        """Tokens of the policy in replies with a reward, (N, T) bool."""
        return self.mask & self.present[:, None]


class TokenCredit(Protocol):
    """Credit per token: what was earned → advantages (N, T), and the returns (N, T) when it needs a critic."""

    @property
    def needs_values(self) -> bool: ...

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]: ...


def whiten(
    x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], epsilon: float = 1e-8, ddof: int = 1
) -> Float[Tensor, "n t"]:
    """(x - mean) / sqrt(var + epsilon) over all masked tokens of the step, 0 elsewhere, (N, T).

    The variance is the sample one (``ddof=1``), as in verl's and TRL's ``masked_whiten``; OpenRLHF has the population's
    (``ddof=0``). Fewer than two tokens, and tokens that are all equal, give exact zeros.
    """
    seen = x[mask].double()
    result = torch.zeros_like(x)
    if len(seen) >= 2 and float(seen.max() - seen.min()) > TOLERANCE:
        gap = seen - seen.mean()
        variance = gap.square().sum() / (len(seen) - ddof)
        result[mask] = (gap * (variance + epsilon).rsqrt()).to(x.dtype)
    return result


def rewards_to_go(rewards: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], gamma: float) -> Float[Tensor, "n t"]:
    """Gₜ = rₜ + γ Gₜ₊₁ over the masked tokens of a row, (N, T), 0 elsewhere; t + 1 is the next *masked* token."""
    nothing = torch.zeros_like(rewards)
    return gae(rewards, nothing, nothing, mask, gamma, 1.0)[0]


def kl_penalty(
    logp_old: Float[Tensor, "n t"],
    logp_ref: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    beta: float,
    kind: Estimator = "k1",
) -> Float[Tensor, "n t"]:
    """- β · KL estimate per token, detached, 0 outside the mask: ``token_rewards`` for a KL in the reward, (N, T).

    Take ``k1``: with it the expected gradient of the returns-to-go is that of - β KL(π‖π_ref). With ``k2`` and ``k3``
    the gradient of the estimate itself is missing, and what remains is that of no divergence (``divergence``).
    Raises SettingsError when β < 0 or ``kind`` is unknown.
    """
    if not 0.0 <= beta < float("inf"):
        raise SettingsError(f"kl_penalty: beta must be at least 0 and finite, got {beta}")
    estimators = {"k1": k1, "k2": k2, "k3": k3}
    if kind not in estimators:
        raise SettingsError(f"kl_penalty: kind must be one of {', '.join(estimators)}, got {kind!r}")
    own, ref = (torch.where(mask, logp.detach(), 0.0) for logp in (logp_old, logp_ref))
    return torch.where(mask, -beta * estimators[kind](own, ref), 0.0)


@dataclass(frozen=True, slots=True)
class PerReply:
    """One advantage for all tokens of a reply, from its reward plus all that its tokens earned.

    With ``per_group(leave_one_out)`` and ``kl_penalty`` it is RLOO as published: the KL of the whole reply is part of
    its reward and of the others' baseline. TRL's RLOO and verl's outcome estimators sum in the same way.
    """

    advantage: BatchAdvantage

    @property
    def needs_values(self) -> bool:
        return False

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        _refuse_streams(self, earned)
        whole = earned.rewards.double() + _token_rewards(earned).sum(1)
        return torch.where(earned.live, self.advantage(whole, earned.group)[:, None], 0.0), None


@dataclass(frozen=True, slots=True)
class ReinforcePlusPlus:
    """REINFORCE++: Aₜ = whiten(Gₜ), Gₜ the discounted rewards-to-go of tokens and reply, over all tokens of the step.

    No critic. The paper puts the KL into the reward: ``token_rewards=kl_penalty(...)``.
    baseline: subtract the group's mean reward first (REINFORCE++-baseline); no deviation of the group is taken.
    whiten: whether the last step is taken.  Source: arXiv:2501.03262, section 3.
    """

    gamma: float = 1.0
    baseline: bool = False
    whiten: bool = True

    def __post_init__(self) -> None:
        _check_rates("ReinforcePlusPlus", gamma=self.gamma)

    @property
    def needs_values(self) -> bool:
        return False

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        _refuse_streams(self, earned)
        rewards = earned.rewards.double()
        if self.baseline:
            rewards = torch.where(earned.present, per_group(group_centered)(rewards, earned.group), rewards)
        returns = rewards_to_go(_token_rewards(earned) + _at_last_token(earned, rewards), earned.live, self.gamma)
        return whiten(returns, earned.live) if self.whiten else returns, None


@dataclass(frozen=True, slots=True)
class ReMax:
    """ReMax: Aₜ = rewards-to-go - reward of the greedy reply to the same problem (``Earned.baselines``).

    Unbiased: the greedy reply does not depend on the sampled one.  Source: arXiv:2310.10505.
    """

    @property
    def needs_values(self) -> bool:
        return False

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        _refuse_streams(self, earned)
        if earned.baselines is None:
            raise SettingsError("ReMax needs the rewards of greedy replies, but Earned.baselines is None")
        above = minus_baseline(earned.rewards.double(), earned.baselines.double())
        known = earned.live & ~earned.baselines.isnan()[:, None]
        own = rewards_to_go(_token_rewards(earned), earned.live, 1.0)
        return torch.where(known, own + above[:, None], 0.0), None


@dataclass(frozen=True, slots=True)
class OPO:
    """OPO: A = R - Σ lⱼ Rⱼ / Σ lⱼ inside each group, ``optimal_baseline``; R as in ``PerReply``.  arXiv:2505.23585."""

    @property
    def needs_values(self) -> bool:
        return False

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        _refuse_streams(self, earned)
        whole, lengths = earned.rewards.double() + _token_rewards(earned).sum(1), earned.mask.sum(1)
        advantage = torch.zeros_like(whole)
        for number in earned.group.unique():
            rows = earned.group == number
            advantage[rows] = optimal_baseline(whole[rows], lengths[rows])
        return torch.where(earned.live, advantage[:, None], 0.0), None


@dataclass(frozen=True, slots=True)
class Discounted:
    """Several rewards, each with a discount of its own: Aₜ = (credit of the reply) + Σₘ Σ_{k ≥ t} γₘ^{k-t} rₘₖ.

    gammas: (name, γ) of every stream of ``Earned.streams``; the reward of the reply and ``token_rewards`` have γ = 1.
    A penalty with γ < 1 stays near the tokens that earned it.
    advantage: credit of the rewards of the replies. None takes a critic's V as the baseline instead: Aₜ = Rₜ - V(sₜ),
    and the returns Rₜ are the sum of all, plus the bootstrap where a reply was cut: the paper's form, with λ = 1.
    Source: Demystifying Long CoT, arXiv:2502.03373 (repetition: -0.05 with γ = 0.99; correctness: γ = 1).
    """

    gammas: tuple[tuple[str, float], ...]
    advantage: BatchAdvantage | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.gammas]
        if not names or len(set(names)) < len(names):
            raise SettingsError(f"Discounted.gammas must name each stream once, and at least one, got {names}")
        _check_rates("Discounted", **dict(self.gammas))

    @property
    def needs_values(self) -> bool:
        return self.advantage is None

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        if {name for name, _ in self.gammas} != set(earned.streams):
            named, filled = sorted(name for name, _ in self.gammas), sorted(earned.streams)
            raise SettingsError(f"Discounted.gammas names the streams {named}, but Earned.streams has {filled}")
        total = rewards_to_go(_token_rewards(earned), earned.live, 1.0)
        for name, gamma in self.gammas:
            rewards = torch.where(earned.live, earned.streams[name].detach().double(), 0.0)
            total = total + rewards_to_go(rewards, earned.live, gamma)
        if self.advantage is not None:
            own = self.advantage(earned.rewards.double(), earned.group)
            return torch.where(earned.live, total + own[:, None], 0.0), None
        values, last = _values(self, earned)
        returns = torch.where(earned.live, total + (earned.rewards.double() + last)[:, None], values)
        return returns - values, returns


@dataclass(frozen=True, slots=True)
class LengthAdaptive:
    """VAPO's λ = 1 - 1 / (α l) for a reply of l tokens, so that Σ λᵏ is about α l. At most l = 1/α tokens: λ = 0.

    Source: arXiv:2504.05118, section 4.2 (α = 0.05). It leaves open what short replies get, whose λ is negative.
    """

    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < float("inf"):
            raise SettingsError(f"LengthAdaptive.alpha must be above 0 and finite, got {self.alpha!r}")

    def __call__(self, lengths: Tensor, /) -> Tensor:
        """Lengths (N,) in tokens → λ (N,) float64."""
        return (1.0 - 1.0 / (self.alpha * lengths.double().clamp(min=1.0))).clamp(min=0.0)


@dataclass(frozen=True, slots=True)
class GAE:
    """PPO: generalized advantages of ``advantage.gae``, whitened over the tokens of the step.

    Returns are Aₜ + V(sₜ) *before* whitening: they are what the critic learns, in the units of the reward.
    gamma: discount.  lam: λ, 1 for Monte Carlo.  whiten: whether advantages are whitened.
    Source: arXiv:1506.02438; arXiv:1707.06347; γ = λ = 1 for long reasoning: Open-Reasoner-Zero, arXiv:2503.24290.
    """

    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True

    def __post_init__(self) -> None:
        _check_rates("GAE", gamma=self.gamma, lam=self.lam)

    @property
    def needs_values(self) -> bool:
        return True

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        advantages, returns = _generalized(self, earned, self.gamma, self.lam)
        return whiten(advantages, earned.live) if self.whiten else advantages, returns


@dataclass(frozen=True, slots=True)
class DecoupledGAE:
    """VC-PPO and VAPO: one λ for what the policy follows, another for what the critic learns.

    lam: of the advantages, a number or ``LengthAdaptive``.  lam_critic: of the returns; 1 makes them unbiased.
    Source: VC-PPO, arXiv:2503.01491 (λ = 0.95); VAPO, arXiv:2504.05118, section 4.
    """

    gamma: float = 1.0
    lam: float | LengthAdaptive = LengthAdaptive()
    lam_critic: float = 1.0
    whiten: bool = True

    def __post_init__(self) -> None:
        _check_rates("DecoupledGAE", gamma=self.gamma, lam_critic=self.lam_critic)
        if not isinstance(self.lam, LengthAdaptive):
            _check_rates("DecoupledGAE", lam=self.lam)

    @property
    def needs_values(self) -> bool:
        return True

    def __call__(self, earned: Earned, /) -> tuple[Tensor, Tensor | None]:
        lam = self.lam(earned.mask.sum(1)) if isinstance(self.lam, LengthAdaptive) else self.lam
        advantages, _ = _generalized(self, earned, self.gamma, lam)
        _, returns = _generalized(self, earned, self.gamma, self.lam_critic)
        return whiten(advantages, earned.live) if self.whiten else advantages, returns


def _generalized(credit: object, earned: Earned, gamma: float, lam: float | Tensor) -> tuple[Tensor, Tensor]:
    """``gae`` of what was earned: (advantages, returns), float64; an absent reply has A = 0 and R = V."""
    _refuse_streams(credit, earned)
    values, last = _values(credit, earned)
    rewards = _token_rewards(earned) + _at_last_token(earned, earned.rewards.double())
    advantages, returns = gae(rewards, values, _next_values(values, earned.mask, last), earned.live, gamma, lam)
    return advantages, torch.where(earned.live, returns, values)


def _token_rewards(earned: Earned) -> Tensor:
    """What single tokens earned, (N, T) float64, 0 outside."""
    return torch.where(earned.live, earned.token_rewards.detach().double(), 0.0)


def _at_last_token(earned: Earned, rewards: Tensor) -> Tensor:
    """One number per reply at its last token, 0 elsewhere, (N,) → (N, T)."""
    left = earned.live.flip(1).cumsum(1).flip(1)
    return torch.where(earned.live & (left == 1), rewards[:, None], 0.0)


def _values(credit: object, earned: Earned) -> tuple[Tensor, Tensor]:
    """V (N, T) and V after the last token (N,), float64: 0 there, or the bootstrap where a budget cut the reply."""
    name = type(credit).__name__
    if earned.values is None:
        raise SettingsError(f"{name} needs the values of a critic, but Earned.values is None")
    values = torch.where(earned.mask, earned.values.detach().double(), 0.0)
    cut = earned.cut & earned.present & earned.mask.any(1)
    if not cut.any():
        return values, values.new_zeros(len(values))
    if earned.final_values is None:
        raise SettingsError(
            f"{name}: a budget cut {int(cut.sum())} replies, but Earned.final_values is None; give the critic's value "
            "of the state after the last token, or an all-False `cut` where the limit is part of the task"
        )
    return values, torch.where(cut, earned.final_values.detach().double(), 0.0)


def _next_values(values: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """V before the next masked token of the row, ``last`` where there is none; (N, T), (N, T), (N,) → (N, T)."""
    rows, width = mask.shape
    own = torch.where(mask, torch.arange(width, device=mask.device), width)
    nearest = torch.cat((own, own.new_full((rows, 1), width)), 1).flip(1).cummin(1).values.flip(1)
    return torch.cat((values, last[:, None]), 1).gather(1, nearest[:, 1:])


def _refuse_streams(credit: object, earned: Earned) -> None:
    if earned.streams:
        raise SettingsError(
            f"{type(credit).__name__} has one discount for all and does not read the streams {sorted(earned.streams)}; "
            "use Discounted, or add them to token_rewards"
        )


def _check_finite(name: str, column: Tensor | None, read: Tensor) -> None:
    if column is not None and not column[read].isfinite().all():
        raise SettingsError(f"Earned.{name}: a number that is read is not finite")


def _check_rates(owner: str, **rates: float) -> None:
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate <= 1.0:
            raise SettingsError(f"{owner}.{name} must be in [0, 1], got {rate!r}")
