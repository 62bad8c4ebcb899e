"""Expected gradients by enumeration, to 1e-12: what a loss optimises, not what it is called.

A categorical policy over five tokens has a loss whose expectation is a sum of five terms, so nothing is sampled here.
"""

import itertools
import math

import pytest
import torch

from longthought.algorithms.advantage import group_centered, leave_one_out
from longthought.algorithms.divergence import forward_kl, k1, k2, k3, k3_corrected, reverse_kl
from longthought.algorithms.objective import CISPO, GRPO, GSPO, MirrorDescent
from longthought.core.types import Batch, PolicyOutput

VOCABULARY = 5


@pytest.fixture(params=[0, 1, 2])
def logits(request):
    """Logits of policy (with gradient), old policy and reference."""
    generator = torch.Generator().manual_seed(request.param)
    theta, old, ref = torch.randn(3, VOCABULARY, generator=generator, dtype=torch.float64)
    return theta.requires_grad_(), old, ref


def gradient(value, theta):
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def expected_gradient(losses, probability, theta):
    """Σ p(x) ∇ loss(x), the gradient not passing through p: what sampling and backward give on average."""
    return gradient((probability.detach() * losses).sum(), theta)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_k1_as_a_loss_regularises_nothing(logits):
    theta, _, ref = logits
    logp = theta.log_softmax(-1)
    close(expected_gradient(k1(logp, ref.log_softmax(-1)), logp.exp(), theta), torch.zeros(VOCABULARY).double())


def test_k2_as_a_loss_is_the_reverse_kl(logits):
    theta, _, ref = logits
    logp = theta.log_softmax(-1)
    found = expected_gradient(k2(logp, ref.log_softmax(-1)), logp.exp(), theta)
    close(found, gradient(reverse_kl(ref, theta), theta))


def test_k3_as_a_loss_is_the_forward_kl(logits):
    theta, _, ref = logits
    logp = theta.log_softmax(-1)
    found = expected_gradient(k3(logp, ref.log_softmax(-1)), logp.exp(), theta)
    close(found, gradient(forward_kl(ref, theta), theta))
    assert (found - gradient(reverse_kl(ref, theta), theta)).abs().max() > 1e-3


def test_k3_corrected_is_the_reverse_kl_whatever_sampled(logits):
    theta, old, ref = logits
    logp, logp_old, logp_ref = theta.log_softmax(-1), old.log_softmax(-1), ref.log_softmax(-1)
    expected = gradient(reverse_kl(ref, theta), theta)
    close(expected_gradient(k3_corrected(logp, logp_old, logp_ref), logp_old.exp(), theta), expected)
    close(expected_gradient(k3_corrected(logp, logp.detach(), logp_ref), logp.exp(), theta), expected)


def test_k1_in_the_reward_is_the_reverse_kl(logits):
    theta, _, ref = logits
    logp = theta.log_softmax(-1)
    found = expected_gradient(k1(logp, ref.log_softmax(-1)).detach() * logp, logp.exp(), theta)
    close(found, gradient(reverse_kl(ref, theta), theta))


def test_values_of_the_estimators(logits):
    theta, old, ref = (x.detach() for x in logits)
    logp, logp_old, logp_ref = theta.log_softmax(-1), old.log_softmax(-1), ref.log_softmax(-1)
    kl = reverse_kl(ref, theta)
    close((logp.exp() * k1(logp, logp_ref)).sum(), kl)
    close((logp.exp() * k3(logp, logp_ref)).sum(), kl)
    close((logp_old.exp() * k3_corrected(logp, logp_old, logp_ref)).sum(), kl)


def one_token_rows(theta, old, ref, advantage, weight):
    """A batch in which every token of the vocabulary is one reply, weighted by its probability."""
    column = {name: x.log_softmax(-1).detach()[:, None] for name, x in (("logp_old", old), ("logp_ref", ref))}
    batch = Batch(
        tokens=torch.arange(VOCABULARY)[:, None],
        lengths=torch.ones(VOCABULARY, dtype=torch.int64),
        mask=torch.ones(VOCABULARY, 1, dtype=torch.bool),
        weight=weight[:, None],
        advantage=advantage[:, None],
        **column,
    )
    logp = theta.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum().expand(VOCABULARY)
    return PolicyOutput(logp[:, None], entropy[:, None]), batch


@pytest.mark.parametrize("objective", [GRPO(), GSPO(), CISPO(), MirrorDescent(tau=0.5)])
def test_on_policy_every_objective_is_the_policy_gradient(logits, objective):
    theta, _, ref = logits
    reward = torch.linspace(-1, 2, VOCABULARY, dtype=torch.float64)
    probability = theta.softmax(-1)
    policy, batch = one_token_rows(theta, theta, ref, reward, probability.detach())
    found = gradient(objective(policy, batch).value, theta)
    close(found, gradient(-(probability * reward).sum(), theta))


def test_grpo_terms_add_up(logits):
    """Surrogate + β ∇KL(π_ref‖π) - bonus ∇H, on policy."""
    theta, _, ref = logits
    reward = torch.linspace(-1, 2, VOCABULARY, dtype=torch.float64)
    probability, logp = theta.softmax(-1), theta.log_softmax(-1)
    policy, batch = one_token_rows(theta, theta, ref, reward, probability.detach())
    found = gradient(GRPO(beta=0.3, entropy_bonus=0.2)(policy, batch).value, theta)
    entropy = -(probability * logp).sum()
    expected = gradient(-(probability * reward).sum() + 0.3 * forward_kl(ref, theta) - 0.2 * entropy, theta)
    close(found, expected)


def test_mirror_descent_stands_still_at_its_closed_form(logits):
    """π ∝ π_old exp(r / τ) with A = r - τ log Z: the loss of every sample is stationary there."""
    _, old, ref = logits
    tau, reward = 0.7, torch.linspace(-1, 2, VOCABULARY, dtype=torch.float64)
    unnormalised = old.log_softmax(-1) + reward / tau
    theta = unnormalised.clone().requires_grad_()
    advantage = reward - tau * unnormalised.logsumexp(-1)
    policy, batch = one_token_rows(theta, old, ref, advantage, old.softmax(-1))
    objective = MirrorDescent(tau)
    close(gradient(objective(policy, batch).value, theta), torch.zeros(VOCABULARY).double())
    policy, batch = one_token_rows(old.clone().requires_grad_(), old, ref, advantage, old.softmax(-1))
    assert objective(policy, batch).value.requires_grad


@pytest.mark.parametrize(("credit", "factor"), [(leave_one_out, 1.0), (group_centered, 2 / 3)])
def test_bias_of_group_baselines(credit, factor):
    """All groups of three replies over three answers: leave-one-out is unbiased, the centered one (G-1)/G of it."""
    theta = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    logp = theta.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(3), repeat=3):
        picked = torch.tensor(group)
        chance = math.exp(float(logp[picked].detach().sum()))
        total = total + chance * (credit(reward[picked]) * logp[picked]).mean()
    close(gradient(total, theta), factor * gradient((logp.exp() * reward).sum(), theta))
