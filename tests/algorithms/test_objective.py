"""Objectives: values by hand, the same gradient for every split, garbage where nothing is trained, refusals."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.algorithms.objective import (
    CISPO,
    GRPO,
    GSPO,
    KL,
    NLL,
    REINFORCE,
    SAPO,
    Entropy,
    Imitation,
    MirrorDescent,
    Sum,
    ValueLoss,
    clipped_surrogate,
    explained_variance,
)
from longthought.algorithms.weighting import constant, positive_mean, sequence_mean, sequence_sum, token_mean
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, PolicyOutput

OBJECTIVES = [
    NLL(),
    GRPO(),
    GRPO(clip_low=0.1, clip_high=0.28, beta=0.04, entropy_bonus=0.01, dual_clip=1.5),
    GRPO(beta=0.1, kl="k2"),
    GRPO(beta=0.1, kl="k3_corrected"),
    REINFORCE(),
    GSPO(clip_low=0.02, clip_high=0.03),
    CISPO(cap=1.2),
    CISPO(cap=1.2, floor=0.8),
    SAPO(),
    MirrorDescent(tau=0.3),
    Sum((GSPO(clip_low=0.02, clip_high=0.03), KL(beta=0.1, kind="k3_corrected"), Entropy(0.1), Imitation(mu=0.2))),
    ValueLoss(),
    ValueLoss(clip=0.1),
]
COLUMNS = {"advantage", "logp_old", "logp_ref", "returns", "value_old", "imitation"}
WEIGHTINGS = [sequence_mean, token_mean, sequence_sum, partial(constant, length=13)]
VOCABULARY, ROWS, WIDTH, PROMPT = 7, 6, 10, 2


def table(seed=0):
    """A policy: logits of the next token, looked up by the last one and its parity with the place."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64, requires_grad=True)


def speak(theta, tokens):
    n, width = tokens.shape
    logits = theta[(torch.arange(width - 1) % 2).expand(n, -1), tokens[:, :-1]].log_softmax(-1)
    first = torch.zeros(n, 1, dtype=torch.float64)
    logp = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    values = theta[1, tokens, 0]
    return PolicyOutput(torch.cat((first, logp), 1), torch.cat((first, -(logits.exp() * logits).sum(-1)), 1), values)


def ragged_batch(weighting, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (ROWS, WIDTH), generator=generator)
    lengths = torch.tensor([10, 3, 7, 2, 9, 5])  # the fourth row has no reply: it was filtered
    place = torch.arange(WIDTH)
    mask = (place >= PROMPT) & (place < lengths[:, None])
    mask[4, 5] = False  # a token that the policy did not write
    noise = [0.4 * torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]
    policy = speak(table(), tokens)
    advantage = torch.randn(ROWS, 1, generator=generator, dtype=torch.float64).expand(ROWS, WIDTH)
    weight = weighting(mask).double()
    returns = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return Batch(
        tokens,
        lengths,
        mask,
        weight,
        advantage.clone(),
        logp_old=policy.logp.detach() + noise[0],
        logp_ref=policy.logp.detach() + noise[1],
        returns=returns,
        value_old=policy.values.detach() + noise[0],
        imitation=positive_mean(mask, advantage[:, 0] > 0).double(),
    )


def without_replies(batch):
    nothing = torch.zeros_like(batch.weight)
    return replace(batch, mask=torch.zeros_like(batch.mask), weight=nothing, imitation=nothing)


def gradient_and_metrics(objective, batch, splits):
    theta, sums = table(), {}
    for rows in splits:
        micro = batch.select(torch.tensor(rows))
        loss = objective(speak(theta, micro.tokens), micro)
        loss.value.backward()
        for name, value in {"loss": loss.value, **loss.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    return theta.grad, sums


SPLITS = [[[0], [1], [2], [3], [4], [5]], [[5, 0], [2, 4, 1], [3]], [[3], [1, 0, 2, 4, 5]], [[4, 3, 2], [1, 0, 5]]]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=["sequence_mean", "token_mean", "sequence_sum", "constant"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_split_gives_the_same_gradient(objective, weighting):
    batch = ragged_batch(weighting)
    whole, metrics = gradient_and_metrics(objective, batch, [list(range(ROWS))])
    assert whole.abs().max() > 1e-4
    for split in SPLITS:
        found, sums = gradient_and_metrics(objective, batch, split)
        torch.testing.assert_close(found, whole, atol=1e-10, rtol=0)
        assert sums == pytest.approx(metrics, abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(ROWS)), st.sets(st.integers(1, ROWS - 1)), st.sampled_from(OBJECTIVES), st.integers(0, 99))
def test_random_splits(order, cuts, objective, seed):
    batch = ragged_batch(token_mean, seed)
    edges = [0, *sorted(cuts), ROWS]
    split = [order[start:end] for start, end in pairwise(edges)]
    whole, _ = gradient_and_metrics(objective, batch, [list(range(ROWS))])
    found, _ = gradient_and_metrics(objective, batch, split)
    torch.testing.assert_close(found, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_garbage_where_nothing_is_trained_changes_nothing(objective):
    """NaN and infinity at prompts, padding and in a filtered reply: same value, same gradient, no NaN."""
    batch = ragged_batch(sequence_mean)
    batch = replace(batch, mask=batch.mask & (torch.arange(ROWS) != 2)[:, None])
    imitation = positive_mean(batch.mask, batch.advantage[:, 0] > 0).double()
    batch = replace(batch, weight=sequence_mean(batch.mask).double(), imitation=imitation)
    kept = replace(batch, mask=batch.mask.clone())
    kept.mask[2] = True  # filtered: weight 0, but still marked as a reply
    dead = batch.weight == 0

    def soil(column, value):
        return torch.where(dead, value, column)

    dirty = replace(
        kept,
        logp_old=soil(batch.logp_old, math.nan),
        logp_ref=soil(batch.logp_ref, -math.inf),
        advantage=soil(batch.advantage, math.nan),
        returns=soil(batch.returns, math.nan),
        value_old=soil(batch.value_old, math.inf),
    )
    values, gradients = [], []
    for columns, filthy in ((batch, False), (dirty, True)):
        theta = table()
        policy = speak(theta, columns.tokens)
        if filthy:
            columns_of_policy = (policy.logp, math.nan), (policy.entropy, math.inf), (policy.values, math.nan)
            policy = PolicyOutput(*(soil(column, value) for column, value in columns_of_policy))
        loss = objective(policy, columns)
        loss.value.backward()
        values.append({name: float(value.detach()) for name, value in {"loss": loss.value, **loss.metrics}.items()})
        gradients.append(theta.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)
    assert torch.isfinite(gradients[1]).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_metrics_carry_no_gradient_and_empty_batches_give_zero(objective):
    batch = ragged_batch(token_mean)
    loss = objective(speak(table(), batch.tokens), batch)
    assert loss.value.requires_grad
    assert not any(value.requires_grad for value in loss.metrics.values())
    loss = objective(speak(table(), batch.tokens), without_replies(batch))
    assert float(loss.value.detach()) == 0.0
    assert set(map(float, loss.metrics.values())) == {0.0}


# one token per row: ratio, advantage
CASES = [(1.5, 1.0), (1.5, -1.0), (0.5, 1.0), (0.5, -1.0), (1.0, 2.0), (4.0, -1.0)]


def single_tokens(cases, weight=1.0):
    n = len(cases)
    logp = torch.tensor([[math.log(rho) - 5.0] for rho, _ in cases], dtype=torch.float64, requires_grad=True)
    batch = Batch(
        tokens=torch.zeros(n, 1, dtype=torch.int64),
        lengths=torch.ones(n, dtype=torch.int64),
        mask=torch.ones(n, 1, dtype=torch.bool),
        weight=torch.full((n, 1), weight, dtype=torch.float64),
        advantage=torch.tensor([[a] for _, a in cases], dtype=torch.float64),
        logp_old=torch.full((n, 1), -5.0, dtype=torch.float64),
    )
    return PolicyOutput(logp, torch.full((n, 1), 0.25, dtype=torch.float64)), batch


def test_clipped_surrogate_by_hand():
    policy, batch = single_tokens(CASES)
    gain = clipped_surrogate(policy.logp, batch.logp_old, batch.advantage, 0.2, 0.28)
    assert gain.flatten().tolist() == pytest.approx([1.28, -1.5, 0.5, -0.8, 2.0, -4.0])


def test_grpo_by_hand():
    policy, batch = single_tokens(CASES)
    loss = GRPO(clip_low=0.2, clip_high=0.28)(policy, batch)
    assert float(loss.value.detach()) == pytest.approx(-(1.28 - 1.5 + 0.5 - 0.8 + 2.0 - 4.0))
    metrics = {name: float(value) for name, value in loss.metrics.items()}
    # clipping binds in the first case above and in the fourth below, nowhere else although ρ is outside four times
    expected = {"ratio": 1.5 + 1.5 + 0.5 + 0.5 + 1 + 4, "clip_low_share": 1.0, "clip_high_share": 1.0, "entropy": 1.5}
    assert metrics == pytest.approx(expected)
    loss.value.backward()
    assert policy.logp.grad.flatten().tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0, -2.0, 4.0])


def test_dual_clip_bounds_only_negative_advantages():
    policy, batch = single_tokens([*CASES, (4.0, 1.0)])
    loss = GRPO(dual_clip=3.0)(policy, batch)
    assert float(loss.value.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.0 - 3.0 + 1.2))
    assert float(loss.metrics["dual_clip_share"]) == 1.0
    loss.value.backward()
    assert policy.logp.grad.flatten().tolist()[5] == 0.0


def test_grpo_kl_by_hand():
    policy, batch = single_tokens([(1.0, 0.0)])
    batch = replace(batch, logp_ref=batch.logp_old - math.log(2.0))
    loss = GRPO(beta=0.1)(policy, batch)
    k3 = 0.5 - 1 + math.log(2.0)
    assert float(loss.metrics["kl"]) == pytest.approx(k3)
    assert float(loss.value.detach()) == pytest.approx(0.1 * k3)


def test_cispo_keeps_the_gradient_of_capped_tokens():
    policy, batch = single_tokens([(4.0, 2.0), (0.5, -1.0), (9.0, 0.0)])
    loss = CISPO(cap=3.0)(policy, batch)
    loss.value.backward()
    assert policy.logp.grad.flatten().tolist() == pytest.approx([-6.0, 0.5, 0.0])
    assert float(loss.metrics["clip_high_share"]) == 1.0


def test_cispo_floor_lifts_the_weight():
    policy, batch = single_tokens([(0.5, -1.0), (0.5, 2.0), (1.0, 1.0)])
    loss = CISPO(floor=0.8)(policy, batch)
    loss.value.backward()
    assert policy.logp.grad.flatten().tolist() == pytest.approx([0.8, -1.6, -1.0])
    assert float(loss.metrics["clip_low_share"]) == 2.0


def test_reinforce_by_hand():
    policy, batch = single_tokens([(4.0, 2.0), (0.5, -1.0)])
    loss = REINFORCE()(policy, batch)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(-2 * (math.log(4) - 5) + (math.log(0.5) - 5))
    assert policy.logp.grad.flatten().tolist() == pytest.approx([-2.0, 1.0])


def test_sapo_by_hand():
    """4/τ σ(τ (ρ - 1)) A; its gradient in log ρ is 4 σ (1 - σ) ρ A."""
    policy, batch = single_tokens([(1.5, 1.0), (1.5, -1.0), (1.0, 3.0)])
    loss = SAPO(tau_positive=1.0, tau_negative=2.0)(policy, batch)
    loss.value.backward()
    half, one = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.0))
    assert float(loss.value.detach()) == pytest.approx(-(4 * half - 2 * one + 6))
    slopes = [-4 * half * (1 - half) * 1.5, 4 * one * (1 - one) * 1.5, -3.0]
    assert policy.logp.grad.flatten().tolist() == pytest.approx(slopes)


@pytest.mark.parametrize(("kind", "value", "slope"), [("k2", 0.02, 0.2), ("k3", 0.018731, 0.181269)])
def test_kl_terms_by_hand(kind, value, slope):
    """d = 0.2 at ρ = 1: k2 = d²/2 with slope d, k3 = e⁻ᵈ - 1 + d with slope 1 - e⁻ᵈ."""
    for objective in (GRPO(beta=0.5, kl=kind), KL(beta=0.5, kind=kind)):
        policy, batch = single_tokens([(1.0, 0.0)])
        batch = replace(batch, logp_ref=batch.logp_old - 0.2)
        loss = objective(policy, batch)
        loss.value.backward()
        assert float(loss.metrics["kl"]) == pytest.approx(value, abs=1e-6)
        assert float(loss.value.detach()) == pytest.approx(0.5 * value, abs=1e-6)
        assert float(policy.logp.grad) == pytest.approx(0.5 * slope, abs=1e-6)


def test_k1_as_a_loss_is_refused_with_the_reason():
    for make in (partial(GRPO, beta=0.1, kl="k1"), partial(KL, beta=0.1, kind="k1")):
        with pytest.raises(SettingsError, match="gradient of k1 as a loss is zero"):
            make()


def test_sum_adds_and_keeps_all_metrics():
    batch = ragged_batch(token_mean)
    terms = (GRPO(), KL(beta=0.04), Imitation(mu=0.1))
    whole = Sum(terms)(speak(table(), batch.tokens), batch)
    parts = [term(speak(table(), batch.tokens), batch) for term in terms]
    torch.testing.assert_close(whole.value, sum(part.value for part in parts))
    assert set(whole.metrics) == set().union(*(part.metrics for part in parts))
    with_entropy = Sum((GRPO(), KL(beta=0.04), Entropy(0.01)))(speak(table(), batch.tokens), batch)
    fields = GRPO(beta=0.04, entropy_bonus=0.01)(speak(table(), batch.tokens), batch)
    torch.testing.assert_close(with_entropy.value, fields.value)
    joint = GRPO(beta=0.04)(speak(table(), batch.tokens), batch)
    torch.testing.assert_close(joint.value, parts[0].value + parts[1].value)
    torch.testing.assert_close(joint.metrics["kl"], whole.metrics["kl"])


def test_imitation_is_the_mean_over_the_tokens_of_right_replies():
    batch = ragged_batch(sequence_mean)
    policy = speak(table(), batch.tokens)
    right = batch.mask & (batch.advantage > 0)
    loss = Imitation(mu=0.1)(policy, batch)
    assert float(loss.value.detach()) == pytest.approx(-0.1 * float(policy.logp[right].mean().detach()), rel=1e-6)
    assert float(loss.metrics["imitation_nll"]) == pytest.approx(10 * float(loss.value.detach()))


def values_of(cases, **columns):
    """One token per row: V, R and V_old."""
    _, batch = single_tokens([(1.0, 0.0)] * len(cases))
    value, returns, old = torch.tensor(cases, dtype=torch.float64).T.unsqueeze(-1)
    value = value.clone().requires_grad_()
    zeros = torch.zeros_like(batch.weight)
    return PolicyOutput(zeros, zeros, value), replace(batch, returns=returns, value_old=old, **columns)


def test_value_loss_by_hand():
    policy, batch = values_of([(1.0, 3.0, 1.0), (0.0, -1.0, 0.0)])
    loss = ValueLoss()(policy, batch)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(0.5 * 4 + 0.5 * 1)
    assert policy.values.grad.flatten().tolist() == pytest.approx([-2.0, 1.0])


def test_value_clip_by_hand():
    """clip = ½.  V moved 1 towards R: the clipped error 1.5 is larger, so no gradient.  Away from R: its own counts."""
    policy, batch = values_of([(1.0, 2.0, 0.0), (1.0, -1.0, 0.0), (0.2, 2.0, 0.0)])
    loss = ValueLoss(clip=0.5)(policy, batch)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(0.5 * (1.5**2 + 2.0**2 + 1.8**2))
    assert policy.values.grad.flatten().tolist() == pytest.approx([0.0, 2.0, -1.8])
    assert float(loss.metrics["value_clip_share"]) == 1.0


def test_explained_variance():
    cases = [(1.0, 2.0, 0.0), (0.5, 0.0, 0.0), (-1.0, -1.5, 0.0), (3.0, 2.5, 0.0)]
    policy, batch = values_of(cases)
    batch = replace(batch, weight=torch.full((4, 1), 0.25, dtype=torch.float64))
    metrics = {name: float(value) for name, value in ValueLoss()(policy, batch).metrics.items()}
    value, returns, _ = torch.tensor(cases, dtype=torch.float64).T
    expected = 1 - (returns - value).var(correction=0) / returns.var(correction=0)
    assert explained_variance(metrics) == pytest.approx(float(expected))
    assert metrics["value"] == pytest.approx(float(value.mean()))
    same, flat = values_of([(2.0, 1.3, 0.0)] * 4)
    constant_returns = {name: float(x) / 4 for name, x in ValueLoss()(same, flat).metrics.items()}
    assert math.isnan(explained_variance(constant_returns))


def test_value_loss_without_a_critic():
    policy, batch = values_of([(1.0, 2.0, 0.0)])
    with pytest.raises(SettingsError, match="critic"):
        ValueLoss()(replace(policy, values=None), batch)


def two_tokens(gaps, advantage):
    logp = torch.tensor([gaps], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, len(gaps), dtype=torch.float64)
    batch = Batch(
        tokens=zeros.long(),
        lengths=torch.tensor([len(gaps)]),
        mask=zeros == 0,
        weight=zeros + 1 / len(gaps),
        advantage=zeros + advantage,
        logp_old=zeros,
    )
    return PolicyOutput(logp, zeros), batch


@pytest.mark.parametrize(("advantage", "clip_high", "share"), [(2.0, 0.9, 0.0), (2.0, 0.1, 1.0), (-2.0, 0.1, 0.0)])
def test_gspo_is_the_sequence_ratio(advantage, clip_high, share):
    """s = exp((.2 + .4) / 2); gradient per token: s A / |o|, or 0 when the reply is clipped."""
    policy, batch = two_tokens([0.2, 0.4], advantage)
    loss = GSPO(clip_low=0.1, clip_high=clip_high)(policy, batch)
    loss.value.backward()
    s = math.exp(0.3)
    assert float(loss.metrics["clip_high_share"]) == share
    assert float(loss.metrics["ratio"]) == pytest.approx(s)
    assert float(loss.value.detach()) == pytest.approx(-advantage * (1 + clip_high if share else s))
    assert policy.logp.grad.flatten().tolist() == pytest.approx([0.0 if share else -advantage * s / 2] * 2)


def test_mirror_descent_by_hand():
    """- A log π(y) + τ/2 D², D = .2 + .4: value and gradient of the sequence-level formula."""
    policy, batch = two_tokens([0.2, 0.4], advantage=2.0)
    batch = replace(batch, weight=torch.ones(1, 2, dtype=torch.float64))
    loss = MirrorDescent(tau=0.5)(policy, batch)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(-2.0 * 0.6 + 0.25 * 0.36)
    assert policy.logp.grad.flatten().tolist() == pytest.approx([-2.0 + 0.5 * 0.6] * 2)


def test_nll_by_hand():
    policy, batch = single_tokens([(1.0, 0.0), (2.0, 0.0)], weight=0.5)
    loss = NLL()(policy, batch)
    assert float(loss.value.detach()) == pytest.approx(5.0 - math.log(2.0) / 2)
    assert float(loss.metrics["nll"]) == pytest.approx(float(loss.value.detach()))


@pytest.mark.parametrize("objective", [GRPO(), GSPO(), CISPO(), SAPO()], ids=str)
@pytest.mark.parametrize("gap", [-500.0, 500.0])
def test_runaway_ratios_stay_finite_in_float32(objective, gap):
    logp = torch.tensor([[-1.0 + gap]], requires_grad=True)
    _, batch = single_tokens([(1.0, -1.0)])
    batch = replace(batch, logp_old=torch.tensor([[-1.0]]), weight=torch.ones(1, 1), advantage=-torch.ones(1, 1))
    loss = objective(PolicyOutput(logp, torch.zeros(1, 1)), batch)
    loss.value.backward()
    assert torch.isfinite(loss.value)
    assert torch.isfinite(logp.grad).all()


def test_reads():
    assert NLL().reads == frozenset()
    assert GRPO().reads == {"advantage", "logp_old"}
    assert GRPO(beta=1e-3).reads == {"advantage", "logp_old", "logp_ref"}
    for objective in (GSPO(), CISPO(), SAPO(), MirrorDescent(1.0)):
        assert objective.reads == {"advantage", "logp_old"}
    assert REINFORCE().reads == {"advantage"}
    assert KL(0.1).reads == {"logp_ref"}
    assert KL(0.1, "k3_corrected").reads == {"logp_ref", "logp_old"}
    assert Sum((REINFORCE(), KL(0.1), Imitation())).reads == {"advantage", "logp_ref", "imitation"}
    assert ValueLoss().reads == {"returns"}
    assert ValueLoss(clip=0.2).reads == {"returns", "value_old"}


def test_silent_rows():
    """A row without advantage may be left out only where it has no gradient."""
    batch = ragged_batch(token_mean)
    batch = replace(batch, advantage=torch.zeros_like(batch.advantage))
    for objective in OBJECTIVES:
        theta = table()
        objective(speak(theta, batch.tokens), batch).value.backward()
        assert (torch.count_nonzero(theta.grad) == 0) == objective.silent_without_advantage, objective


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.reads], ids=str)
def test_a_missing_column_is_named(objective):
    batch = ragged_batch(token_mean)
    for column in objective.reads:
        with pytest.raises(SettingsError, match=f"[A-Za-z]+ needs the column '{column}'"):
            objective(speak(table(), batch.tokens), replace(batch, **{column: None}))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_unread_columns_do_not_matter(objective):
    batch = ragged_batch(token_mean)
    bare = replace(batch, **dict.fromkeys(COLUMNS - objective.reads))
    values = [objective(speak(table(), batch.tokens), columns).value for columns in (batch, bare)]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (partial(GRPO, clip_low=0.0), "GRPO.clip_low"),
        (partial(GRPO, clip_low=1.5), "GRPO.clip_low"),
        (partial(GRPO, clip_high=-0.1), "GRPO.clip_high"),
        (partial(GRPO, clip_high=math.inf), "GRPO.clip_high"),
        (partial(GRPO, beta=-1.0), "GRPO.beta"),
        (partial(GRPO, beta=math.nan), "GRPO.beta"),
        (partial(GRPO, beta="1e-3"), "GRPO.beta"),
        (partial(GRPO, entropy_bonus=True), "GRPO.entropy_bonus"),
        (partial(GRPO, dual_clip=1.0), "GRPO.dual_clip"),
        (partial(GSPO, clip_low=0.0), "GSPO.clip_low"),
        (partial(GRPO, beta=0.1, kl="k4"), "GRPO.kl"),
        (partial(GRPO, kl="k2"), "GRPO.kl.*changes nothing"),
        (partial(CISPO, cap=0.28), "CISPO.cap"),
        (partial(CISPO, floor=1.2), "CISPO.floor"),
        (partial(SAPO, tau_positive=0.0), "SAPO.tau_positive"),
        (partial(SAPO, tau_negative=math.inf), "SAPO.tau_negative"),
        (partial(KL, beta=0.0), "KL.beta"),
        (partial(KL, beta=0.1, kind=3), "KL.kind"),
        (partial(Entropy, -0.1), "Entropy.entropy_bonus"),
        (partial(Imitation, mu=-0.1), "Imitation.mu"),
        (partial(Sum, (GRPO(),)), "Sum"),
        (partial(Sum, (KL(0.1), KL(0.2))), "Sum"),
        (partial(ValueLoss, clip=0.0), "ValueLoss.clip"),
        (partial(MirrorDescent, tau=0.0), "MirrorDescent.tau"),
    ],
)
def test_fields_out_of_range_are_named(make, field):
    with pytest.raises(SettingsError, match=field):
        make()
