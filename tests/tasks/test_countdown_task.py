"""Countdown problems: solvable, disjoint, the same for the same arguments."""

from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Problem
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_search import solve
from longthought.verifiers.countdown import grade

SPLITS = ("train", "dev", "test")


def numbers_of(problem: Problem) -> list[int]:
    return [int(n) for n in problem.info["numbers"].split()]


def reply(answer: str) -> str:
    return f"<think> yes </think> <answer> {answer} </answer>"


@pytest.mark.parametrize("level", range(1, Countdown.levels + 1))
def test_every_problem_is_solved_by_its_task(level: int) -> None:
    task: Task = Countdown.level(level)
    assert isinstance(task, Countdown)
    for split, index in product(SPLITS, range(20 if level < 5 else 3)):
        problem = task.problem(split, index)
        numbers = numbers_of(problem)
        assert len(set(numbers)) == task.count
        assert set(numbers) <= set(range(1, task.largest + 1))
        assert 1 <= int(problem.answer) <= task.target
        assert task.split_of(numbers) == split
        solution = task.solve(numbers, int(problem.answer))
        assert solution is not None
        right, wrong = task.grade(problem, [reply(solution), reply("1 + 1")])
        assert (right.correct, right.value) == (True, pytest.approx(1.1))
        assert (wrong.correct, wrong.value) == (False, pytest.approx(0.1))


def test_wording() -> None:
    task = Countdown()
    english, chinese = task.problem("train", 0), task.problem("train", 1)
    assert english.messages[0].content == f"use {english.info['numbers']} make {english.answer}"
    assert chinese.messages[0].content == f"用 {chinese.info['numbers']} 得 {chinese.answer}"
    identity = "-".join(str(n) for n in sorted(numbers_of(english)))
    assert english.id == f"countdown/{identity}/{english.answer}/en"
    assert english.info["target"] == english.answer


def test_determinism() -> None:
    problems = [Countdown().problem("train", i) for i in range(50)]
    assert problems == [Countdown().problem("train", i) for i in reversed(range(50))][::-1]
    assert problems != [Countdown(seed=1).problem("train", i) for i in range(50)]
    assert problems[0] == Countdown().problem("train", 0)


def test_problem_is_the_same_in_every_process() -> None:
    """Runs are resumed elsewhere: a changed generator would silently change them."""
    assert Countdown(largest=10, target=60, intermediate=60).problem("test", 1).id == "countdown/6-8-10/8/zh"


def test_splits_are_disjoint_by_number_set_at_every_seed() -> None:
    sets = {
        split: {frozenset(numbers_of(Countdown(seed=seed).problem(split, i))) for seed in range(3) for i in range(300)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not sets[one] & sets[other]


def test_split_shares() -> None:
    task = Countdown()
    splits = [task.split_of(numbers) for numbers in combinations(range(1, 41), 3)]
    assert splits.count("dev") / len(splits) == pytest.approx(0.05, abs=0.01)
    assert splits.count("test") / len(splits) == pytest.approx(0.10, abs=0.01)
    assert task.split_of([9, 4, 3]) == task.split_of((3, 9, 4))


def by_hand(numbers: tuple[int, ...], task: Countdown) -> set[int]:
    """All chains of three numbers, one by one."""
    apply = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    found = set()
    for (a, b, c), (first, second) in product(permutations(numbers), product(task.operations, repeat=2)):
        middle = apply[first](a, b)
        if middle == int(middle) and 0 <= middle <= task.intermediate:
            end = apply[second](middle, c)
            if end == int(end) and 1 <= end <= task.target:
                found.add(int(end))
    return found


@pytest.mark.parametrize("task", [Countdown(3, 9, 40, 30), Countdown(3, 9, 200, 20, "+-*/")])
def test_reachable_is_what_exhaustive_search_finds(task: Countdown) -> None:
    for numbers in combinations(range(1, task.largest + 1), 3):
        reachable = task.reachable(numbers)
        assert set(reachable) == by_hand(numbers, task)
        for target, chain in reachable.items():
            assert grade(chain, numbers, target).value == 1.0


def test_size_counts_sets_with_their_targets() -> None:
    task = Countdown(largest=10, target=60, intermediate=60)
    sizes = [task.size(split) for split in SPLITS]
    assert sum(sizes) == 1457
    assert min(sizes) > 0


def test_solve_finds_what_no_chain_reaches() -> None:
    assert grade(Countdown(operations="+-*/").solve([8, 8, 3, 3], 24) or "", [8, 8, 3, 3], 24).value == 1.0
    assert grade(solve([1, 1, 2, 2, 3, 3], 0) or "", [1, 1, 2, 2, 3, 3], 0).value == 1.0
    assert grade(solve([5, 5, 7, 7], 0, "*-") or "", [5, 5, 7, 7], 0).value == 1.0
    assert grade(solve([2, 2, 3, 4], 0, "/-") or "", [2, 2, 3, 4], 0).value == 1.0
    assert grade(solve([1, 5, 7, 10, 25, 50], 943) or "", [1, 5, 7, 10, 25, 50], 943).value == 1.0
    assert solve([1, 1, 1], 4) is None
    assert solve([3, 3, 8, 8], 24, "+-*") is None
    assert solve([1, 1, 1, 1, 1, 1], 10) is None


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_solve_finds_any_value_that_exists(data: st.DataObject) -> None:
    """A random expression of four or five numbers with an integer value is matched by some solution."""
    numbers = data.draw(st.lists(st.integers(1, 12), min_size=4, max_size=5))
    operations = data.draw(st.lists(st.sampled_from("+-*"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    expression = str(numbers[0]) + "".join(f" {o} {n}" for o, n in zip(operations, numbers[1:], strict=True))
    target = eval(expression)
    solution = solve(numbers, target)
    assert solution is not None
    assert grade(solution, numbers, target).value == 1.0


def test_a_summary_where_the_form_allows_it() -> None:
    plain, summing_up = Countdown(), Countdown(form="summary")
    problem = plain.parse("use 9 4 3 make 33")
    assert problem == summing_up.parse("use 9 4 3 make 33")
    assert problem is not None
    texts = [
        "<think> yes </think> <answer> 9 * 4 - 3 </answer>",
        "<think> yes </think> 9 * 4 = 36 . 36 - 3 = 33 . <answer> 9 * 4 - 3 </answer>",
        "<think> yes </think> 9 * 4 = 36 .",
    ]
    assert [score.correct for score in plain.grade(problem, texts)] == [True, False, False]
    assert [score.correct for score in summing_up.grade(problem, texts)] == [True, True, False]


def test_foreign_problem_is_refused() -> None:
    with pytest.raises(DataError, match="other/1"):
        Countdown().grade(Problem("other/1", (), "7"), ["7"])


@pytest.mark.parametrize("numbers", [[], [0, 1], [1] * 7])
def test_solve_refuses_what_it_cannot_search(numbers: list[int]) -> None:
    with pytest.raises(DataError):
        solve(numbers, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 1},
        {"count": 7},
        {"largest": 2},
        {"target": 0},
        {"intermediate": 0},
        {"operations": ""},
        {"operations": "++"},
        {"operations": "+^"},
        {"languages": ()},
        {"languages": ("fr",)},
        {"format_weight": -1.0},
        {"format_weight": float("nan")},
        {"form": "free"},
    ],
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Countdown(**wrong)


def test_no_such_split_index_or_level() -> None:
    with pytest.raises(DataError, match="'validation'"):
        Countdown().problem("validation", 0)
    with pytest.raises(DataError, match="-1"):
        Countdown().problem("train", -1)
    with pytest.raises(SettingsError):
        Countdown.level(0)
    with pytest.raises(SettingsError):
        Countdown.level(7)


def test_a_split_without_problems_is_an_error_not_a_hang() -> None:
    task = Countdown(count=3, largest=3)  # one number set
    (only,) = {task.split_of([1, 2, 3])}
    with pytest.raises(DataError, match="too few"):
        task.problem(next(split for split in SPLITS if split != only), 0)
