"""Credit per token: numbers by hand, tool tokens and padding, absent replies, refusals."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import named
from longthought.algorithms.advantage import group_centered, leave_one_out, per_group
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
    rewards_to_go,
    whiten,
)
from longthought.core.errors import SettingsError

NAN = math.nan


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def earned(rewards, mask, **columns):
    mask = torch.tensor(mask, dtype=torch.bool)
    plain = {
        "group": torch.zeros(len(rewards), dtype=torch.int64),
        "token_rewards": torch.zeros(mask.shape, dtype=torch.float64),
        "cut": torch.zeros(len(rewards), dtype=torch.bool),
    }
    return Earned(rewards=torch.tensor(rewards, dtype=torch.float64), mask=mask, **{**plain, **columns})


# a prompt token, two tokens of the policy, a tool token, the end token; and a shorter reply
MASK = [[0, 1, 1, 0, 1], [0, 1, 1, 0, 0]]
DIRT = rows([NAN, 0.1, -0.2, NAN, 0.3], [NAN, 0.5, -0.1, NAN, math.inf])
VALUES = rows([NAN, 0.5, 0.4, NAN, 0.6], [NAN, 0.2, 0.1, NAN, NAN])


def test_whiten_by_hand():
    x = rows([1.0, 2.0, NAN], [6.0, NAN, NAN])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sample, population = statistics.stdev([1, 2, 6]), statistics.pstdev([1, 2, 6])
    torch.testing.assert_close(whiten(x, mask), rows([-2 / sample, -1 / sample, 0], [3 / sample, 0, 0]))
    torch.testing.assert_close(
        whiten(x, mask, ddof=0), rows([-2 / population, -1 / population, 0], [3 / population, 0, 0])
    )
    assert whiten(x.float(), mask).dtype == torch.float32


def test_whiten_of_nothing_to_tell_apart():
    for width in range(1, 12):  # the mean of equal numbers is not always that number
        x = torch.full((3, width), 0.1, dtype=torch.float64)
        assert torch.count_nonzero(whiten(x, torch.ones_like(x, dtype=torch.bool))) == 0
    assert torch.count_nonzero(whiten(rows([5.0, 7.0]), torch.tensor([[True, False]]))) == 0


def test_rewards_to_go_by_hand():
    mask = torch.tensor(MASK, dtype=torch.bool)
    found = rewards_to_go(torch.where(mask, DIRT, 0.0), mask, 0.5)
    torch.testing.assert_close(found, rows([0, 0.1 - 0.1 + 0.075, -0.2 + 0.15, 0, 0.3], [0, 0.45, -0.1, 0, 0]))


def test_reinforce_plus_plus_by_hand():
    """γ = ½: the reward 2 of the first reply is 2 at its end, 1 and ½ before; the tool token costs no decay."""
    step = earned([2.0, -1.0], MASK)
    plain = ReinforcePlusPlus(gamma=0.5, whiten=False)(step)[0]
    torch.testing.assert_close(plain, rows([0, 0.5, 1.0, 0, 2.0], [0, -0.5, -1.0, 0, 0]))
    own = [0.5, 1.0, 2.0, -0.5, -1.0]
    mean, deviation = statistics.fmean(own), statistics.stdev(own)
    white = [(g - mean) / deviation for g in own]
    expected = rows([0, white[0], white[1], 0, white[2]], [0, white[3], white[4], 0, 0])
    torch.testing.assert_close(ReinforcePlusPlus(gamma=0.5)(step)[0], expected, atol=1e-7, rtol=0)


def test_reinforce_plus_plus_baseline_subtracts_the_group_mean_before_the_penalty_of_tokens():
    step = earned([2.0, 0.0], MASK, token_rewards=DIRT)
    found = ReinforcePlusPlus(baseline=True, whiten=False)(step)[0]
    torch.testing.assert_close(found, rows([0, 1.2, 1.1, 0, 1.3], [0, -0.6, -1.1, 0, 0]))


def test_gae_by_hand():
    """γ = .9, λ = .8, V after the end 0. First reply, from behind: δ₃ = 1 + .3 - .6, δ₂ = -.2 + .9·.6 - .4, …"""
    step = earned([1.0, 0.0], MASK, token_rewards=DIRT, values=VALUES)
    advantages, returns = GAE(gamma=0.9, lam=0.8, whiten=False)(step)
    third = 1.0 + 0.3 - 0.6
    second = -0.2 + 0.9 * 0.6 - 0.4 + 0.72 * third
    first = 0.1 + 0.9 * 0.4 - 0.5 + 0.72 * second
    late = -0.1 - 0.1
    early = 0.5 + 0.9 * 0.1 - 0.2 + 0.72 * late
    torch.testing.assert_close(advantages, rows([0, first, second, 0, third], [0, early, late, 0, 0]))
    torch.testing.assert_close(
        returns, rows([0, first + 0.5, second + 0.4, 0, third + 0.6], [0, early + 0.2, late + 0.1, 0, 0])
    )
    white, same = GAE(gamma=0.9, lam=0.8)(step)
    torch.testing.assert_close(white, whiten(advantages, step.mask))
    torch.testing.assert_close(same, returns)  # returns are those before whitening


def test_gae_bootstraps_where_a_budget_cut():
    step = earned([0.0, 0.0], MASK, values=VALUES, cut=torch.tensor([False, True]), final_values=rows(NAN, 0.7))
    advantages, returns = GAE(whiten=False)(step)
    torch.testing.assert_close(advantages, rows([0, -0.5, -0.4, 0, -0.6], [0, 0.5, 0.6, 0, 0]))
    torch.testing.assert_close(returns, rows([0, 0, 0, 0, 0], [0, 0.7, 0.7, 0, 0]))


def test_length_adaptive_lambda():
    """α = .05: 1 - 20/l, 0 up to l = 20."""
    found = LengthAdaptive()(torch.tensor([0, 1, 19, 20, 21, 40, 100, 20000]))
    assert found.tolist() == pytest.approx([0, 0, 0, 0, 1 / 21, 0.5, 0.8, 0.999])


def test_decoupled_gae_is_two_gaes():
    """Rows of 3 and 2 tokens, α = 1: λ = ⅔ and ½, each row's own."""
    step = earned([1.0, 0.0], MASK, token_rewards=DIRT, values=VALUES)
    advantages, returns = DecoupledGAE(lam=LengthAdaptive(alpha=1.0), whiten=False)(step)
    for row, lam in ((0, 2 / 3), (1, 1 / 2)):
        torch.testing.assert_close(advantages[row], GAE(lam=lam, whiten=False)(step)[0][row])
    torch.testing.assert_close(returns, GAE(lam=1.0)(step)[1])
    fixed = DecoupledGAE(lam=0.95, lam_critic=0.9)(step)
    torch.testing.assert_close(fixed[0], GAE(lam=0.95)(step)[0])
    torch.testing.assert_close(fixed[1], GAE(lam=0.9)(step)[1])


def test_remax_by_hand():
    step = earned([1.0, 0.0], MASK, token_rewards=DIRT, baselines=rows(0.25, NAN))
    torch.testing.assert_close(ReMax()(step)[0], rows([0, 0.95, 0.85, 0, 1.05], [0, 0, 0, 0, 0]))


def test_per_reply_sums_what_tokens_earned():
    step = earned([1.0, 0.0], MASK, token_rewards=DIRT)
    found = PerReply(per_group(leave_one_out))(step)[0]  # 1 + .2 against 0 + .4
    torch.testing.assert_close(found, rows([0, 0.8, 0.8, 0, 0.8], [0, -0.8, -0.8, 0, 0]))


def test_opo_by_hand():
    """Lengths 3 and 2: the baseline is (3·1 + 2·0) / 5."""
    found = OPO()(earned([1.0, 0.0], MASK))[0]
    torch.testing.assert_close(found, rows([0, 0.4, 0.4, 0, 0.4], [0, -0.6, -0.6, 0, 0]))


def test_discounted_by_hand():
    """A penalty at the last token with γ = ½ beside a reward with γ = 1."""
    penalty = rows([NAN, 0, 0, NAN, -1.0], [NAN, -1.0, 0, NAN, NAN])
    step = earned([1.0, 0.0], MASK, token_rewards=DIRT, streams={"repetition": penalty})
    found = Discounted((("repetition", 0.5),), advantage=per_group(group_centered))(step)[0]
    expected = rows([0, 0.5 + 0.2 - 0.25, 0.5 + 0.1 - 0.5, 0, 0.5 + 0.3 - 1], [0, -0.5 + 0.4 - 1, -0.5 - 0.1, 0, 0])
    torch.testing.assert_close(found, expected)


def test_discounted_with_a_critic():
    penalty = rows([NAN, 0, 0, NAN, -1.0], [NAN, -1.0, 0, NAN, NAN])
    step = earned([1.0, 0.0], MASK, values=VALUES, streams={"repetition": penalty})
    credit = Discounted((("repetition", 0.5),))
    assert credit.needs_values
    advantages, returns = credit(step)
    torch.testing.assert_close(returns, rows([0, 0.75, 0.5, 0, 0], [0, -1, 0, 0, 0]))
    torch.testing.assert_close(advantages, rows([0, 0.25, 0.1, 0, -0.6], [0, -1.2, -0.1, 0, 0]))
    cut = replace(step, cut=torch.tensor([False, True]), final_values=rows(NAN, 0.7))
    torch.testing.assert_close(credit(cut)[1], rows([0, 0.75, 0.5, 0, 0], [0, -0.3, 0.7, 0, 0]))


def test_one_stream_without_discount_is_gae_with_lambda_one():
    step = earned([1.0, 0.0], MASK, values=VALUES, token_rewards=DIRT)
    apart = replace(step, token_rewards=torch.zeros_like(DIRT), streams={"all": DIRT})
    for one, other in zip(GAE(whiten=False)(step), Discounted((("all", 1.0),))(apart), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("kind", "expected"), [("k1", -0.2), ("k2", -0.02), ("k3", -(math.exp(-0.2) - 1 + 0.2))])
def test_kl_penalty_by_hand(kind, expected):
    mask = torch.tensor([[True, False]])
    old = rows([-1.0, NAN]).requires_grad_()
    found = kl_penalty(old, rows([-1.2, -math.inf]), mask, 1.0, kind)
    assert not found.requires_grad
    assert found.flatten().tolist() == pytest.approx([expected, 0.0])
    torch.testing.assert_close(kl_penalty(old, rows([-1.2, NAN]), mask, 0.1, kind), 0.1 * found)


CREDITS = [
    ReinforcePlusPlus(gamma=0.9),
    ReinforcePlusPlus(baseline=True),
    GAE(gamma=0.95, lam=0.9),
    DecoupledGAE(lam=LengthAdaptive(0.7)),
    ReMax(),
    OPO(),
    PerReply(per_group(group_centered)),
    Discounted((("a", 0.9),)),
    Discounted((("a", 0.9),), advantage=per_group(group_centered)),
]


def random_step(mask, seed, credit):
    generator = torch.Generator().manual_seed(seed)
    n, width = mask.shape
    columns = torch.randn(3, n, width, generator=generator, dtype=torch.float64)
    rewards, final, greedy = torch.randn(3, n, generator=generator, dtype=torch.float64)
    return Earned(
        rewards=rewards,
        group=torch.arange(n) % 2,
        mask=mask,
        token_rewards=columns[0],
        cut=torch.rand(n, generator=generator) < 0.5,
        values=columns[1],
        final_values=final,
        baselines=greedy,
        streams={"a": columns[2]} if isinstance(credit, Discounted) else {},
    )


def spread(step, pattern, fill):
    """The same replies with foreign tokens at the False places of ``pattern``."""

    def wide(column, value):
        result = torch.full((len(column), len(pattern)), value, dtype=column.dtype)
        result[:, pattern] = column
        return result

    return replace(
        step,
        mask=wide(step.mask, False),
        token_rewards=wide(step.token_rewards, fill),
        values=wide(step.values, fill),
        streams={name: wide(column, fill) for name, column in step.streams.items()},
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 10**6), st.sampled_from(CREDITS))
def test_foreign_tokens_change_nothing(pattern, seed, credit):
    own = torch.tensor(pattern)
    mask = torch.rand(4, int(own.sum()), generator=torch.Generator().manual_seed(seed)) < 0.8
    step = random_step(mask, seed, credit)
    plain, wide = credit(step), credit(spread(step, own, NAN))
    for one, other in zip(plain, wide, strict=True):
        if one is None:
            assert other is None
            continue
        torch.testing.assert_close(other[:, own], one)
        assert torch.count_nonzero(other[:, ~own]) == 0
        assert torch.count_nonzero(one[~mask]) == 0


@pytest.mark.parametrize("credit", CREDITS, ids=named)
def test_absent_replies_are_as_if_they_were_not_there(credit):
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 2, 5, 1])[:, None]
    step = random_step(mask, 5, credit)
    rewards = step.rewards.clone()
    rewards[2] = NAN
    dirty = step.token_rewards.clone()
    dirty[2] = math.inf
    found = credit(replace(step, rewards=rewards, token_rewards=dirty))
    kept = torch.tensor([0, 1, 3, 4, 5])
    names = ("rewards", "group", "mask", "token_rewards", "cut", "values", "final_values", "baselines")
    columns = {name: getattr(step, name)[kept] for name in names}
    alone = credit(Earned(**columns, streams={name: column[kept] for name, column in step.streams.items()}))
    torch.testing.assert_close(found[0][kept], alone[0])
    assert torch.count_nonzero(found[0][2]) == 0
    if found[1] is not None:
        torch.testing.assert_close(found[1][kept], alone[1])
        torch.testing.assert_close(found[1][2], torch.where(mask[2], step.values[2], 0.0))


@pytest.mark.parametrize("credit", CREDITS, ids=named)
def test_empty_replies_and_empty_steps(credit):
    step = random_step(torch.zeros(4, 3, dtype=torch.bool), 0, credit)
    for column in credit(step):
        assert column is None or torch.count_nonzero(column) == 0
    for shape in ((4, 0), (0, 3)):
        nothing = credit(random_step(torch.zeros(shape, dtype=torch.bool), 0, credit))
        assert all(column is None or column.shape == shape for column in nothing)
    assert credit(random_step(torch.ones(4, 3, dtype=torch.bool), 0, credit))[0].dtype == torch.float64


@pytest.mark.parametrize("credit", CREDITS, ids=named)
def test_no_gradient_flows_and_values_are_asked_for_when_needed(credit):
    step = random_step(torch.ones(4, 3, dtype=torch.bool), 0, credit)
    live = replace(step, values=step.values.requires_grad_(), token_rewards=step.token_rewards.requires_grad_())
    advantages, returns = credit(live)
    assert not advantages.requires_grad
    assert (returns is not None) == credit.needs_values
    if not credit.needs_values:
        blind = credit(replace(step, values=None, final_values=None))
        torch.testing.assert_close(blind[0], advantages)
        return
    assert not returns.requires_grad
    with pytest.raises(SettingsError, match=f"{type(credit).__name__}.*critic"):
        credit(replace(step, values=None))
    with pytest.raises(SettingsError, match="final_values"):
        credit(replace(step, cut=torch.ones(4, dtype=torch.bool), final_values=None))
    assert credit(replace(step, cut=torch.zeros(4, dtype=torch.bool), final_values=None))[1] is not None


@pytest.mark.parametrize("credit", [c for c in CREDITS if not isinstance(c, Discounted)], ids=named)
def test_streams_that_nobody_reads_are_refused(credit):
    step = random_step(torch.ones(4, 3, dtype=torch.bool), 0, credit)
    with pytest.raises(SettingsError, match="streams"):
        credit(replace(step, streams={"repetition": step.token_rewards}))


@pytest.mark.parametrize("streams", [{}, {"b": torch.zeros(2, 5)}, {"a": torch.zeros(2, 5), "b": torch.zeros(2, 5)}])
def test_discounted_wants_exactly_its_streams(streams):
    with pytest.raises(SettingsError, match="names the streams"):
        Discounted((("a", 0.9),))(earned([1.0, 0.0], MASK, values=VALUES, streams=streams))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("group", torch.zeros(3, dtype=torch.int64)),
        ("cut", torch.zeros(2, 5, dtype=torch.bool)),
        ("token_rewards", torch.zeros(2, 4)),
        ("values", torch.zeros(2)),
        ("final_values", torch.zeros(3)),
        ("streams", {"a": torch.zeros(5)}),
        ("token_rewards", torch.full((2, 5), NAN)),
        ("values", torch.full((2, 5), math.inf)),
        ("rewards", torch.tensor([1.0, math.inf])),
        ("rewards", torch.tensor([1.0])),
        ("mask", torch.ones(2, dtype=torch.bool)),
        ("mask", torch.ones(2, 5, dtype=torch.int64)),
        ("cut", torch.zeros(2)),
    ],
)
def test_what_does_not_fit_is_named(column, value):
    with pytest.raises(SettingsError, match=f"Earned.*{column if column != 'streams' else 'a'}"):
        replace(earned([1.0, 0.0], MASK), **{column: value})


def test_an_unbounded_bootstrap_is_refused_only_where_it_is_read():
    final = rows(NAN, 1.0)
    step = earned([1.0, 0.0], MASK, values=VALUES, cut=torch.tensor([False, True]), final_values=final)
    with pytest.raises(SettingsError, match="final_values"):
        replace(step, cut=torch.tensor([True, True]))


def test_remax_asks_for_greedy_rewards():
    with pytest.raises(SettingsError, match="greedy"):
        ReMax()(earned([1.0, 0.0], MASK))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GAE(gamma=1.1), "GAE.gamma"),
        (lambda: GAE(lam=-0.1), "GAE.lam"),
        (lambda: GAE(lam=NAN), "GAE.lam"),
        (lambda: DecoupledGAE(lam=2.0), "DecoupledGAE.lam"),
        (lambda: DecoupledGAE(lam_critic="1"), "DecoupledGAE.lam_critic"),
        (lambda: LengthAdaptive(alpha=0.0), "LengthAdaptive.alpha"),
        (lambda: ReinforcePlusPlus(gamma=True), "ReinforcePlusPlus.gamma"),
        (lambda: Discounted(()), "Discounted.gammas"),
        (lambda: Discounted((("a", 0.9), ("a", 1.0))), "Discounted.gammas"),
        (lambda: Discounted((("a", 1.9),)), "Discounted.a"),
        (lambda: kl_penalty(rows([0.0]), rows([0.0]), torch.ones(1, 1).bool(), -1.0), "beta"),
        (lambda: kl_penalty(rows([0.0]), rows([0.0]), torch.ones(1, 1).bool(), 1.0, "k4"), "kind"),
    ],
)
def test_fields_out_of_range_are_named(make, field):
    with pytest.raises(SettingsError, match=field):
        make()
