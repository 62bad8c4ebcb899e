"""Bradley–Terry, centring and labels against numbers by hand; calibration; pairs balanced by length."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from longthought.algorithms.calibration import expected_calibration_error, reliability
from longthought.algorithms.length_balance import balanced_subset, balanced_weights, effective_size
from longthought.algorithms.preference import Binary, BradleyTerry, binary, bradley_terry, centring
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Pairs, PolicyOutput

DIFFERENCES = st.lists(st.integers(-40, 40), min_size=1, max_size=80).map(np.array)


@pytest.mark.parametrize(
    ("better", "worse", "margin", "wanted"),
    [
        (0.0, 0.0, 0.0, math.log(2)),
        (2.0, 1.0, 0.0, math.log(1 + math.exp(-1))),
        (1.0, 2.0, 0.0, math.log(1 + math.exp(1))),
        (2.0, 1.0, 1.0, math.log(2)),
        (2.0, 1.0, 3.0, math.log(1 + math.exp(2))),
        (-1000.0, 1000.0, 0.0, 2000.0),
        (1000.0, -1000.0, 0.0, 0.0),
    ],
)
def test_bradley_terry_by_hand(better: float, worse: float, margin: float, wanted: float) -> None:
    found = bradley_terry(*(tensor([x], dtype=torch.float64) for x in (better, worse, margin)))
    assert found.item() == pytest.approx(wanted, abs=1e-12)


def test_its_gradient_is_the_probability_of_the_wrong_order() -> None:
    better, worse = tensor([0.3, -2.0, 5.0], requires_grad=True), tensor([1.0, 0.5, 4.0], requires_grad=True)
    bradley_terry(better, worse, 0.5).sum().backward()
    wrong = torch.sigmoid(worse + 0.5 - better).detach()
    torch.testing.assert_close(better.grad, -wrong)
    torch.testing.assert_close(worse.grad, wrong)


def test_equations_have_the_gradients_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    label = tensor([1.0, 0, 1, 0, 0.25], dtype=torch.float64)
    for function in (lambda a, b: bradley_terry(a, b, 0.3), centring, lambda a, _: binary(a, label)):
        assert torch.autograd.gradcheck(function, (x, y))


def test_labels_and_centring_by_hand() -> None:
    assert binary(tensor([0.0, 2.0, 2.0, -900.0]), tensor([1.0, 1.0, 0.0, 1.0])).tolist() == pytest.approx(
        [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), 900.0]
    )
    assert centring(tensor([1.0, 2.0]), tensor([-1.0, 0.5])).tolist() == [0.0, 6.25]


def pairs(weights: list[float], margins: list[float]) -> Pairs:
    """Rows of two replies that end at 1 and 3, at 2 and 3, …"""
    mask = torch.zeros(len(weights), 5, dtype=torch.bool)
    for row in range(len(weights)):
        mask[row, [1 + row % 2, 3 + row % 2]] = True
    lengths = torch.full((len(weights),), 5)
    weight = torch.where(mask, tensor(weights)[:, None] / 2, 0.0)
    return Pairs(torch.zeros(len(weights), 5, dtype=torch.int64), lengths, mask, weight, margin=tensor(margins))


def said(batch: Batch, values: Tensor) -> PolicyOutput:
    blank = torch.zeros(batch.mask.shape)
    return PolicyOutput(blank, blank, torch.full_like(blank, math.nan).masked_scatter(batch.mask, values))


def test_the_objective_is_a_weighted_sum_over_pairs() -> None:
    batch, values = pairs([0.5, 0.25, 0.25], [0.0, 1.0, 0.0]), tensor([2.0, 1.0, 0.0, 1.0, 3.0, 3.0])
    loss = BradleyTerry(centring=0.1)(said(batch, values), batch)
    fit = 0.5 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(2)) + 0.25 * math.log(2)
    assert float(loss.value) == pytest.approx(fit + 0.1 * (0.5 * 9 + 0.25 * 1 + 0.25 * 36))
    assert {name: float(value) for name, value in loss.metrics.items()} == pytest.approx(
        {"preference_loss": fit, "accuracy": 0.5 + 0.125, "margin": 0.25, "reward": 0.5 * 1.5 + 0.25 * 0.5 + 0.25 * 3}
    )


@given(cuts=st.lists(st.integers(0, 6), max_size=3), seed=st.integers(0, 9))
def test_any_cut_between_pairs_gives_the_same_sums(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = pairs(torch.rand(6, generator=generator).tolist(), torch.rand(6, generator=generator).tolist())
    policy = said(batch, torch.randn(12, generator=generator))
    objective = BradleyTerry(centring=0.05)
    whole = objective(policy, batch)
    total, accuracy = 0.0, 0.0
    for start, end in pairwise(sorted({0, 6, *cuts})):
        index = torch.arange(start, end)
        assert policy.values is not None
        part = objective(
            PolicyOutput(policy.logp[index], policy.entropy[index], policy.values[index]), batch.select(index)
        )
        total, accuracy = total + float(part.value), accuracy + float(part.metrics["accuracy"])
    assert total == pytest.approx(float(whole.value), rel=1e-5)
    assert accuracy == pytest.approx(float(whole.metrics["accuracy"]), rel=1e-5, abs=1e-7)


def test_what_weighs_nothing_is_not_read() -> None:
    batch = pairs([1.0, 0.0], [0.0, math.nan])
    values = tensor([2.0, 1.0, math.nan, math.inf], requires_grad=True)
    loss = BradleyTerry(0.1)(said(batch, values), batch)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(math.log1p(math.exp(-1)) + 0.9)
    assert values.grad is not None
    assert values.grad[2:].tolist() == [0.0, 0.0]


def test_labels_are_read_at_the_ends() -> None:
    mask = tensor([[False, True], [True, False]])
    weight = torch.where(mask, 0.5, 0.0)
    label = tensor([[0.0, 1.0], [0.0, 0.0]])
    batch = Batch(torch.zeros(2, 2, dtype=torch.int64), tensor([2, 1]), mask, weight, returns=label)
    loss = Binary()(said(batch, tensor([2.0, 1.0])), batch)
    assert float(loss.value) == pytest.approx(0.5 * math.log1p(math.exp(-2)) + 0.5 * math.log1p(math.exp(1)))
    assert float(loss.metrics["accuracy"]) == 0.5


def test_what_is_no_pair_is_refused() -> None:
    batch = pairs([1.0], [0.0])
    policy = said(batch, tensor([1.0, 0.0]))
    with pytest.raises(SettingsError, match="needs Pairs"):
        BradleyTerry()(policy, Batch(batch.tokens, batch.lengths, batch.mask, batch.weight))
    with pytest.raises(SettingsError, match="needs a reward model"):
        BradleyTerry()(PolicyOutput(policy.logp, policy.entropy), batch)
    with pytest.raises(SettingsError, match="centring must be at least 0"):
        BradleyTerry(centring=-0.1)


def test_bins_and_their_error_by_hand() -> None:
    predicted, observed = np.array([0.05, 0.15, 0.15, 0.95, 1.0]), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    bins = reliability(predicted, observed)
    wanted = [(0.0, 0.1, 1, 0.05, 0.0), (0.1, 0.2, 2, 0.15, 0.5), (0.9, 1.0, 2, 0.975, 0.5)]
    for one, numbers in zip(bins, wanted, strict=True):
        assert astuple(one) == pytest.approx(numbers)
    assert expected_calibration_error(bins) == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.475) / 5)
    assert expected_calibration_error([]) == 0.0


def test_outcomes_drawn_from_the_predictions_are_calibrated() -> None:
    chance = np.random.default_rng(0)
    predicted = chance.uniform(0.5, 1, 40_000)
    drawn = (chance.uniform(size=predicted.shape) < predicted).astype(float)
    assert expected_calibration_error(reliability(predicted, drawn, low=0.5)) < 0.01
    assert expected_calibration_error(reliability(np.sqrt(predicted), drawn, low=0.5)) > 0.05
    with pytest.raises(SettingsError, match="does not lie between"):
        reliability(np.array([0.4]), np.array([1.0]), low=0.5)


def test_weights_by_hand() -> None:
    difference = np.array([1, -1, 1, 1, 2, 3, -3, 8, 0])
    third, half = 4 / 6, 3 / 4
    assert balanced_weights(difference).tolist() == pytest.approx([third, 2, third, third, half, half, 1.5, 0, 1])
    assert effective_size(np.array([1.0, 1.0, 0.0])) == 2.0
    assert effective_size(np.zeros(3)) == 0.0


@given(difference=DIFFERENCES)
def test_weighted_the_longer_reply_is_as_often_the_better(difference: np.ndarray) -> None:
    weights = balanced_weights(difference)
    assert weights[difference > 0].sum() == pytest.approx(weights[difference < 0].sum())
    assert (weights[difference == 0] == 1).all()


@given(difference=DIFFERENCES, seed=st.integers(0, 3))
def test_of_a_subset_as_many_are_longer_as_shorter(difference: np.ndarray, seed: int) -> None:
    kept = balanced_subset(difference, seed)
    assert kept.tolist() == sorted(set(kept.tolist())) == balanced_subset(difference, seed).tolist()
    for bit in range(7):
        stratum = difference[kept][(np.abs(difference[kept]) >= 2**bit) & (np.abs(difference[kept]) < 2 ** (bit + 1))]
        whole = difference[(np.abs(difference) >= 2**bit) & (np.abs(difference) < 2 ** (bit + 1))]
        fewest = min((whole > 0).sum(), (whole < 0).sum())
        assert (stratum > 0).sum() == (stratum < 0).sum() == fewest
    assert (difference[kept] == 0).sum() == (difference == 0).sum()
