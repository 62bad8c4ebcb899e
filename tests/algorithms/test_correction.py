"""Weights for the gap between sampler and learner: by hand, hostile columns, and what they leave alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.algorithms.correction import (
    Masked,
    SequenceMasked,
    SequenceTruncated,
    Truncated,
    correction_metrics,
)
from longthought.algorithms.objective import GRPO, MirrorDescent
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, PolicyOutput

# w = 4, ½ and 1 in the first reply, whose product is 2; ½ in the second; the rest is not of the policy
RATIOS = [[4.0, 0.5, 1.0], [0.5, math.nan, math.nan]]
MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor(RATIOS, dtype=torch.float64).log()
SAMPLER = torch.where(MASK, 0.0, math.inf).double()

CORRECTIONS = [
    (Truncated(cap=2.0), [[2.0, 0.5, 1.0], [0.5, 0.0, 0.0]]),
    (Truncated(cap=2.0, floor=0.8), [[2.0, 0.8, 1.0], [0.8, 0.0, 0.0]]),
    (Masked(low=0.6, high=5.0), [[4.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    (SequenceTruncated(cap=1.5), [[1.5, 1.5, 1.5], [0.5, 0.0, 0.0]]),
    (SequenceTruncated(cap=9.0), [[2.0, 2.0, 2.0], [0.5, 0.0, 0.0]]),
    (SequenceMasked(low=0.6, high=1.3), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),  # 2^(1/3) = 1.26
    (SequenceMasked(low=0.6, high=1.2), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    (SequenceMasked(low=0.4, high=1.3, within=Truncated(2.0)), [[2.0, 0.5, 1.0], [0.5, 0.0, 0.0]]),
]


@pytest.mark.parametrize(("correction", "expected"), CORRECTIONS, ids=lambda x: str(x) if callable(x) else "")
def test_by_hand(correction, expected):
    old = OLD.clone().requires_grad_()
    found = correction(old, SAMPLER, MASK)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("correction", [pair[0] for pair in CORRECTIONS], ids=str)
def test_equal_policies_weigh_one_and_runaways_stay_finite(correction):
    same = torch.randn(2, 3)
    assert torch.equal(correction(same, same, MASK), MASK.float())
    for gap in (-500.0, 500.0):
        found = correction(same + gap, same, MASK)
        assert found.isfinite().all()
        assert (found >= 0).all()
    assert correction(same[:0], same[:0], MASK[:0]).shape == (0, 3)


@pytest.mark.parametrize("correction", [pair[0] for pair in CORRECTIONS], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_not_dropped(correction, value):
    sampler = SAMPLER.clone()
    sampler[0, 1] = value
    with pytest.raises(SettingsError, match="not finite"):
        correction(OLD, sampler, MASK)


def test_a_geometric_mean_does_not_grow_with_the_length():
    """Every token off by one percent: kept at any length, where a bound on the product drops long replies."""
    gap = torch.full((1, 2000), 0.009)
    mask = torch.ones(1, 2000, dtype=torch.bool)
    assert SequenceMasked()(gap, torch.zeros_like(gap), mask).all()
    assert float(SequenceTruncated(cap=2.0)(gap, torch.zeros_like(gap), mask).max()) == 2.0


def test_metrics_by_hand():
    weights = torch.tensor([[2.0, 0.0, 1.0], [1.0, 7.0, 7.0]])
    found = correction_metrics(weights, OLD, SAMPLER, MASK)
    k3 = ((4 - 1 - math.log(4)) + 2 * (0.5 - 1 + math.log(2))) / 4
    expected = {"correction_mean": 1.0, "correction_kept": 0.75, "correction_effective": 16 / 6 / 4, "sampler_kl": k3}
    assert found == pytest.approx(expected)
    assert set(correction_metrics(weights, OLD, SAMPLER, MASK & False).values()) == {0.0}
    assert correction_metrics(weights * 0, OLD, SAMPLER, MASK)["correction_effective"] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=20))
def test_the_effective_share_is_a_share(weights):
    w = torch.tensor([weights], dtype=torch.float64)
    mask = torch.ones_like(w, dtype=torch.bool)
    share = correction_metrics(w, torch.zeros_like(w), torch.zeros_like(w), mask)["correction_effective"]
    assert 0.0 <= share <= 1.0 + 1e-9


def loss_of(objective, scale):
    column = torch.tensor([[0.3, -0.2, 0.1], [0.4, 0.0, 0.0]], dtype=torch.float64)
    batch = Batch(
        tokens=MASK.long(),
        lengths=MASK.sum(1),
        mask=MASK,
        weight=MASK.double(),
        advantage=scale * torch.tensor([[1.0], [-2.0]]).expand(2, 3).double(),
        logp_old=torch.zeros(2, 3, dtype=torch.float64),
        logp_ref=column / 2,
    )
    return float(objective(PolicyOutput(column, column), batch).value)


def test_the_kl_term_is_left_alone():
    kl = loss_of(GRPO(beta=0.5), 0.0)
    assert kl > 0
    assert loss_of(GRPO(beta=0.5), 3.0) - kl == pytest.approx(3 * (loss_of(GRPO(beta=0.5), 1.0) - kl))


def test_mirror_descent_is_not_homogeneous():
    """Its square keeps the weight 1, so a scaled advantage is another problem, not a weighted loss."""
    assert loss_of(MirrorDescent(0.5), 3.0) != pytest.approx(3 * loss_of(MirrorDescent(0.5), 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Truncated(cap=0.5),
        lambda: Truncated(floor=1.5),
        lambda: Truncated(cap=math.inf),
        lambda: Masked(low=-0.1),
        lambda: Masked(low=1.2, high=1.5),
        lambda: SequenceTruncated(cap=math.nan),
        lambda: SequenceMasked(low=1.01),
    ],
)
def test_bounds_without_one_are_refused(make):
    with pytest.raises(SettingsError, match="bounds must hold 1"):
        make()
