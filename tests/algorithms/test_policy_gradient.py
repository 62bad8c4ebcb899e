"""The expected gradient of every estimator of credit, by enumeration: which are the policy gradient, which are not.

A policy over a tree of states, one row of logits each, has finitely many replies, so an expectation over all steps of N
replies is a finite sum. Nothing is sampled here; equalities hold to 1e-10.
"""

import itertools
import math
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
    per_group,
)
from longthought.algorithms.credit import (
    GAE,
    OPO,
    DecoupledGAE,
    Discounted,
    Earned,
    LengthAdaptive,
    PerReply,
    ReinforcePlusPlus,
    ReMax,
    kl_penalty,
)
from longthought.algorithms.objective import CISPO, GRPO, GSPO, REINFORCE, SAPO, MirrorDescent
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum
from longthought.core.types import Batch, PolicyOutput

END, TOKENS = 2, 3
BETA = 0.3


class Tree:
    """A policy whose replies end with token 2 or after ``depth`` tokens; a reward per reply, a guess of V per state."""

    def __init__(self, depth, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.replies = sorted(
            reply
            for length in range(1, depth + 1)
            for reply in itertools.product(range(TOKENS), repeat=length)
            if END not in reply[:-1] and (length == depth or reply[-1] == END)
        )
        states = sorted({reply[:t] for reply in self.replies for t in range(len(reply))})
        self.number = {state: row for row, state in enumerate(states)}
        self.theta = torch.randn(len(states), TOKENS, generator=generator, dtype=torch.float64, requires_grad=True)
        self.ref = torch.randn(len(states), TOKENS, generator=generator, dtype=torch.float64)
        self.reward = torch.randn(len(self.replies), generator=generator, dtype=torch.float64)
        self.guess = torch.randn(len(states), generator=generator, dtype=torch.float64)
        self.mask = torch.zeros(len(self.replies), depth, dtype=torch.bool)
        self.state = torch.zeros(len(self.replies), depth, dtype=torch.int64)
        self.token = torch.zeros(len(self.replies), depth, dtype=torch.int64)
        for row, reply in enumerate(self.replies):
            for t, token in enumerate(reply):
                self.mask[row, t], self.token[row, t], self.state[row, t] = True, token, self.number[reply[:t]]

    def logp(self, logits=None):
        """Log-prob of every token of every reply, (replies, depth), 0 after its end."""
        table = (self.theta if logits is None else logits).log_softmax(-1)
        return torch.where(self.mask, table[self.state, self.token], 0.0)

    def chance(self):
        return self.logp().sum(1).exp()

    def true_values(self):
        """E[reward | state] by state."""
        chance = self.chance().detach()
        through = torch.zeros(2, len(self.number), dtype=torch.float64)
        for row, reply in enumerate(self.replies):
            for t in range(len(reply)):
                through[:, self.number[reply[:t]]] += chance[row] * torch.stack((self.reward[row], torch.ones(())))
        return through[0] / through[1]

    def greedy_reward(self):
        reply = ()
        while reply not in self.replies:
            reply = (*reply, int(self.theta[self.number[reply]].argmax()))
        return self.reward[self.replies.index(reply)]

    def policy_gradient(self, beta=0.0):
        """∇ (E[reward] - beta KL(π‖π_ref) of whole replies)."""
        logp, chance = self.logp(), self.chance()
        divergence = (chance * (logp - self.logp(self.ref)).sum(1)).sum()
        return torch.autograd.grad((chance * self.reward).sum() - beta * divergence, self.theta)[0]


def earned_of(tree, rows, **columns):
    rows = torch.as_tensor(rows)
    empty = torch.zeros(tree.mask[rows].shape, dtype=torch.float64)
    plain = {
        "group": torch.zeros(len(rows), dtype=torch.int64),
        "token_rewards": empty,
        "cut": torch.zeros(len(rows), dtype=torch.bool),
    }
    return Earned(rewards=tree.reward[rows], mask=tree.mask[rows], **{**plain, **columns})


def expected_gradient(tree, credit, size, make=earned_of):
    """E over all steps of ``size`` replies of 1/size Σᵢ Σₜ Aᵢₜ ∇ log π(oᵢₜ)."""
    chance, pull = tree.chance().detach(), torch.zeros(tree.mask.shape, dtype=torch.float64)
    for rows in itertools.product(range(len(tree.replies)), repeat=size):
        advantage = credit(make(tree, rows))[0]
        likelihood = chance[list(rows)].prod()
        pull.index_add_(0, torch.tensor(rows), likelihood * advantage / size)
    return torch.autograd.grad((pull * tree.logp()).sum(), tree.theta)[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def fixed(number):
    return lambda rewards, group: rewards - number


UNBIASED = [
    pytest.param(PerReply(fixed(0.0)), 1, id="REINFORCE"),
    pytest.param(PerReply(fixed(0.7)), 1, id="REINFORCE, fixed baseline"),
    pytest.param(PerReply(per_group(leave_one_out)), 2, id="RLOO of 2"),
    pytest.param(PerReply(per_group(leave_one_out)), 3, id="RLOO of 3"),
    pytest.param(ReinforcePlusPlus(whiten=False), 1, id="returns to go"),
]


@pytest.mark.parametrize(("credit", "size"), UNBIASED)
def test_unbiased(credit, size):
    tree = Tree(depth=2)
    close(expected_gradient(tree, credit, size), tree.policy_gradient())


def test_remax_is_unbiased():
    tree = Tree(depth=3)
    greedy = tree.greedy_reward()
    make = lambda tree, rows: earned_of(tree, rows, baselines=greedy.expand(len(rows)))  # noqa: E731
    close(expected_gradient(tree, ReMax(), 1, make), tree.policy_gradient())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("advantage", [per_group(group_centered), batch_centered])
def test_a_baseline_that_holds_the_own_reward_shrinks_the_gradient(advantage, size):
    tree = Tree(depth=2)
    found = expected_gradient(tree, PerReply(advantage), size)
    close(found, (size - 1) / size * tree.policy_gradient())


def with_values(values):
    return lambda tree, rows: earned_of(tree, rows, values=values[tree.state[torch.as_tensor(rows)]])


@pytest.mark.parametrize("true", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_gae_is_unbiased_for_any_values_with_lambda_one_and_for_the_true_values_with_any(lam, true):
    tree = Tree(depth=3)
    make = with_values(tree.true_values() if true else tree.guess)
    found = expected_gradient(tree, GAE(lam=lam, whiten=False), 1, make)
    if true or lam == 1.0:
        close(found, tree.policy_gradient())
    else:
        assert (found - tree.policy_gradient()).abs().max() > 1e-2


@pytest.mark.parametrize("lam", [LengthAdaptive(alpha=0.6), 0.3])
def test_decoupled_gae(lam):
    """A λ that knows the length of the reply looks ahead: biased even with the true values. A fixed one is not."""
    tree = Tree(depth=3)
    found = expected_gradient(tree, DecoupledGAE(lam=lam, whiten=False), 1, with_values(tree.true_values()))
    bias = (found - tree.policy_gradient()).abs().max()
    assert bias < 1e-10 if isinstance(lam, float) else bias > 5e-4


def test_monte_carlo_returns_are_unbiased_targets_and_bootstrapped_ones_are_not():
    """E[R | state] of λ_critic = 1 is V; with λ = 0 it is one step of the wrong values."""
    tree = Tree(depth=3)
    chance, values = tree.chance().detach(), tree.true_values()
    everything = range(len(tree.replies))
    for lam_critic, exact in ((1.0, True), (0.0, False)):
        credit = DecoupledGAE(lam=0.5, lam_critic=lam_critic)
        _, returns = credit(with_values(tree.guess)(tree, everything))
        sums = torch.zeros(2, len(tree.number), dtype=torch.float64)
        for row, reply in enumerate(tree.replies):
            for t in range(len(reply)):
                sums[:, tree.number[reply[:t]]] += chance[row] * torch.stack((returns[row, t], torch.ones(())))
        assert torch.allclose(sums[0] / sums[1], values, atol=1e-10) == exact


def test_the_bootstrap_makes_a_cut_harmless():
    """Replies cut after two of three tokens, V true at the cut: the gradient of the first two tokens is complete."""
    tree = Tree(depth=3)
    values, chance, seen = tree.true_values(), tree.chance().detach(), tree.mask.clone()
    cut = tree.mask[:, 2]
    seen[:, 2] = False
    final = torch.where(cut, values[tree.state[:, 2]], math.nan)
    ended = torch.where(cut, 0.0, tree.reward)
    for bootstrapped in (True, False):
        earned = Earned(
            rewards=ended,
            group=torch.zeros(len(seen), dtype=torch.int64),
            mask=seen,
            token_rewards=torch.zeros(seen.shape, dtype=torch.float64),
            cut=cut & bootstrapped,
            values=tree.guess[tree.state],
            final_values=final,
        )
        advantage, _ = GAE(whiten=False)(earned)
        loss = (chance[:, None] * advantage * tree.logp()).sum()
        found = torch.autograd.grad(loss, tree.theta)[0]
        early = [row for state, row in tree.number.items() if len(state) < 2]
        assert torch.allclose(found[early], tree.policy_gradient()[early], atol=1e-10) == bootstrapped


def with_kl(kind):
    def make(tree, rows):
        earned = earned_of(tree, rows)
        old, ref = (logp.detach()[torch.as_tensor(rows)] for logp in (tree.logp(), tree.logp(tree.ref)))
        return earned_of(tree, rows, token_rewards=kl_penalty(old, ref, earned.mask, BETA, kind))

    return make


KL_CREDITS = [
    pytest.param(ReinforcePlusPlus(whiten=False), 1, id="to go"),
    pytest.param(PerReply(per_group(leave_one_out)), 2, id="RLOO of whole replies"),
    pytest.param(Discounted((("none", 1.0),), advantage=per_group(leave_one_out)), 2, id="RLOO + KL to go"),
]


@pytest.mark.parametrize(("credit", "size"), KL_CREDITS)
def test_k1_in_the_reward_is_the_gradient_of_the_kl_of_whole_replies(credit, size):
    tree = Tree(depth=2)

    def make(tree, rows):
        earned = with_kl("k1")(tree, rows)
        streams = {"none": torch.zeros_like(earned.token_rewards)} if isinstance(credit, Discounted) else {}
        return earned_of(tree, rows, token_rewards=earned.token_rewards, streams=streams)

    close(expected_gradient(tree, credit, size, make), tree.policy_gradient(BETA))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_other_estimators_in_the_reward_are_not(kind):
    tree = Tree(depth=1)
    found = expected_gradient(tree, ReinforcePlusPlus(whiten=False), 1, with_kl(kind))
    assert (found - tree.policy_gradient(BETA)).abs().max() > 1e-3


def test_k3_in_the_reward_lacks_the_forward_kl():
    """Its expected gradient is that of KL(π‖π_ref) - KL(π_ref‖π): what k3 as a loss pulls along is missing."""
    tree = Tree(depth=1)
    logp, ref = tree.theta.log_softmax(-1), tree.ref.log_softmax(-1)
    forward = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), tree.theta)[0]
    found = expected_gradient(tree, ReinforcePlusPlus(whiten=False), 1, with_kl("k3"))
    close(found, tree.policy_gradient(BETA) + BETA * forward)


def binary(tree, share):
    """Reward 1 for the first replies that together have a chance of about ``share``, 0 for the others."""
    tree.reward = (tree.chance().detach().cumsum(0) <= share).double()
    return float((tree.chance().detach() * tree.reward).sum())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_group_deviation_weighs_problems_by_how_hard_they_are(size, share):
    """With rewards 0 and 1 GRPO's gradient is c(p) ∇p: E over the number k of right replies among the others."""
    tree = Tree(depth=2)
    p = binary(tree, share)

    def advantage(right, mine):
        rewards = torch.tensor([mine] + [1.0] * right + [0.0] * (size - 1 - right), dtype=torch.float64)
        return float(group_normalized(rewards)[0])

    others = [math.comb(size - 1, k) * p**k * (1 - p) ** (size - 1 - k) for k in range(size)]
    factor = sum(weight * (advantage(k, 1.0) - advantage(k, 0.0)) for k, weight in enumerate(others))
    found = expected_gradient(tree, PerReply(per_group(group_normalized)), size)
    close(found, factor * tree.policy_gradient())
    centered = (size - 1) / size
    assert factor / centered > 1.3  # scaled up, and the more the rarer one of the outcomes is


def test_that_factor_depends_on_the_problem():
    """So over two problems the sum is not along the policy gradient, whereas RLOO's and Dr. GRPO's is."""
    easy, hard = Tree(depth=1, seed=1), Tree(depth=1, seed=2)
    easy.reward, hard.reward = torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    truth = torch.cat([tree.policy_gradient() for tree in (easy, hard)])
    for credit, along in ((group_normalized, False), (group_centered, True), (leave_one_out, True)):
        found = torch.cat([expected_gradient(tree, PerReply(per_group(credit)), 4) for tree in (easy, hard)])
        assert (cosine(found, truth) > 1 - 1e-9) == along


BIASED = [
    pytest.param(PerReply(per_group(group_normalized)), id="GRPO"),
    pytest.param(PerReply(batch_normalized), id="REINFORCE++-baseline"),
    pytest.param(PerReply(global_normalized), id="REINFORCE++ of replies"),
    pytest.param(ReinforcePlusPlus(), id="REINFORCE++"),
    pytest.param(OPO(), id="OPO"),
]


@pytest.mark.parametrize("credit", BIASED)
def test_biased_in_direction(credit):
    """With more than two reward values no constant factor mends these."""
    tree = Tree(depth=2)
    assert cosine(expected_gradient(tree, credit, 2), tree.policy_gradient()) < 1 - 1e-5


def test_opo_with_equal_lengths_is_the_centered_advantage():
    tree = Tree(depth=1)
    close(expected_gradient(tree, OPO(), 3), 2 / 3 * tree.policy_gradient())


def objective_gradient(tree, objective, weighting):
    """Gradient of the objective on a batch that holds every reply with its advantage times its chance."""
    logp = tree.logp()
    advantage = (tree.chance().detach() * tree.reward)[:, None].expand(tree.mask.shape)
    batch = Batch(
        tokens=tree.token,
        lengths=tree.mask.sum(1),
        mask=tree.mask,
        weight=weighting(tree.mask).double() * len(tree.replies),
        advantage=advantage,
        logp_old=logp.detach(),
    )
    return -torch.autograd.grad(objective(PolicyOutput(logp, torch.zeros_like(logp)), batch).value, tree.theta)[0]


@pytest.mark.parametrize("objective", [REINFORCE(), GRPO(), GSPO(), CISPO(), SAPO(), MirrorDescent(0.5)], ids=str)
def test_on_policy_every_objective_with_sequence_sum_is_the_policy_gradient(objective):
    tree = Tree(depth=3)
    torch.testing.assert_close(
        objective_gradient(tree, objective, sequence_sum), tree.policy_gradient(), atol=1e-6, rtol=0
    )  # weights are float32


def test_dividing_by_the_length_biases_and_a_constant_does_not():
    tree = Tree(depth=3)
    truth = tree.policy_gradient()
    assert cosine(objective_gradient(tree, GRPO(), partial(constant, length=7)), truth) > 1 - 1e-9
    assert cosine(objective_gradient(tree, GRPO(), sequence_mean), truth) < 1 - 1e-3
