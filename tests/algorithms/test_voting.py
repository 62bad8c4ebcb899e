"""Votes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.algorithms.voting import aggregate, majority, weighted
from longthought.core.errors import SettingsError

ANSWERS = st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=12)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),
        ([None, None, None, "7"], "7"),
        ([None, None], None),
        ([], None),
        (["", "", "x"], ""),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_weighted():
    assert weighted(["a", "b", "b"], [0.9, 0.2, 0.3]) == "a"
    assert weighted(["a", "b", "b"], [0.4, 0.2, 0.3]) == "b"
    assert weighted([None, "b"], [9.0, 0.0]) == "b"
    assert weighted(["b", "a"], [0.0, 0.0]) == "b"


def test_a_tie_does_not_depend_on_float_addition():
    """.1 + .2 + .3 is above .3 + .2 + .1 in floats."""
    assert weighted(["x", "x", "x", "y", "y", "y"], [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]) == "x"


@given(ANSWERS)
def test_the_winner_is_seen_and_stays_with_one_more_vote(answers):
    winner = majority(answers)
    assert (winner is None) == all(answer is None for answer in answers)
    if winner is not None:
        assert answers.count(winner) == max(answers.count(answer) for answer in answers if answer is not None)
        assert majority([*answers, winner]) == winner
        assert majority([*answers, None]) == winner


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), min_size=1, max_size=10))
def test_scaling_all_scores_is_a_no_op(pairs):
    answers, scores = [a for a, _ in pairs], [float(s) for _, s in pairs]
    assert weighted(answers, scores) == weighted(answers, [4 * s for s in scores])


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_weighted_refuses(scores):
    with pytest.raises(SettingsError, match="score"):
        weighted(["a", "b"], scores)


@pytest.mark.parametrize(("how", "value"), [("last", 0.5), ("min", 0.2), ("prod", 0.08), ("mean", 0.5)])
def test_aggregate(how, value):
    assert aggregate([0.8, 0.2, 0.5], how) == pytest.approx(value)


def test_aggregate_refuses():
    with pytest.raises(SettingsError, match="no steps"):
        aggregate([], "min")
    with pytest.raises(SettingsError, match="'max'"):
        aggregate([1.0], "max")
