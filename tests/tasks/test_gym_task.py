"""reasoning-gym as tasks: the audit that refuses broken scorers is run again for a sample."""

import random
import sys
from itertools import combinations

import numpy as np
import pytest

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Outcome, Problem
from longthought.tasks import gym
from longthought.tasks.gym import PAYS_JUNK, REFUSED, GymTask, audit, digests, generators, refused

pytest.importorskip("reasoning_gym")

SAMPLE = (
    *("leg_counting", "chain_sum", "base_conversion", "bitwise_arithmetic", "number_sorting", "cryptarithm", "ab"),
    *("circuit_logic", "knights_knaves", "shortest_path", "mini_sudoku", "family_relationships", "pool_matrix"),
    *("puzzle24", "n_queens", "spiral_matrix", "string_insertion", "boxnet", "graph_color", "game_of_life_halting"),
    *("complex_arithmetic", "fraction_simplification", "letter_jumble", "coin_flip", "prime_factorization"),
)
SPLITS = ("train", "dev", "test")


def reply(answer: str) -> str:
    return f"<think> yes </think> <answer> {answer} </answer>"


@pytest.mark.parametrize("dataset", SAMPLE)
def test_the_audit_finds_what_the_list_says(dataset: str) -> None:
    found = audit(dataset, 12)
    assert (found.reason is None) == (refused(dataset) is None), found
    assert (found.junk > 0.1) <= (dataset in PAYS_JUNK or dataset in REFUSED), found
    if found.missing == 0:
        assert found.rejected == 0


def test_every_refused_generator_exists() -> None:
    assert set(REFUSED) | PAYS_JUNK <= set(generators())
    assert not set(REFUSED) & PAYS_JUNK
    assert len(generators()) > 100


def test_audit_tells_what_is_wrong() -> None:
    assert audit("spiral_matrix", 3).runs_code
    assert audit("rubiks_cube", 3).missing == 1.0
    assert audit("complex_arithmetic", 3).junk == 1.0
    assert audit("letter_jumble", 10).hedged >= 1.0
    assert audit("puzzle24", 5).foreign == 1.0
    assert "ValueError" in audit("prime_factorization", 3).raised
    assert audit("coin_flip", 40).is_guessed


@pytest.mark.slow
def test_problems_that_hang_on_the_process_are_found() -> None:
    names = ("ransom_note", "isomorphic_strings", "leg_counting", "pool_matrix")
    one, other = (digests(names, hash_seed, problems=10) for hash_seed in (1, 2))
    assert {name for name in names if one[name] != other[name]} == {"ransom_note", "isomorphic_strings"}
    assert one["leg_counting"] == audit("leg_counting", 10).digest


@pytest.mark.parametrize("dataset", ["leg_counting", "base_conversion", "shortest_path", "pool_matrix"])
def test_problems_and_grades(dataset: str) -> None:
    kind = GymTask(dataset)
    task: Task = kind
    for split in SPLITS:
        for index in range(8):
            problem = task.problem(split, index)
            assert problem == GymTask(dataset).problem(split, index)
            assert kind.solve(problem) == problem.answer
            good, bad, junk, bare = task.grade(
                problem, [reply(problem.answer), reply(problem.answer + " or 7"), reply("banana"), problem.answer]
            )
            assert (good.correct, good.value) == (True, pytest.approx(1.1))
            assert (bad.correct, bad.value) == (False, pytest.approx(0.1))
            assert (junk.correct, junk.value) == (False, pytest.approx(0.1))
            assert bare.value == 0.0
    assert GymTask(dataset, seed=1).problem("train", 0) != task.problem("train", 0)


def test_splits_are_disjoint_over_seeds_and_options() -> None:
    tasks = [GymTask("chain_sum", {"max_terms": most}, seed=seed) for most in (2, 3) for seed in (0, 1)]
    told = {split: {t.problem(split, i).messages[0].content for t in tasks for i in range(40)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not told[one] & told[other]


def test_a_problem_carries_what_its_grade_needs() -> None:
    hard = GymTask("leg_counting", {"min_animals": 8, "max_animals": 9})
    problem = hard.problem("train", 0)
    assert GymTask("leg_counting").grade(problem, [reply(problem.answer)])[0].correct


def test_partial_marks() -> None:
    problem = GymTask("base_conversion").problem("train", 0)
    answers = [reply(problem.answer + "0"), reply(problem.answer)]
    exact = GymTask("base_conversion").grade(problem, answers)
    partial = GymTask("base_conversion", exact=False).grade(problem, answers)
    assert [score.parts["accuracy"] for score in exact] == [0.0, 1.0]
    assert 0.0 < partial[0].parts["accuracy"] < 1.0
    assert partial[1].correct


@pytest.mark.parametrize("text", ["", "9" * 1_000_000, "[" * 19_000, "\x00", "\ud800", "nan", "__import__('os')"])
def test_hostile_answers(text: str) -> None:
    for dataset in ("leg_counting", "number_sorting", "cryptarithm", "sudoku", "decimal_arithmetic"):
        task = GymTask(dataset)
        (score,) = task.grade(task.problem("train", 0), [reply(text)])
        assert (score.correct, score.value) == (False, pytest.approx(0.1))


def test_a_scorer_that_raises_leaves_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    task = GymTask("leg_counting")
    problem = task.problem("train", 0)

    def broken(entry: object, answer: str) -> float:
        raise KeyError(answer)

    monkeypatch.setattr(gym._Entry, "score", broken)
    (score,) = task.grade(problem, [reply("1")])
    assert (score.value, score.verdict.outcome) == (None, Outcome.CRASHED)
    monkeypatch.setattr(gym._Entry, "score", lambda entry, answer: float("nan"))
    (score,) = task.grade(problem, [reply("1")])
    assert (score.value, score.verdict.outcome) == (None, Outcome.INVALID)


def test_other_randomness_and_the_terminal_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), float(np.random.rand())
    random.seed(5)
    np.random.seed(5)
    tasks = [GymTask(name) for name in ("pool_matrix", "tower_of_hanoi")]
    for task in tasks:
        for index in range(3):
            problem = task.problem("train", index)
            task.grade(problem, [reply("Move disk 1 from Peg 9 to Peg 2")])
    assert (random.random(), float(np.random.rand())) == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dataset": "puzzle24"}, "executes the reply"),
        ({"dataset": "no_such"}, "leg_counting"),
        ({"dataset": "knights_knaves", "exact": False}, "exact=True"),
        ({"dataset": "leg_counting", "options": {"seed": 1}}, "seed"),
        ({"dataset": "leg_counting", "options": {"legs": 1}}, "legs"),
        ({"dataset": "leg_counting", "options": {"min_animals": -1}}, "min_animals"),
        ({"dataset": "leg_counting", "options": {"min_animals": {1}}}, "plain values"),
        ({"dataset": "leg_counting", "format_weight": -1.0}, "format_weight"),
    ],
)
def test_settings_out_of_range(arguments: dict, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        GymTask(**arguments)


def test_foreign_problems_are_refused() -> None:
    with pytest.raises(DataError, match="other/1"):
        GymTask("leg_counting").grade(Problem("other/1", (), "7"), ["7"])
    with pytest.raises(DataError, match="validation"):
        GymTask("leg_counting").problem("validation", 0)


def test_without_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SettingsError, match=r"longthought\[tasks\]"):
        GymTask("leg_counting", seed=77, options={"max_animals": 7})
