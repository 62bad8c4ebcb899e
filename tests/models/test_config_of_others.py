"""What a config.json of others says, and what transformers makes of it."""

import json
import math
from pathlib import Path

import pytest
import torch

from longthought.core.errors import CheckpointError, SettingsError
from longthought.models.config import ModelConfig
from longthought.models.rope import LinearScaling, Llama3Scaling

REAL = json.loads((Path(__file__).parent / "real_configs.json").read_text(encoding="utf-8"))
TINY = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("name", REAL)
def test_published_models_have_the_published_size(name: str) -> None:
    theirs = REAL[name]["config"]
    config = ModelConfig.from_hf(theirs)
    assert config.parameters() == REAL[name]["parameters"]
    assert config.model_type == {"mistral": "llama"}.get(theirs["model_type"], theirs["model_type"])


@pytest.mark.parametrize("name", REAL)
def test_a_round_trip_keeps_what_the_config_said(name: str) -> None:
    theirs = REAL[name]["config"]
    config = ModelConfig.from_hf(theirs)
    written = json.loads(json.dumps(config.to_hf(theirs)))
    assert ModelConfig.from_hf(written) == config
    gone = {"torch_dtype", "_name_or_path", "auto_map", "quantization_config"}
    gone |= {"rope_scaling"} if theirs.get("rope_scaling") is None else set()
    said = {name: value for name, value in theirs.items() if name not in gone | {"rope_scaling"}}
    assert {name: written[name] for name in said} == said
    assert not gone & written.keys()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_is_left_out_is_what_transformers_takes(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    for given in ({}, TINY, {**TINY, "num_key_value_heads": 1}, {**TINY, "num_key_value_heads": None}):
        if given == TINY and kind != "llama":
            continue  # 32 key heads for 4 query heads: refused, see below
        theirs = transformers.AutoConfig.for_model(kind, **given)
        ours = ModelConfig.from_hf({"model_type": kind, **given})
        for name in ("vocab_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
        assert ours.max_position_embeddings == theirs.max_position_embeddings
        assert ours.tie_word_embeddings == theirs.tie_word_embeddings
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_both_ways_to_write_the_rotary_embedding() -> None:
    old = {"model_type": "llama", **TINY, "rope_theta": 5e5, "rope_scaling": LLAMA3}
    new = {"model_type": "llama", **TINY, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(new).rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)
    linear = {"model_type": "llama", **TINY, "rope_scaling": {"type": "linear", "factor": 4}}
    assert ModelConfig.from_hf(linear).rope_scaling == LinearScaling(4.0)
    assert ModelConfig.from_hf(linear).rope_theta == 1e4


@pytest.mark.parametrize(
    "windows",
    [
        {"use_sliding_window": True, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": False, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 2},
    ],
    ids=str,
)
def test_a_window_that_no_layer_has_changes_nothing(windows: dict) -> None:
    plain = {"model_type": "qwen2", **TINY, "num_key_value_heads": 2}
    assert ModelConfig.from_hf({**plain, **windows}) == ModelConfig.from_hf(plain)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("llama", {"model_type": "mixtral"}, "mixtral.*deepseek_v3, llama, mistral, qwen2, qwen3, qwen3_moe"),
        ("llama", {"model_type": "new", "auto_map": {"AutoConfig": "code.Config"}}, "never run"),
        ("llama", {"model_type": None}, "model_type None"),
        ("llama", {"model_type": ["llama"]}, "model_type"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassification"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures"),
        ("qwen2", {"architectures": ["LlamaForCausalLM"]}, "Llama"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of the head"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("llama", {"sliding_window": 64}, "sliding_window"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "sliding-window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"hidden_act": None}, "activation None"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0}}, "beta_fast=1.0"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": None}}, "truncate"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "finetuned": True}}, "finetuned"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1.0}, "rope_theta=1.0"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "longrope.*default, linear, llama3, yarn"),
        ("llama", {"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "yarn"),
        ("llama", {"rope_scaling": {"rope_type": 7}}, "type 7"),
        ("llama", {"rope_scaling": [1]}, "rotary"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ("llama", {"rope_scaling": {**LLAMA3, "mscale": 1.0}}, "mscale"),
        ("llama", {"rope_theta": -1.0}, "rope_theta"),
        ("llama", {"rope_theta": True}, "rope_theta"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling.*could change"),
        ("llama", {"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "per_layer_config"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers"),
        ("llama", {"hidden_size": 32.0}, "hidden_size"),
        ("llama", {"hidden_size": -32}, "hidden_size"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads"),
        ("llama", {"num_attention_heads": 5}, "no multiple of num_attention_heads=5"),
        ("llama", {"num_key_value_heads": 3}, "multiple of"),
        ("qwen2", {"num_key_value_heads": 32}, "multiple of"),
        ("llama", {"head_dim": 7}, "even"),
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("llama", {"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ("llama", {"attention_bias": 1}, "attention_bias"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_we_do_not_compute_is_refused_with_the_reason(kind: str, change: dict, said: str) -> None:
    plain = {"model_type": kind, **TINY, "num_key_value_heads": 2}
    assert ModelConfig.from_hf(plain).model_type == kind
    with pytest.raises(CheckpointError, match=f"^some/config.json: .*{said}"):
        ModelConfig.from_hf({**plain, **change}, "some/config.json")


def test_a_config_that_no_architecture_has_is_refused() -> None:
    for change in ({"output_bias": True}, {"mlp_bias": True}, {"qk_norm": False, "qkv_bias": True, "mlp_bias": True}):
        with pytest.raises(SettingsError, match="bias"):
            ModelConfig(vocab_size=10, **change)
    with pytest.raises(SettingsError, match="llama"):
        ModelConfig(vocab_size=10).to_hf({"model_type": "llama"})


def test_code_and_paths_of_others_are_not_written_again() -> None:
    config = ModelConfig(vocab_size=10)
    theirs = {
        **config.to_hf(),
        "auto_map": {"AutoConfig": "code.C"},
        "_name_or_path": "/home/x",
        "eos_token_id": [1, 2],
    }
    written = config.to_hf(theirs)
    assert "auto_map" not in written
    assert "_name_or_path" not in written
    assert written["eos_token_id"] == [1, 2]


def test_llama3_scaling_by_hand() -> None:
    """An angle 2π n turns n times per position, of which the context of pretraining has one here."""
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 1)
    turns = torch.tensor([8.0, 4.0, 2.5, 1.0, 0.5], dtype=torch.float64)
    kept = scaling(turns * 2 * math.pi, 10000.0) / (2 * math.pi)
    assert kept.tolist() == pytest.approx([8.0, 4.0, 2.5 * (0.5 / 8 + 0.5), 1 / 8, 0.5 / 8])
