"""Latent attention and routed experts in the native decoder: it says what PyTorch says, and company changes no bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conftest import tiny_model
from longthought.core.errors import LongthoughtError
from longthought.core.types import Completion, SamplingParams, TokenIds
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.native import Asked, NativeDecoder, NativeSteps, generate
from longthought.engine.scheduler import Scheduler
from longthought.models import lora
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.kernels import library
from longthought.models.kernels.packed import unfit
from longthought.models.parts import Experts, Latent
from longthought.models.precision import Precision, native
from longthought.models.rope import YarnScaling
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("served")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
in_both = pytest.mark.parametrize("precision", PRECISIONS)
READ_AT_ONCE = 96  # tokens of a prompt, see ``Pass.read``

LATENT = Latent(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
UNEVEN = Latent(48, 32, 48, 16, q_lora_rank=64, rope_interleave=False, attention_bias=True)
EXPERTS = Experts(6, 2, 16, 1, dense_layers=(0,))
GROUPED = Experts(20, 3, 32, 2, n_group=5, topk_group=2, routed_scaling_factor=2.5, dense_layers=(0,))
SHAPES: dict[str, dict[str, Any]] = {
    "latent": {"latent": LATENT},
    "biased": {"latent": replace(LATENT, v_head_dim=32, attention_bias=True)},
    "compressed queries": {"latent": UNEVEN},
    "deepseek_v3": {"latent": LATENT, "experts": EXPERTS},
    "groups": {"latent": UNEVEN, "experts": GROUPED},
    "not normed": {"latent": LATENT, "experts": replace(GROUPED, norm_topk_prob=False)},
    "all experts": {"latent": LATENT, "experts": Experts(3, 3, 16, 1, dense_layers=())},
    "yarn": {
        "latent": LATENT,
        "experts": EXPERTS,
        "rope_scaling": YarnScaling(4.0, 64, mscale=0.7, mscale_all_dim=1.0),
    },
    "further tokens": {"latent": LATENT, "experts": EXPERTS, "num_nextn_predict_layers": 1},
    "qwen3_moe": {"experts": Experts(17, 4, 32, score="softmax")},
    "qwen3_moe, mixed": {"experts": Experts(5, 1, 16, score="softmax", norm_topk_prob=False, dense_layers=(1,))},
}
ROUTED = [name for name, changes in SHAPES.items() if "experts" in changes]
of_every_shape = pytest.mark.parametrize("shape", SHAPES)
of_some_shapes = pytest.mark.parametrize("shape", ["groups", "qwen3_moe"])


def model_of(shape: str, **changes: Any) -> Transformer:
    """Three layers, with random biases on the choice of experts."""
    norm = {"qk_norm": "latent" not in SHAPES[shape], "head_dim": 16}
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": 256}
    model = tiny_model(**{**norm, **sizes, **SHAPES[shape], **changes})
    generator = torch.Generator().manual_seed(9)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            buffer.normal_(0.0, 0.2, generator=generator)
    return model


def tokens(length: int, vocabulary: int = 23) -> TokenIds:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist())


PROMPTS = [tokens(length) for length in (1, 2, 16, 33, READ_AT_ONCE + 1, READ_AT_ONCE + 2, 180)]
PARAMS = SamplingParams(2, 20, 0.9, 5, (2,))


def engine(model: Transformer, precision: Precision = "float32", slots: int = 64, threads: int = 1) -> Engine:
    return Engine(
        model, EngineSettings(slots, precision, threads), decode=lambda ids: "".join(chr(97 + i) for i in ids)
    )


def by_pytorch(model: Transformer, params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> list[list[Completion]]:
    with monkeypatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        asked = engine(model)
        assert not asked.is_native
        return asked.sample(PROMPTS, params)


def agree(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    for one, other in zip((c for group in found for c in group), (c for group in expected for c in group), strict=True):
        assert (one.token_ids, one.finish) == (other.token_ids, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


@of_every_shape
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replies_are_pytorchs(shape: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of one token, of one pass and of several; sampling at its own randomness, and the most likely token."""
    model, params = model_of(shape), replace(PARAMS, temperature=temperature)
    assert engine(model).is_native
    agree(engine(model).sample(PROMPTS, params), by_pytorch(model, params, monkeypatch))


@of_some_shapes
@pytest.mark.parametrize("name", library.NAMES)
def test_every_library_says_the_same(shape: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in library.usable():
        pytest.skip(f"no {name} here")
    model = model_of(shape)
    expected = by_pytorch(model, PARAMS, monkeypatch)
    monkeypatch.setenv(library.VARIABLE, name)
    assert engine(model).is_native
    agree(engine(model).sample(PROMPTS, PARAMS), expected)


@of_some_shapes
@pytest.mark.parametrize(
    "rules",
    [{"top_p": 0.8}, {"stop": ("ab", "q")}, {"top_k": 5, "repetition_penalty": 1.2}],
    ids=lambda rules: min(rules),
)
def test_every_rule_of_sampling_applies(shape: str, rules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = model_of(shape), replace(PARAMS, **rules)
    agree(engine(model).sample(PROMPTS, params), by_pytorch(model, params, monkeypatch))


@in_both
@of_some_shapes
def test_single_steps_are_whole_replies(shape: str, precision: Precision) -> None:
    model = model_of(shape)
    whole = engine(model, precision).sample(PROMPTS, PARAMS)
    stepped = [
        engine(model, precision, *many).sample(PROMPTS, replace(PARAMS, top_logprobs=1)) for many in ((64, 1), (5, 3))
    ]
    assert stepped[0] == stepped[1]
    for one, other in zip((c for group in whole for c in group), (c for group in stepped[0] for c in group)):
        assert (one.token_ids, one.finish) == (other.token_ids, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=3e-6)


def recorded(
    model: Transformer,
    precision: Precision,
    slots: int = 64,
    threads: int = 1,
    prompts: list[TokenIds] = PROMPTS,
    count: int = 2,
) -> list[list[Completion]]:
    """Replies with their routing."""
    core = native(model, precision)
    assert core is not None
    params = replace(PARAMS, count=count)
    rows = list(Scheduler(prompts, params, slots, model.config.max_position_embeddings).waiting)
    groups: dict[int, list[Completion]] = {}
    asked = Asked(prompts, rows, params.temperature, params.stop_tokens, routing=True)
    generate(NativeDecoder(model, core), asked, threads, slots, groups.__setitem__, 0)
    return [groups[number] for number in range(len(prompts))]


def routing(completion: Completion) -> NDArray[np.int16]:
    assert completion.routing is not None
    return completion.routing


def same_bits(found: list[list[Completion]], expected: list[list[Completion]]) -> bool:
    if found != expected:
        return False
    pairs = zip((c for group in found for c in group), (c for group in expected for c in group))
    return all(np.array_equal(routing(one), routing(other)) for one, other in pairs)


@in_both
@of_some_shapes
def test_company_changes_no_bit(shape: str, precision: Precision) -> None:
    """Neither of what is drawn nor of the experts that are chosen."""
    model = model_of(shape)
    expected = recorded(model, precision)
    for slots, threads in ((1, 1), (3, 2), (9, 40)):
        assert same_bits(recorded(model, precision, slots, threads), expected)
    assert same_bits(recorded(model, precision, prompts=PROMPTS[::-1])[::-1], expected)
    assert same_bits([group[:2] for group in recorded(model, precision, count=5)], expected)
    for prompt, group in zip(PROMPTS, expected):
        assert same_bits(recorded(model, precision, prompts=[prompt]), [group])


@torch.no_grad()
def chosen(model: Transformer, ids: TokenIds) -> NDArray[np.int64]:
    """What the routers choose when they see the whole sequence at once, (tokens, routed layers, K)."""
    seen = Routing(model.config.routed_layers)
    attend = PackedAttention([len(ids)])
    model(torch.tensor(ids), attend.positions, attend, seen)
    return seen.choices().numpy()


@pytest.mark.parametrize("shape", ROUTED)
def test_recorded_choices_are_the_routers(shape: str) -> None:
    """Of every token that was fed, the prompt included: all but the last one that was drawn."""
    model = model_of(shape)
    used: set[int] = set()
    for prompt, group in zip(PROMPTS, recorded(model, "float32")):
        for completion in group:
            assert routing(completion).dtype == np.int16
            expected = chosen(model, prompt + completion.token_ids[:-1])
            np.testing.assert_array_equal(routing(completion), expected)
            used.update(expected.flatten().tolist())
    assert len(used) > 2


@of_some_shapes
def test_single_steps_record_choices(shape: str) -> None:
    model = model_of(shape)
    core = native(model, "float32")
    assert core is not None
    steps = NativeSteps(NativeDecoder(model, core), 3, 8, 2, routing=True)
    steps.admit(PROMPTS, torch.tensor([0, 2]), torch.tensor([4, 2]))
    for prompt, read in zip(PROMPTS, steps.read, strict=True):
        np.testing.assert_array_equal(read.numpy(), chosen(model, prompt)[:-1])
    for token in (3, 5):
        steps.step(torch.tensor([token, 0, token + 1]))
    assert steps.choices is not None
    assert int(steps.choices[1].max()) == -1
    for slot, ids in ((0, (*PROMPTS[4][:-1], 3, 5)), (2, (*PROMPTS[2][:-1], 4, 6))):
        np.testing.assert_array_equal(steps.choices[slot].numpy(), chosen(model, ids)[-1])


def test_models_without_experts_record_nothing() -> None:
    assert {c.routing is None for group in recorded(model_of("latent"), "float32") for c in group} == {True}


def test_equal_experts_are_chosen_in_order() -> None:
    """A router of zeros gives equal affinities to all."""
    model = model_of("groups")
    for name, value in model.state_dict().items():
        if ".mlp.gate." in name:
            value.zero_()
    for completion in recorded(model, "float32")[3]:
        assert (routing(completion) == np.arange(3)).all()


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3_moe"])
def test_bfloat16_errs_less_than_pytorch_in_bfloat16(shape: str) -> None:
    """Mean error of the log-probs of what was sampled; the truth is float32."""
    model = model_of(shape, hidden_size=128, intermediate_size=256)
    groups = engine(model, "bfloat16").sample(PROMPTS, replace(PARAMS, count=6))
    narrow = model_of(shape, hidden_size=128, intermediate_size=256).bfloat16()
    mine, others = [], []
    for prompt, group in zip(PROMPTS, groups):
        for completion in group:
            ids, reply = torch.tensor([prompt + completion.token_ids]), torch.tensor(completion.token_ids)
            truth, peer = (_logprobs(one, ids, reply) for one in (model, narrow))
            mine.append((torch.tensor(completion.logprobs) - truth).abs())
            others.append((peer - truth).abs())
    assert 1e-5 < float(torch.cat(mine).mean()) < 0.8 * float(torch.cat(others).mean())


@torch.no_grad()
def _logprobs(model: Transformer, ids: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    logq = (model(ids)[0] / PARAMS.temperature).log_softmax(-1)
    found: torch.Tensor = logq[-len(reply) - 1 : -1].gather(-1, reply[:, None]).squeeze(-1)
    return found


def test_an_adapted_model_is_what_pytorch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("groups")
    plain = engine(model).sample(PROMPTS, PARAMS)
    lora.add(model, lora.LoRA(4), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    found = engine(model).sample(PROMPTS, PARAMS)
    assert found != plain
    agree(found, by_pytorch(model, PARAMS, monkeypatch))


@in_both
def test_weights_that_are_not_finite_draw_nothing(precision: Precision) -> None:
    attention = ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "kv_a_layernorm")
    for name in (*(f"self_attn.{one}" for one in attention), "mlp.gate", "mlp.shared_experts.up_proj"):
        model = model_of("groups")
        with torch.no_grad():
            model.get_parameter(f"model.layers.1.{name}.weight").view(-1)[3] = torch.nan
        with pytest.raises(LongthoughtError, match="no token can be drawn"):
            engine(model, precision).sample(PROMPTS[:3], PARAMS)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"latent": replace(LATENT, kv_lora_rank=24)}, "kv_lora_rank=24"),
        ({"latent": replace(LATENT, qk_rope_head_dim=8)}, "qk_rope_head_dim=8"),
        ({"latent": replace(LATENT, v_head_dim=8)}, "v_head_dim=8"),
        ({"latent": replace(LATENT, q_lora_rank=20)}, "q_lora_rank=20"),
        ({"experts": replace(EXPERTS, moe_intermediate_size=24)}, "moe_intermediate_size=24"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_sizes_are_pytorchs(changes: Any, name: str) -> None:
    model = model_of("deepseek_v3", **changes)
    assert unfit(model.config) == f"{name} is not a multiple of 16"
    assert not engine(model).is_native
    assert len(engine(model).sample(PROMPTS[:2], PARAMS)) == 2


def test_an_odd_head_width_is_no_matter_where_it_is_made_of_two() -> None:
    config = ModelConfig(23, 32, 48, latent=replace(LATENT, qk_nope_head_dim=48), qk_norm=False)
    assert config.head_dim == 64
    assert unfit(config) == ""
