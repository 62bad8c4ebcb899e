"""Divergences: values by hand, numerical edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longthought.algorithms.divergence import forward_kl, k1, k2, k3, k3_corrected, ratio, reverse_kl

ESTIMATORS = [k1, k2, k3]


def test_values_by_hand():
    d = math.log(2.0)
    logp, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert float(k1(logp, ref)) == pytest.approx(d)
    assert float(k2(logp, ref)) == pytest.approx(d * d / 2)
    assert float(k3(logp, ref)) == pytest.approx(0.5 - 1 + d)
    assert float(k3(ref, logp)) == pytest.approx(2 - 1 - d)
    assert float(k3_corrected(logp, ref, ref)) == pytest.approx(2 * (0.5 - 1 + d))


@given(st.floats(-200, 200), st.floats(-200, 200))
def test_finite_and_signed(a, b):
    logp, ref = torch.tensor(a), torch.tensor(b)
    for estimate in (k2, k3):
        assert math.isfinite(float(estimate(logp, ref)))
        assert float(estimate(logp, ref)) >= 0
    assert float(ratio(logp, ref)) > 0
    assert math.isfinite(float(k3_corrected(logp, ref, torch.tensor(0.0))))


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_zero_for_equal_policies(estimate):
    logp = torch.linspace(-30, 0, 50)
    assert torch.count_nonzero(estimate(logp, logp)) == 0


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_half_precision_is_widened_before_the_subtraction(estimate):
    logp = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16)
    ref = torch.tensor([-1.0078125, -2.0], dtype=torch.bfloat16)
    found = estimate(logp, ref)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, estimate(logp.double(), ref.double()).float())
    assert estimate(logp.double(), ref.double()).dtype == torch.float64


def test_k3_is_accurate_for_near_equal_policies():
    d = 1e-4
    assert float(k3(torch.tensor(d), torch.tensor(0.0))) == pytest.approx(d * d / 2, rel=5e-3)


@pytest.mark.parametrize("gaps", [(25.0, 1.0), (1.0, -25.0), (-25.0, -25.0)])
def test_a_clamp_stops_both_factors(gaps):
    """Where one factor is clamped, the other must not pull with a frozen multiplier."""
    logp = torch.tensor(-1.0, requires_grad=True)
    k3_corrected(logp, logp.detach() - gaps[0], logp.detach() - gaps[1]).backward()
    assert float(logp.grad) == 0.0


def test_kl_of_two_coins():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(forward_kl(p, q)) == pytest.approx(expected, abs=1e-6)
    assert float(reverse_kl(q, p)) == pytest.approx(expected, abs=1e-6)


def test_kl_shapes_and_torch():
    p, q = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    torch.testing.assert_close(forward_kl(p, q), expected)
    torch.testing.assert_close(reverse_kl(q, p), expected)


def test_forbidden_tokens():
    p = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    q = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    value = forward_kl(p, q)
    value.backward()
    two = forward_kl(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert float(value.detach()) == pytest.approx(float(two))
    assert torch.isfinite(p.grad).all()
    assert torch.isfinite(q.grad).all()
    assert float(forward_kl(torch.zeros(2), torch.tensor([0.0, -math.inf]))) == math.inf
