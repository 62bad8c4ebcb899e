"""Estimators against tables and brute force, intervals against published values."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.algorithms.statistics import (
    best_of_k,
    cluster_bootstrap,
    g_pass_at_k,
    majority_at_k,
    mean_interval,
    pass_at_k,
    wilson,
)
from longthought.core.errors import SettingsError


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (10, 3, 1, 0.3),
        (10, 3, 2, 0.5333333333),
        (10, 3, 5, 0.9166666667),
        (10, 1, 10, 1.0),
        (64, 1, 8, 0.125),
        (100, 5, 10, 0.4162476331),
        (200, 3, 100, 0.8768844221),
        (256, 2, 64, 0.4382352941),
        (5, 0, 3, 0.0),
        (4, 4, 2, 1.0),
    ],
)
def test_pass_at_k_table(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-9)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_is_the_binomial_ratio(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))), abs=1e-12)
    assert g_pass_at_k(n, c, k, 1e-6) == pytest.approx(pass_at_k(n, c, k), abs=1e-12)
    assert g_pass_at_k(n, c, k, 1.0) == pytest.approx(math.comb(c, k) / math.comb(n, k), abs=1e-12)


@pytest.mark.parametrize("q", [Fraction(1, 10), Fraction(1, 2), Fraction(7, 9)])
def test_pass_at_k_is_unbiased(q):
    """E over c ~ Bin(n, q) is 1 - (1-q)^k, exactly."""
    for n in range(1, 9):
        chances = [math.comb(n, c) * q**c * (1 - q) ** (n - c) for c in range(n + 1)]
        for k in range(1, n + 1):
            mean = sum(float(chance) * pass_at_k(n, c, k) for c, chance in enumerate(chances))
            assert mean == pytest.approx(float(1 - (1 - q) ** k), abs=1e-12)


@pytest.mark.parametrize(("tau", "value"), [(0.5, 0.880952), (0.75, 0.452381), (1.0, 0.071429)])
def test_g_pass_table(tau, value):
    assert g_pass_at_k(10, 6, 4, tau) == pytest.approx(value, abs=1e-6)


def test_g_pass_threshold_is_not_fooled_by_floats():
    assert 0.55 * 100 > 55
    assert g_pass_at_k(100, 55, 100, 0.55) == 1.0
    assert g_pass_at_k(100, 54, 100, 0.55) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 2, 0)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(SettingsError):
        pass_at_k(n, c, k)
    with pytest.raises(SettingsError):
        g_pass_at_k(n, c, k, 0.5)


@pytest.mark.parametrize("tau", [0.0, 1.1, math.nan])
def test_g_pass_refuses(tau):
    with pytest.raises(SettingsError, match="tau"):
        g_pass_at_k(5, 2, 2, tau)


def test_best_of_k_table():
    scores, correct = [0.9, 0.8, 0.7, 0.2, 0.1], [False, True, True, False, True]
    assert [best_of_k(scores, correct, k) for k in range(1, 6)] == pytest.approx([0.6, 0.5, 0.4, 0.2, 0.0])


def brute_best(scores, correct, k):
    total = Fraction(0)
    subsets = list(itertools.combinations(range(len(scores)), k))
    for subset in subsets:
        top = max(scores[i] for i in subset)
        tied = [correct[i] for i in subset if scores[i] == top]
        total += Fraction(sum(tied), len(tied))
    return float(total / len(subsets))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8), st.data())
def test_best_of_k_brute_force(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    scores, correct = [float(s) for s, _ in samples], [c for _, c in samples]
    assert best_of_k(scores, correct, k) == pytest.approx(brute_best(scores, correct, k), abs=1e-12)


def test_best_of_k_refuses():
    for scores, correct, k in (([1.0], [True, False], 1), ([1.0], [True], 2), ([math.nan], [True], 1)):
        with pytest.raises(SettingsError):
            best_of_k(scores, correct, k)


def test_majority_at_k_table():
    answers = ["c"] * 4 + ["a"] * 3 + ["b"] * 2 + [None]
    correct = [answer == "c" for answer in answers]
    found = [majority_at_k(answers, correct, k) for k in (1, 2, 3, 5, 7, 10)]
    assert found == pytest.approx([2 / 5, 4 / 9, 29 / 60, 47 / 84, 2 / 3, 1])


def brute_majority(answers, right, k):
    total = Fraction(0)
    subsets = list(itertools.combinations(answers, k))
    for subset in subsets:
        votes = Counter(answer for answer in subset if answer is not None)
        if votes:
            most = max(votes.values())
            tied = [answer in right for answer, count in votes.items() if count == most]
            total += Fraction(sum(tied), len(tied))
    return float(total / len(subsets))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from("abcd")), min_size=1, max_size=9),
    st.sets(st.sampled_from("abcd")),
    st.data(),
)
def test_majority_at_k_brute_force(answers, right, data):
    k = data.draw(st.integers(1, len(answers)))
    correct = [answer in right for answer in answers]
    assert majority_at_k(answers, correct, k) == pytest.approx(brute_majority(answers, right, k), abs=1e-12)


def test_majority_at_k_grades_answers_not_samples():
    assert majority_at_k(["a", "a", "b"], [True, False, False], 3) == 1.0
    assert majority_at_k([None, None], [True, True], 1) == 0.0


def test_majority_at_k_of_many_samples():
    answers = [str(i % 20) for i in range(64)]
    assert 0.0 < majority_at_k(answers, [answer == "0" for answer in answers], 32) < 1.0


def test_majority_at_k_refuses():
    for answers, correct, k in ((["a"], [], 1), (["a"], [True], 2), ([], [], 1)):
        with pytest.raises(SettingsError):
            majority_at_k(answers, correct, k)


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(15, 0.332, 0.668), (17, 0.392, 0.726), (3, 0.035, 0.256), (5, 0.073, 0.336)]
)
def test_wilson_table(successes, low, high):
    assert wilson(successes, 30) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 1000), st.data())
def test_wilson_properties(n, data):
    s = data.draw(st.integers(0, n))
    low, high = wilson(s, n)
    assert 0.0 <= low <= s / n <= high <= 1.0
    assert high - low < 1.0
    mirrored = wilson(n - s, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    wide = wilson(s, n, level=0.99)
    assert wide[0] <= low
    assert high <= wide[1]


@pytest.mark.parametrize(("successes", "n", "level"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(successes, n, level):
    with pytest.raises(SettingsError):
        wilson(successes, n, level)


def test_mean_interval_by_hand():
    """Problem means 0, ½, 1: std ½, se ½/√3. Samples of a problem are not independent draws."""
    low, high = mean_interval([[0, 0], [1, 0], [1, 1]])
    half = 1.959964 * 0.5 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    repeated = mean_interval([[0] * 50, [1, 0] * 25, [1] * 50])
    assert repeated == pytest.approx((low, high))


def test_mean_interval_covers():
    """Nominal 95 % on 40 clustered problems: between 92 and 97 of 100 in a long run; the seed is fixed."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        rates = generator.beta(1, 1, size=(40, 1))
        low, high = mean_interval((generator.random((40, 8)) < rates).astype(float))
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / 1000 <= 0.97


def test_bootstrap_is_deterministic_and_agrees_with_the_normal():
    values = np.random.default_rng(1).random((60, 4))
    first, again = cluster_bootstrap(values), cluster_bootstrap(values)
    assert first == again
    assert cluster_bootstrap(values, seed=1) != first
    assert first == pytest.approx(mean_interval(values), abs=0.02)


def test_bootstrap_keeps_the_samples_of_a_problem_together():
    values = [[0.0] * 100, [1.0] * 100]
    assert cluster_bootstrap(values) == (0.0, 1.0)
    assert cluster_bootstrap([[0.5, 0.5], [0.5, 0.5]]) == (0.5, 0.5)


def test_bootstrap_of_another_statistic():
    values = [[0, 1], [1, 1], [0, 0], [0, 1]]
    low, high = cluster_bootstrap(values, lambda table: float(table.max(axis=1).mean()))
    assert 0.0 <= low < 0.75 < high <= 1.0


@pytest.mark.parametrize("values", [[[1.0]], [], [[1.0, 0.0], [1.0]], [[math.nan], [1.0]], [1.0, 2.0], [[], []]])
def test_intervals_refuse(values):
    with pytest.raises(SettingsError):
        mean_interval(values)
    with pytest.raises(SettingsError):
        cluster_bootstrap(values)


def test_bootstrap_refuses():
    with pytest.raises(SettingsError, match="resamples"):
        cluster_bootstrap([[1.0], [0.0]], resamples=5)
    with pytest.raises(SettingsError, match="level"):
        cluster_bootstrap([[1.0], [0.0]], level=95)
