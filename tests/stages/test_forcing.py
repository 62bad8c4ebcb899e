"""Thoughts that are cut or not allowed to end, by a sampler that says what a script tells it to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Score, TokenIds, Verdict
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.rollout.scripted import ScriptedSampler
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.stages.forcing import FORCING, Forced, Forcing, Voice, force
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer, TokensOnly
from longthought.text.tokenizer import Tokenizer

WORDS = ("ask", "0", "1", "try", "wait", "等", "low", "yes", "对", "good", "bad")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TOKENIZER = Tokenizer.of_words((*WORDS, *TAGS), (BEGIN, USER, ASSISTANT, END))
RENDERER = PlainRenderer(TOKENIZER)
VOICES = (Voice("en", "wait", "yes", ("low",)), Voice("zh", "等", "对", ()))
ASKED = EvaluationSettings(problems=2, samples=2, max_tokens=8)
RIGHT, WRONG = "good </answer>", "bad </answer>"


@dataclass(frozen=True)
class Ask:
    """Right is what ends in the answer ``good``. The second problem is Chinese."""

    name: str = "ask"

    def problem(self, split: str, index: int) -> Problem:
        return Problem(
            f"{index}", (Message("user", f"ask {index % 2}"),), "good", {"language": ("en", "zh")[index % 2]}
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        right = [text.endswith("</think> <answer> good </answer>") for text in replies]
        return [Score(float(one), one, {}, Verdict(float(one), Outcome.GRADED)) for one in right]


FORCED = Forcing(Ask(), VOICES, caps=(), waits=(), settings=ASKED, answer=4)


def ids(text: str) -> TokenIds:
    """``.`` stands for the end token."""
    words = text.split()
    return tuple(TOKENIZER.id_of(END if word == "." else word) for word in words)


def prompt(number: int) -> TokenIds:
    return RENDERER.prompt(Ask().problem("test", number).messages)


def scripted(*replies: tuple[int, str, list[str]]) -> ScriptedSampler:
    """(number of the problem, how the reply begins, how it goes on)."""
    return ScriptedSampler({prompt(number) + ids(start): [ids(one) for one in said] for number, start, said in replies})


def by_way(found: list[Forced]) -> dict[tuple[str, int], Forced]:
    return {(one.way, one.amount): one for one in found}


THOUGHT = "<think> low wait yes </think> <answer> good"  # as long as a reply may be, and without an end
ENDLESS = "<think> low low low low low low low"
SHORT = f"<think> yes </think> <answer> {RIGHT} ."
DIRECT = "good ."


def test_caps_cut_what_is_longer_and_answer_it() -> None:
    cut = "</think> <answer>"
    sampler = scripted(
        (0, "", [SHORT, ENDLESS]),
        (1, "", [SHORT, DIRECT]),
        (0, f"<think> {cut}", [f"{RIGHT} .", f"{WRONG} ."]),
        (1, f"<think> {cut}", [f"{WRONG} ."]),
        (0, f"<think> low {cut}", [f"{RIGHT} ."]),
        (0, f"{ENDLESS} {cut}", [f"{WRONG} ."]),
    )
    found = by_way(force(replace(FORCED, caps=(0, 1)), sampler, RENDERER))
    # a thought of one token is not longer than one; who answers at once had no thought to cut
    assert found["cap", 0].accuracy_by_problem == (0.5, 0.0)
    assert found["cap", 1].accuracy_by_problem == (1.0, 0.5)
    assert found["cap", 7].accuracy_by_problem == (0.5, 0.5)  # the thought that never ends is answered, too
    assert [found["cap", cap].touched for cap in (0, 1, 7)] == [0.75, 0.25, 0.25]
    assert found["cap", 0].tokens.value == (6 + 6 + 6 + 2) / 4
    assert found["cap", 7].tokens.value == (7 + 13 + 7 + 2) / 4


def test_equal_beginnings_are_samples_of_one_prompt() -> None:
    sampler = scripted(
        (0, "", [SHORT, SHORT]),
        (1, "", [DIRECT, DIRECT]),
        (0, "<think> </think> <answer>", [f"{RIGHT} .", f"{WRONG} ."]),
    )
    found = by_way(force(replace(FORCED, caps=(0,)), sampler, RENDERER))
    assert found["cap", 0].accuracy_by_problem == (0.5, 0.0)
    assert [(len(prompts), params.count) for prompts, params in sampler.calls] == [(2, 2), (1, 2)]


def test_wait_stands_for_the_end_of_the_thought() -> None:
    sampler = scripted(
        (0, "", [f"<think> low </think> <answer> {WRONG} .", SHORT]),
        (1, "", [f"<think> low </think> <answer> {WRONG} .", DIRECT]),
        (0, "<think> low wait", [f"yes </think> <answer> {RIGHT} ."]),
        (0, "<think> yes wait", [f"low </think> <answer> {WRONG} ."]),
        (1, "<think> low 等", [f"low </think> <answer> {RIGHT} ."]),
        (1, "<think> low 等 low 等", [f"对 </think> <answer> {RIGHT} ."]),
        (0, "<think> low wait yes wait", [f"low </think> <answer> {WRONG} ."]),
        (0, "<think> yes wait low wait", [f"yes </think> <answer> {RIGHT} ."]),
    )
    asked = replace(FORCED, waits=(1, 2), settings=replace(ASKED, max_tokens=12))
    found = by_way(force(asked, sampler, RENDERER))
    assert found["wait", 0].accuracy_by_problem == found["wait_unsure", 0].accuracy_by_problem == (0.5, 0.0)
    assert found["wait", 1].accuracy_by_problem == (0.5, 0.5)
    assert found["wait", 2].accuracy_by_problem == (0.5, 0.5)
    assert found["wait_unsure", 1].accuracy_by_problem == (1.0, 0.5)  # what had succeeded was left alone
    assert found["wait_unsure", 2].accuracy_by_problem == (1.0, 0.5)
    assert [found["wait", times].touched for times in (0, 1, 2)] == [0.0, 0.75, 0.75]
    assert found["wait_unsure", 1].touched == 0.5


def test_a_thought_without_room_is_closed_and_answered() -> None:
    start = "<think> low wait low wait"
    sampler = scripted(
        (0, "", [f"<think> low </think> <answer> {RIGHT} .", DIRECT]),
        (1, "", [DIRECT, DIRECT]),
        (0, "<think> low wait", ["low </think> <answer> bad </answer>"]),
        (0, start, ["low low low low low low"]),
        (0, f"{start} low low low </think> <answer>", [f"{RIGHT} ."]),
    )
    found = by_way(force(replace(FORCED, waits=(1, 2, 3)), sampler, RENDERER))
    assert found["wait", 1].accuracy_by_problem == (0.0, 0.0)
    assert found["wait", 2].accuracy_by_problem == (0.5, 0.0)
    assert found["wait", 2] == replace(found["wait", 3], amount=2)  # nothing is left that could wait
    last = [params.max_tokens for prompts, params in sampler.calls if prompts == [prompt(0) + ids(start)]]
    assert set(last) == {3}


@pytest.mark.parametrize(
    ("thought", "unsure"),
    [("", True), ("try", True), ("yes", False), ("yes low", True), ("low 对", False), ("yes wait try", False)],
)
def test_the_last_verdict_decides(thought: str, unsure: bool) -> None:
    said = f"<think> {thought} </think> <answer> {WRONG} ."
    word = f"<think> {thought} wait"
    sampler = scripted((0, "", [said, DIRECT]), (1, "", [DIRECT, DIRECT]), (0, word, [f"</think> <answer> {RIGHT} ."]))
    settings = replace(ASKED, max_tokens=16)
    found = by_way(force(replace(FORCED, waits=(1,), settings=settings), sampler, RENDERER))
    assert found["wait_unsure", 1].accuracy_by_problem == (0.5 if unsure else 0.0, 0.0)
    assert found["wait", 1].accuracy_by_problem == (0.5, 0.0)


def test_without_words_after_it_a_cut_thought_is_only_closed() -> None:
    sampler = scripted(
        (0, "", [SHORT, SHORT]),
        (1, "", [DIRECT, DIRECT]),
        (0, "<think> </think>", [f"<answer> {RIGHT} .", f"<answer> {RIGHT} ."]),
    )
    found = by_way(force(replace(FORCED, caps=(0,), after=""), sampler, RENDERER))
    assert found["cap", 0].accuracy_by_problem == (1.0, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"caps": (-1,)},
        {"waits": (0,)},
        {"answer": 0},
        {"voices": ()},
        {"settings": EvaluationSettings(problems=2, samples=1, max_tokens=1)},
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="forcing"):
        replace(FORCED, **changes)


def test_what_cannot_be_forced_is_told() -> None:
    with pytest.raises(SettingsError, match="another chat format"):
        force(FORCED, scripted(), TokensOnly((0,)))
    sampler = scripted((0, "", [SHORT, SHORT]), (1, "", [SHORT, SHORT]), (0, "<think> yes wait", [RIGHT]))
    with pytest.raises(SettingsError, match="no voice for the language 'zh'"):
        force(replace(FORCED, voices=VOICES[:1], waits=(1,)), sampler, RENDERER)


def test_the_stage_forces_a_model_and_repeats_bit_by_bit(tmp_path: Path) -> None:
    model = Transformer(ModelConfig(TOKENIZER.size, 32, 48, 2, 4, 2, 8, max_position_embeddings=64))
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    given = Checkpoint.save(tmp_path / "model", Policy(model.eval(), RENDERER), {})
    asked = replace(FORCED, caps=(0, 2), waits=(1,), settings=replace(ASKED, samples=20, max_tokens=24))
    made = []
    for name in ("one", "two"):
        with Place(tmp_path / name) as place:
            folder = asked.run(given, place)
            assert asked.load(place) == folder
            made.append((folder.path / FORCING).read_bytes())
    assert made[0] == made[1]
    ways = json.loads(made[0])["ways"]
    assert [(one["way"], one["amount"]) for one in ways] == [
        *(("cap", cap) for cap in (0, 2, 23)),
        *(("wait", times) for times in (0, 1)),
        *(("wait_unsure", times) for times in (0, 1)),
    ]
