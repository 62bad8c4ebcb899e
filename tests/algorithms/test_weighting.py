"""Weightings: sums that the papers say, verl's aggregations, empty rows."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longthought.algorithms.weighting import (
    constant,
    positive_mean,
    sequence_mean,
    sequence_sum,
    token_mean,
    weighted_sum,
)
from longthought.core.errors import SettingsError

LOSS = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def mask_of(lengths, width=8):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (token_mean, (1 + 2 + 3 + 4) / 4),  # verl token-mean
        (sequence_sum, ((1 + 2 + 3) + 4) / 2),  # verl seq-mean-token-sum
        (sequence_mean, ((1 + 2 + 3) / 3 + 4) / 2),  # verl seq-mean-token-mean
        (partial(constant, length=8), ((1 + 2 + 3) + 4) / 2 / 8),  # verl seq-mean-token-sum-norm, TRL dr_grpo
    ],
)
def test_reference_aggregations(weighting, expected):
    assert float(weighted_sum(LOSS, weighting(MASK))) == pytest.approx(expected)


def test_weights_by_hand():
    assert sequence_mean(MASK).tolist() == [pytest.approx([1 / 6] * 3 + [0]), pytest.approx([1 / 2, 0, 0, 0])]
    assert token_mean(MASK).tolist() == [[0.25, 0.25, 0.25, 0], [0.25, 0, 0, 0]]
    assert sequence_sum(MASK).tolist() == [[0.5, 0.5, 0.5, 0], [0.5, 0, 0, 0]]
    assert constant(MASK, 8).tolist() == [[1 / 16, 1 / 16, 1 / 16, 0], [1 / 16, 0, 0, 0]]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 50))
def test_sums(lengths, length):
    mask = mask_of(lengths)
    live = [n for n in lengths if n]
    total, rows = sum(live), len(live)
    for weighting, expected in (
        (sequence_mean, 1.0 if live else 0.0),
        (token_mean, 1.0 if live else 0.0),
        (sequence_sum, total / max(rows, 1)),
        (partial(constant, length=length), total / max(rows, 1) / length),
    ):
        weight = weighting(mask)
        assert weight.dtype == torch.float32
        assert float(weight.double().sum()) == pytest.approx(expected, abs=1e-5)
        assert torch.count_nonzero(weight[~mask]) == 0
        assert bool((weight[mask] > 0).all())


@pytest.mark.parametrize("weighting", [sequence_mean, token_mean, sequence_sum, partial(constant, length=5)])
def test_filtered_rows_and_padding_leave_the_denominator(weighting):
    plain = weighting(mask_of([3, 5], 5))
    filtered = weighting(mask_of([3, 0, 5], 9))
    assert torch.equal(filtered[[0, 2], :5], plain)
    assert torch.count_nonzero(filtered[1]) == 0


def test_holes_in_a_row_are_not_counted():
    tools = torch.tensor([[True, False, False, True]])
    assert sequence_mean(tools).tolist() == [[0.5, 0, 0, 0.5]]


@pytest.mark.parametrize("length", [0, -3])
def test_constant_refuses(length):
    with pytest.raises(SettingsError, match="length"):
        constant(MASK, length)


def test_weight_zero_wins_against_nan():
    x = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    value = weighted_sum(x, torch.tensor([2.0, 0.0, 0.0]))
    value.backward()
    assert float(value.detach()) == 2.0
    assert x.grad.tolist() == [2.0, 0.0, 0.0]


def test_positive_mean_is_the_token_mean_of_right_replies():
    mask = mask_of([3, 5, 0, 2])
    found = positive_mean(mask, torch.tensor([True, False, True, True]))
    assert found.sum(1).tolist() == pytest.approx([0.6, 0.0, 0.0, 0.4])
    assert torch.count_nonzero(positive_mean(mask, torch.zeros(4, dtype=torch.bool))) == 0
