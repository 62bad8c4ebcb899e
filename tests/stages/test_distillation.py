"""Logit distillation as a stage: what is learned, from whom, on whose replies; cut, shared, killed and resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_runs import check_kills, go, metrics, run_alone, weights
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.distillation import distillation
from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.errors import CheckpointError, DataError, RunMismatch, SettingsError
from longthought.core.types import Completion, Finish, Message, Problem, SamplingParams, Score, TokenIds
from longthought.engine.engine import Engine
from longthought.models.attention import PackedAttention
from longthought.models.lora import LoRA
from longthought.models.presets import sized
from longthought.models.teacher_head import Divergence
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.stages.distillation import Distillation
from longthought.stages.distillation_rows import Prompts, planned, sampled
from longthought.stages.held_out import HeldOut
from longthought.stages.sft import SFT
from longthought.tasks.examples import Examples
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.training.learner import LearnerSettings

WORDS = (*map(str, range(10)), "use", "make", "plus", "is", "<think>", "</think>")
WIDE = LearnerSettings(precision="float32")
SMALL: dict[str, Any] = {"examples_per_step": 4, "learner": WIDE, "quiet": True, "max_tokens": 6}


def renderer(words: Sequence[str] = WORDS) -> PlainRenderer:
    return PlainRenderer(Tokenizer.of_words(words, (BEGIN, USER, ASSISTANT, END)))


def asked(question: str, reply: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", reply)


def sums(count: int, held_out: float = 0.0) -> Examples:
    pairs = [(a, b) for a in range(10) for b in range(10)][:count]
    return Examples.of((asked(f"{a} plus {b}", " ".join(str(a + b))) for a, b in pairs), held_out=held_out)


@dataclass(frozen=True)
class Sums:
    """Problems for prompts; nothing is graded."""

    name: str = "sums"

    def problem(self, split: str, index: int) -> Problem:
        a, b = index % 10, index // 10 % 10
        question = f"{a} plus {b}" if split == "train" else f"{a} plus {b} is"
        return Problem(f"{split}/{index}", (Message("user", question),), "")

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        raise AssertionError("distillation grades nothing")


def save(path: Path, model: Transformer, words: Sequence[str] = WORDS) -> Checkpoint:
    return Checkpoint.save(path, Policy(model, renderer(words)), {})


def student(path: Path, **kind: object) -> Checkpoint:
    return save(path / "student", tiny_model(vocab_size=renderer().tokenizer.size, **kind))


def teacher(path: Path, **kind: object) -> Checkpoint:
    """Wider and deeper than the student."""
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 16, **kind}
    return save(path / "teacher", tiny_model(7, vocab_size=renderer().tokenizer.size, **shape))


def deepseek_v3(path: Path, name: str, seed: int) -> Checkpoint:
    model = Transformer(sized("deepseek_v3", 32, renderer().tokenizer.size, 64))
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return save(path / name, model)


def logits(model: Transformer, ids: Sequence[int]) -> Tensor:
    """What is said before every token but the first, (T - 1, V), float64."""
    attend = PackedAttention([len(ids)])
    with torch.no_grad():
        return (model(torch.tensor(ids), attend.positions, attend) @ model.lm_head.weight.T)[:-1].double()


def by_hand(pair: tuple[Checkpoint, Checkpoint], examples: Examples, alpha: float, heat: float) -> list[Tensor]:
    """The loss of every learned token, example by example."""
    own, told = (checkpoint.load() for checkpoint in pair)
    each = []
    for index in range(examples.size("train")):
        ids, mask = own.renderer.example(examples.messages("train", index))
        loss = distillation(logits(own.model, ids), logits(told.model, ids), torch.tensor(ids[1:]), alpha, heat)
        each.append(loss[torch.tensor(mask[1:])])
    return each


@pytest.mark.parametrize("weighting", [token_mean, sequence_mean])
@pytest.mark.parametrize("micro_tokens", [1, 4096])
def test_the_loss_is_one_mean_over_the_step(
    weighting: Any, micro_tokens: int, tmp_path: Path, computed_by: str
) -> None:
    pair = student(tmp_path), teacher(tmp_path)
    examples = Examples.of([asked("2 plus 2", "4"), asked("9 plus 1", "1 0"), asked("0", "0 0 0 0")])
    learner = replace(WIDE, micro_tokens=micro_tokens)
    stage = Distillation(
        pair[1], examples, alpha=0.3, temperature=1.5, epochs=1, weighting=weighting, learner=learner, quiet=True
    )
    run_alone(stage, pair[0], tmp_path / "run")
    each = by_hand(pair, examples, 0.3, 1.5)
    wanted = torch.cat(each).mean() if weighting is token_mean else torch.stack([one.mean() for one in each]).mean()
    (first,) = metrics(tmp_path / "run")
    assert first["loss"] == pytest.approx(float(wanted), abs=1e-5)
    assert first["loss"] == pytest.approx(0.3 * 1.5**2 * first["kl"] + 0.7 * first["ce"], abs=1e-5)
    assert first["trained"] == sum(map(len, each))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_who_starts_as_the_teacher_has_nothing_to_learn(kind: Any, tmp_path: Path, computed_by: str) -> None:
    given = student(tmp_path)
    stage = Distillation(given, sums(8), alpha=1.0, divergence=kind, epochs=1, on_policy=0.5, **SMALL)
    run_alone(stage, given, tmp_path / "run")
    for line in metrics(tmp_path / "run"):
        assert abs(line["kl"]) < 1e-6
        assert line["grad_norm"] < 1e-6
        assert line["agreement"] == pytest.approx(1.0)


def choices(count: int, seed: int, held_out: float = 0.0) -> Examples:
    """Three digits, of which the reply has one, and then perhaps another: nobody can know, so that what is likely is
    more than what was said."""
    chance = Random(seed)
    digits = [chance.sample(WORDS[:10], 3) for _ in range(count)]
    replies = [" ".join(chance.sample(three, chance.choice((1, 2)))) for three in digits]
    return Examples.of((asked(" ".join(three), said) for three, said in zip(digits, replies)), held_out=held_out)


def traces_of(told: Checkpoint, questions: Examples, held_out: float) -> Examples:
    """What a model replies to the questions, where that is nothing but digits and an end."""
    policy = told.load()
    asks = [questions.messages("train", index)[:-1] for index in range(questions.size("train"))]
    params = SamplingParams(max_tokens=8, seed=1, stop_tokens=policy.renderer.stop_tokens)
    said = Engine(policy).sample([policy.renderer.prompt(ask) for ask in asks], params)
    texts = [policy.renderer.text(one.token_ids) if one.finish == Finish.STOP else "" for (one,) in said]
    plain = [(ask, text) for ask, text in zip(asks, texts) if text and set(text.split()) <= set(WORDS)]
    return Examples.of(((*ask, Message("assistant", text)) for ask, text in plain), held_out=held_out)


def test_a_teacher_says_more_than_its_traces(tmp_path: Path) -> None:
    """About 200 replies that the teacher has sampled, the same steps, with and without its distributions: a
    quarter to a third of the held-out KL over three seeds, and at most half of it here."""
    both: dict[str, Any] = {"examples_per_step": 10, "lr": 1e-2, "learner": WIDE, "quiet": True}
    told = run_alone(
        SFT(choices(400, seed=0), epochs=4, **{**both, "examples_per_step": 20}),
        teacher(tmp_path),
        tmp_path / "teacher run",
    )
    examples = traces_of(told, choices(270, seed=1), held_out=0.2)
    assert examples.size("train") >= 190
    given = student(tmp_path, num_hidden_layers=1)
    soft = Distillation(told, examples, alpha=1.0, temperature=1.0, epochs=10, **both)
    taught, alone = (
        run_alone(stage, given, tmp_path / name)
        for stage, name in ((soft, "soft"), (SFT(examples, epochs=10, **both), "hard"))
    )
    assert taught.provenance()["steps"] == alone.provenance()["steps"]
    found = {}
    for name, checkpoint in (("soft", taught), ("hard", alone)):
        measured = Distillation(told, examples, steps=1, **both)
        run_alone(measured, checkpoint, tmp_path / f"{name} measured")
        found[name] = metrics(tmp_path / f"{name} measured")[0]
    assert found["soft"]["held_out_kl"] < 0.5 * found["hard"]["held_out_kl"]
    assert found["soft"]["held_out_kl"] == pytest.approx(metrics(tmp_path / "soft")[-1]["held_out_kl"], abs=1e-6)


def test_the_teacher_is_not_touched(tmp_path: Path, computed_by: str) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    files = {file.name: file.read_bytes() for file in told.path.iterdir()}
    stage = Distillation(told, sums(12), on_policy=0.5, lr=1e-2, **SMALL)
    trained = run_alone(stage, given, tmp_path / "run")
    assert {file.name: file.read_bytes() for file in told.path.iterdir()} == files
    assert stage.teacher == told
    assert any(not torch.equal(tensor, weights(given)[name]) for name, tensor in weights(trained).items())
    told_of = trained.provenance()
    assert (told_of["from"], told_of["teacher"]) == (given.fingerprints(), told.fingerprints())


@pytest.mark.parametrize("pair", ["dense from routed", "routed from dense"])
def test_other_architectures_learn_from_each_other(pair: str, tmp_path: Path, computed_by: str) -> None:
    given = student(tmp_path) if pair.startswith("dense") else deepseek_v3(tmp_path, "student", 1)
    told = deepseek_v3(tmp_path, "teacher", 2) if pair.startswith("dense") else teacher(tmp_path)
    stage = Distillation(told, sums(16), alpha=1.0, temperature=1.0, epochs=6, lr=1e-2, on_policy=0.25, **SMALL)
    run_alone(stage, given, tmp_path / "run")
    first, *_, last = metrics(tmp_path / "run")
    assert last["kl"] < 0.5 * first["kl"]
    assert first["kl"] > 0.05


def test_two_processes_learn_the_same(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    stage = Distillation(told, sums(20, held_out=0.3), lr=1e-3, on_policy=0.5, epochs=1, **SMALL)
    one = run_alone(stage, given, tmp_path / "one")
    two = run_alone(replace(stage, workers=2), given, tmp_path / "two")
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(two)[name], atol=1e-5, rtol=1e-4)
    first, second = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line.keys() for line in first] == [line.keys() for line in second]
    for name in ("held_out_kl", "held_out_ce", "held_out_agreement"):
        assert first[0][name] == pytest.approx(second[0][name], abs=1e-6)


def test_a_student_learns_on_its_own_replies(tmp_path: Path, computed_by: str) -> None:
    """No example at all: prompts of a task, replies of the student, opinions of the teacher."""
    given, told = student(tmp_path), teacher(tmp_path)
    stage = Distillation(
        told,
        task=Sums(),
        on_policy=1.0,
        divergence="reverse",
        alpha=1.0,
        temperature=1.0,
        steps=30,
        lr=1e-2,
        held_out=HeldOut(every=10, documents=20),
        **{**SMALL, "examples_per_step": 8},
    )
    trained = run_alone(stage, given, tmp_path / "run")
    before, *steps = metrics(tmp_path / "run")
    assert [line["step"] for line in steps if "held_out_kl" in line] == [10, 20, 30]
    assert steps[-1]["held_out_kl"] < 0.7 * before["held_out_kl"]
    assert steps[-1]["kl"] < 0.7 * steps[0]["kl"]
    assert all("ce" not in line and "epoch" not in line for line in steps)
    assert steps[-1]["own"] == steps[-1]["trained"] > 30 * 8
    assert trained.provenance()["tokens of the student's own"] == steps[-1]["own"]


def test_on_own_replies_to_examples_the_likelihood_is_left_out(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    stage = Distillation(told, sums(8), alpha=0.5, temperature=1.0, on_policy=0.5, epochs=1, **SMALL)
    run_alone(stage, given, tmp_path / "run")
    for line in metrics(tmp_path / "run"):
        assert line["ce"] > 0
        assert 0.5 * line["kl"] < line["loss"] < 0.5 * line["kl"] + 0.5 * line["ce"]


def test_what_is_held_out_is_measured_the_same_way_whatever_is_learned(tmp_path: Path) -> None:
    pair = student(tmp_path), teacher(tmp_path)
    examples = sums(60, held_out=0.3)
    stage = Distillation(
        pair[1], examples, divergence="jsd", beta=0.2, temperature=3.0, held_out=HeldOut(every=5, documents=7), **SMALL
    )
    trained = run_alone(stage, pair[0], tmp_path / "run")
    logged = {line["step"]: line for line in metrics(tmp_path / "run") if "held_out_kl" in line}
    last = max(logged)
    assert set(logged) == {0, last, *range(5, last, 5)}
    for checkpoint, step in ((pair[0], 0), (trained, last)):
        own, told = checkpoint.load(), pair[1].load()
        kl, ce, same = [], [], []
        for index in range(7):
            ids, mask = own.renderer.example(examples.messages("held_out", index))
            s, t = (logits(model, ids)[torch.tensor(mask[1:])] for model in (own.model, told.model))
            targets = torch.tensor(ids[1:])[torch.tensor(mask[1:])]
            kl.append(distillation(s, t, targets, 1.0, 1.0))
            ce.append(-s.log_softmax(-1)[torch.arange(len(s)), targets])
            same.append((s.argmax(-1) == t.argmax(-1)).double())
        for name, found in (("kl", kl), ("ce", ce), ("agreement", same)):
            assert logged[step][f"held_out_{name}"] == pytest.approx(float(torch.cat(found).mean()), abs=1e-4)


def test_a_lora_learns_beside_frozen_weights(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    stage = Distillation(
        told, sums(16), alpha=1.0, epochs=4, lr=2e-2, adapter=LoRA(rank=4), on_policy=0.5, save_every=100, **SMALL
    )
    trained = run_alone(stage, given, tmp_path / "run")
    logged = metrics(tmp_path / "run")
    assert logged[-1]["kl"] < 0.8 * logged[0]["kl"]
    before, after = weights(given), weights(trained)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        n for n in before if "_proj." in n
    }
    assert (trained.path / "adapter" / "adapter_model.safetensors").is_file()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), share=st.floats(0, 1), from_task=st.booleans())
def test_the_share_of_own_replies_is_kept_step_by_step(sizes: list[int], share: float, from_task: bool) -> None:
    steps = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(sizes)]
    seen = own = 0
    for rows, step in zip(steps, planned(steps, share, from_task)):
        assert len(step.taught) + len(step.asked) == len(rows)
        assert step.taught == rows[len(step.asked) :]
        assert step.asked == (list(range(own, own + len(step.asked))) if from_task else rows[: len(step.asked)])
        seen, own = seen + len(rows), own + len(step.asked)
        assert share * seen - 1 < own <= share * seen + 1e-6


class Counting:
    """Replies with the number of its call, and ends none."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        self.seeds.append(params.seed)
        return [[Completion((len(self.seeds),) * 5, (0.0,) * 5, Finish.LENGTH)] for _ in prompts]


def test_equal_prompts_get_replies_of_their_own() -> None:
    sampler = Counting()
    made = sampled(sampler, [(7, 7), (8,), (7, 7), (7, 7)], SamplingParams(seed=3), context=6)
    assert made.rows == [(7, 7, 1, 1, 1, 1), (8, 1, 1, 1, 1, 1), (7, 7, 2, 2, 2, 2), (7, 7, 3, 3, 3, 3)]
    assert made.masks[1] == [False] + [True] * 5
    assert len(set(sampler.seeds)) == 3


def test_a_prompt_without_room_is_refused() -> None:
    prompts = Prompts(None, Sums(), renderer(), context=6)
    with pytest.raises(DataError, match="train/0: its prompt has 6 tokens"):
        prompts.some([0])


OTHERS: list[tuple[Sequence[str], int, str]] = [
    (
        (*WORDS[:-1], "however"),
        0,
        r"the student alone has 1 tokens: '</think>'; the teacher alone has 1 tokens: 'however'",
    ),
    ((*WORDS[1:], WORDS[0]), 0, "other ids have 16 tokens"),
    (WORDS, 2, "the student's embeddings have 22 rows, the teacher's 24"),
]


@pytest.mark.parametrize(("words", "more", "told"), OTHERS)
def test_another_vocabulary_is_refused(words: Sequence[str], more: int, told: str, tmp_path: Path) -> None:
    size = renderer(words).tokenizer.size
    other = save(tmp_path / "teacher", tiny_model(vocab_size=size + more), words)
    with pytest.raises(SettingsError, match=told) as refused:
        run_alone(Distillation(other, sums(4), quiet=True), student(tmp_path), tmp_path / "run")
    assert "need the same vocabulary" in str(refused.value)


def test_the_context_is_that_of_both(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path, max_position_embeddings=8)
    with pytest.raises(DataError, match="longer than the context: 9 tokens, of which 8 fit") as refused:
        run_alone(Distillation(told, sums(20), quiet=True), given, tmp_path / "run")
    assert 'Distillation(…, long="skip")' in str(refused.value)
    with pytest.raises(SettingsError, match="context=9: from 2 to the 8 tokens that both models read"):
        run_alone(Distillation(told, sums(4), context=9, quiet=True), given, tmp_path / "run")
    stage = Distillation(told, sums(20), on_policy=1.0, long="skip", steps=2, **SMALL)
    run_alone(stage, given, tmp_path / "cut")
    assert all(line["reply_tokens"] <= 2 for line in metrics(tmp_path / "cut"))


def test_a_missing_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        run_alone(Distillation(tmp_path / "nobody", sums(4)), student(tmp_path), tmp_path / "run")


def test_a_teacher_of_another_chat_format_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from longthought.text.templates import template_named

    given, told = student(tmp_path), teacher(tmp_path)
    run_alone(Distillation(told, sums(4), epochs=1, **SMALL), given, tmp_path / "same")
    assert not caplog.messages
    other = replace(told, template=replace(template_named("r1_zero"), text="{question} is"))
    run_alone(Distillation(other, sums(4), epochs=1, **SMALL), given, tmp_path / "other")
    assert "the teacher's own chat format would write the first prompt otherwise" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": 0.0}, "distillation: Distill.alpha"),
        ({"temperature": -1.0}, "distillation: Distill.temperature"),
        ({"divergence": "kl"}, "choose one of forward, reverse, jsd"),
        ({"beta": 0.5}, "beta=0.5 changes nothing"),
        ({"divergence": "jsd", "beta": 1.0}, "take forward or reverse"),
        ({"on_policy": 1.5}, "on_policy=1.5"),
        ({"on_policy": float("nan")}, "on_policy=nan"),
        ({"task": Sums()}, "task changes nothing"),
        ({"examples": None}, "without examples every reply is the student's own"),
        ({"examples": None, "task": Sums(), "on_policy": 0.5}, "give a task and on_policy=1"),
        ({"examples": None, "task": Sums(), "on_policy": 1.0}, "say how many steps"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"workers": 0}, "workers=0"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"warmup": 1.0}, "warmup=1"),
        ({"long": "drop"}, "long='drop'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Distillation(Path("teacher"), **{"examples": sums(4), **wrong})


def test_steps_take_the_place_of_epochs(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    run_alone(Distillation(told, sums(10), steps=7, **SMALL), given, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert len(lines) == 7
    assert lines[2]["epoch"] == 1.0
    assert lines[-1]["epoch"] == pytest.approx(2.3)


def test_the_divergence_is_the_one_that_was_asked_for() -> None:
    stage = Distillation(Path("teacher"), sums(4), divergence="jsd", beta=0.3, temperature=1.5)
    assert stage.compares == Divergence("jsd", 1.5, 0.3)
    assert stage.objective.temperature == 1.5


def killed(told: Checkpoint) -> Distillation:
    return Distillation(
        told,
        sums(30, held_out=0.2),
        divergence="jsd",
        on_policy=0.5,
        max_tokens=5,
        epochs=3,
        examples_per_step=2,
        lr=1e-3,
        held_out=HeldOut(every=7, documents=16),
        save_every=5,
        learner=WIDE,
        workers=2,
        quiet=True,
    )


@pytest.mark.parametrize("kills", [(5, 15, 25), (5,)], ids=["examples", "a task"])
def test_kills_change_no_bit(kills: tuple[int, ...], tmp_path: Path) -> None:
    given, stage = student(tmp_path), killed(teacher(tmp_path))
    if len(kills) == 1:
        stage = replace(stage, examples=None, task=Sums(), on_policy=1.0, steps=12)
    check_kills(tmp_path, given, stage, kills)


def test_another_teacher_is_refused_by_name(tmp_path: Path) -> None:
    given, told = student(tmp_path), teacher(tmp_path)
    stage = replace(killed(told), epochs=1, workers=1)
    go(tmp_path / "run", given, stage)
    other = teacher(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(RunMismatch, match=r"stage\.teacher\.files"):
        go(tmp_path / "run", given, replace(stage, teacher=other))
