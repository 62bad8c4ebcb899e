"""Rejection sampling: who is kept, who is dropped and why, what is told of it; killed, resumed, dealt over workers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from parrot import Parrot, checkpoint
from stage_runs import NO_SAMPLING, check_deaths, check_same, check_sampled_once, go, lines, run_alone

from longthought.core.errors import DataError, RunMismatch, SettingsError
from longthought.core.types import Message, Outcome, Problem, TokenIds, Verdict
from longthought.evaluation.evaluate import distinct
from longthought.recipes.script import Script
from longthought.rollout.filters import Length, NoMarkup, Screen
from longthought.rollout.scripted import ScriptedSampler
from longthought.runs import traces
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.stages.example_set import ExampleSet, row
from longthought.stages.rejection_sampling import RejectionSampling
from longthought.stages.sft import SFT
from longthought.stages.sifting import Against, General, described, histogram
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import WORDS, vocabulary
from longthought.tasks.examples import Examples
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.training.learner import LearnerSettings
from longthought.verifiers.exact import Exact

TASK = Countdown()
RENDERER = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
(STOP,) = RENDERER.stop_tokens
PROMPTS = 6
PROBLEMS = distinct(TASK, "train", PROMPTS)
SAMPLES = 8
STAGE = RejectionSampling(TASK, PROMPTS, SAMPLES, prompts_per_round=2, quiet=True)


def said(text: str, ended: bool = True) -> TokenIds:
    return (*RENDERER.tokenizer.encode(text), *((STOP,) if ended else ()))


def script(problem: Problem) -> list[TokenIds]:
    """Three that say something right, of which one repeats another; and five bad ones."""
    found = TASK.solve([int(n) for n in problem.info["numbers"].split()], int(problem.answer))
    assert found is not None
    answer = f"<answer> {' '.join(found.replace('(', '( ').replace(')', ' )').split())} </answer>"
    own, other = (WORDS[problem.info["language"]], WORDS["zh" if problem.info["language"] == "en" else "en"])
    return [
        said(f"<think> {own.attempt} 1 + 1 = 2 {own.low} </think> {answer}"),
        said(f"<think> {own.attempt} 1 + 1 = 2 {own.low} </think> {answer}"),
        said(f"<think> {own.yes} </think> <answer> 1 + 1 </answer>"),
        said(f"<think> {own.attempt} 1 + 1 = 2", ended=False),
        said(f"<think> {other.attempt} 1 + 1 = 2 {own.low} </think> {answer}"),
        said(f"<think> </think> {answer}"),
        said(f"<think> {' '.join([own.retry] * 40)} </think> {answer}"),
        said(f"<think> {own.retry} 5 * 5 = 25 {own.high} {own.check} </think> {answer}"),
    ]


def sampler() -> ScriptedSampler:
    return ScriptedSampler({RENDERER.prompt(problem.messages): script(problem) for problem in PROBLEMS})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("base") / "model")


def sift(stage: RejectionSampling, path: Path, base: Checkpoint) -> ExampleSet:
    with Place(path) as place:
        return stage.sift(stage.sample(sampler(), RENDERER, place), base, place)


def adds_up(report: dict[str, Any]) -> bool:
    graded = report["right"] + report["wrong"] + report["ungraded"]
    return report["sampled"] == graded == report["kept"]["reasoning"] + sum(report["dropped"].values())


def test_the_good_are_kept_and_the_report_adds_up(tmp_path: Path, base: Checkpoint) -> None:
    made = sift(STAGE, tmp_path, base)
    report = made.report()
    assert report["dropped"] == {
        name: PROMPTS * count
        for name, count in {
            "not right": 2,
            "mixed language": 1,
            "unreadable": 1,
            "repetition": 1,
            "duplicate": 1,
        }.items()
    }
    assert report["kept"] == {"reasoning": 2 * PROMPTS, "general": 0}
    assert (report["right"], report["wrong"], report["ungraded"]) == (6 * PROMPTS, 2 * PROMPTS, 0)
    assert report["pass_rates"]["up to 75%"] == PROMPTS == report["prompts_kept"]
    assert adds_up(report)
    assert {one["problem"]: one["kept"] for one in lines(made.path / "prompts.jsonl")} == {p.id: 2 for p in PROBLEMS}
    dropped = Counter(one["dropped"] for one in lines(made.path / "dropped.jsonl"))
    assert dropped == Counter({name: count for name, count in report["dropped"].items() if name != "not right"})
    details = {one["dropped"]: one["detail"] for one in lines(made.path / "dropped.jsonl")}
    assert details["unreadable"] == "no reasoning"
    assert "says what" in details["duplicate"]
    assert "have come before" in details["repetition"]
    assert described(report) == (made.path / "report.txt").read_text(encoding="utf-8").rstrip("\n")


def test_what_is_kept_is_learned_token_by_token_as_it_was_sampled(tmp_path: Path, base: Checkpoint) -> None:
    examples = sift(STAGE, tmp_path, base).examples(held_out=0.0)
    found = [RENDERER.example(examples.messages("train", number))[0] for number in range(examples.size("train"))]
    expected = {(*RENDERER.prompt(problem.messages), *script(problem)[k]) for problem in PROBLEMS for k in (0, 1, 7)}
    assert set(found) == expected
    assert len(found) == 2 * PROMPTS


def test_every_example_knows_what_made_it(tmp_path: Path, base: Checkpoint) -> None:
    made = sift(replace(STAGE, seed=5), tmp_path, base)
    for one in lines(made.file):
        source = one["source"]
        number = next(n for n, problem in enumerate(PROBLEMS) if problem.id == source["problem"])
        assert (source["kind"], source["seed"], source["verifier"]) == ("reasoning", 5, "countdown")
        assert source["model"] == made.provenance()["model"]
        assert "mixed language" in source["filters"]
        ids = script(PROBLEMS[number])[source["sample"]]
        assert source["tokens"] == len(ids)
        assert one["messages"][-1]["content"] in RENDERER.text(ids)
    assert made.provenance()["from"] == base.fingerprints()
    made.verify()
    made.file.write_bytes(made.file.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"examples\.jsonl"):
        made.examples()


def test_the_traces_say_why_a_reply_is_left_out(tmp_path: Path, base: Checkpoint) -> None:
    sift(STAGE, tmp_path, base)
    reasons = [one["left_out"] for one in traces.rows(tmp_path / "traces")]
    assert len(reasons) == PROMPTS * SAMPLES
    assert reasons[:SAMPLES] == [*["", "", "not right", "not right", "mixed language", "unreadable", "repetition", ""]]


@pytest.mark.parametrize(
    ("prefer", "expected"), [("first", {0}), ("shortest", {5}), ("longest", {6}), ("random", None)]
)
def test_how_many_of_a_prompt_are_kept_and_which(
    tmp_path: Path, base: Checkpoint, prefer: Any, expected: set[int] | None
) -> None:
    stage = replace(STAGE, keep_per_prompt=1, prefer=prefer, screen=Screen(()))
    made = sift(stage, tmp_path, base)
    kept = [one["source"]["sample"] for one in lines(made.file)]
    assert len(kept) == PROMPTS
    assert set(kept) == expected if expected else len(set(kept)) > 1
    assert made.report()["dropped"]["more than are kept of a prompt"] == 5 * PROMPTS
    assert adds_up(made.report())


def test_only_chosen_lots_depend_on_the_seed(tmp_path: Path, base: Checkpoint) -> None:
    stages = [replace(STAGE, keep_per_prompt=1, seed=seed, screen=Screen(())) for seed in (0, 0, 1)]
    kept = [
        [
            (one["source"]["problem"], one["source"]["sample"])
            for one in lines(sift(stage, tmp_path / str(n), base).file)
        ]
        for n, stage in enumerate(stages)
    ]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_rounds_change_nothing(tmp_path: Path, base: Checkpoint, size: int) -> None:
    whole = sift(STAGE, tmp_path / "a", base)
    other = sift(replace(STAGE, prompts_per_round=size), tmp_path / "b", base)
    check_same(whole, other, "examples.jsonl", "prompts.jsonl", "dropped.jsonl", "report.json")


def test_nothing_left_is_an_error_that_says_what_dropped_it(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(DataError, match="36  length"):
        sift(replace(STAGE, screen=Screen((Length(least=1000),))), tmp_path, base)
    assert not (tmp_path / "examples").exists()


# --- evaluations and general examples


def questions(path: Path, *asked: str, answer: str = "7") -> FileTask:
    path.write_text("".join(json.dumps({"question": q, "answer": answer}) + "\n" for q in asked), encoding="utf-8")
    return FileTask.read(test=path, grading=Grading(Exact()))


RIVER = "Which of the four longest rivers of the whole world flows to the north through a desert?"
OTHERS = ["Tell me of the sea.", "Where do cranes sleep?", "Why is snow white?", "Who wrote the first cookery book?"]


def talk(*asked: str) -> Examples:
    return Examples.of((Message("user", q), Message("assistant", f"As to {q}")) for q in asked)


def test_general_examples_are_a_quarter_and_cleaned_too(tmp_path: Path, base: Checkpoint) -> None:
    against = Against(questions(tmp_path / "eval.jsonl", RIVER))
    given = talk(*OTHERS, f"Tell me: {RIVER.upper()}", OTHERS[0].upper())
    made = sift(replace(STAGE, general=General(given), against=(against,)), tmp_path / "run", base)
    report = made.report()
    assert report["general"] == {"wanted": 4, "offered": report["general"]["offered"], **report["general"]} | {
        "kept": 4
    }
    assert report["kept"] == {"reasoning": 12, "general": 4}
    assert report["evaluation_problems"] == 1
    assert adds_up(report)
    kinds = Counter(one["source"]["kind"] for one in lines(made.file))
    assert kinds == {"reasoning": 12, "general": 4}


def test_too_few_general_examples_are_told(tmp_path: Path, base: Checkpoint) -> None:
    against = Against(questions(tmp_path / "eval.jsonl", RIVER))
    given = talk(OTHERS[0], RIVER, OTHERS[0].upper())
    made = sift(replace(STAGE, general=General(given, 0.5), against=(against,)), tmp_path / "run", base)
    general = made.report()["general"]
    assert general == {"wanted": 12, "offered": 3, "dropped": {"contaminated": 1, "duplicate": 1}, "kept": 1}
    (told,) = [one for one in lines(made.path / "dropped.jsonl") if one["dropped"] == "contaminated"]
    assert told["sample"] == "conversation:2"
    assert "question of test: " in told["detail"]
    assert "which of the four longest rivers of the whole world" in told["detail"]


def test_prompts_of_an_evaluation_are_not_learned(tmp_path: Path, base: Checkpoint) -> None:
    """The training problems themselves, planted as an evaluation in other case and spacing."""
    planted = questions(
        tmp_path / "eval.jsonl", *(p.messages[0].content.upper().replace(" ", "   ") for p in PROBLEMS[:2])
    )
    report = sift(replace(STAGE, against=(Against(planted),)), tmp_path / "run", base).report()
    assert report["dropped"]["contaminated"] == 2 * 3
    assert report["kept"]["reasoning"] == 2 * (PROMPTS - 2)
    assert adds_up(report)
    clean = sift(replace(STAGE, against=(Against(TASK, problems=50),)), tmp_path / "own", base).report()
    assert clean["evaluation_problems"] == 50
    assert "contaminated" not in clean["dropped"]  # the splits of the task share nothing


def test_an_evaluation_without_end_must_say_how_long_it_is() -> None:
    with pytest.raises(SettingsError, match="problems"):
        Against(TASK)


# --- a judge where no rule can tell


@dataclass(frozen=True)
class Kind:
    """Right is what begins with the word of the prompt; on ``blue`` it has no opinion."""

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        if problem.answer == "blue":
            return Verdict(None, Outcome.INVALID, "no verdict")
        return Verdict(float(reply.content.startswith(problem.answer)), Outcome.GRADED, "judged")


PLAIN = RejectionSampling(
    Parrot(), 3, 64, max_tokens=4, screen=Screen((NoMarkup(),)), prompts_per_round=1, similarity=1.0, quiet=True
)


def test_a_judge_decides_where_the_task_does_not(tmp_path: Path, base: Checkpoint) -> None:
    broken = replace(PLAIN, task=Parrot(broken=Outcome.NO_GOLD))
    without = go(tmp_path / "without", base, broken).report()
    judged = go(tmp_path / "with", base, replace(broken, judge=Kind()))
    report = judged.report()
    assert (without["ungraded"], without["judged"]) == (66, 0)
    assert (report["ungraded"], report["judged"]) == (22, 66)
    assert report["judged_right"] == report["right"] - without["right"] > 0
    assert adds_up(report)
    assert {one["source"]["verifier"] for one in lines(judged.file)} == {"parrot", "judge"}


# --- kills, workers, the next stage


def test_killed_at_every_round_it_ends_with_the_same_bytes(tmp_path: Path, base: Checkpoint) -> None:
    assert check_deaths(tmp_path, base, PLAIN, dies_at=2, times=2) == (2, 1)  # a round more each time
    (tmp_path / "killed/01-stage/examples/report.txt").unlink()
    check_sampled_once(tmp_path, base, PLAIN)


def test_a_finished_stage_is_loaded_and_another_one_refused(tmp_path: Path, base: Checkpoint) -> None:
    first = go(tmp_path, base, PLAIN)
    assert first.report() == go(tmp_path, base, PLAIN).report()
    with pytest.raises(RunMismatch, match="temperature"):
        go(tmp_path, base, replace(PLAIN, temperature=0.5))


def test_workers_change_nothing(tmp_path: Path, base: Checkpoint) -> None:
    one, two = (go(tmp_path / str(n), base, replace(PLAIN, workers=n)) for n in (1, 2))
    check_same(one, two, "examples.jsonl", "prompts.jsonl", "dropped.jsonl", "report.json")


def test_fine_tuning_learns_from_what_was_kept(tmp_path: Path, base: Checkpoint) -> None:
    with Run.open(tmp_path / "run", recipe="script", settings=Script(), command="test", threads=1) as run:
        made = run.do("rejection_sampling", PLAIN, base)
        stage = SFT(
            made.examples(held_out=0.0),
            epochs=20,
            lr=1e-2,
            learner=LearnerSettings(precision="float32"),
            quiet=True,
        )
        taught = run.do("sft", stage, base)
        again = run.do("again", replace(PLAIN, seed=1), taught)
    before, after = made.report(), again.report()
    assert after["right"] > 2 * before["right"]


def test_a_conversation_that_would_be_read_back_otherwise_is_no_row() -> None:
    user = Message("user", "red")
    assert row((user, Message("assistant", "a", "b")), {}) is not None
    for reply in ("", " ", "a </think> b", "<think> a"):
        assert row((user, Message("assistant", reply)), {}) is None
    assert row((user, Message("assistant", "a\ud800")), {}) is None


def test_pass_rates_have_a_place_each() -> None:
    rates = [k / 16 for k in range(17)]
    assert sum(histogram(rates).values()) == len(rates)
    assert histogram([0.0, 0.25, 0.3, 0.99, 1.0]) == {
        "never": 1, "up to 25%": 1, "up to 50%": 1, "up to 75%": 0, "below 100%": 1, "always": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        *NO_SAMPLING,
        {"keep_per_prompt": 0},
        {"prefer": "shortest"},
        {"prefer": "best", "keep_per_prompt": 1},
        {"ngram": 1},
        {"similarity": 0.1},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RejectionSampling(TASK, **wrong)


def test_a_reply_must_fit_into_the_context(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(SettingsError, match="context of 32"):
        run_alone(replace(PLAIN, max_tokens=32), base, tmp_path)
