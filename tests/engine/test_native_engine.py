"""The native engine: what it draws depends on nothing but prompt, seed and number; and it is right, and it gives up."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model as tiny_model_of
from longthought.core.errors import DataError, LongthoughtError
from longthought.core.types import Completion, Finish, SamplingParams, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.models import lora
from longthought.models.config import ModelConfig
from longthought.models.kernels import library
from longthought.models.precision import Precision, native
from longthought.models.transformer import Transformer
from longthought.models.weights import load
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("served")
tiny_model = partial(tiny_model_of, head_dim=16, max_position_embeddings=256)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
in_both = pytest.mark.parametrize("precision", PRECISIONS)
READ_AT_ONCE = 96  # tokens of a prompt, see ``Pass.read``


def tokens(seed: int, length: int, vocabulary: int = 23) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist())


LENGTHS = (1, 2, 15, 17, 33, READ_AT_ONCE, READ_AT_ONCE + 1, READ_AT_ONCE + 2, 200)
PROMPTS = [tokens(length, length) for length in LENGTHS]
PARAMS = SamplingParams(3, 24, 0.9, 5, (2, 7))


def drawn(
    precision: Precision, params: SamplingParams = PARAMS, slots: int = 64, threads: int = 1, **changes: Any
) -> list[list[Completion]]:
    prompts = changes.pop("prompts", PROMPTS)
    return Engine(tiny_model(**changes), EngineSettings(slots, precision, threads)).sample(prompts, params)


@in_both
@pytest.mark.parametrize("tie", [False, True])
def test_slots_and_threads_change_no_bit(precision: Precision, tie: bool) -> None:
    expected = drawn(precision, tie_word_embeddings=tie)
    assert {c.finish for group in expected for c in group} == {Finish.STOP, Finish.LENGTH}
    for slots, threads in ((64, 1), (1, 1), (3, 2), (7, 5), (200, 2), (9, 40)):
        assert drawn(precision, slots=slots, threads=threads, tie_word_embeddings=tie) == expected


@in_both
def test_neighbours_change_no_bit(precision: Precision) -> None:
    expected = drawn(precision)
    many = drawn(precision, replace(PARAMS, count=8))
    assert [group[:3] for group in many] == expected
    assert drawn(precision, prompts=PROMPTS[::-1]) == expected[::-1]
    for prompt, group in zip(PROMPTS, expected):
        assert drawn(precision, prompts=[prompt]) == [group]
        assert drawn(precision, replace(PARAMS, count=1), prompts=[prompt]) == [group[:1]]
        assert drawn(precision, replace(PARAMS, max_tokens=5), prompts=[prompt])[0][0].logprobs == group[0].logprobs[:5]


@in_both
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_single_steps_are_whole_replies(precision: Precision, temperature: float) -> None:
    """Reporting alternatives takes the other path: the core gives logits, and PyTorch draws."""
    params = replace(PARAMS, temperature=temperature)
    whole, stepped = drawn(precision, params), drawn(precision, replace(params, top_logprobs=1))
    for left, right in zip((c for group in whole for c in group), (c for group in stepped for c in group)):
        assert (left.token_ids, left.finish) == (right.token_ids, right.finish)
        assert left.logprobs == pytest.approx(right.logprobs, abs=3e-6)
    for slots, threads in ((1, 1), (5, 3)):
        assert drawn(precision, replace(params, top_logprobs=1), slots, threads) == stepped


SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 128**-0.5,
}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Any]:
    """The same weights, here and in ``transformers``."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    if request.param == "qwen2":
        config = transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)
    else:
        config = transformers.Qwen3Config(**SIZES, head_dim=32)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder: Path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    return load(ours, folder / "model.safetensors").eval(), theirs


WIDE = [tokens(number, length, 512) for number, length in enumerate((1, 5, 40, READ_AT_ONCE + 1, 150))]


def test_greedy_is_generate(pair: tuple[Transformer, Any]) -> None:
    ours, theirs = pair
    groups = Engine(ours, EngineSettings(precision="float32")).sample(WIDE, SamplingParams(1, 40, 0.0))
    for prompt, [completion] in zip(WIDE, groups):
        ids = torch.tensor([prompt])
        said = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        assert completion.token_ids == tuple(said[0, len(prompt) :].tolist())


def test_bfloat16_errs_less_than_transformers_in_bfloat16(pair: tuple[Transformer, Any]) -> None:
    """Mean error of the log-probs of what was sampled; the truth is float32."""
    ours, theirs = pair
    groups = Engine(ours, EngineSettings(precision="bfloat16")).sample(WIDE, SamplingParams(2, 40, 1.0, 1))
    narrow = type(theirs)(theirs.config).eval()
    narrow.load_state_dict(theirs.state_dict())
    narrow.bfloat16()
    mine, others = [], []
    for prompt, group in zip(WIDE, groups):
        for completion in group:
            ids, reply = torch.tensor([prompt + completion.token_ids]), torch.tensor(completion.token_ids)
            truth, peer = (_logprobs(model, ids, reply) for model in (theirs, narrow))
            mine.append((torch.tensor(completion.logprobs) - truth).abs())
            others.append((peer - truth).abs())
    assert 1e-5 < float(torch.cat(mine).mean()) < 0.8 * float(torch.cat(others).mean())


@torch.no_grad()
def _logprobs(model: Any, ids: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    logq = model(ids).logits[0].float().log_softmax(-1)
    found: torch.Tensor = logq[-len(reply) - 1 : -1].gather(-1, reply[:, None]).squeeze(-1)
    return found


@in_both
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_samples_follow_the_distribution(precision: Precision, temperature: float) -> None:
    """χ² of the first token of many replies; its mean is the number of kinds less one, its variance twice that."""
    model, prompt, count = tiny_model(vocab_size=19), (1, 2, 3), 6000
    [group] = Engine(model, EngineSettings(precision=precision)).sample([prompt], SamplingParams(count, 1, temperature))
    with torch.no_grad():
        expected = count * (model(torch.tensor([prompt]))[0, -1].double() / temperature).softmax(-1)
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=19)
    often = expected >= 8
    cells = [(int(seen[often][i]), float(expected[often][i])) for i in range(int(often.sum()))]
    cells.append((int(seen[~often].sum()), float(expected[~often].sum())))
    statistic = sum((n - e) ** 2 / e for n, e in cells if e > 1)
    assert statistic < len(cells) + 4 * math.sqrt(2 * len(cells))
    for completion in group[:50]:
        exact = math.log(float(expected[completion.token_ids[0]]) / count)
        assert completion.logprobs[0] == pytest.approx(exact, abs=1e-5 if precision == "float32" else 0.1)


PATHS = {"whole": SamplingParams(2, 6, seed=1), "steps": SamplingParams(2, 6, seed=1, top_logprobs=1)}
by_both_paths = pytest.mark.parametrize("path", PATHS)


@in_both
@by_both_paths
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_draw_nothing(precision: Precision, path: str, bad: float) -> None:
    names = [name for name, p in tiny_model(qk_norm=False, qkv_bias=True).named_parameters() if "layers.0" not in name]
    for name in names:
        model = tiny_model(qk_norm=False, qkv_bias=True)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3 if "embed" not in name else 4 * 32] = bad
        with pytest.raises(LongthoughtError, match="no token can be drawn"):
            Engine(model, EngineSettings(precision=precision)).sample([(4, 4, 4), (4,)], PATHS[path])


@by_both_paths
def test_a_temperature_that_is_too_small_is_told(path: str) -> None:
    model = tiny_model()
    assert Engine(model).sample([(1,)], replace(PATHS[path], temperature=1e-30))[0][0].logprobs[0] == 0.0
    with pytest.raises(LongthoughtError, match="too close to 0"):
        Engine(model).sample([(1,)], replace(PATHS[path], temperature=1e-40))


@in_both
@by_both_paths
def test_the_context_is_a_budget(precision: Precision, path: str) -> None:
    model = tiny_model(max_position_embeddings=32)
    engine = Engine(model, EngineSettings(precision=precision))
    for most in (6, 10**12):
        groups = engine.sample([tokens(1, 30), tokens(2, 31), (3,)], replace(PATHS[path], max_tokens=most))
        assert [len(c.token_ids) for group in groups for c in group] == [2, 2, 1, 1, *([min(most, 31)] * 2)]
        assert {c.finish for group in groups[:2] for c in group} == {Finish.BUDGET}
        assert {c.finish for c in groups[2]} == {Finish.LENGTH if most == 6 else Finish.BUDGET}
    [[one, _]] = engine.sample([(3,)], replace(PATHS[path], max_tokens=1))
    assert (len(one.token_ids), one.finish) == (1, Finish.LENGTH)


def test_more_threads_than_work() -> None:
    assert drawn("float32", threads=300) == drawn("float32")


@pytest.mark.parametrize("threads", [1, 2])
def test_who_is_told_and_fails_is_told_nothing_more(threads: int) -> None:
    engine, told = Engine(tiny_model(), EngineSettings(2, "float32", threads)), list[int]()
    expected = engine.sample(PROMPTS, PARAMS)

    def fail(prompt: int, completions: list[Completion]) -> None:
        told.append(prompt)
        raise DataError("enough")

    for _ in range(3):
        with pytest.raises(DataError, match="enough"):
            engine.stream(PROMPTS, PARAMS, fail)
        assert len(told) == 1
        told.clear()
        assert engine.sample(PROMPTS, PARAMS) == expected


class Interrupted(BaseException):
    """What a signal's handler raises, as Ctrl-C does."""


@contextmanager
def interrupted(after: float) -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(os.name != "posix", reason="signals are for Linux and macOS")
@by_both_paths
def test_an_interrupt_ends_a_long_call(path: str) -> None:
    engine = Engine(tiny_model(max_position_embeddings=4096), EngineSettings(precision="float32", threads=1))
    with pytest.raises(Interrupted), interrupted(after=0.2):
        engine.sample([(1, 2, 3)], replace(PATHS[path], count=32, max_tokens=4000))
    assert len(engine.sample([(1, 2, 3)], PATHS[path])[0]) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and address space limits are Linux's")
@by_both_paths
def test_memory_that_runs_out_is_told(path: str) -> None:
    """Keys and values of 2¹⁸ tokens take 128 MiB for each of four replies."""
    resource = pytest.importorskip("resource")
    engine = Engine(tiny_model(max_position_embeddings=2**18), EngineSettings(precision="float32", threads=1))
    params = replace(PATHS[path], count=4, max_tokens=2**18)
    expected = engine.sample([(1,)], PATHS[path])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    try:
        with pytest.raises(MemoryError, match="fewer slots, or shorter replies"):
            engine.sample([(1,)], params)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert engine.sample([(1,)], PATHS[path]) == expected


def agrees_with_pytorch(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, EngineSettings(precision="float32"))
    assert engine.is_native
    found = engine.sample(PROMPTS, PARAMS)
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    assert not engine.is_native
    for left, right in zip(found, engine.sample(PROMPTS, PARAMS)):
        assert [c.token_ids for c in left] == [c.token_ids for c in right]
        for one, other in zip(left, right):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": False},
        {"qk_norm": False, "qkv_bias": True},
        {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
        {"qkv_bias": True},
        {"tie_word_embeddings": True, "head_dim": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
        {"vocab_size": 1041, "num_key_value_heads": 4},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_kind_of_model_is_what_pytorch_says(changes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agrees_with_pytorch(tiny_model(**changes), monkeypatch)


def test_an_adapted_model_is_what_pytorch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = Engine(model, EngineSettings(precision="float32")).sample(PROMPTS, PARAMS)
    lora.add(model, lora.LoRA(4), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    assert Engine(model, EngineSettings(precision="float32")).sample(PROMPTS, PARAMS) != plain
    agrees_with_pytorch(model, monkeypatch)


@in_both
@by_both_paths
def test_weights_stored_in_bfloat16(precision: Precision, path: str) -> None:
    model = tiny_model().bfloat16()
    groups = Engine(model, EngineSettings(precision=precision)).sample(PROMPTS, replace(PATHS[path], max_tokens=20))
    learner = PolicyLearner(model.double(), AdamW(), 1)
    for prompt, group in zip(PROMPTS, groups):
        for completion in group:
            exact = learner.logprobs(rows_of([prompt + completion.token_ids]))[0, len(prompt) :]
            found = torch.tensor(completion.logprobs, dtype=torch.float64)
            assert float((found - exact).abs().mean()) < (1e-5 if precision == "float32" else 0.05)


def test_what_the_core_cannot_run_pytorch_runs() -> None:
    for model in (tiny_model(head_dim=8), tiny_model().double(), tiny_model(hidden_size=40), tiny_model().half()):
        engine = Engine(model, EngineSettings(precision="float32"))
        assert not engine.is_native
        if model.lm_head.weight.dtype != torch.float16:
            assert len(engine.sample(PROMPTS, PARAMS)) == len(PROMPTS)


def test_one_layer_of_another_type_is_not_misread() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.double()
    assert native(model, "float32") is None
