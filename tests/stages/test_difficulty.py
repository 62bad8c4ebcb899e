"""How hard problems are: planted rates are found, written down, and chosen by; killed, resumed, refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from parrot import WORDS, Parrot, checkpoint
from stage_runs import NO_SAMPLING, check_deaths, check_same, go, lines, run_alone

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem, Score, TokenIds, Verdict
from longthought.rollout.filters import NoMarkup, Screen
from longthought.rollout.scripted import ScriptedSampler
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.stages.difficulty import MeasureDifficulty, PromptSet, described, ratings_of
from longthought.stages.rejection_sampling import RejectionSampling
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

RENDERER = PlainRenderer(Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END)))
(STOP,) = RENDERER.stop_tokens
STAGE = MeasureDifficulty(Parrot(), prompts=3, samples=4, max_tokens=3, prompts_per_round=1, quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("base") / "model")


def said(*words: str, ended: bool = True) -> TokenIds:
    return (*RENDERER.tokenizer.encode(" ".join(words)), *((STOP,) if ended else ()))


def planted() -> ScriptedSampler:
    """Red is said never, blue twice in four (once cut), green always."""
    wrong, cut = said("blue"), said("blue", "blue", "blue", ended=False)
    replies = {"red": [wrong] * 4, "blue": [said("blue"), cut, said("red"), said("red")], "green": [said("green")] * 4}
    return ScriptedSampler({RENDERER.prompt([Message("user", word)]): script for word, script in replies.items()})


def measured(path: Path, base: Checkpoint, stage: MeasureDifficulty = STAGE) -> PromptSet:
    with Place(path) as place:
        return stage.write(stage.measure(planted(), RENDERER, place), base, place)


def test_planted_rates_are_found_and_written_down(tmp_path: Path, base: Checkpoint) -> None:
    made = measured(tmp_path, base)
    assert [(one.problem.answer, one.right, one.cut, one.rate) for one in made.ratings()] == [
        ("red", 0, 0, 0.0),
        ("blue", 2, 1, 0.5),
        ("green", 4, 0, 1.0),
    ]
    assert lines(made.path / "prompts.jsonl")[1] == {
        "problem": "train/1", "messages": [{"role": "user", "content": "blue"}], "answer": "blue", "info": {},
        "sampled": 4, "right": 2, "cut": 1, "ungraded": 0,
    }  # fmt: skip
    report = made.report()
    assert (report["prompts"], report["sampled"], report["right"], report["cut"], report["unrated"]) == (3, 12, 6, 1, 0)
    assert [name for name, count in report["pass_rates"].items() if count] == ["never", "up to 50%", "always"]
    assert (made.path / "report.txt").read_text(encoding="utf-8").rstrip("\n") == described(report)
    assert made.provenance()["from"] == base.fingerprints()


def test_a_task_asks_what_lies_within(tmp_path: Path, base: Checkpoint) -> None:
    made = measured(tmp_path, base)
    assert {made.task(ends="neither").problem("train", index).answer for index in range(5)} == {"blue"}
    assert {made.task(high=0.5).problem("train", index).answer for index in range(5)} == {"red", "blue"}
    assert [made.task(order="hard").problem("train", index).answer for index in range(4)] == [*WORDS, "red"]
    problem = made.task(low=1.0).problem("train", 0)
    assert problem == Parrot().problem("train", 2)
    assert made.task().grade(problem, ["green", "red"]) == Parrot().grade(problem, ["green", "red"])


def test_an_empty_choice_is_refused_with_the_histogram(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(DataError, match=r"none of 3 problems has a pass rate from 0.6 to 0.9(.|\n)*never +1 █"):
        measured(tmp_path, base).task(0.6, 0.9)


def test_what_cannot_be_graded_has_no_rate(tmp_path: Path, base: Checkpoint) -> None:
    @dataclass(frozen=True)
    class Silent(Parrot):
        def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
            if problem.answer != "green":
                return super().grade(problem, replies)
            return [Score(None, False, {}, Verdict(None, Outcome.CRASHED))] * len(replies)

    made = measured(tmp_path, base, replace(STAGE, task=Silent()))
    assert made.report()["unrated"] == 1
    assert sum(made.report()["pass_rates"].values()) == 2
    assert {made.task().problem("train", index).answer for index in range(4)} == {"red", "blue"}
    assert "1 prompts of which no reply was graded" in (made.path / "report.txt").read_text(encoding="utf-8")


def test_evaluations_are_not_for_training(tmp_path: Path, base: Checkpoint) -> None:
    made = measured(tmp_path, base, replace(STAGE, split="dev"))
    assert len(made.ratings()) == 3
    with pytest.raises(DataError, match="dev split: evaluations are not for training"):
        made.task()


def test_another_task_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(DataError, match="problems of parrot, not of crow"):
        PromptSet(measured(tmp_path, base).path, Parrot(name="crow")).task()


def test_an_altered_set_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    made = measured(tmp_path, base)
    file = made.path / "prompts.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"right": 0', '"right": 3'), encoding="utf-8")
    with pytest.raises(DataError, match="altered"):
        made.task()


@pytest.mark.parametrize("line", ["{", "[]", '{"problem": "a"}', "\x00", '{"right": true}', "[" * 5000])
def test_lines_that_are_no_rated_problem_are_refused(tmp_path: Path, base: Checkpoint, line: str) -> None:
    made = measured(tmp_path, base)
    (made.path / "provenance.json").write_text('{"task": "parrot", "split": "train", "files": {}}', encoding="utf-8")
    (made.path / "prompts.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 1"):
        made.task()


def test_a_rejection_sampling_tells_the_same_at_no_cost(tmp_path: Path, base: Checkpoint) -> None:
    common = {"samples": 64, "max_tokens": 4, "seed": 5, "quiet": True}
    rejection = RejectionSampling(Parrot(), 3, screen=Screen((NoMarkup(),)), similarity=1.0, **common)  # type: ignore[arg-type]
    difficulty = MeasureDifficulty(Parrot(), 3, **common)  # type: ignore[arg-type]
    with Place(tmp_path / "a") as a, Place(tmp_path / "b") as b:
        sampled, measured_ = rejection.run(base, a), difficulty.run(base, b)
    found = ratings_of(sampled, Parrot())
    assert [(one.problem, one.sampled, one.right) for one in found] == [
        (one.problem, one.sampled, one.right) for one in measured_.ratings()
    ]
    assert sum(one.right for one in found) > 0
    with pytest.raises(DataError, match="does not ask 'train/0' now"):
        ratings_of(sampled, Other())


@dataclass(frozen=True)
class Other(Parrot):
    """The same with other names."""

    def problem(self, split: str, index: int) -> Problem:
        return replace(super().problem(split, index), id=f"other/{index}")


# --- runs


def test_killed_at_every_round_it_ends_with_the_same_bytes(tmp_path: Path, base: Checkpoint) -> None:
    assert check_deaths(tmp_path, base, STAGE, dies_at=2, times=2) == (2, 1)  # what was whole is not sampled again


def test_rounds_and_workers_change_nothing(tmp_path: Path, base: Checkpoint) -> None:
    whole = go(tmp_path / "whole", base, STAGE)
    for number, changed in enumerate((replace(STAGE, prompts_per_round=2), replace(STAGE, workers=2))):
        check_same(whole, go(tmp_path / str(number), base, changed), "prompts.jsonl", "report.json")


@pytest.mark.parametrize("wrong", [*NO_SAMPLING, {"split": "all"}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="difficulty"):
        MeasureDifficulty(Parrot(), **wrong)


def test_a_reply_must_fit_into_the_context(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(SettingsError, match="context of 32"):
        run_alone(replace(STAGE, max_tokens=32), base, tmp_path)
