"""Advantages: the worked table, degenerate groups, absent rewards, and GAE by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.algorithms.advantage import (
    EPSILON,
    PerGroup,
    batch_centered,
    batch_normalized,
    gae,
    global_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
    minus_baseline,
    optimal_baseline,
    per_group,
    rescaled_centered,
)
from longthought.core.errors import SettingsError

CREDITS = [group_normalized, group_centered, leave_one_out]
NAN = math.nan

# rewards, sample std (TRL and verl), mean only (Dr. GRPO), leave one out (RLOO)
WORKED = [
    ([1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5], [0.75, -0.25, -0.25, -0.25], [1, -1 / 3, -1 / 3, -1 / 3]),
    ([1, 1, 0, 0], [0.866025, 0.866025, -0.866025, -0.866025], [0.5, 0.5, -0.5, -0.5], [2 / 3, 2 / 3, -2 / 3, -2 / 3]),
    ([1, 1, 1, 0], [0.5, 0.5, 0.5, -1.5], [0.25, 0.25, 0.25, -0.75], [1 / 3, 1 / 3, 1 / 3, -1]),
    ([1] + [0] * 7, [2.474874] + [-0.353553] * 7, [0.875] + [-0.125] * 7, [1] + [-1 / 7] * 7),
    (
        [0.5, 1, 0, 2],
        [-0.439155, 0.146385, -1.024695, 1.317465],
        [-0.375, 0.125, -0.875, 1.125],
        [-0.5, 1 / 6, -7 / 6, 1.5],
    ),
]


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(("rewards", "normalized", "centered", "others"), WORKED)
def test_worked_table(rewards, normalized, centered, others):
    r = tensor(rewards)
    torch.testing.assert_close(group_normalized(r), tensor(normalized), atol=1e-5, rtol=0)
    torch.testing.assert_close(group_centered(r), tensor(centered), atol=1e-12, rtol=0)
    torch.testing.assert_close(leave_one_out(r), tensor(others), atol=1e-12, rtol=0)


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12))
def test_sample_standard_deviation_and_epsilon(rewards):
    if max(rewards) - min(rewards) < 1e-6:
        return
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (std + EPSILON) for reward in rewards]
    torch.testing.assert_close(group_normalized(tensor(rewards)), tensor(expected), atol=1e-9, rtol=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(-3, 3))
def test_baselines(rewards, shift):
    r = tensor(rewards)
    n = len(rewards)
    for credit in CREDITS:
        assert abs(float(credit(r).sum())) < 1e-8
        # where the whole gap is near the tolerance, a shift may round a group to equal
        if max(rewards) - min(rewards) > 1e-3:
            torch.testing.assert_close(credit(r + shift), credit(r), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(leave_one_out(r), group_centered(r) * n / (n - 1))


@pytest.mark.parametrize("credit", CREDITS)
def test_equal_rewards_give_exact_zeros(credit):
    for size in range(2, 20):
        for cents in range(150):
            for dtype in (torch.float32, torch.float64):
                r = torch.full((size,), cents / 100, dtype=dtype)
                assert torch.count_nonzero(credit(r)) == 0, (size, cents, dtype)


def test_rounding_of_a_sum_is_not_a_difference():
    assert torch.count_nonzero(group_normalized(tensor([0.1 + 0.2, 0.3, 0.3]))) == 0


def test_small_real_differences_count():
    assert group_normalized(tensor([1e-3, 0.0])).tolist() == pytest.approx([0.7061, -0.7061], abs=1e-4)


@pytest.mark.parametrize("credit", CREDITS)
def test_absent_rewards_leave_the_baseline(credit):
    seen = credit(tensor([1, 0, 0]))
    assert credit(tensor([NAN, 1, 0, NAN, 0])).tolist() == [0.0, seen[0], seen[1], 0.0, seen[2]]
    assert credit(tensor([NAN, NAN])).tolist() == [0.0, 0.0]
    assert credit(tensor([NAN, 3.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("credit", CREDITS)
def test_dtypes(credit):
    assert credit(torch.tensor([1, 0])).dtype == torch.float32
    assert credit(torch.tensor([True, False])).dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert credit(torch.tensor([1.0, 0.0], dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("bad", [[1.0], [], [[1.0, 0.0]], [1.0, math.inf]])
def test_refusals(credit, bad):
    with pytest.raises(SettingsError):
        credit(torch.tensor(bad))


def test_per_group_lifts_any_order_and_sizes():
    rewards = tensor([1, 0, 5, 0, 7, 1])
    group = torch.tensor([3, 3, -1, 3, -1, 3])
    lifted = per_group(group_centered)
    assert lifted(rewards, group).tolist() == [0.5, -0.5, -1.0, -0.5, 1.0, 0.5]
    assert lifted == PerGroup(group_centered)


def test_batch_normalized_by_hand():
    rewards, group = tensor([1, 0, 0, 0, 1, 1, 0, 0]), torch.tensor([0] * 4 + [1] * 4)
    gaps = [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5]
    std = statistics.stdev(gaps)
    assert batch_normalized(rewards, group).tolist() == pytest.approx([gap / (std + EPSILON) for gap in gaps])


def test_batch_normalized_does_not_blow_up_rare_successes():
    rewards, group = tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]), torch.arange(2).repeat_interleave(8)
    assert batch_normalized(rewards, group)[0] < group_normalized(rewards[:8])[0]


def test_batch_normalized_degenerate():
    group = torch.tensor([0, 0, 1, 1])
    assert batch_normalized(torch.full((4,), 0.97), group).tolist() == [0.0] * 4
    mixed = batch_normalized(torch.tensor([0.97, 0.97, 1.0, NAN]), group)
    assert mixed.tolist() == [0.0] * 4
    assert mixed.dtype == torch.float32
    with pytest.raises(SettingsError, match="at least two"):
        batch_normalized(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    with pytest.raises(SettingsError, match=r"\(N,\)"):
        batch_normalized(torch.tensor([1.0, 0.0]), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize(("ddof", "value"), [(1, 2.474874), (0, 2.645751)])
def test_one_right_of_eight_under_both_deviations(ddof, value):
    """Sample deviation: TRL, verl, OpenRLHF. Population: AReaL."""
    assert float(group_normalized(tensor([1] + [0] * 7), ddof=ddof)[0]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-6, 1e-9])
def test_no_epsilon_wakes_equal_rewards(epsilon):
    r = torch.full((16,), 0.97)
    assert torch.count_nonzero(group_normalized(r, epsilon=epsilon)) == 0
    assert torch.count_nonzero(global_normalized(r, torch.arange(16), epsilon=epsilon)) == 0
    assert torch.count_nonzero(batch_normalized(r, torch.arange(16) // 2, epsilon=epsilon)) == 0
    assert float(group_normalized(tensor([1e-4, 0.0]), epsilon=epsilon)[0]) == pytest.approx(
        5e-5 / (5e-5 * 2**0.5 + epsilon)
    )


def test_batch_baselines_by_hand():
    r, group = tensor([1, 0, NAN, 2]), torch.tensor([0, 1, 2, 3])
    assert batch_centered(r, group).tolist() == [0.0, -1.0, 0.0, 1.0]
    assert global_normalized(r, group).tolist() == pytest.approx([0.0, -1.0, 0.0, 1.0], abs=1e-5)
    assert global_normalized(r, group, ddof=0).tolist() == pytest.approx([0, -(1.5**0.5), 0, 1.5**0.5], abs=1e-5)
    assert batch_centered(torch.tensor([1, 0]), group[:2]).dtype == torch.float32
    with pytest.raises(SettingsError, match=r"G >= 2"):
        batch_centered(r[:1], group[:1])


def test_minus_baseline_by_hand():
    assert minus_baseline(tensor([1, 0, NAN, 1]), tensor([0.5, 1, 0, NAN])).tolist() == [0.5, -1.0, 0.0, 0.0]
    with pytest.raises(SettingsError, match="infinite"):
        minus_baseline(tensor([1.0]), tensor([math.inf]))


def test_optimal_baseline_by_hand():
    """Lengths 1, 3 and an absent 9: b = (1·1 + 3·0) / 4."""
    found = optimal_baseline(tensor([1, 0, NAN]), torch.tensor([1, 3, 9]))
    assert found.tolist() == [0.75, -0.25, 0.0]
    same = optimal_baseline(tensor([1, 0, 0]), torch.tensor([5, 5, 5]))
    torch.testing.assert_close(same, group_centered(tensor([1, 0, 0])))
    assert torch.count_nonzero(optimal_baseline(torch.full((3,), 0.97), torch.tensor([1, 2, 3]))) == 0


def test_optimal_baseline_has_the_least_variance_it_promises():
    """Where ‖∇ log π‖² = length, E‖(r - b) ∇ log π‖² is least at b: no other baseline of a grid is better."""
    r, lengths = tensor([1, 0, 0.5, 2]), tensor([3, 10, 1, 4])
    best = float(((optimal_baseline(r, lengths) ** 2) * lengths).sum())
    for baseline in torch.linspace(-1, 3, 81).double():
        assert float(((r - baseline) ** 2 * lengths).sum()) >= best - 1e-12


def test_rescaled_centered_by_hand():
    """Two of three groups differ, so gaps grow by 6 / 4."""
    r, group = tensor([1, 0, 1, 1, 0, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    assert rescaled_centered(r, group).tolist() == [0.75, -0.75, 0.0, 0.0, -1.5, 1.5]
    r[1] = NAN  # then five replies are there, two of them in a group whose rewards differ
    assert rescaled_centered(r, group).tolist() == [0.0, 0.0, 0.0, 0.0, -2.5, 2.5]
    assert rescaled_centered(torch.ones(4), torch.tensor([0, 0, 1, 1])).tolist() == [0.0] * 4


def row(*values):
    return tensor([list(values)])


def test_gae_by_hand():
    # δ = (0 + .9·.4 - .5, 1 + 0 - .4) = (-.14, .6);  A₂ = .6, A₁ = -.14 + .9·.8·.6 = .292
    advantages, returns = gae(row(0, 1), row(0.5, 0.4), row(0.4, 0), torch.ones(1, 2, dtype=torch.bool), 0.9, 0.8)
    torch.testing.assert_close(advantages, row(0.292, 0.6))
    torch.testing.assert_close(returns, row(0.792, 1.0))


def test_gae_bootstraps_where_a_budget_cut():
    mask = torch.ones(1, 2, dtype=torch.bool)
    ended, _ = gae(row(0, 0), row(0.5, 0.5), row(0.5, 0.0), mask, 1.0, 1.0)
    cut, _ = gae(row(0, 0), row(0.5, 0.5), row(0.5, 0.5), mask, 1.0, 1.0)
    torch.testing.assert_close(ended, row(-0.5, -0.5))
    torch.testing.assert_close(cut, row(0.0, 0.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=10), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_gae_skips_foreign_tokens(pattern, gamma, lam, seed):
    """With tool tokens and padding in between the result is that of the row without them, whatever stands there."""
    mask = torch.tensor([pattern])
    own = int(mask.sum())
    generator = torch.Generator().manual_seed(seed)
    rewards, values, after = torch.randn(3, 1, own, generator=generator, dtype=torch.float64)
    spread = torch.full((3, 1, len(pattern)), NAN, dtype=torch.float64)
    spread[:, mask] = torch.stack((rewards[0], values[0], after[0]))
    plain = gae(rewards, values, after, torch.ones(1, own, dtype=torch.bool), gamma, lam)
    wide = gae(spread[0], spread[1], spread[2], mask, gamma, lam)
    for expected, found in zip(plain, wide, strict=True):
        torch.testing.assert_close(found[mask], expected[0])
        assert torch.count_nonzero(found[~mask]) == 0


def test_gae_monte_carlo_limit_and_no_gradient():
    values = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    after = torch.cat((values[:, 1:], torch.zeros(2, 1)), dim=1)
    rewards = torch.randn(2, 5, dtype=torch.float64)
    advantages, returns = gae(rewards, values, after, torch.ones(2, 5, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_gae_with_a_lambda_per_row():
    generator = torch.Generator().manual_seed(0)
    rewards, values, after = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 5, generator=generator) < 0.7
    both = gae(rewards, values, after, mask, 0.9, tensor([0.3, 0.8]))
    for i, lam in enumerate((0.3, 0.8)):
        one = gae(rewards, values, after, mask, 0.9, lam)
        for found, expected in zip(both, one, strict=True):
            torch.testing.assert_close(found[i], expected[i])
    with pytest.raises(SettingsError, match="lam"):
        gae(rewards, values, after, mask, 0.9, tensor([0.3, 1.1]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 1.0), (1.0, -0.1), (NAN, 1.0)])
def test_gae_refuses_rates(gamma, lam):
    with pytest.raises(SettingsError, match="gae"):
        gae(row(0), row(0), row(0), torch.ones(1, 1, dtype=torch.bool), gamma, lam)
