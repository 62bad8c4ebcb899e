"""Shaped rewards: published tables, ends, and the mistakes that were made elsewhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.algorithms.shaping import (
    cosine_reward,
    length_reward,
    overlong_penalty,
    repetition_penalties,
    repetition_penalty,
    target_length_penalty,
)
from longthought.core.errors import SettingsError

LENGTHS = [100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("correct", "expected"),
    [((1, 1, 0, 0, 1), [0.5, 0.25, 0, -0.25, -0.5]), ((0, 0, 1, 1, 0), [0, 0, 0, -0.25, -0.5])],
)
def test_length_reward_by_hand(correct, expected):
    assert length_reward(LENGTHS, [bool(c) for c in correct]) == pytest.approx(expected)


def test_length_reward_of_equal_lengths_and_of_nobody():
    assert length_reward([7, 7], [True, False]) == [0.0, 0.0]
    assert length_reward([], []) == []
    with pytest.raises(SettingsError, match="3 lengths, but 1"):
        length_reward([1, 2, 3], [True])


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=1, max_size=16), st.integers(1, 9))
def test_length_reward_properties(replies, scale):
    lengths, correct = [n for n, _ in replies], [c for _, c in replies]
    rewards = length_reward(lengths, correct)
    assert all(-0.5 <= reward <= 0.5 for reward in rewards)
    assert all(reward <= 0 for reward, right in zip(rewards, correct, strict=True) if not right)
    assert rewards == pytest.approx(length_reward([scale * n + 11 for n in lengths], correct))
    if len(set(lengths)) > 1:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        assert rewards[longest] == -0.5
        assert rewards[shortest] == (0.5 if correct[shortest] else 0.0)


@pytest.mark.parametrize(
    ("length", "value"),
    [(0, 1.0), (250, 0.926777), (500, 0.75), (750, 0.573223), (1000, 0.5), (1500, 0.5), (2000, 0.5)],
)
def test_cosine_table(length, value):
    """Beyond the maximum a bare cosine turns up again: 1500 → .75, 2000 → 1."""
    assert cosine_reward(length, True) == pytest.approx(value, abs=1e-6)
    assert cosine_reward(length, False) == pytest.approx(-value, abs=1e-6)


@pytest.mark.parametrize(("length", "value"), [(22, 0.943), (80, 0.5477)])
def test_cosine_of_open_r1(length, value):
    assert cosine_reward(length, True, maximum=100) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (0, 2.0, -10.0),
        (3584, 1.853553, -8.535534),
        (7168, 1.5, -5.0),
        (10752, 1.146447, -1.464466),
        (14319, 1.000003, -0.000035),
        (14320, -10.0, -10.0),
        (20000, -10.0, -10.0),
    ],
)
def test_cosine_of_demystify(length, right, wrong):
    """Limit 14336 with a margin of 16: from 14320 on the reply counts as cut."""
    for correct, value in ((True, right), (False, wrong)):
        found = cosine_reward(length, correct, 14336, right=(2.0, 1.0), wrong=(-10.0, 0.0), exceed=(14320, -10.0))
        assert found == pytest.approx(value, abs=1e-6)


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 5000))
def test_cosine_is_monotone(maximum, a, b):
    short, long = sorted((a, b))
    assert cosine_reward(short, True, maximum) >= cosine_reward(long, True, maximum)
    assert cosine_reward(short, False, maximum) <= cosine_reward(long, False, maximum)


@pytest.mark.parametrize(("length", "maximum"), [(-1, 10), (5, 0)])
def test_cosine_refuses(length, maximum):
    with pytest.raises(SettingsError, match="cosine_reward"):
        cosine_reward(length, True, maximum)


@pytest.mark.parametrize(
    ("n", "penalty", "text", "value"),
    [
        (2, -1.0, "this this this this this", -0.75),
        (2, -1.0, "this is a this is a test", -1 / 3),
        (3, -0.5, "test test test test", -0.25),
        (3, -2.0, "this is a this is a test", -0.4),
        (3, -1.0, "word word word word", -0.5),
        (3, -1.0, "A B C A B C", -0.25),
        (3, -1.0, "A B C A B C E F G A B C A B C", -0.384615),
        (3, -1.0, "too short", 0.0),
        (1, -1.0, "", 0.0),
    ],
)
def test_repetition_of_open_r1(n, penalty, text, value):
    assert repetition_penalty(text.split(), n, penalty) == pytest.approx(value, abs=1e-6)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_properties(ids, n):
    value = repetition_penalty(ids, n, -1.0)
    assert -1.0 < value <= 0.0
    assert repetition_penalty(list(range(len(ids))), n, -1.0) == 0.0


@pytest.mark.parametrize(("n", "penalty"), [(0, -1.0), (3, 0.5), (3, math.nan), (3, -math.inf)])
def test_repetition_refuses(n, penalty):
    with pytest.raises(SettingsError, match="repetition_penalty"):
        repetition_penalty([1, 2, 3], n, penalty)


@pytest.mark.parametrize(
    ("n", "text", "penalised"),
    [
        (2, "a b c a b d", "...xx."),  # the first occurrence is free
        (2, "a a a a", ".xxx"),  # overlapping repeats do not add up
        (3, "a b c a b c a", "...xxxx"),
        (1, "a b a", "..x"),
        (4, "a b a", "..."),
        (2, "", ""),
    ],
)
def test_dense_repetition_by_hand(n, text, penalised):
    expected = [-0.05 if mark == "x" else 0.0 for mark in penalised]
    assert repetition_penalties(text.split(), n, -0.05) == expected


@given(st.lists(st.integers(0, 2), max_size=25), st.integers(1, 4))
def test_dense_repetition_is_membership_in_a_later_copy(ids, n):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    copies = [i for i, gram in enumerate(grams) if gram in grams[:i]]
    expected = [-1.0 if any(i <= t < i + n for i in copies) else 0.0 for t in range(len(ids))]
    assert repetition_penalties(ids, n, -1.0) == expected
    assert (repetition_penalty(ids, n, -1.0) == 0.0) == (not copies)


def test_dense_repetition_refuses():
    for n, penalty in ((0, -1.0), (2, 0.1), (2, math.nan)):
        with pytest.raises(SettingsError, match="repetition_penalties"):
            repetition_penalties([1, 2], n, penalty)


def test_target_length():
    assert [target_length_penalty(length, 100, 0.01) for length in (80, 100, 130)] == pytest.approx([-0.2, 0.0, -0.3])
    for arguments in ((-1, 10, 1.0), (1, -10, 1.0), (1, 10, -1.0), (1, 10, math.nan)):
        with pytest.raises(SettingsError, match="target_length_penalty"):
            target_length_penalty(*arguments)


@pytest.mark.parametrize(("length", "value"), [(50, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (110, -1)])
def test_overlong(length, value):
    assert overlong_penalty(length, 100, 20) == pytest.approx(value)


def test_overlong_without_cache_is_a_step():
    assert [overlong_penalty(length, 100, 0) for length in (99, 100, 101)] == [0.0, 0.0, -1.0]
    for cache in (-1, 101):
        with pytest.raises(SettingsError, match="cache"):
            overlong_penalty(50, 100, cache)
