"""Decisions between steps: by hand, bounded for every measurement, refusals."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.algorithms.control import EntropyTarget, KLTarget, is_live
from longthought.core.errors import SettingsError


def test_is_live_by_enumeration():
    for size in range(6):
        for correct in itertools.product([True, False, None], repeat=size):
            graded = [right for right in correct if right is not None]
            assert is_live(correct) == (0 < sum(graded) < len(graded))


def test_entropy_target_by_hand():
    control = EntropyTarget(target=0.2, rate=0.005, maximum=0.012)
    assert control(0.0, 0.1) == pytest.approx(0.005)
    assert control(0.01, 0.1) == pytest.approx(0.012)  # held at the maximum
    assert control(0.01, 0.3) == pytest.approx(0.005)
    assert control(0.003, 0.3) == 0.0
    assert control(0.01, 0.2) == pytest.approx(0.005)  # at the target it shrinks
    assert [control.bonus(0.01, measured) for measured in (0.1, 0.2, 0.3)] == [0.01, 0.01, 0.0]


@given(
    st.lists(st.floats(0, 20), max_size=50),
    st.floats(1e-3, 5),
    st.floats(1e-4, 10),
    st.floats(1e-3, 10),
    st.floats(0, 1),
)
def test_entropy_target_is_bounded(measurements, target, rate, maximum, start):
    control, coefficient = EntropyTarget(target, rate, maximum), start * maximum
    for measured in measurements:
        moved = control(coefficient, measured)
        assert 0.0 <= moved <= maximum
        assert abs(moved - coefficient) <= rate * (1 + 1e-9)
        assert 0.0 <= control.bonus(moved, measured) <= moved
        coefficient = moved


def test_entropy_target_reaches_what_holds_the_entropy():
    """Entropy that answers the bonus linearly ends within one rate of the coefficient that gives the target."""
    control, coefficient = EntropyTarget(target=0.5, rate=0.01, maximum=1.0), 0.0
    for _ in range(200):
        coefficient = control(coefficient, 0.2 + coefficient)
    assert abs(coefficient - 0.3) <= 0.01 + 1e-9


def test_kl_target_by_hand():
    control = KLTarget(target=6.0, horizon=1000)
    assert control(0.1, 6.6, 100) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert control(0.1, 60.0, 1000) == pytest.approx(0.12)
    assert control(0.1, 0.0, 1000) == pytest.approx(0.08)
    assert control(0.1, 6.0, 1000) == pytest.approx(0.1)


@given(st.lists(st.tuples(st.floats(-5, 100), st.integers(0, 1000)), max_size=50))
def test_kl_target_stays_positive(history):
    control, beta = KLTarget(target=6.0, horizon=1000), 0.1
    for measured, samples in history:
        moved = control(beta, measured, samples)
        assert 0.8 * beta * (1 - 1e-12) <= moved <= 1.2 * beta * (1 + 1e-12)
        beta = moved


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EntropyTarget(target=0.0), "EntropyTarget.target"),
        (lambda: EntropyTarget(target=0.2, rate=-1.0), "EntropyTarget.rate"),
        (lambda: EntropyTarget(target=0.2, maximum=math.inf), "EntropyTarget.maximum"),
        (lambda: EntropyTarget(target=True), "EntropyTarget.target"),
        (lambda: EntropyTarget(target=0.2)(0.0, math.nan), "measured"),
        (lambda: EntropyTarget(target=0.2).bonus(0.0, math.nan), "measured"),
        (lambda: KLTarget(target=-1.0), "KLTarget.target"),
        (lambda: KLTarget(target=1.0, horizon=0), "KLTarget.horizon"),
        (lambda: KLTarget(target=1.0)(0.1, math.inf, 1), "measured"),
        (lambda: KLTarget(target=1.0, horizon=10)(0.1, 1.0, 11), "horizon"),
    ],
)
def test_refusals(make, field):
    with pytest.raises(SettingsError, match=field):
        make()
