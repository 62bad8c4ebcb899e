"""Credit: from rewards to one advantage per reply. (Credit per token: ``credit``.)

Two shapes. Inside one group, (G,) → (G,), and over the batch of a step, (N,) rewards with (N,) group numbers → (N,).
``per_group`` lifts the first into the second, so that a stage applies either kind in one way.

Common to all. Sums run in float64 and the result has the float dtype of the rewards (torch's default for integers).
The standard deviation is the sample one (``ddof=1``: Bessel, division by n - 1), as in TRL, verl and OpenRLHF, and
``epsilon`` is added to it: 1e-6 as in verl; TRL has 1e-4, OpenRLHF 1e-9. A reward of NaN is absent: its sample leaves
the baseline and has advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from longthought.core.errors import SettingsError
from longthought.core.protocols import Advantage

EPSILON = 1e-6
"""Added to every standard deviation before dividing."""

TOLERANCE = 1e-9
"""Rewards of a group whose max - min is not above this are equal.

Far above the rounding of a float64 sum of a few terms of order 1 (1e-15), far below what a reward can mean: a gap this
small would have an advantage under 1e-3 anyway, because of ``EPSILON``. The standard deviation cannot decide this: in
float32 that of sixteen times 0.97 is not 0.
"""


class BatchAdvantage(Protocol):
    """Credit over the batch of a step: rewards (N,) and the group number of each, (N,) int64 → (N,)."""

    def __call__(self, rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"], /) -> Float[Tensor, " n"]: ...


def group_normalized(r: Shaped[Tensor, " g"], epsilon: float = EPSILON, ddof: int = 1) -> Float[Tensor, " g"]:
    """GRPO: Aᵢ = (rᵢ - mean r) / (std r + epsilon), (G,) → (G,).

    A group of equal rewards gives exact zeros. As an Advantage with other settings: ``partial(group_normalized,
    epsilon=1e-4)``.  Raises SettingsError when G < 2.
    Source: DeepSeekMath, arXiv:2402.03300, section 4.1.2.
    """
    return _scaled(*_gaps(r), epsilon, ddof).to(_float_dtype(r))


def group_centered(r: Shaped[Tensor, " g"]) -> Float[Tensor, " g"]:
    """Dr. GRPO and Kimi k1.5: Aᵢ = rᵢ - mean r, (G,) → (G,).

    A group of equal rewards gives exact zeros. Raises SettingsError when G < 2.
    The baseline holds rᵢ itself, so the expected gradient is (G - 1) / G of the policy gradient.
    Source: Dr. GRPO, arXiv:2503.20783, section 3.2.
    """
    return _gaps(r)[0].to(_float_dtype(r))


def leave_one_out(r: Shaped[Tensor, " g"]) -> Float[Tensor, " g"]:
    """RLOO: Aᵢ = rᵢ - mean of the other rewards = n / (n - 1) · (rᵢ - mean r) with n rewards present, (G,) → (G,).

    A group of equal rewards gives exact zeros. Raises SettingsError when G < 2. The gradient is unbiased.
    Source: Ahmadian et al., arXiv:2402.14740; Kool et al. 2019.
    """
    gap, count = _gaps(r)
    return (gap * (count / max(count - 1, 1))).to(_float_dtype(r))


def optimal_baseline(r: Shaped[Tensor, " g"], lengths: Shaped[Tensor, " g"]) -> Float[Tensor, " g"]:
    """OPO: Aᵢ = rᵢ - Σ lⱼ rⱼ / Σ lⱼ, the baseline that weighs replies by their number of tokens l, (G,), (G,) → (G,).

    It has the least variance when the squared norm of ∇ log π(y) grows as the length. It holds rᵢ itself, so the
    gradient is biased; with equal lengths it is ``group_centered``. ``credit.OPO`` applies it to a step.
    A group of equal rewards gives exact zeros. Raises SettingsError when G < 2.  Source: arXiv:2505.23585.
    """
    gap, _ = _gaps(r)
    share = torch.where(r.isnan(), 0.0, lengths.double())
    moved = gap - (share * gap).sum() / share.sum().clamp(min=1.0)
    return torch.where(r.isnan() | (gap == 0).all(), 0.0, moved).to(_float_dtype(r))


def batch_normalized(
    rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"], epsilon: float = EPSILON, ddof: int = 1
) -> Float[Tensor, " n"]:
    """REINFORCE++-baseline: (rᵢ - mean of its group) / (std of these gaps over the batch + epsilon), (N,), (N,) → (N,).

    Unlike ``group_normalized`` it does not blow up groups that are almost all right or almost all wrong. Groups of
    equal rewards have advantage 0 and count in the deviation unless they were dropped before. A lone present reward has
    no baseline and gap 0. Raises SettingsError when a group has fewer than two rewards.
    Source: arXiv:2501.03262, section 3. Others divide by the deviation of the rewards (TRL ``scale_rewards="batch"``),
    which also holds how much the problems differ, or weigh the deviation by tokens (verl, OpenRLHF: that is
    ``credit.ReinforcePlusPlus(baseline=True)``).
    """
    gap = per_group(group_centered)(rewards.double(), group)
    return _scaled(gap, int((~rewards.isnan()).sum()), epsilon, ddof).to(_float_dtype(rewards))


def batch_centered(rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """REINFORCE with a baseline: rᵢ - mean r over the batch; the groups are not looked at, (N,), (N,) → (N,).

    With one reply per problem nothing else is to be had. The baseline holds rᵢ itself, so the expected gradient is
    (N - 1) / N of the policy gradient. Raises SettingsError when N < 2.  Source: Williams 1992.
    """
    _check_batch(rewards, group)
    return _gaps(rewards)[0].to(_float_dtype(rewards))


def global_normalized(
    rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"], epsilon: float = EPSILON, ddof: int = 1
) -> Float[Tensor, " n"]:
    """REINFORCE++ of whole replies: (rᵢ - mean r) / (std r + epsilon) over the batch, (N,), (N,) → (N,).

    The published codes take mean and deviation over tokens: ``credit.ReinforcePlusPlus``. Raises SettingsError when
    N < 2.  Source: arXiv:2501.03262, section 3.
    """
    _check_batch(rewards, group)
    return _scaled(*_gaps(rewards), epsilon, ddof).to(_float_dtype(rewards))


def rescaled_centered(rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """GPG: α (rᵢ - mean of its group), α = replies / replies of groups whose rewards differ, (N,), (N,) → (N,).

    α keeps the size of the gradient when groups without a signal dilute the batch. verl counts the replies whose
    reward is not 0 instead. Raises SettingsError when a group has fewer than two rewards.
    Source: arXiv:2504.02546.
    """
    gap = per_group(group_centered)(rewards.double(), group)
    live = torch.isin(group, group[gap != 0]) & ~rewards.isnan()
    scale = int((~rewards.isnan()).sum()) / max(int(live.sum()), 1)
    return (gap * scale).to(_float_dtype(rewards))


def minus_baseline(rewards: Shaped[Tensor, " n"], baselines: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
    """rᵢ - bᵢ, (N,), (N,) → (N,); 0 where either is absent. ReMax: bᵢ is the reward of the greedy reply to problem i.

    Unbiased for every baseline that does not depend on reply i.  Source: ReMax, arXiv:2310.10505.
    """
    if rewards.dim() != 1 or rewards.shape != baselines.shape:
        raise SettingsError(f"minus_baseline: need two (N,), got {tuple(rewards.shape)} and {tuple(baselines.shape)}")
    gap = rewards.detach().double() - baselines.detach().double()
    if gap.isinf().any():
        raise SettingsError("minus_baseline: a reward or a baseline is infinite; they must be finite, or NaN if absent")
    return gap.nan_to_num(nan=0.0).to(_float_dtype(rewards))


@dataclass(frozen=True, slots=True)
class PerGroup:
    """Made by ``per_group``; a value, so that settings which hold it can be compared and printed."""

    credit: Advantage

    def __call__(self, rewards: Shaped[Tensor, " n"], group: Int[Tensor, " n"], /) -> Float[Tensor, " n"]:
        _check_batch(rewards, group)
        advantage = torch.zeros(len(rewards), dtype=_float_dtype(rewards), device=rewards.device)
        for number in group.unique():
            rows = group == number
            advantage[rows] = self.credit(rewards[rows])
        return advantage


def per_group(credit: Advantage) -> BatchAdvantage:
    """Lift credit inside one group to a batch. Groups are told by their number, in any order, of any sizes."""
    return PerGroup(credit)


def gae(
    rewards: Float[Tensor, "n t"],
    values: Float[Tensor, "n t"],
    next_values: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    gamma: float,
    lam: float | Tensor,
) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Generalized advantage estimation: (advantages, returns), (N, T) each, 0 where ``mask`` is False.

    δₜ = rₜ + γ V(sₜ₊₁) - V(sₜ),  Aₜ = δₜ + γλ Aₜ₊₁,  Rₜ = Aₜ + V(sₜ), where t + 1 is the *next masked* token: tokens
    that the policy did not write (tool output, padding) carry the advantage through, without a decay.

    values: V of the state before token t.  next_values: V of the state before the next token of the policy; at the last
    one 0 after an end token and the bootstrap V(s_T) where a budget cut the reply.  mask: True on the tokens of
    the policy.  lam: λ, one for all or one per row (N,).  No gradient flows to the values.  Raises SettingsError when γ
    or λ is outside [0, 1].
    Source: Schulman et al., arXiv:1506.02438, equation 16.
    """
    for name, rate in (("gamma", gamma), ("lam", lam)):
        wide = torch.as_tensor(rate)
        if not ((wide >= 0) & (wide <= 1)).all():
            raise SettingsError(f"gae: {name} must be in [0, 1], got {rate}")
    known, after = values.detach().double(), next_values.detach().double()
    surprise = torch.where(mask, rewards.detach().double() + gamma * after - known, 0.0)
    advantages = torch.zeros_like(surprise)
    running = surprise.new_zeros(len(surprise))
    for t in reversed(range(surprise.shape[1])):
        running = torch.where(mask[:, t], surprise[:, t] + gamma * lam * running, running)
        advantages[:, t] = running
    advantages = torch.where(mask, advantages, 0.0)
    returns = torch.where(mask, advantages + known, 0.0)
    return advantages.to(_float_dtype(values)), returns.to(_float_dtype(values))


def _gaps(r: Tensor) -> tuple[Tensor, int]:
    """Rewards minus their mean, (G,) float64 with zeros where absent, and how many rewards are present."""
    if r.dim() != 1 or len(r) < 2:
        raise SettingsError(
            f"a group of shape {tuple(r.shape)} has no baseline: give (G,) rewards with G >= 2, "
            "that is, sample at least two replies to every problem"
        )
    wide = r.detach().double()
    if wide.isinf().any():
        raise SettingsError(f"a reward is infinite: {wide.tolist()}; rewards must be finite, or NaN where absent")
    present = ~wide.isnan()
    seen = wide[present]
    gap = torch.zeros_like(wide)
    if len(seen) >= 2 and float(seen.max() - seen.min()) > TOLERANCE:
        gap[present] = seen - seen.mean()
    return gap, len(seen)


def _scaled(gap: Tensor, count: int, epsilon: float, ddof: int) -> Tensor:
    """Gaps of ``count`` present rewards, divided by their standard deviation + epsilon."""
    deviation = (gap.square().sum() / max(count - ddof, 1)).sqrt()
    return gap / (deviation + epsilon)


def _check_batch(rewards: Tensor, group: Tensor) -> None:
    if rewards.dim() != 1 or rewards.shape != group.shape:
        shapes = f"{tuple(rewards.shape)} and {tuple(group.shape)}"
        raise SettingsError(f"rewards and group numbers must both have shape (N,), got {shapes}")


def _float_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
