"""What holds for all generated puzzles: solved by their solver, disjoint, the same everywhere, never fooled."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Problem
from longthought.tasks.arithmetic import Arithmetic
from longthought.tasks.chains import Chains
from longthought.tasks.circuits import Circuits
from longthought.tasks.knights import Knights
from longthought.tasks.paths import Mazes, Paths
from longthought.tasks.permutations import Permutations
from longthought.tasks.squares import Squares
from longthought.tasks.sudoku import Sudoku

SPLITS = ("train", "dev", "test")
NEW = (Squares, Permutations, Circuits, Knights, Paths, Mazes, Sudoku)
KINDS = (Arithmetic, Chains, *NEW)
LEVELS = [pytest.param(kind, level, id=f"{kind.__name__}-{level}") for kind in KINDS for level in range(1, 7)]
SLOW = {(Sudoku, 5): 40, (Sudoku, 6): 25}


def reply(answer: str) -> str:
    return f"<think> yes </think> <answer> {answer} </answer>"


def right(task: Any, problem: Problem, answer: str) -> bool:
    (score,) = task.grade(problem, [reply(answer)])
    assert score.value == pytest.approx(1.1 if score.correct else 0.1)
    return bool(score.correct)


@pytest.mark.parametrize(("kind", "level"), LEVELS)
def test_solver_and_stored_answer_are_right_and_hardly_any_other(kind: Any, level: int) -> None:
    task: Task = kind.level(level)
    problems = [task.problem("train", index) for index in range(SLOW.get((kind, level), 200))]
    for problem in problems:
        solution = kind.level(level).solve(problem)
        assert right(task, problem, solution)
        assert right(task, problem, problem.answer)
        assert not any(right(task, problem, f"{a}{b}") for a, b in ((solution, " 1"), ("? ", solution), ("", "")))
        assert not right(task, problem, f"{solution} or {solution}")
    commonest = Counter(problem.answer for problem in problems).most_common(1)[0][1]
    assert commonest / len(problems) < 0.25


@pytest.mark.parametrize("kind", NEW)
def test_an_answer_is_wrong_for_other_problems(kind: Any) -> None:
    task = kind.level(4)
    problems = [task.problem("train", index) for index in range(0, 60, 2)]
    answers = [problem.answer for problem in problems]
    for problem, other in zip(problems, answers[1:] + answers[:1], strict=True):
        assert right(task, problem, other) == (other == problem.answer)


@pytest.mark.parametrize("kind", NEW)
def test_splits_are_disjoint_over_seeds_and_levels(kind: Any) -> None:
    """By prompt: every prompt states its problem in full. (By canonical content: the tests of each task.)"""
    tasks = [replace(kind.level(level), seed=seed) for level in (1, 2) for seed in range(3)]
    prompts = {
        split: {task.problem(split, i).messages[0].content for task in tasks for i in range(12)} for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


@pytest.mark.parametrize("kind", NEW)
def test_every_level_has_problems_in_every_split(kind: Any) -> None:
    for level, split in product(range(1, 7), SPLITS):
        task = kind.level(level)
        problem = task.problem(split, 3)
        assert problem == kind(**vars(task)).problem(split, 3)
        assert problem != replace(task, seed=1).problem(split, 3)
        assert problem.id.startswith(f"{task.name}/")
        assert all(isinstance(value, str) for value in problem.info.values())


@pytest.mark.parametrize("kind", NEW)
def test_languages_alternate(kind: Any) -> None:
    both = [kind().problem("train", i) for i in range(4)]
    assert [problem.info["language"] for problem in both] == ["en", "zh", "en", "zh"]
    assert kind(languages=("zh",)).problem("train", 0).info["language"] == "zh"
    for problem in both:
        is_chinese = any("一" <= letter <= "鿿" for letter in problem.messages[0].content)
        assert is_chinese == (problem.info["language"] == "zh")


GOLDEN = {
    "squares": "squares/14/159/211/4/zh -> 204",
    "permutations": "permutations/41523,15324,15243/right/1.2.3.4.5/zh -> 5 1 4 3 2",
    "circuits": "circuits/8a26d1fb54520dc7/zh -> 01100",
    "knights": "knights/a0d8510965e4da04/zh -> 小兰：无赖，小春：骑士，小刚：骑士，小梅：骑士",
    "paths": "paths/dab9704272a6d942/FB/zh -> F A G C B",
    "mazes": "mazes/6x6/72a2d3aba146a2b5/zh -> D R R U R U U L",
    "sudoku": "sudoku/6/209fac69acbcb1f4/zh -> 4 6 2 1 3 5 / 5 1 3 2 4 6"
    " / 3 2 6 4 5 1 / 1 4 5 3 6 2 / 2 5 4 6 1 3 / 6 3 1 5 2 4",
}


@pytest.mark.parametrize("kind", NEW)
def test_problems_are_the_same_in_every_process(kind: Any) -> None:
    """Runs are resumed elsewhere: a changed generator would silently change them."""
    problem = kind.level(3).problem("test", 5)
    assert f"{problem.id} -> {problem.answer}" == GOLDEN[kind().name]


HOSTILE = [
    "",
    " ",
    "\x00",
    "1" * 1_000_000,
    "1 " * 500_000,
    "R " * 500_000,
    "Ann: knight, " * 100_000,
    "(" * 100_000,
    "[" * 1000 + "]" * 1000,
    "１２３",
    "٣ ٤",
    "²",
    "NaN",
    "1e9",
    "-" * 1000,
    "/" * 1000,
    ".".join("123456789"),
    "__import__('os').getcwd()",
    "\ud800",
    "A" + "->" * 900,
    "<answer> 1 </answer>",
]


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_answers_are_worth_nothing(kind: Any, text: str) -> None:
    for level in (1, 4):
        problem = kind.level(level).problem("train", 0)
        for answer in (reply(text), reply(f"{text} {problem.answer}"), reply(f"{problem.answer}\n{problem.answer}")):
            if text.strip() or problem.answer not in answer:
                (score,) = kind.level(level).grade(problem, [answer])
                assert not score.correct
                assert score.value in (0.0, 0.1)


@pytest.mark.parametrize("kind", NEW)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters() | st.sampled_from(" 0123456789URDLABCS./,:-"), max_size=60))
def test_grading_never_raises(kind: Any, text: str) -> None:
    task = kind()
    assert [score.value is None for score in task.grade(task.problem("train", 0), [text, reply(text)])] == [False] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_problems_and_settings_are_refused(kind: Any) -> None:
    foreign = Problem("other/1", (), "seven", {"gates": "?", "edges": "A", "statements": "is", "language": "en"})
    with pytest.raises(DataError, match="other/1"):
        kind().solve(foreign)
    with pytest.raises(DataError, match="other/1"):
        kind().grade(foreign, ["7"])
    with pytest.raises(DataError, match="nowhere"):
        kind().problem("nowhere", 0)
    for number in (0, 7):
        with pytest.raises(SettingsError, match="level"):
            kind.level(number)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Squares, {"steps": 0}),
        (Squares, {"steps": 30, "modulus": 91}),
        (Squares, {"modulus": 7}),
        (Permutations, {"count": 1}),
        (Permutations, {"size": 2}),
        (Permutations, {"asked": "cycle"}),
        (Circuits, {"width": 3}),
        (Circuits, {"depth": 0}),
        (Knights, {"people": 1}),
        (Knights, {"people": 9}),
        (Knights, {"forms": ()}),
        (Knights, {"forms": ("nor",)}),
        (Paths, {"nodes": 27}),
        (Paths, {"edges": 100}),
        (Paths, {"heaviest": 0}),
        (Paths, {"hops": 1}),
        (Mazes, {"rows": 2}),
        (Mazes, {"least": 0}),
        (Mazes, {"walls": float("nan")}),
        (Sudoku, {"size": 5}),
        (Sudoku, {"clues": 2}),
        *((kind, {"languages": ("fr",)}) for kind in NEW),
        *((kind, {"format_weight": -0.1}) for kind in NEW),
    ],
)
def test_settings_out_of_range(make: Callable[..., object], wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        make(**wrong)


def test_settings_without_problems_end_in_an_error() -> None:
    with pytest.raises(DataError, match="too few"):
        Knights(forms=("is",)).problem("train", 0)
