"""Parameters, caches and FLOPs by the config alone: published models, numbers by hand, and PyTorch's own count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longthought.core.errors import SettingsError
from longthought.models import cost
from longthought.models.config import ModelConfig
from longthought.models.parts import Experts, Latent
from longthought.models.presets import sized
from longthought.models.transformer import Transformer, initialize

V3 = ModelConfig(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    max_position_embeddings=163840,
    qk_norm=False,
    latent=Latent(512, 128, 64, 128, 1536),
    experts=Experts(256, 8, 2048, 1, "sigmoid", True, 2.5, 8, 4, (0, 1, 2)),
    num_nextn_predict_layers=1,
)
LLAMA = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    qk_norm=False,
)
MIXTURE = ModelConfig(
    vocab_size=50, num_hidden_layers=3, experts=Experts(8, 2, 16, score="softmax", dense_layers=(1,), noisy=True)
)
SHAPES = {
    "dense": sized("dense", 64, 50),
    "tied": ModelConfig(50, tie_word_embeddings=True),
    "biased": ModelConfig(50, qk_norm=False, qkv_bias=True, output_bias=True, mlp_bias=True),
    "qwen3_moe": replace(MIXTURE, experts=replace(MIXTURE.experts, noisy=False)),
    "deepseek_v3": sized("deepseek_v3", 64, 50, ahead=2),
    "compressed queries": replace(sized("deepseek_v3", 64, 50), latent=Latent(16, 8, 4, 12, 24, attention_bias=True)),
    "latents, no experts": ModelConfig(50, qk_norm=False, latent=Latent(16, 8, 4, 12), num_nextn_predict_layers=1),
}


def test_deepseek_v3_has_671_billion_parameters_of_which_37_billion_are_active() -> None:
    assert cost.main_parameters(V3) == 671_026_404_352
    assert V3.active_parameters() == 37_552_282_624
    assert V3.parameters() - cost.main_parameters(V3) == 11_610_067_968
    parts = cost.parts(V3)
    assert parts.routed_experts == 58 * 256 * 3 * 7168 * 2048
    assert parts.dense_nets == 3 * 3 * 7168 * 18432
    assert parts.attention == 61 * 187_105_280  # 7168·1536 + 1536·24576 + 7168·576 + 512·32768 + 16384·7168


def test_deepseek_v3_keeps_70272_bytes_of_a_token() -> None:
    own, (mha, gqa, mqa) = cost.own_cache(V3), cost.other_caches(V3)
    assert own == ("MLA", 1, 61 * 576)
    assert 2 * own.numbers == 70_272
    assert mha == ("MHA", 128, 61 * 128 * 256)
    assert gqa == ("GQA", 8, 61 * 8 * 256)
    assert mqa == ("MQA", 1, 61 * 256)
    assert 1 - own.numbers / mha.numbers == pytest.approx(0.98242, abs=1e-5)


def test_llama_3_1_has_8_billion_parameters_and_four_times_fewer_keys() -> None:
    assert cost.main_parameters(LLAMA) == LLAMA.active_parameters() == 8_030_261_248
    assert cost.own_cache(LLAMA) == cost.other_caches(LLAMA)[1] == ("GQA", 8, 65_536)
    assert cost.other_caches(LLAMA)[0] == ("MHA", 32, 262_144)


def test_flops_by_hand() -> None:
    """Two layers, d = 4, two heads of width 2 with one key head, f = 6, ten words."""
    config = ModelConfig(10, 4, 6, 2, 2, 1, 2, 16)
    assert cost.attention_matrices(config) == 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4
    assert cost.active_matrices(config) == 2 * (48 + 3 * 4 * 6) + 10 * 4
    assert cost.flops_per_key(config) == 2 * 2 * (2 + 2)
    assert cost.forward_flops(config, 5) == 2 * 280 + 2 * 5 * 16
    assert cost.prefill_flops(config, 4) == 2 * 280 + 2 * 2.5 * 16  # 1, 2, 3 and 4 keys
    assert cost.training_flops(config, 4) == 3 * 640
    assert cost.prediction_flops(config, 4) == 0


def test_flops_of_latent_attention_and_experts_by_hand() -> None:
    """d = 4, two heads of 6 + 2, values of 3, latents of 5; a dense layer, and one of 4 experts: 2 chosen, 1 shared."""
    config = ModelConfig(
        10, 4, 6, 2, 2, qk_norm=False, latent=Latent(5, 6, 2, 3), experts=Experts(4, 2, 7, 1, dense_layers=(0,))
    )
    config = replace(config, num_nextn_predict_layers=1)
    attention = 4 * 2 * 8 + 4 * (5 + 2) + 5 * 2 * (6 + 3) + 2 * 3 * 4
    experts = 3 * 4 * 7 * 3 + 4 * 4
    assert cost.attention_matrices(config) == attention == 206
    assert cost.active_matrices(config) == 2 * attention + 3 * 4 * 6 + experts + 40 == 792
    assert cost.flops_per_key(config) == 2 * 2 * (8 + 3)
    assert cost.flops_per_key(config, absorbed=True) == 2 * 2 * (7 + 5)
    assert cost.forward_flops(config, 9, absorbed=True) == 2 * 792 + 2 * 9 * 48
    assert cost.prefill_flops(config, 9) == 2 * 792 + 2 * 5 * 44
    assert cost.prediction_flops(config, 9) == 2 * (2 * 4 * 4 + attention + experts + 40) + 5 * 44


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parts_are_those_of_the_model(config: ModelConfig) -> None:
    """By the names of its modules."""
    with torch.device("meta"):
        model = Transformer(config)
    found = dict.fromkeys(cost.Parts._fields, 0)
    for name, parameter in model.named_parameters():
        if ".mtp." not in name:
            found[_part(name, parameter)] += parameter.numel()
    assert cost.parts(config)._asdict() == found
    assert sum(cost.parts(config)) == cost.main_parameters(config)
    assert config.parameters() == sum(parameter.numel() for parameter in model.parameters())


def _part(name: str, parameter: Tensor) -> str:
    kinds = {
        "embed_tokens": "embeddings",
        "lm_head": "head",
        "self_attn": "attention",
        "shared_experts": "shared_experts",
    }
    kinds |= {"mlp.experts": "routed_experts", "mlp.gate.": "routers", "mlp": "dense_nets"}
    return "vectors" if parameter.dim() == 1 else next(part for mark, part in kinds.items() if mark in name)


class Counted:
    """Full attention as plain products, which the counter sees."""

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, /) -> Tensor:
        queries, keys, values = (x.transpose(0, 1) for x in (q, k, v))
        each = len(queries) // len(keys)
        keys, values = keys.repeat_interleave(each, 0), values.repeat_interleave(each, 0)
        return (torch.softmax(queries @ keys.mT, -1) @ values).transpose(0, 1)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_pytorch_counts_the_same_flops(config: ModelConfig) -> None:
    model, tokens = Transformer(config), torch.arange(12)
    initialize(model, 0)

    def counted(absorbed: bool, ahead: bool = False) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            hidden = model(tokens, tokens, Counted(absorbed))
            following = tokens.expand(config.num_nextn_predict_layers, -1)
            states = model.ahead(hidden, following, tokens, Counted(absorbed)) if ahead else []
            for state in (hidden, *states):
                model.lm_head(state)
        return int(counter.get_total_flops())

    assert counted(False) == 12 * cost.forward_flops(config, 12)
    if config.latent is not None:
        assert counted(True) == 12 * cost.forward_flops(config, 12, absorbed=True)
    if config.num_nextn_predict_layers:
        more = counted(False, ahead=True) - counted(False)
        assert more == 12 * cost.prediction_flops(config, 23)  # (23 + 1) / 2 keys


def test_training_is_three_times_forward() -> None:
    config = SHAPES["dense"]
    model, tokens = Transformer(config), torch.arange(12)
    initialize(model, 0)
    with FlopCounterMode(display=False) as counter:
        model.lm_head(model(tokens, tokens, Counted(False))).sum().backward()
    assert counter.get_total_flops() == 12 * cost.training_flops(config, 23)


def test_the_absorbed_form_is_that_of_latent_attention() -> None:
    with pytest.raises(SettingsError, match="only latent attention"):
        cost.forward_flops(LLAMA, 4096, absorbed=True)


@pytest.mark.parametrize(
    ("heads", "groups"),
    [(128, 8), (32, 8), (14, 7), (12, 6), (9, 9), (30, 6), (7, 7), (4, 4), (13, 13), (16, 8), (1, 1), (17, 1)],
)
def test_the_nearest_divisor(heads: int, groups: int) -> None:
    config = ModelConfig(10, num_attention_heads=heads, num_key_value_heads=heads)
    assert cost.other_caches(config)[1].heads == groups


@pytest.mark.parametrize(("heads", "keys", "kind"), [(8, 8, "MHA"), (8, 4, "GQA"), (8, 1, "MQA"), (1, 1, "MHA")])
def test_kinds(heads: int, keys: int, kind: str) -> None:
    assert cost.attention_kind(ModelConfig(10, num_attention_heads=heads, num_key_value_heads=keys)) == kind


def test_a_memory_holds_the_weights_and_some_sequences() -> None:
    fit = cost.fit(LLAMA, 80 * 10**9, 4096, 2)
    assert (fit.weights, fit.cache) == (16_060_522_496, 4096 * 131_072)
    assert fit.sequences == (80 * 10**9 - 16_060_522_496) // 536_870_912 == 119
    exact = fit.weights + 3 * fit.cache
    assert cost.fit(LLAMA, exact, 4096, 2).sequences == 3
    assert cost.fit(LLAMA, exact - 1, 4096, 2).sequences == 2
    small = cost.fit(V3, 80 * 10**9, 4096, 2)
    assert small.left < 0
    assert small.sequences == 0


@given(layers=st.integers(1, 10**15), heads=st.integers(1, 10**15), words=st.integers(1, 10**15))
@settings(max_examples=30, deadline=2000)
def test_no_config_takes_long(layers: int, heads: int, words: int) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": words}
    for config in (
        ModelConfig(**sizes, num_key_value_heads=1),
        ModelConfig(
            **sizes, qk_norm=False, latent=V3.latent, experts=Experts(256, 8, 2048, 1), num_nextn_predict_layers=layers
        ),
    ):
        assert sum(cost.parts(config)) == cost.main_parameters(config)
        assert config.active_parameters() <= config.parameters()
        assert cost.other_caches(config)[0].numbers >= cost.other_caches(config)[1].numbers
        assert cost.training_flops(config, 1) > 0
