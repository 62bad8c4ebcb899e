"""TRL, verl and OpenRLHF, written again from their published definitions: the same losses, gradients and advantages.

Everything in float64 on random ragged batches with tool tokens. ``docs/algorithms/frameworks.md`` names the settings
that give each framework's convention; what stands there stands here. (``test_trl_parity.py`` runs TRL itself.)
"""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from longthought.algorithms.advantage import (
    batch_centered,
    batch_normalized,
    global_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
    minus_baseline,
    per_group,
    rescaled_centered,
)
from longthought.algorithms.correction import Masked, SequenceMasked, SequenceTruncated, Truncated
from longthought.algorithms.credit import (
    GAE,
    OPO,
    Discounted,
    Earned,
    PerReply,
    ReinforcePlusPlus,
    ReMax,
    kl_penalty,
    whiten,
)
from longthought.algorithms.objective import CISPO, GRPO, GSPO, KL, REINFORCE, SAPO, Sum, ValueLoss
from longthought.algorithms.shaping import overlong_penalty
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.types import Batch, PolicyOutput

ROWS, WIDTH, LIMIT = 6, 9, 16
SEEDS = [0, 1, 2]


@dataclass(frozen=True)
class Step:
    """Random columns of six replies, two groups of three; ``logp`` and ``value`` carry gradients."""

    mask: torch.Tensor
    group: torch.Tensor
    logp: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    sampler: torch.Tensor
    advantage: torch.Tensor
    value: torch.Tensor
    value_old: torch.Tensor
    returns: torch.Tensor
    rewards: torch.Tensor
    entropy: torch.Tensor


def step_of(seed, tools=True):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(WIDTH) < torch.tensor([9, 4, 7, 1, 6, 5])[:, None]
    if tools:
        mask[0, 3:5] = mask[4, 2] = False
    old = -noise(ROWS, WIDTH).abs() - 0.1
    value_old = noise(ROWS, WIDTH)
    return Step(
        mask=mask,
        group=torch.tensor([0, 1, 0, 1, 1, 0]),
        logp=(old + noise(ROWS, WIDTH, scale=0.4)).requires_grad_(),
        old=old,
        ref=old + noise(ROWS, WIDTH, scale=0.5),
        sampler=old + noise(ROWS, WIDTH, scale=0.3),
        advantage=noise(ROWS),
        value=(value_old + noise(ROWS, WIDTH, scale=0.5)).requires_grad_(),
        value_old=value_old,
        returns=noise(ROWS, WIDTH),
        rewards=noise(ROWS),
        entropy=noise(ROWS, WIDTH).abs().requires_grad_(),
    )


def ours(step, objective, weighting, weights=None):
    advantage = step.advantage[:, None].expand(ROWS, WIDTH)
    batch = Batch(
        tokens=torch.zeros(ROWS, WIDTH, dtype=torch.int64),
        lengths=torch.full((ROWS,), WIDTH),
        mask=step.mask,
        weight=weighting(step.mask).double(),
        advantage=advantage if weights is None else advantage * weights,
        logp_old=step.old,
        logp_ref=step.ref,
        returns=step.returns,
        value_old=step.value_old,
    )
    return objective(PolicyOutput(step.logp, step.entropy, step.value), batch).value


def same_loss_and_gradient(mine, theirs, *leaves):
    """Weights are float32, hence the tolerance."""
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    for leaf in leaves:
        found, expected = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (mine, theirs))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert expected.abs().max() > 1e-4


def mean(x, mask):
    return (x * mask).sum() / mask.sum()


AGGREGATIONS = {
    "token-mean": (token_mean, lambda x, m: (x * m).sum() / m.sum()),
    "seq-mean-token-sum": (sequence_sum, lambda x, m: (x * m).sum(1).mean()),
    "seq-mean-token-mean": (sequence_mean, lambda x, m: ((x * m).sum(1) / m.sum(1)).mean()),
    "seq-mean-token-sum-norm": (partial(constant, length=LIMIT), lambda x, m: ((x * m).sum(1) / LIMIT).mean()),
}
aggregations = pytest.mark.parametrize(("weighting", "aggregate"), AGGREGATIONS.values(), ids=AGGREGATIONS)
seeds = pytest.mark.parametrize("seed", SEEDS)


def ppo(step, low, high, dual=None):
    """verl's vanilla and OpenRLHF's PPO loss: log-ratio clamped to ±20, a maximum of losses, dual clip where A < 0."""
    a = step.advantage[:, None]
    rho = (step.logp - step.old).clamp(-20, 20).exp()
    loss = torch.maximum(-a * rho, -a * rho.clamp(1 - low, 1 + high))
    return loss if dual is None else torch.where(a < 0, torch.minimum(loss, -a * dual), loss)


@seeds
@aggregations
@pytest.mark.parametrize("dual", [None, 3.0, 1.1])
@pytest.mark.parametrize("high", [0.2, 0.28])
def test_verl_and_openrlhf_policy_loss(seed, weighting, aggregate, dual, high):
    step = step_of(seed)
    theirs = aggregate(ppo(step, 0.2, high, dual), step.mask)
    same_loss_and_gradient(ours(step, GRPO(0.2, high, dual_clip=dual), weighting), theirs, step.logp)


@seeds
@pytest.mark.parametrize("delta", [1.5, 4.0])
def test_trl_delta_is_the_dual_clip(seed, delta):
    """TRL bounds ρ itself by delta before both products; the same when delta ≥ 1 + ε_high."""
    step = step_of(seed)
    a, rho = step.advantage[:, None], (step.logp - step.old).exp()
    theirs = -mean(torch.minimum(rho.clamp(max=delta) * a, rho.clamp(0.8, 1.28) * a), step.mask)
    same_loss_and_gradient(ours(step, GRPO(0.2, 0.28, dual_clip=delta), token_mean), theirs, step.logp)


@seeds
@aggregations
@pytest.mark.parametrize("bias_correction", [False, True])
def test_trl_grpo_with_kl(seed, weighting, aggregate, bias_correction):
    step = step_of(seed)
    a, rho, gap = step.advantage[:, None], (step.logp - step.old).exp(), step.ref - step.logp
    kl = (gap.exp() - gap - 1) * (rho if bias_correction else 1)
    theirs = aggregate(-torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a) + 0.04 * kl, step.mask)
    kind = "k3_corrected" if bias_correction else "k3"
    for objective in (GRPO(beta=0.04, kl=kind), Sum((GRPO(), KL(0.04, kind)))):
        same_loss_and_gradient(ours(step, objective, weighting), theirs, step.logp)


@seeds
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_verl_kl_loss(seed, kind):
    """Beside any policy loss; verl's k3 is that of a log-ratio within ±20 and a value within 10."""
    step = step_of(seed)
    gap = (step.ref - step.logp).clamp(-20, 20)
    kl = (gap.exp() - gap - 1).clamp(-10, 10) if kind == "k3" else 0.5 * (step.logp - step.ref).square()
    theirs = mean(ppo(step, 0.2, 0.2) + 0.1 * kl, step.mask)
    same_loss_and_gradient(ours(step, GRPO(beta=0.1, kl=kind), token_mean), theirs, step.logp)
    same_loss_and_gradient(ours(step, Sum((GRPO(), KL(0.1, kind))), token_mean), theirs, step.logp)


@seeds
@aggregations
def test_verl_entropy_bonus(seed, weighting, aggregate):
    """The entropy is averaged as the policy loss is."""
    step = step_of(seed)
    theirs = aggregate(ppo(step, 0.2, 0.2) - 0.01 * step.entropy, step.mask)
    same_loss_and_gradient(ours(step, GRPO(entropy_bonus=0.01), weighting), theirs, step.logp, step.entropy)


def sequence_ratio(step):
    return (((step.logp - step.old) * step.mask).sum(1) / step.mask.sum(1)).exp()[:, None]


@seeds
@pytest.mark.parametrize("bounds", [(3e-4, 4e-4), (0.1, 0.15), (0.5, 0.9)])
def test_gspo_of_whole_replies(seed, bounds):
    """TRL (``importance_sampling_level="sequence"``), OpenRLHF: one differentiable ratio per reply, mean of replies."""
    step = step_of(seed)
    a, s = step.advantage[:, None], sequence_ratio(step)
    theirs = -torch.minimum(s * a, s.clamp(1 - bounds[0], 1 + bounds[1]) * a).mean()
    mine = ours(step, GSPO(*bounds), sequence_mean)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    found, expected = (torch.autograd.grad(loss, step.logp)[0] for loss in (mine, theirs))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@seeds
@aggregations
def test_gspo_token_form_of_verl(seed, weighting, aggregate):
    step = step_of(seed)
    a = step.advantage[:, None]
    s = (step.logp - step.logp.detach() + sequence_ratio(step).detach().log()).clamp(max=10).exp()
    theirs = aggregate(torch.maximum(-a * s, -a * s.clamp(0.9, 1.2)), step.mask)
    same_loss_and_gradient(ours(step, GSPO(0.1, 0.2), weighting), theirs, step.logp)


@seeds
def test_trl_gspo_with_kl(seed):
    step = step_of(seed)
    a, s, gap = step.advantage[:, None], sequence_ratio(step), step.ref - step.logp
    loss = -torch.minimum(s * a, s.clamp(0.5, 1.9) * a) + 0.04 * (gap.exp() - gap - 1)
    theirs = ((loss * step.mask).sum(1) / step.mask.sum(1)).mean()
    same_loss_and_gradient(ours(step, Sum((GSPO(0.5, 0.9), KL(0.04))), sequence_mean), theirs, step.logp)


@seeds
def test_trl_luspo(seed):
    """GSPO whose replies count by their length: the same as weighing every token 1 / N."""
    step = step_of(seed)
    a, s = step.advantage[:, None], sequence_ratio(step)
    theirs = -(torch.minimum(s * a, s.clamp(0.5, 1.9) * a) * step.mask.sum(1, keepdim=True)).mean()
    same_loss_and_gradient(ours(step, GSPO(0.5, 0.9), sequence_sum), theirs, step.logp)


@seeds
@pytest.mark.parametrize(("cap", "floor"), [(5.0, 0.0), (1.2, 0.0), (1.28, 0.8)])
def test_cispo(seed, cap, floor):
    """TRL: epsilon_high = cap, no floor. verl: 1 + ε_high = cap, 1 - ε_low = floor."""
    step = step_of(seed)
    rho = (step.logp - step.old).exp().clamp(floor, cap).detach()
    theirs = -mean(rho * step.advantage[:, None] * step.logp, step.mask)
    same_loss_and_gradient(ours(step, CISPO(cap, floor), token_mean), theirs, step.logp)


@seeds
def test_sapo(seed):
    step = step_of(seed)
    a, rho = step.advantage[:, None], (step.logp - step.old).exp()
    tau = torch.where(a > 0, 1.0, 1.05).double()
    loss = -torch.sigmoid(tau * (rho - 1)) * 4 / tau * a
    theirs = ((loss * step.mask).sum(1) / step.mask.sum(1)).mean()
    same_loss_and_gradient(ours(step, SAPO(), sequence_mean), theirs, step.logp)


@seeds
@aggregations
def test_verl_reinforce_and_gpg_loss(seed, weighting, aggregate):
    step = step_of(seed)
    theirs = aggregate(-step.logp * step.advantage[:, None], step.mask)
    same_loss_and_gradient(ours(step, REINFORCE(), weighting), theirs, step.logp)


@seeds
@pytest.mark.parametrize("clip", [None, 0.2])
@aggregations
def test_value_loss(seed, clip, weighting, aggregate):
    """verl and OpenRLHF: half the larger of two squares. TRL multiplies it with ``vf_coef`` = 0.1."""
    step = step_of(seed)
    squares = (step.value - step.returns).square()
    if clip is not None:
        near = torch.maximum(torch.minimum(step.value, step.value_old + clip), step.value_old - clip)
        squares = torch.maximum(squares, (near - step.returns).square())
    theirs = 0.5 * aggregate(squares, step.mask)
    same_loss_and_gradient(ours(step, ValueLoss(clip), weighting), theirs, step.value)


CORRECTIONS = {
    "TRL token_truncate, verl token": (Truncated(2.0), lambda w, s: w.clamp(max=2.0)),
    "OpenRLHF tis": (Truncated(1.2, 0.9), lambda w, s: w.clamp(0.9, 1.2)),
    "TRL token_mask, OpenRLHF icepop": (Masked(0.8, 1.25), lambda w, s: w * ((w >= 0.8) & (w <= 1.25))),
    "TRL sequence_truncate, verl sequence": (
        SequenceTruncated(1.5),
        lambda w, s: (w.log() * s.mask).sum(1, keepdim=True).exp().clamp(max=1.5) * torch.ones_like(w),
    ),
    "OpenRLHF seq-mask-tis, bounded": (
        SequenceMasked(0.9, 1.1, within=Truncated(1e8)),
        lambda w, s: w * (((w.log() * s.mask).sum(1) / s.mask.sum(1)).exp() - 1).abs().le(0.1)[:, None],
    ),
}
OBJECTIVES = [GRPO(0.2, 0.28, dual_clip=3.0), GSPO(0.1, 0.2), CISPO(1.2, 0.8), SAPO(), REINFORCE()]


@seeds
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize(("correction", "formula"), CORRECTIONS.values(), ids=CORRECTIONS)
def test_correction_in_the_advantage_is_correction_of_the_loss(seed, objective, correction, formula):
    """They multiply the loss per token by w; we multiply A: every surrogate is positively homogeneous in A."""
    step = step_of(seed)
    weights = correction(step.old, step.sampler, step.mask)
    torch.testing.assert_close(weights, formula((step.old - step.sampler).exp(), step) * step.mask)
    mine = ours(step, objective, token_mean, weights)
    their_weighting = lambda mask: token_mean(mask) * weights  # noqa: E731
    theirs = ours(step, objective, their_weighting)
    same_loss_and_gradient(mine, theirs, step.logp)


def by_group(step, formula):
    """``formula`` of the rewards of each group, as plain lists."""
    result = torch.zeros(ROWS, dtype=torch.float64)
    for number in (0, 1):
        members = [row for row in range(ROWS) if int(step.group[row]) == number]
        found = formula([float(step.rewards[row]) for row in members])
        for row, value in zip(members, found, strict=True):
            result[row] = value
    return result


def std(values, ddof=1):
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def centred(values):
    centre = math.fsum(values) / len(values)
    return [v - centre for v in values]


GROUPED = {
    "verl grpo": (group_normalized, lambda r: [c / (std(r) + 1e-6) for c in centred(r)]),
    "TRL group": (partial(group_normalized, epsilon=1e-4), lambda r: [c / (std(r) + 1e-4) for c in centred(r)]),
    "OpenRLHF group_norm": (
        partial(group_normalized, epsilon=1e-9),
        lambda r: [c / (std(r) + 1e-9) for c in centred(r)],
    ),
    "population": (partial(group_normalized, ddof=0), lambda r: [c / (std(r, 0) + 1e-6) for c in centred(r)]),
    "dr_grpo": (group_centered, centred),
    "verl rloo": (leave_one_out, lambda r: [len(r) / (len(r) - 1) * c for c in centred(r)]),
    "TRL, OpenRLHF rloo": (leave_one_out, lambda r: [v - (math.fsum(r) - v) / (len(r) - 1) for v in r]),
}


@seeds
@pytest.mark.parametrize(("credit", "formula"), GROUPED.values(), ids=GROUPED)
def test_group_advantages(seed, credit, formula):
    step = step_of(seed)
    torch.testing.assert_close(per_group(credit)(step.rewards, step.group), by_group(step, formula))


@seeds
def test_batch_advantages(seed):
    step = step_of(seed)
    r, gaps = step.rewards, by_group(step, centred)
    for found, expected in (
        (batch_centered(r, step.group), r - r.mean()),
        (global_normalized(r, step.group), (r - r.mean()) / (r.std() + 1e-6)),
        (batch_normalized(r, step.group), gaps / (gaps.std() + 1e-6)),
        (batch_normalized(r, step.group, epsilon=1e-4, ddof=0), gaps / (gaps.std(correction=0) + 1e-4)),
        (minus_baseline(r, gaps), r - gaps),
        (rescaled_centered(r, step.group), gaps),
    ):
        torch.testing.assert_close(found, expected)


def token_level(step, beta=0.0):
    """Rewards per token as the frameworks hold them: - β k1 everywhere, the reward of the reply at its last token."""
    rewards = -beta * (step.old - step.ref) * step.mask
    for row in range(ROWS):
        rewards[row, int(step.mask[row].nonzero().max())] += step.rewards[row]
    return rewards


def earned(step, beta=0.0, **columns):
    penalty = kl_penalty(step.old, step.ref, step.mask, beta)
    cut = torch.zeros(ROWS, dtype=torch.bool)
    return Earned(step.rewards, step.group, step.mask, penalty, cut, values=step.value_old, **columns)


def masked_whiten(x, mask, ddof=1):
    """verl and TRL: Bessel, + 1e-8 under the root. OpenRLHF: the population's variance, at least 1e-8."""
    centre = mean(x, mask)
    variance = ((x - centre).square() * mask).sum() / (mask.sum() - ddof)
    return (x - centre) * (variance + 1e-8 if ddof else variance.clamp(min=1e-8)).rsqrt() * mask


@seeds
@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_verl_gae(seed, rates, beta):
    """Tool tokens carry value and advantage through."""
    step, (gamma, lam) = step_of(seed), rates
    rewards, values, m = token_level(step, beta), step.value_old, step.mask.double()
    after, running = torch.zeros(ROWS).double(), torch.zeros(ROWS).double()
    advantages = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for t in reversed(range(WIDTH)):
        here = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * running
        after = m[:, t] * values[:, t] + (1 - m[:, t]) * after
        running = m[:, t] * here + (1 - m[:, t]) * running
        advantages[:, t] = running
    found, returns = GAE(gamma, lam)(earned(step, beta))
    torch.testing.assert_close(found, masked_whiten(advantages, m))
    torch.testing.assert_close(returns, (advantages + values) * m)


@seeds
@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.99, 0.95)])
def test_openrlhf_gae(seed, rates):
    """Without tool tokens (with them it decays across them). Whitened with the population's deviation."""
    step, (gamma, lam) = step_of(seed, tools=False), rates
    m = step.mask.double()
    rewards, values = token_level(step, 0.1) * m, step.value_old * m
    advantages, running = torch.zeros(ROWS, WIDTH, dtype=torch.float64), torch.zeros(ROWS).double()
    for t in reversed(range(WIDTH)):
        after = values[:, t + 1] if t + 1 < WIDTH else torch.zeros(ROWS).double()
        running = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * running
        advantages[:, t] = running
    plain, returns = GAE(gamma, lam, whiten=False)(earned(step, 0.1))
    torch.testing.assert_close(plain, advantages * m)
    torch.testing.assert_close(returns, (advantages + values) * m)
    torch.testing.assert_close(whiten(plain, step.mask, epsilon=0.0, ddof=0), masked_whiten(advantages, m, ddof=0))


def to_go(rewards, gamma):
    returns, running = torch.zeros_like(rewards), torch.zeros(len(rewards), dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + gamma * running
        returns[:, t] = running
    return returns


@seeds
@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_reinforce_plus_plus(seed, gamma, beta):
    """verl and OpenRLHF (``reinforce``) without tool tokens; verl forgets the return at them, OpenRLHF decays."""
    step = step_of(seed, tools=False)
    returns = to_go(token_level(step, beta), gamma)
    torch.testing.assert_close(ReinforcePlusPlus(gamma)(earned(step, beta))[0], masked_whiten(returns, step.mask))
    plain = ReinforcePlusPlus(gamma, whiten=False)(earned(step, beta))[0]
    found = whiten(plain, step.mask, epsilon=0.0, ddof=0)
    torch.testing.assert_close(found, masked_whiten(returns, step.mask, ddof=0))


@seeds
def test_reinforce_plus_plus_baseline(seed):
    """verl without KL in the reward; OpenRLHF (``reinforce_baseline``) adds it after the mean of the group is gone."""
    step = step_of(seed)
    gaps = by_group(step, centred)[:, None].expand(ROWS, WIDTH) * step.mask
    credit = ReinforcePlusPlus(baseline=True)
    torch.testing.assert_close(credit(earned(step))[0], masked_whiten(gaps, step.mask))
    kl_to_go = to_go(token_level(step, 0.1) - token_level(step), 1.0)
    plain = ReinforcePlusPlus(baseline=True, whiten=False)(earned(step, 0.1))[0]
    torch.testing.assert_close(plain, (gaps + kl_to_go) * step.mask)


@seeds
@pytest.mark.parametrize("credit", [leave_one_out, group_centered, group_normalized])
def test_kl_in_the_reward_of_group_methods(seed, credit):
    """verl and TRL's RLOO add the KL to the reward of the reply; OpenRLHF adds it to the tokens after the baseline."""
    step = step_of(seed)
    whole = token_level(step, 0.1).sum(1)
    expected = per_group(credit)(whole, step.group)[:, None] * step.mask
    torch.testing.assert_close(PerReply(per_group(credit))(earned(step, 0.1))[0], expected)
    apart = per_group(credit)(step.rewards, step.group)[:, None] + to_go(
        token_level(step, 0.1) - token_level(step), 1.0
    )
    nothing = {"nothing": torch.zeros(ROWS, WIDTH, dtype=torch.float64)}
    found = Discounted((("nothing", 1.0),), per_group(credit))(earned(step, 0.1, streams=nothing))[0]
    torch.testing.assert_close(found, apart * step.mask)


@seeds
def test_verl_remax(seed):
    step = step_of(seed)
    greedy = step.advantage
    returns = to_go(token_level(step, 0.1) * step.mask, 1.0)
    found = ReMax()(earned(step, 0.1, baselines=greedy))[0]
    torch.testing.assert_close(found, (returns - greedy[:, None]) * step.mask)


@seeds
def test_verl_opo(seed):
    step = step_of(seed)
    lengths = step.mask.sum(1).double()
    expected = torch.zeros(ROWS, dtype=torch.float64)
    for number in (0, 1):
        rows = step.group == number
        baseline = (lengths[rows] * step.rewards[rows]).sum() / lengths[rows].sum()
        expected[rows] = step.rewards[rows] - baseline
    torch.testing.assert_close(OPO()(earned(step))[0], expected[:, None] * step.mask)


@pytest.mark.parametrize("length", [1, 80, 81, 90, 99, 100, 101, 150])
def test_overlong_penalty_of_verl_and_openrlhf(length):
    assert overlong_penalty(length, 100, 20) == pytest.approx(min(-min(length - 80, 20) / 20, 0.0))
