"""Comparing and labelling: who is judged, what is kept, what is told of the judges; killed, and in other rounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import NO_SAMPLING, lines

from longthought.core.errors import DataError, RunDamaged, SettingsError
from longthought.core.types import (
    Completion,
    Finish,
    Message,
    Outcome,
    Problem,
    SamplingParams,
    Score,
    TokenIds,
    Verdict,
)
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.rollout.filters import Screen
from longthought.runs import traces
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.stages.comparing import Comparing
from longthought.stages.judged_replies import part_of, prompts_of
from longthought.stages.judgement_set import LabelSet, PreferenceSet
from longthought.stages.labelling import Labelling
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading
from longthought.tasks.preferences import Labels, Preferences
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.verifiers.exact import Exact
from longthought.verifiers.judge import Preference, settled

WORDS = ("good", "bad", "dull", "hm", "q", *map(str, range(100)), "<think>", "</think>")
RENDERER = PlainRenderer(Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END)))
(STOP,) = RENDERER.stop_tokens
PROMPTS = 40


@dataclass(frozen=True)
class Settings:
    """Of a run that has none."""


@dataclass(frozen=True)
class Asked:
    """Prompts q0, q1, …; right replies are good ones."""

    name: str = "asked"

    def problem(self, split: str, index: int) -> Problem:
        first = {"train": 0, "dev": 80, "test": 90}[split]
        number = first + index % (80 if split == "train" else 10)
        return Problem(f"{split}/q{number}", (Message("user", f"q {number}"),), "")

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        return [Score(0.0, "good" in reply, {}, Verdict(0.0, Outcome.GRADED)) for reply in replies]


SAID = (
    "<think> hm </think> good good good",
    "<think> hm hm </think> good good good",  # the same summary
    "<think> hm </think> bad",
    "<think> hm </think> dull dull dull dull",
    "<think> hm",  # no summary
    "<think> hm </think> good </think> bad",  # tags in the content
    "<think> hm </think> good bad",
    "bad bad",
)


@dataclass
class Speaker:
    """Says the same to every prompt, turned by a hash of the prompt; ends after ``most`` calls."""

    most: int = 1_000
    calls: int = 0

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        return [[self._one(prompt, number) for number in range(params.count)] for prompt in prompts]

    def _one(self, prompt: TokenIds, number: int) -> Completion:
        text = SAID[(sum(prompt) + number) % len(SAID)]
        ids = (*RENDERER.tokenizer.encode(text, tags=("<think>", "</think>")), STOP)
        return Completion(ids, (-1.0,) * len(ids), Finish.STOP)


def worth(reply: Message) -> int:
    return reply.content.split().count("good") - reply.content.split().count("bad")


@dataclass(frozen=True)
class Taste:
    """Prefers good words. wavers: share of the judgements, by hash, that are the other way round.

    mute: share that is missing.  first: always takes what is shown first.
    """

    seed: int = 0
    wavers: float = 0.0
    mute: float = 0.0
    first: bool = False
    asked: list[int] = field(default_factory=list, compare=False)

    def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        self.asked.append(len(triples))
        return [self._one(*triple) for triple in triples]

    def _one(self, problem: Problem, first: Message, second: Message) -> Preference:
        digest = blake2b(f"{self.seed} {problem.id} {first.content} {second.content}".encode()).digest()
        if digest[0] / 256 < self.mute:
            return Preference(None, None, "[[A>B]]", Outcome.INVALID, "said nothing")
        ahead = max(-2, min(2, worth(first) - worth(second))) * (-1 if digest[1] / 256 < self.wavers else 1)
        labels = {2: "[[A>>B]]", 1: "[[A>B]]", 0: "[[A=B]]", -1: "[[B>A]]", -2: "[[B>>A]]"}
        if self.first:
            return settled("[[A>B]]", "[[A>B]]", "")
        return settled(labels[ahead], labels[-ahead], "as it seems")


STAGE = Comparing(
    Asked(), Taste(), prompts=PROMPTS, samples=8, pairs_per_prompt=4, held_out=0.2, prompts_per_round=7, quiet=True
)


def broken(problem: Problem, reply: Message) -> Verdict:
    return Verdict(None, Outcome.CRASHED)


LABELLING = Labelling(Asked(), broken, prompts=PROMPTS, samples=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = Transformer(ModelConfig(RENDERER.tokenizer.size, 16, 24, 1, 2, 1, 8, max_position_embeddings=64))
    initialize(model, 0)
    policy = Policy(model.eval(), RENDERER)
    return Checkpoint.save(tmp_path_factory.mktemp("base") / "model", policy, {})


def compare(stage: Comparing, path: Path, base: Checkpoint, speaker: Speaker | None = None) -> PreferenceSet:
    with Place(path) as place:
        return stage.choose(stage.sample(speaker or Speaker(), RENDERER, place), base, place)


def label(stage: Labelling, path: Path, base: Checkpoint) -> LabelSet:
    with Place(path) as place:
        return stage.choose(stage.sample(Speaker(), RENDERER, place), base, place)


def summary(side: Sequence[dict[str, str]]) -> Message:
    return Message("assistant", side[0]["content"])


def test_the_better_reply_is_chosen_and_the_report_adds_up(tmp_path: Path, base: Checkpoint) -> None:
    made = compare(STAGE, tmp_path, base)
    report = made.report()
    assert report["dropped"] == {
        "says what another reply says": PROMPTS,
        "no summary": PROMPTS,
        "no conversation": PROMPTS,
    }
    assert report["replies"] == 8 * PROMPTS == report["usable"] + 3 * PROMPTS
    assert report["pairs"] == 4 * PROMPTS == report["kept"] + sum(report["left_out"].values())
    rows, judged = lines(made.file), lines(made.path / "judgements.jsonl")
    assert len(rows) == report["kept"] > 0
    assert len(judged) == report["pairs"]
    for row in rows:
        gap = worth(summary(row["chosen"])) - worth(summary(row["rejected"]))
        assert row["margin"] == min(2, gap) > STAGE.least_gap
        assert row["source"]["votes"] in ([row["margin"]] * 4, [-row["margin"]] * 4)
    for row in judged:
        gap = abs(worth(summary(row["first"])) - worth(summary(row["second"])))
        assert row["left_out"] == ("tie" if gap == 0 else "scores too close" if gap == 1 else "")
    assert report["votes"] == {
        "given": 16 * PROMPTS,
        "missing": {},
        "ties": report["votes"]["ties"],
        "order_dependent": 0,
    }
    assert (report["agreement"], report["contradicted"]) == (1.0, 0)
    assert report["bias"]["order_dependent"] == 0
    assert report["bias"]["shown_first"] == 0.5
    text = (made.path / "report.txt").read_text(encoding="utf-8")
    assert f"{report['kept']:,}  kept" in text
    assert "two votes on a pair agree: 100%" in text


def test_a_reward_model_can_read_it_and_both_sides_have_pairs(tmp_path: Path, base: Checkpoint) -> None:
    made = compare(STAGE, tmp_path, base)
    pairs = made.preferences()
    assert pairs.held_out == 0.2
    assert pairs.size("held_out") == made.report()["kept_held_out"] > 0
    assert Preferences.read(made.file, held_out=0.2).fingerprint == pairs.fingerprint
    assert {pairs.item("train", number).chosen.reasoning for number in range(pairs.size("train"))} >= {"hm"}
    shown = [row["source"]["shown_first"] for row in lines(made.file)]
    assert 0.2 < shown.count("chosen") / len(shown) < 0.8


def test_the_set_does_not_depend_on_rounds_or_on_being_killed(tmp_path: Path, base: Checkpoint) -> None:
    stage = replace(STAGE, rater=Taste(wavers=0.2, mute=0.2))
    whole = compare(stage, tmp_path / "whole", base)
    for name, size in (("one", 100), ("each", 1)):
        other = compare(replace(stage, prompts_per_round=size), tmp_path / name, base)
        assert other.file.read_bytes() == whole.file.read_bytes()
        assert other.report() == whole.report()
    with pytest.raises(KeyboardInterrupt):
        compare(stage, tmp_path / "killed", base, Speaker(most=3))
    asked: list[int] = []
    resumed = replace(stage, rater=replace(stage.rater, asked=asked))  # type: ignore[type-var]
    again = compare(resumed, tmp_path / "killed", base)
    assert again.file.read_bytes() == whole.file.read_bytes()
    assert again.report() == whole.report()
    assert len(asked) == 4 * 3  # rounds that were missing, each with four votes
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "traces").iterdir()]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_every_reply_is_in_the_traces_with_what_was_said_of_it(tmp_path: Path, base: Checkpoint) -> None:
    compare(replace(STAGE, pairs_per_prompt=10), tmp_path, base)
    rows = list(traces.rows(traces.file_of(tmp_path / "traces", 1)))
    assert len(rows) == 7 * 8
    rewards: dict[str, set[float | None]] = {}
    for row in rows:
        rewards.setdefault(row["text"], set()).add(row["reward"])
        assert (row["reward"] is None) == bool(row["left_out"])
    assert rewards["<think> hm </think> bad"] == {(-2 - 1 + 1 - 1) / 4}  # against good ×3, dull, bad bad, good bad


@pytest.mark.parametrize(
    ("rater", "checks"),
    [
        (Taste(wavers=0.3), lambda report: 0.3 < report["agreement"] < 0.9 and report["contradicted"] > 0),
        (Taste(mute=0.5), lambda report: report["votes"]["missing"] == {"invalid": 640 - report["votes"]["given"]}),
        (Taste(mute=0.5), lambda report: report["left_out"]["fewer than half of the votes"] > 0),
    ],
)
def test_disagreement_and_missing_judgements_are_counted(
    rater: Taste, checks: Any, tmp_path: Path, base: Checkpoint
) -> None:
    report = compare(replace(STAGE, rater=rater), tmp_path, base).report()
    assert checks(report)
    assert report["pairs"] == report["kept"] + sum(report["left_out"].values())


def test_each_vote_has_another_seed(tmp_path: Path, base: Checkpoint) -> None:
    made = compare(replace(STAGE, rater=Taste(seed=5, wavers=0.5)), tmp_path, base)
    for row in lines(made.path / "judgements.jsonl"):
        (first,), (second,) = row["first"], row["second"]
        problem = Problem(row["problem"], (), "")
        triple = (problem, summary([first]), summary([second]))
        votes = [Taste(seed=5 + vote, wavers=0.5).many([triple])[0].margin for vote in range(4)]
        assert [vote["margin"] for vote in row["votes"]] == votes
        assert row["margin"] == sum(filter(None, votes)) / 4


def test_a_rater_that_likes_the_first_place_is_found_out(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(DataError, match="kept no pair") as refused:
        compare(replace(STAGE, rater=Taste(first=True)), tmp_path, base)
    assert f"{16 * PROMPTS} that depend on the order" in str(refused.value)
    assert "the reply shown first wins 100%" in str(refused.value)
    assert not (tmp_path / "preferences").exists()


def test_a_rater_that_loses_pairs_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    @dataclass(frozen=True)
    class Short:
        seed: int = 0

        def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
            return Taste().many(triples)[1:]

    with pytest.raises(DataError, match="as many preferences"):
        compare(replace(STAGE, rater=Short()), tmp_path, base)


@dataclass(frozen=True)
class Alphabet:
    """Prefers what comes later in the alphabet."""

    seed: int = 0

    def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        sides = [first.content > second.content for _, first, second in triples]
        return [settled(*(("[[A>>B]]", "[[B>>A]]") if first else ("[[B>>A]]", "[[A>>B]]")), "") for first in sides]


def wordy(problem: Problem, reply: Message) -> Verdict:
    return Verdict(float(len(reply.content) % 2), Outcome.GRADED)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_is_sampled_and_its_work_is_found_again(workers: int, tmp_path: Path, base: Checkpoint) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape: dict[str, Any] = {"prompts": 30, "samples": 4, "max_tokens": 6, "held_out": 0.2, "screen": Screen(())}
    comparing = Comparing(Asked(), Alphabet(), workers=workers, quiet=True, **shape)
    labelling = Labelling(Asked(), wordy, workers=workers, quiet=True, **shape)
    found = []
    try:
        for _ in range(2):
            with Run.open(tmp_path / "run", recipe="test", settings=Settings(), command="test") as run:
                pairs, labels = run.do("pairs", comparing, base), run.do("labels", labelling, base)
                found.append((pairs.preferences().fingerprint, labels.labels().fingerprint))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    with Place(tmp_path / "alone") as place:
        alone = replace(comparing, workers=1, prompts_per_round=11).run(base, place)
    assert alone.preferences().fingerprint == found[0][0]


def test_altered_files_are_refused(tmp_path: Path, base: Checkpoint) -> None:
    made = compare(STAGE, tmp_path, base)
    content = made.file.read_bytes()
    made.file.write_bytes(content.replace(b"bad", b"wad", 1))
    with pytest.raises(DataError, match="altered"):
        made.preferences()
    made.file.write_bytes(content)
    provenance = made.path / "provenance.json"
    told = json.loads(provenance.read_text(encoding="utf-8"))
    assert (told["held_out"], told["stage"]) == (0.2, "comparing")
    provenance.write_text(json.dumps({**told, "files": {}}), encoding="utf-8")
    with pytest.raises(DataError, match="does not state"):
        made.verify()


def test_a_damaged_round_is_named(tmp_path: Path, base: Checkpoint) -> None:
    compare(STAGE, tmp_path, base)
    (tmp_path / "judged" / "round-000002.jsonl").write_bytes(b'{"problem"')
    with pytest.raises(RunDamaged, match="round-000002"):
        compare(STAGE, tmp_path, base)


class Alone:
    """A rater without a seed."""

    def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        return []


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 1},
        {"votes": 0},
        {"pairs_per_prompt": 0},
        {"samples": 3},  # three pairs, not four
        {"least_gap": 2.0},
        {"least_gap": -1.0},
        {"least_gap": float("nan")},
        {"rater": Alone()},
        {"held_out": 0.0},
        {"prompts": 3},
        *NO_SAMPLING,
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="comparing"):
        replace(STAGE, **changes)


def test_prompts_are_on_both_sides_as_asked_for() -> None:
    problems = prompts_of(Asked(), 50, 0.2)
    assert len({problem.messages for problem in problems}) == 50
    assert sum(part_of(problem, 0.2) == "held_out" for problem in problems) == 10
    assert prompts_of(Asked(), 50, 0.2) == problems
    with pytest.raises(DataError, match="too few prompts"):
        prompts_of(Asked(), 500, 0.2)


def test_what_is_held_out_of_a_file_is_its_test_split(tmp_path: Path) -> None:
    """A file's own train split has no question that ``Preferences`` holds out."""
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": str(n)}) + "\n" for n in range(300)))
    task = FileTask.read(path, grading=Grading(Exact()))
    problems = prompts_of(task, 100, 0.1)
    held = [problem.id for problem in problems if part_of(problem, 0.1) == "held_out"]
    tests = {task.problem("test", index).id for index in range(task.size("test"))}
    assert len(held) == 10
    assert set(held) <= tests
    assert not tests & ({problem.id for problem in problems} - set(held))


def inspect(problem: Problem, reply: Message) -> Verdict:
    if "dull" in reply.content:
        return Verdict(None, Outcome.TIMED_OUT)
    if problem.id.endswith("7"):
        raise ValueError("a rater of a user may raise anything")
    return Verdict(float("good" in reply.content), Outcome.GRADED)


def test_labels(tmp_path: Path, base: Checkpoint) -> None:
    stage = replace(LABELLING, rater=inspect, held_out=0.2, quiet=True)
    made = label(stage, tmp_path / "one", base)
    report = made.report()
    assert report["dropped"] == {
        "no summary": PROMPTS,
        "no conversation": PROMPTS,
    }  # the same with another thought counts
    assert report["usable"] == report["safe"] + report["unsafe"] + sum(report["unlabelled"].values())
    assert set(report["unlabelled"]) == {"timed_out", "crashed"}
    labels = made.labels()
    assert len(labels) == report["safe"] + report["unsafe"]
    assert labels.size("held_out") == sum(report["held_out"].values())
    assert Labels.read(made.file, held_out=0.2).fingerprint == labels.fingerprint
    for row in lines(made.file):
        assert row["safe"] == ("good" in row["reply"][0]["content"])
    again = label(replace(stage, prompts_per_round=3), tmp_path / "two", base)
    assert again.file.read_bytes() == made.file.read_bytes()


def test_nothing_labelled_is_said(tmp_path: Path, base: Checkpoint) -> None:
    with pytest.raises(DataError, match=r"labelled nothing[\s\S]*not labelled: crashed"):
        label(replace(LABELLING, quiet=True), tmp_path, base)


@pytest.mark.parametrize("least", [0.0, 1.5, float("nan")])
def test_labelling_refuses_settings(least: float) -> None:
    with pytest.raises(SettingsError, match="labelling"):
        replace(LABELLING, least=least)
