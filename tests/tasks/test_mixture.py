from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem, Score, Verdict
from longthought.tasks.arithmetic import Arithmetic
from longthought.tasks.countdown import Countdown
from longthought.tasks.mixture import Mixture


@dataclass(frozen=True)
class Numbered:
    """Problem ``index`` is called ``index``; its own grade shows which problem the task was given."""

    name: str

    def problem(self, split: str, index: int) -> Problem:
        return Problem(f"{split}-{index}", (Message("user", f"{self.name} {index}"),), self.name)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        evidence = f"{self.name} graded {problem.id}"
        return [Score(1.0, True, {}, Verdict(1.0, Outcome.GRADED, f"{evidence}: {reply}")) for reply in replies]


class Together(Numbered):
    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        return [
            [Score(0.5, False, {}, Verdict(0.5, Outcome.GRADED, f"{len(groups)} at once"))] * len(replies)
            for _, replies in groups
        ]


def mixture(*weights: float, seed: int = 0) -> Mixture:
    return Mixture(tuple((Numbered(f"t{number}"), weight) for number, weight in enumerate(weights)), seed)


WEIGHTS = st.lists(st.one_of(st.integers(1, 40), st.sampled_from((0.5, 0.1, 0.25, 2.5))), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(0, 3))
def test_every_prefix_keeps_the_shares_and_no_part_has_a_gap(weights: list[float], seed: int) -> None:
    task = mixture(*weights, seed=seed)
    counts = [0] * len(weights)
    for index in range(200):
        part, own = task.draw(index)
        assert own == counts[part]
        counts[part] += 1
        shares = [weight / sum(weights) * (index + 1) for weight in weights]
        assert all(abs(count - share) < 1 for count, share in zip(counts, shares))


def test_a_far_index_continues_the_counts() -> None:
    task = mixture(0.7, 0.2, 0.1)
    assert task.draw(10**15) == (task.draw(0)[0], [7, 2, 1][task.draw(0)[0]] * 10**14)


def test_order_by_hand() -> None:
    """Shares 2/3 and 1/3, bound 1/2: after one draw part 0 must have 1 (0 would be 2/3 behind), and so on."""
    assert [mixture(2, 1).draw(index) for index in range(6)] == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]


def test_shares_that_need_a_longer_period_are_rounded_and_never_vanish() -> None:
    task = mixture(1.0, 1e-12)
    drawn = [task.draw(index)[0] for index in range(70_000)]
    assert 1 <= sum(drawn) <= 2


def test_problems_are_those_of_the_parts_under_the_parts_name() -> None:
    task = mixture(1, 1)
    problems = [task.problem("train", index) for index in range(4)]
    assert sorted(p.id for p in problems) == ["t0/train-0", "t0/train-1", "t1/train-0", "t1/train-1"]
    assert task.name == "t0+t1"


def test_each_part_grades_its_own_problems_as_it_stated_them() -> None:
    task = mixture(1, 1)
    for index in range(4):
        problem = task.problem("dev", index)
        name, own = problem.id.split("/")
        assert task.grade(problem, ["a", "b"])[1].verdict.evidence == f"{name} graded {own}: b"


def test_grading_together_keeps_the_order() -> None:
    task = Mixture(((Numbered("one"), 1), (Together("many"), 2)))
    problems = [task.problem("train", index) for index in range(6)]
    scores = task.grade_together([(problem, ["x"] * number) for number, problem in enumerate(problems)])
    assert [len(row) for row in scores] == list(range(6))
    for problem, row in zip(problems, scores):
        own = problem.id.partition("/")[2]
        expected = "4 at once" if problem.answer == "many" else f"one graded {own}: x"
        assert all(score.verdict.evidence == expected for score in row)


def test_mixtures_of_mixtures() -> None:
    inner = Mixture(((Arithmetic(), 1), (Countdown(), 1)))
    task = Mixture(((inner, 1), (Countdown.level(1), 1)))
    for index in range(8):
        problem = task.problem("train", index)
        assert task.grade(problem, ["no"])[0].value == 0.0
        assert problem.id.startswith(("arithmetic+countdown/", "countdown/countdown/"))


def test_parts_of_one_name_are_numbered() -> None:
    task = Mixture(((Countdown.level(1), 1), (Countdown.level(2), 1)))
    assert task.names == ("countdown", "countdown-2")
    assert {task.problem("train", index).id.split("/")[0] for index in range(2)} == set(task.names)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_weights(weight: float) -> None:
    with pytest.raises(SettingsError, match="weight of t1"):
        mixture(1.0, weight)


def test_refuses_what_cannot_be_told_apart() -> None:
    with pytest.raises(SettingsError, match="no parts"):
        Mixture(())
    with pytest.raises(SettingsError, match="given twice"):
        Mixture(((Countdown(), 1), (Countdown(), 2)))
    with pytest.raises(SettingsError, match="holds a /"):
        Mixture(((Numbered("a/b"), 1),))
    with pytest.raises(SettingsError, match="not different"):
        Mixture(((Numbered("a"), 1), (Numbered("a-2"), 1), (Together("a"), 1)))


def test_refuses_foreign_problems_and_negative_indices() -> None:
    with pytest.raises(DataError, match="none of the parts"):
        mixture(1).grade(Problem("else/1", (), ""), ["x"])
    with pytest.raises(DataError, match="counted from 0"):
        mixture(1).problem("train", -1)
