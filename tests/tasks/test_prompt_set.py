"""Rated problems, and the tasks that ask some of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import BatchTask
from longthought.core.types import Message, Problem, Score
from longthought.runs.describe import describe
from longthought.tasks.countdown import Countdown
from longthought.tasks.mixture import Mixture
from longthought.tasks.prompt_set import Chosen, Ends, Later, Rated, Ratings

TASK = Countdown(seed=3)
PROBLEMS = [TASK.problem("train", index) for index in range(11)]
TENTHS = Ratings([Rated(problem, 10, right) for right, problem in enumerate(PROBLEMS)])  # rates 0, 0.1, … 1


def rates(chosen: Ratings) -> list[float | None]:
    return [one.rate for one in chosen]


@pytest.mark.parametrize(
    ("low", "high", "ends", "expected"),
    [
        (0.0, 1.0, "both", 11),
        (0.0, 1.0, "neither", 9),
        (0.0, 1.0, "high", 10),
        (0.0, 1.0, "low", 10),
        (0.2, 0.8, "both", 7),
        (0.2, 0.8, "neither", 5),
        (0.5, 0.5, "both", 1),
        (0.3, 0.6, "low", 3),
    ],
)
def test_bounds_and_their_ends(low: float, high: float, ends: Ends, expected: int) -> None:
    assert len(TENTHS.between(low, high, ends)) == expected


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (-0.1, 1, "both"),
        (0, 1.1, "both"),
        (0.6, 0.5, "both"),
        (0.5, 0.5, "low"),
        (0, 1, "some"),
        (float("nan"), 1, "both"),
    ],
)
def test_bounds_that_hold_nothing_are_refused(low: float, high: float, ends: Ends) -> None:
    with pytest.raises(SettingsError, match="pass rates"):
        TENTHS.between(low, high, ends)


def test_what_was_not_graded_counts_on_neither_side() -> None:
    assert Rated(PROBLEMS[0], 10, 3, ungraded=4).rate == 0.5
    nothing = Rated(PROBLEMS[0], 10, 0, ungraded=10)
    assert nothing.rate is None
    assert not nothing.within(0, 1, "both")


@pytest.mark.parametrize("counts", [(4, 5), (4, -1), (4, 2, 5), (4, 2, 0, 3), (4, 0, -1), (4, 0, 0, -1)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot be"):
        Rated(PROBLEMS[0], *counts)


@given(st.integers(1, 11), st.integers(0, 5), st.integers(0, 99))
def test_every_epoch_asks_each_once(size: int, epoch: int, seed: int) -> None:
    task = Chosen(TASK, Ratings(list(TENTHS)[:size]), seed=seed)
    asked = [task.problem("train", epoch * size + place).id for place in range(size)]
    assert sorted(asked) == sorted(problem.id for problem in PROBLEMS[:size])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[str]:
        task = Chosen(TASK, TENTHS, seed=seed)
        return [task.problem("train", 11 * epoch + place).id for place in range(11)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_hard_ones_come_first_in_every_epoch() -> None:
    shuffled = Ratings([TENTHS[number] for number in (5, 2, 9, 0, 7, 1, 10, 3, 8, 6, 4)])
    task = Chosen(TASK, shuffled, "hard")
    assert [task.problem("train", place) for place in range(22)] == [*PROBLEMS, *PROBLEMS]
    same = Ratings([Rated(problem, 10, 5) for problem in PROBLEMS])
    orders = [[Chosen(TASK, same, "hard", seed).problem("train", i).id for i in range(11)] for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3


def test_evaluations_and_grades_are_those_of_the_task() -> None:
    for task in (Chosen(TASK, TENTHS), Later(TASK, 7)):
        assert task.problem("dev", 3) == TASK.problem("dev", 3)
        assert task.problem("test", 3) == TASK.problem("test", 3)
        problem = task.problem("train", 2)
        assert task.grade(problem, ["<think> a </think> <answer> 1 </answer>"]) == TASK.grade(
            problem, ["<think> a </think> <answer> 1 </answer>"]
        )
        with pytest.raises(DataError, match="counted from 0"):
            task.problem("train", -1)
        with pytest.raises(DataError):
            task.problem("valid", 0)


def test_a_mixture_of_them_asks_and_grades() -> None:
    both = Mixture(((Chosen(TASK, TENTHS), 1.0), (Later(Countdown.level(1), 5), 1.0)), seed=1)
    assert both.names == ("countdown", "countdown-2")
    reply = ["<think> a </think> <answer> 1 </answer>"]
    asked = [(both.problem("train", index), reply) for index in range(6)]
    assert both.grade_together(asked) == [both.grade(problem, reply) for problem, _ in asked]
    inside = Chosen(both, Ratings([Rated(problem, 2, 1) for problem, _ in asked]))
    assert inside.grade_together(asked) == both.grade_together(asked)


class Together(Countdown):
    """Grades many problems in one call."""

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        return [[] for _ in groups]


def test_a_task_that_grades_together_is_let() -> None:
    task = Chosen(Together(), TENTHS)
    assert isinstance(task, BatchTask)
    assert task.grade_together([(PROBLEMS[0], ["x"])]) == [[]]


def test_a_run_knows_another_choice_again() -> None:
    task, twin = Chosen(TASK, TENTHS), Chosen(TASK, Ratings(list(TENTHS)))
    assert task == twin
    assert describe(task) == describe(twin)
    assert describe(task) != describe(Chosen(TASK, TENTHS.between(0, 0.9)))
    other = Problem(PROBLEMS[0].id, (Message("user", "something else"),), PROBLEMS[0].answer, PROBLEMS[0].info)
    assert Ratings([Rated(other, 10, 0)]) != Ratings([Rated(PROBLEMS[0], 10, 0)])
    assert Ratings([Rated(Problem("\ud800", (), ""), 1, 1)]) == Ratings([Rated(Problem("\ud800", (), ""), 1, 1)])


def test_later_problems_are_other_ones() -> None:
    assert Later(TASK, 4).problem("train", 3) == TASK.problem("train", 7)
    assert Later(Later(TASK, 4), 2).problem("train", 0) == TASK.problem("train", 6)
    with pytest.raises(SettingsError):
        Later(TASK, -1)


def test_an_empty_or_unknown_choice_is_refused() -> None:
    with pytest.raises(DataError, match="no problem was chosen"):
        Chosen(TASK, Ratings([]))
    with pytest.raises(SettingsError, match="mixed or hard"):
        Chosen(TASK, TENTHS, "easy")  # type: ignore[arg-type]
