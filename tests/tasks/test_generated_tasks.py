"""Arithmetic and modular chains: exact answers, disjoint splits, determinism."""

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Problem
from longthought.tasks.arithmetic import Arithmetic
from longthought.tasks.chains import Chains

SPLITS = ("train", "dev", "test")
TASKS = [kind.level(level) for kind in (Arithmetic, Chains) for level in range(1, kind.levels + 1)]


def reply(answer: object) -> str:
    return f"<think> yes </think> <answer> {answer} </answer>"


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_gold_answers_pass_and_others_fail(task: Arithmetic | Chains) -> None:
    for split, index in product(SPLITS, range(10)):
        problem = task.problem(split, index)
        assert problem == type(task)(**vars(task)).problem(split, index)
        gold = int(problem.answer)
        right, off, untagged = task.grade(problem, [reply(gold), reply(gold + 1), str(gold)])
        assert (right.correct, right.value) == (True, pytest.approx(1.1))
        assert (off.correct, off.value) == (False, pytest.approx(0.1))
        assert (untagged.correct, untagged.value) == (False, 0.0)


@pytest.mark.parametrize("level", range(1, Arithmetic.levels + 1))
def test_arithmetic_answers_are_the_values(level: int) -> None:
    task = Arithmetic.level(level)
    for index in range(30):
        problem = task.problem("train", index)
        expression = problem.info["expression"]
        assert eval(expression) == int(problem.answer)
        assert 0 <= int(problem.answer) <= task.bound
        assert problem.messages[0].content in (f"compute {expression}", f"求 {expression}")
        assert sum(word.isdigit() for word in expression.split()) == task.operands


@pytest.mark.parametrize("level", range(1, Chains.levels + 1))
def test_chain_answers_are_the_values(level: int) -> None:
    task = Chains.level(level)
    for index in range(30):
        problem = task.problem("train", index)
        first, *steps = problem.info["chain"].split(" ; ")
        x = int(first.removeprefix("x = "))
        for step in steps:
            _, _, _, _, factor, _, summand, _, modulus = step.split()
            x = (x * int(factor) + int(summand)) % int(modulus)
        assert x == int(problem.answer)
        assert len(steps) == task.steps
        assert problem.messages[0].content.endswith(problem.info["chain"])


def test_chain_by_hand() -> None:
    problem = Chains(steps=1, modulus=7).problem("train", 0)
    words = problem.info["chain"].split()
    start, factor, summand = int(words[2]), int(words[8]), int(words[10])
    assert int(problem.answer) == (start * factor + summand) % 7


def test_arithmetic_splits_ignore_the_order_of_operands() -> None:
    forms = {
        split: {Arithmetic(2, seed=seed).problem(split, i).info["canonical"] for seed in range(3) for i in range(200)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not forms[one] & forms[other]
    shown = {Arithmetic(2).problem("train", i).info["expression"] for i in range(2000)}
    swapped = {" ".join(reversed(e.split())) for e in shown if "-" not in e}
    held_out = {Arithmetic(2).problem("test", i).info["expression"] for i in range(300)}
    assert shown & swapped
    assert not held_out & (shown | swapped)


def test_chain_splits_are_disjoint_at_every_seed() -> None:
    chains = {
        split: {Chains(1, seed=seed).problem(split, i).info["chain"] for seed in range(3) for i in range(200)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not chains[one] & chains[other]


@pytest.mark.parametrize("kind", [Arithmetic, Chains])
def test_languages_alternate_and_seeds_differ(kind: type[Arithmetic] | type[Chains]) -> None:
    languages = [kind().problem("train", i).info["language"] for i in range(4)]
    assert languages == ["en", "zh", "en", "zh"]
    assert kind(seed=1).problem("train", 0) != kind(seed=2).problem("train", 0)
    with pytest.raises(SettingsError):
        kind.level(7)
    with pytest.raises(DataError):
        kind().problem("nowhere", 0)
    with pytest.raises(DataError, match="no integer"):
        kind().grade(Problem("x", (), "seven"), ["7"])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Arithmetic, {"operands": 1}),
        (Arithmetic, {"largest": 1}),
        (Arithmetic, {"bound": 5}),
        (Arithmetic, {"operations": "**"}),
        (Arithmetic, {"languages": ("xx",)}),
        (Chains, {"steps": 0}),
        (Chains, {"modulus": 2}),
        (Chains, {"format_weight": float("inf")}),
    ],
)
def test_settings_out_of_range(kind: type, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        kind(**wrong)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_grading_never_raises(text: str) -> None:
    task = Arithmetic()
    problem = task.problem("train", 0)
    for score in task.grade(problem, [text, reply(text)]):
        assert score.value is not None
