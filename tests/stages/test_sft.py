"""Supervised fine-tuning: what is learned, by hand and beside transformers; what is left out; killed and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_runs import check_kills, go, metrics, run_alone, weights
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.errors import DataError, NotFinite, RunMismatch, SettingsError
from longthought.core.types import Message, SamplingParams
from longthought.engine.engine import Engine
from longthought.models.attention import PackedAttention
from longthought.models.lora import LoRA
from longthought.models.presets import sized
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.stages.guard import Spikes
from longthought.stages.held_out import HeldOut
from longthought.stages.sft import SFT
from longthought.stages.sft_rows import Rendered, in_steps
from longthought.tasks.examples import Examples
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.training.balancing import Balancing
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.team import Team

WORDS = (*map(str, range(10)), "use", "make", "plus", "is", "<think>", "</think>")
WIDE = LearnerSettings(precision="float32")
SMALL: dict[str, Any] = {"examples_per_step": 4, "learner": WIDE, "quiet": True, "workers": 1}


def renderer() -> PlainRenderer:
    return PlainRenderer(Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END)))


def asked(question: str, reply: str, thought: str = "") -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", reply, thought)


def sums(count: int, held_out: float = 0.0) -> Examples:
    pairs = [(a, b) for a in range(10) for b in range(10)][:count]
    return Examples.of(
        (asked(f"{a} plus {b}", " ".join(str(a + b)), f"{a} {b}" if a % 2 else "") for a, b in pairs), held_out=held_out
    )


def base(path: Path, **kind: object) -> Checkpoint:
    chat = renderer()
    return Checkpoint.save(path / "base", Policy(tiny_model(vocab_size=chat.tokenizer.size, **kind), chat), {})


def deepseek_v3(path: Path) -> Checkpoint:
    chat = renderer()
    model = Transformer(sized("deepseek_v3", 32, chat.tokenizer.size, 64))
    initialize(model, 0)
    return Checkpoint.save(path / "base", Policy(model, chat), {})


def rendered(stage: SFT, policy: Policy) -> Rendered:
    rendering = stage.rendering(policy)
    with Team(1, {"render": rendering.some}) as team:
        return Rendered.of(rendering, "train", team, "render")


def test_the_reply_alone_is_learned_its_end_included(tmp_path: Path) -> None:
    examples = Examples.of([asked("2 plus 2", "4", "use 2 2")])
    rows = rendered(SFT(examples), base(tmp_path).load())
    chat = renderer()
    words = [BEGIN, USER, "2", "plus", "2", ASSISTANT, "<think>", "use", "2", "2", "</think>", "4", END]
    assert rows.tokens.tolist() == [chat.tokenizer.id_of(word) for word in words]
    assert rows.trained.tolist() == [False] * 6 + [True] * 7
    batch = rows.batch([0], token_mean)
    assert batch.mask[0].tolist() == rows.trained.tolist()
    torch.testing.assert_close(batch.weight[0, 6:], torch.full((7,), 1 / 7))


def test_of_an_earlier_reply_nothing_is_learned_unless_every_turn_is(tmp_path: Path) -> None:
    talk = [*asked("2 plus 2", "4"), *asked("3 plus 3", "6")]
    last, every = (rendered(SFT(Examples.of([talk], turns=turns)), base(tmp_path).load()) for turns in ("last", "all"))
    assert int(last.trained.sum()) == 2
    assert last.trained[-2:].all()
    assert len(every) == 2
    assert every.trained.tolist() == [False] * 6 + [True] * 2 + [False] * 13 + [True] * 2


def logp_by_hand(model: Transformer, ids: list[int]) -> Tensor:
    """log p of every token but the first, (T - 1,)."""
    attend = PackedAttention([len(ids)])
    logits = model(torch.tensor(ids), attend.positions, attend) @ model.lm_head.weight.T
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@pytest.mark.parametrize("weighting", [token_mean, sequence_mean])
def test_the_loss_is_one_mean_over_the_step(weighting: Any, tmp_path: Path, computed_by: str) -> None:
    given = base(tmp_path)
    examples = Examples.of([asked("2 plus 2", "4", "use 2 2"), asked("9 plus 1", "1 0"), asked("0", "0")])
    learner = replace(WIDE, micro_tokens=1)  # a pass for every row
    run_alone(SFT(examples, epochs=1, weighting=weighting, learner=learner, quiet=True), given, tmp_path / "run")
    policy = given.load()
    each = []
    for index in range(3):
        ids, mask = policy.renderer.example(examples.messages("train", index))
        each.append(-logp_by_hand(policy.model, list(ids))[torch.tensor(mask[1:])])
    wanted = torch.cat(each).mean() if weighting is token_mean else torch.stack([one.mean() for one in each]).mean()
    (first,) = metrics(tmp_path / "run")
    assert first["loss"] == pytest.approx(float(wanted.detach()), abs=1e-5)
    assert first["trained"] == sum(map(len, each))


def test_forty_examples_are_learned_by_heart(tmp_path: Path, computed_by: str) -> None:
    examples = sums(40)
    stage = SFT(examples, epochs=20, examples_per_step=8, lr=2e-2, learner=WIDE, quiet=True)
    trained = run_alone(stage, base(tmp_path), tmp_path / "run")
    assert metrics(tmp_path / "run")[-1]["loss"] < 0.1
    policy = trained.load()
    prompts = [policy.renderer.prompt(examples.messages("train", i)[:-1]) for i in range(40)]
    said = Engine(policy).sample(
        prompts, SamplingParams(temperature=0.0, max_tokens=12, stop_tokens=policy.renderer.stop_tokens)
    )
    replies = [examples.messages("train", i) for i in range(40)]
    wanted = [tuple(policy.renderer.example(reply)[0][len(prompt) :]) for reply, prompt in zip(replies, prompts)]
    assert [one[0].token_ids for one in said] == wanted


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers made: Qwen2 with a chat template."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("qwen2")
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    pairs.train_from_iterator(
        ["What is the sum of 3 and 4?", "user assistant system"] * 4,
        tokenizers.trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=letters, show_progress=False
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pairs, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=128, eos_token_id=2, **shape
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TALKS = [
    (Message("system", "Be short."), *asked("What is 3 and 4?", "7")),
    asked("What is the sum of user and <|im_end|>?", "A sum of\n\nnothing."),
    (*asked("a", "b"), *asked("And 12?", "12 is the sum.")),
]


def test_loss_and_gradient_are_those_of_transformers_with_labels(theirs: Path, computed_by: str) -> None:
    transformers = pytest.importorskip("transformers")
    policy = Checkpoint(theirs).load()
    rows = rendered(SFT(Examples.of(TALKS)), policy)
    learner = PolicyLearner(policy.model, AdamW(), 1, settings=WIDE)
    stage = SFT(Examples.of(TALKS))
    tally, _ = learner.accumulate(rows.batch(range(3), token_mean), stage.objective(policy.model.config))

    model = transformers.AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    whole = [policy.renderer.example(talk) for talk in TALKS]
    width = max(len(ids) for ids, _ in whole)
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in whole])
    flags = torch.tensor([[*mask, *[False] * (width - len(mask))] for _, mask in whole])
    seen = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in whole])
    out = model(ids, attention_mask=seen, labels=torch.where(flags, ids, -100))
    out.loss.backward()

    assert tally.loss == pytest.approx(float(out.loss.detach()), abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    compared = [name for name, p in policy.model.named_parameters() if p.grad is not None and name in gradients]
    assert len(compared) >= len(gradients) - 1
    for name, p in policy.model.named_parameters():
        if name in compared:
            torch.testing.assert_close(p.grad, gradients[name], atol=2e-6, rtol=2e-4)


def test_of_a_chat_template_the_end_of_turn_is_the_last_that_is_computed(theirs: Path) -> None:
    policy = Checkpoint(theirs).load()
    rows = rendered(SFT(Examples.of(TALKS[:1])), policy)
    assert policy.renderer.decode(rows.tokens[rows.trained].tolist()) == "7<|im_end|>"
    assert rows.trained[-1]  # the line break that the template writes behind it is nothing that a model says


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    examples=st.integers(1, 9),
    tokens=st.one_of(st.none(), st.integers(1, 80)),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_example_once(lengths: list[int], examples: int, tokens: int | None, seed: int) -> None:
    counted = np.array(lengths)
    planned = in_steps(counted, 2, seed, examples, tokens)
    assert planned == in_steps(counted, 2, seed, examples, tokens)
    assert planned[0] == in_steps(counted, 1, seed, examples, tokens)[0]  # whatever epochs follow
    for steps in planned:
        assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
        if tokens is None:
            sizes = {len(step) for step in steps}
            assert max(sizes) <= examples
            assert max(sizes) - min(sizes) <= 1
        else:
            assert all(len(step) == 1 or sum(lengths[row] for row in step) <= tokens for step in steps)


@pytest.mark.parametrize("tokens", [None, 60])
def test_epochs_come_in_orders_of_their_own(tokens: int | None) -> None:
    lengths = np.arange(1, 51)
    orders = [epoch for seed in range(3) for epoch in in_steps(lengths, 3, seed, 5, tokens)]
    assert len({json.dumps(order) for order in orders}) == 9


def test_two_processes_learn_the_same(tmp_path: Path) -> None:
    given, stage = base(tmp_path), SFT(sums(12, held_out=0.3), lr=1e-3, **SMALL)
    one = run_alone(stage, given, tmp_path / "one")
    two = run_alone(replace(stage, workers=2), given, tmp_path / "two")
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(two)[name], atol=1e-5, rtol=1e-4)
    told = [json.loads((tmp_path / name / "examples.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert told[0]["trained tokens"] == told[1]["trained tokens"]


def test_what_is_held_out_is_measured_and_not_learned(tmp_path: Path) -> None:
    given, examples = base(tmp_path), sums(60, held_out=0.3)
    stage = SFT(examples, lr=1e-3, epochs=2, held_out=HeldOut(every=5, documents=7), **SMALL)
    trained = run_alone(stage, given, tmp_path / "run")
    logged = {line["step"]: line["held_out_loss"] for line in metrics(tmp_path / "run") if "held_out_loss" in line}
    last = max(logged)
    assert set(logged) == {0, last, *range(5, last, 5)}
    for checkpoint, step in ((given, 0), (trained, last)):
        policy = checkpoint.load()
        each = []
        for index in range(7):
            ids, mask = policy.renderer.example(examples.messages("held_out", index))
            each.append(-logp_by_hand(policy.model, list(ids))[torch.tensor(mask[1:])])
        assert logged[step] == pytest.approx(float(torch.cat(each).mean().detach()), abs=1e-5)
    assert metrics(tmp_path / "run")[-1]["epoch"] == 2.0
    told = trained.provenance()
    assert (told["stage"], told["replies"], told["left out"]) == ("sft", examples.size("train"), {})
    assert told["examples"] == examples.conversations.fingerprint
    assert told["from"] == given.fingerprints()


LONG = Examples.of([asked("2 plus 2", "4"), asked("1", " ".join("1" * 20)), asked(" ".join("2" * 20), "3")])


@pytest.mark.parametrize(
    ("long", "rows", "skipped", "cut"),
    [
        ("skip", [8], {"longer than the context": 2}, 0),
        ("cut", [8, 12], {"no reply within the context": 1}, 1),
    ],
)
def test_what_is_longer_than_the_context_is_counted(
    long: Any, rows: list[int], skipped: dict[str, int], cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = SFT(LONG, context=12, long=long, epochs=1, quiet=True)
    made = rendered(stage, base(tmp_path).load())
    assert (made.lengths.tolist(), made.skipped, made.cut) == (rows, skipped, cut)
    trained = run_alone(stage, base(tmp_path / "other"), tmp_path / "run")
    assert (trained.provenance()["left out"], trained.provenance()["cut"]) == (skipped, cut)
    (warned,) = caplog.messages
    assert f"{sum(skipped.values())} left out" in warned
    assert (f"{cut} cut at the context" in warned) is (cut > 0)


def test_what_is_longer_than_the_context_is_refused_with_its_place(tmp_path: Path) -> None:
    policy = base(tmp_path).load()
    with pytest.raises(DataError, match="2 rows cannot be used") as told:
        rendered(SFT(LONG, context=12), policy)
    assert "conversation:2: longer than the context: 25 tokens, of which 12 fit" in str(told.value)
    with pytest.raises(DataError, match="No example is left to train on"):
        rendered(SFT(LONG, context=2, long="cut"), policy)
    for context in (1, 65):
        with pytest.raises(SettingsError, match="the 64 tokens of the model's own"):
            SFT(LONG, context=context).rendering(policy)


def test_what_the_chat_format_has_no_place_for_is_refused_or_counted(tmp_path: Path) -> None:
    policy = base(tmp_path).load()
    examples = Examples.of([TALKS[0], asked("1", "2"), asked("unheard", "of")])
    with pytest.raises(DataError, match="2 rows cannot be used") as told:
        rendered(SFT(examples), policy)
    assert "conversation:1: no example in this chat format: this chat format has no system message" in str(told.value)
    made = rendered(SFT(examples, unfit="skip"), policy)
    assert (len(made), made.skipped) == (1, {"no example in this chat format": 2})


def test_a_lora_learns_beside_frozen_weights(tmp_path: Path) -> None:
    given = base(tmp_path)
    stage = SFT(sums(16), epochs=4, lr=2e-2, adapter=LoRA(rank=4), save_every=100, **SMALL)
    trained = run_alone(stage, given, tmp_path / "run")
    logged = metrics(tmp_path / "run")
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.5
    before, after = weights(given), weights(trained)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "_proj." in name}
    assert (trained.path / "adapter" / "adapter_model.safetensors").is_file()
    (state,) = (tmp_path / "run" / "state").iterdir()
    assert (state / "tensors.safetensors").stat().st_size < 0.8 * (given.path / "model.safetensors").stat().st_size


def test_latent_attention_experts_and_further_tokens_learn_too(tmp_path: Path) -> None:
    given = deepseek_v3(tmp_path)
    learner = replace(WIDE, balancing=Balancing(1e-2, alpha=0.0))
    stage = SFT(sums(24), epochs=6, lr=1e-2, **{**SMALL, "learner": learner})
    trained = run_alone(stage, given, tmp_path / "run")
    first, *_, last = metrics(tmp_path / "run")
    assert last["nll"] < first["nll"] - 1
    assert last["mtp_nll_1"] < first["mtp_nll_1"] - 0.5
    assert first["loss"] == pytest.approx(first["nll"] + 0.1 * first["mtp_nll_1"], abs=1e-5)
    before, after = weights(given), weights(trained)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []
    alone = run_alone(replace(stage, mtp_weight=0.0, learner=WIDE), given, tmp_path / "alone")
    same = {name for name, tensor in weights(alone).items() if torch.equal(before[name], tensor)}
    assert {name for name in before if ".mtp." in name} <= same
    assert all(".mtp." in name or name.endswith("e_score_correction_bias") for name in same)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"examples_per_step": 0}, "examples_per_step=0"),
        ({"examples_per_step": 4, "tokens_per_step": 4}, "both say how large a step is"),
        ({"lr": 0.0}, "lr=0 must be positive"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"warmup": 1.0}, "warmup=1"),
        ({"final": 2.0}, "final=2"),
        ({"long": "drop"}, "long='drop'"),
        ({"unfit": "cut"}, "unfit='cut'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"mtp_weight": -1.0}, "mtp_weight=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        SFT(LONG, **wrong)


def test_a_setting_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mtp_weight=0\.3 changes nothing"):
        run_alone(SFT(sums(4), mtp_weight=0.3, quiet=True), base(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(("warmup", "wanted"), [(0.0, [0.9779754, 0.1]), (0.25, [0.4889877, 0.1])])
def test_the_rate_rises_and_falls_along_a_cosine(warmup: float, wanted: list[float]) -> None:
    schedule = SFT(LONG, warmup=warmup).optimizer(8).schedule
    factors = [schedule.factor(step, 8) for step in range(8)]
    assert [factors[0], factors[-1]] == pytest.approx(wanted, abs=0.02)
    assert max(factors) <= 1


class Broken:
    """Weights that are NaN in some of the steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.seen = steps, 0

    def __call__(self, mask: Tensor) -> Tensor:
        self.seen += 1
        return token_mean(mask) * (float("nan") if self.seen in self.steps else 1.0)


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = base(tmp_path)
    stage = SFT(sums(16), epochs=1, lr=1e-3, weighting=Broken({2}), **SMALL)
    trained = run_alone(stage, given, tmp_path / "run")
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [0, 1, 1, 1]
    assert "sft, step 2 was left out" in caplog.text
    assert trained.provenance()["steps left out"] == 1
    assert all(tensor.isfinite().all() for tensor in weights(trained).values())
    with pytest.raises(NotFinite, match="sft, step 3: 2 steps in a row were left out"):
        run_alone(replace(stage, weighting=Broken({2, 3}), spikes=Spikes(patience=2)), given, tmp_path / "broken")


KILLED = SFT(
    sums(30, held_out=0.2),
    epochs=3,
    examples_per_step=2,
    lr=1e-3,
    held_out=HeldOut(every=7),
    save_every=5,
    learner=WIDE,
    workers=2,
    quiet=True,
)


def test_kills_change_no_bit(tmp_path: Path) -> None:
    check_kills(tmp_path, base(tmp_path), KILLED, (5, 15, 25))


def test_other_examples_are_refused_by_name(tmp_path: Path) -> None:
    given, stage = base(tmp_path), replace(KILLED, epochs=1, workers=1)
    go(tmp_path / "run", given, stage)
    with pytest.raises(RunMismatch, match=r"stage\.examples\.conversations\.fingerprint"):
        go(tmp_path / "run", given, replace(stage, examples=sums(31, held_out=0.2)))
