"""What the config of a DeepSeek-V3, a Qwen3-MoE and a Mistral means, and what the folder of one holds."""

import json
from dataclasses import replace
from itertools import islice
from math import prod
from pathlib import Path
from random import Random

import pytest
import torch
from hf_models import FAMILIES
from model_folders import write_raw

from conftest import tiny_model
from longthought.core.errors import CheckpointError, SettingsError
from longthought.models import weights
from longthought.models.config import ModelConfig
from longthought.models.parts import Experts, Latent
from longthought.models.presets import sized
from longthought.models.rope import YarnScaling
from longthought.models.tensors import tensors
from longthought.models.transformer import Transformer

REAL = json.loads((Path(__file__).parent / "real_configs.json").read_text(encoding="utf-8"))
V3 = REAL["deepseek-ai/DeepSeek-V3"]["config"]
NOISY = Experts(4, 2, 6, score="softmax", dense_layers=(1,), noisy=True)
OURS = [
    sized("deepseek_v3", 64, 50, ahead=0),
    sized("deepseek_v3", 64, 50, ahead=2),
    replace(sized("deepseek_v3", 64, 50), experts=None),
    replace(sized("deepseek_v3", 64, 50, ahead=0), rope_scaling=YarnScaling(4.0, 32, mscale=1.0, mscale_all_dim=0.5)),
    ModelConfig(20, qk_norm=False, latent=Latent(6, 4, 4, 5, 7, False, True), experts=Experts(8, 2, 6, 2, n_group=4)),
    ModelConfig(20, experts=NOISY, tie_word_embeddings=True),
    ModelConfig(20, experts=replace(NOISY, noisy=False, dense_layers=(0, 1, 2)), qkv_bias=True),
]


def tiny(kind: str, **change: object) -> dict:
    config = {"model_type": kind, **FAMILIES[kind](Random(0)), **change}
    if "num_mtp_layers" in config and "num_nextn_predict_layers" in change:
        del config["num_mtp_layers"]
    return config


def test_deepseek_v3_as_it_is_published() -> None:
    """671 billion parameters without what predicts further, 37 of them active (README of the model, section 3); with
    the copies and the biases that its folder holds 685."""
    config = ModelConfig.from_hf(V3)
    assert config.latent == Latent(512, 128, 64, 128, q_lora_rank=1536)
    assert config.experts == Experts(256, 8, 2048, 1, "sigmoid", True, 2.5, 8, 4, (0, 1, 2))
    assert config.rope_scaling == YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert config.num_nextn_predict_layers == 1
    assert replace(config, num_nextn_predict_layers=0).parameters() == 671_026_404_352
    assert config.active_parameters() == 37_552_282_624
    stored = {item.name: prod(item.shape) for item in tensors(config)}
    assert sum(stored.values()) == 684_489_845_504
    assert len(stored) == 46_183
    assert stored["model.layers.61.shared_head.head.weight"] == stored["model.embed_tokens.weight"] == 129280 * 7168
    assert stored["model.layers.61.mlp.experts.255.down_proj.weight"] == 7168 * 2048


@pytest.mark.parametrize("config", OURS, ids=lambda config: config.model_type)
def test_the_list_of_tensors_is_the_model(config: ModelConfig) -> None:
    model = Transformer(config)
    state = model.state_dict()
    listed = list(tensors(config))
    assert {item.place for item in listed} == state.keys() - (
        {"lm_head.weight"} if config.tie_word_embeddings else set()
    )
    assert all(tuple(item.of(state).shape) == item.shape for item in listed)
    assert len({item.name for item in listed}) == len(listed)
    own = [item for item in listed if not item.copy and not item.name.endswith("e_score_correction_bias")]
    assert sum(prod(item.shape) for item in own) == config.parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", OURS, ids=lambda config: config.model_type)
def test_a_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    written = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(written) == config
    model = tiny_model(**{name: getattr(config, name) for name in ModelConfig.__dataclass_fields__})
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-1, 1, len(buffer)))
    weights.save_folder(model, tmp_path)
    again = weights.load_folder(config, tmp_path)
    assert again.config == config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_published_folder_is_compared_by_its_headers(tmp_path: Path) -> None:
    """Six layers and the further one; the numbers are a hole in the disk."""
    config, header, end = replace(ModelConfig.from_hf(V3), num_hidden_layers=6), {}, 0
    for item in tensors(config):
        size = 2 * prod(item.shape)
        header[item.name] = {"dtype": "BF16", "shape": item.shape, "data_offsets": [end, end + size]}
        end += size
    write_raw(tmp_path / "model.safetensors", header, b"")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, 2) + end)
    assert weights.compare(config, weights.open_folder(tmp_path)) == config


def test_the_list_is_made_as_it_is_read() -> None:
    endless = replace(ModelConfig.from_hf(V3), num_hidden_layers=10**15, num_nextn_predict_layers=10**15)
    assert len(list(islice(tensors(endless), 10_000))) == 10_000


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe", "mistral"])
def test_what_is_left_out_is_what_transformers_takes(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    said = {"sliding_window": None} if kind == "mistral" else {}
    theirs, ours = transformers.AutoConfig.for_model(kind, **said), ModelConfig.from_hf({"model_type": kind, **said})
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("max_position_embeddings", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name)
    for part in (ours.latent, ours.experts):
        for name in () if part is None else part.__dataclass_fields__:
            if name not in ("n_routed_experts", "score", "dense_layers", "noisy") and hasattr(theirs, name):
                assert getattr(part, name) == getattr(theirs, name)
    if ours.experts is not None:
        assert ours.experts.n_routed_experts == theirs.num_local_experts
    if kind == "deepseek_v3":
        assert ours.num_nextn_predict_layers == theirs.num_mtp_layers
        assert len(ours.experts.dense_layers) == theirs.first_k_dense_replace


def test_layers_without_experts() -> None:
    def dense(kind: str, **change: object) -> tuple[int, ...]:
        return ModelConfig.from_hf(tiny(kind, **change)).experts.dense_layers

    assert dense("deepseek_v3", first_k_dense_replace=0) == ()
    assert dense("deepseek_v3", first_k_dense_replace=9) == (0, 1, 2)
    assert dense("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[]) == (0, 2)
    assert dense("qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[2, 1, 2, 7, -1]) == (1, 2)
    assert dense("qwen3_moe", decoder_sparse_step=9, mlp_only_layers=None) == (0, 1, 2)


def test_other_spellings() -> None:
    config = tiny("deepseek_v3", num_nextn_predict_layers=2)
    experts = config.pop("n_routed_experts")
    other = {**config, "num_mtp_layers": config.pop("num_nextn_predict_layers"), "num_local_experts": experts}
    del other["num_nextn_predict_layers"]
    assert ModelConfig.from_hf(other) == ModelConfig.from_hf(
        {**config, "num_nextn_predict_layers": 2, "n_routed_experts": experts}
    )
    assert not {"num_mtp_layers", "num_local_experts"} & ModelConfig.from_hf(other).to_hf(other).keys()
    with pytest.raises(CheckpointError, match="n_routed_experts=3 contradicts num_local_experts"):
        ModelConfig.from_hf({**other, "n_routed_experts": 3})


def test_a_stretched_context_without_a_factor() -> None:
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 32, "mscale": 0, "beta_fast": None}
    config = ModelConfig.from_hf(tiny("llama", rope_parameters=rope))
    assert config.rope_scaling == YarnScaling(4.0, 32)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method='greedy'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ("deepseek_v3", {"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ("deepseek_v3", {"head_dim": 6}, "head_dim=6"),
        ("deepseek_v3", {"qk_head_dim": 6}, "qk_head_dim=6"),
        ("deepseek_v3", {"qk_rope_head_dim": 3}, "even"),
        ("deepseek_v3", {"v_head_dim": None}, "v_head_dim"),
        ("deepseek_v3", {"rope_interleave": None}, "rope_interleave"),
        ("deepseek_v3", {"n_shared_experts": 0}, "n_shared_experts"),
        ("deepseek_v3", {"n_routed_experts": 7, "n_group": 2}, "n_group=2 must divide"),
        ("deepseek_v3", {"num_experts_per_tok": 99}, "num_experts_per_tok=99"),
        ("deepseek_v3", {"n_routed_experts": 0}, "n_routed_experts"),
        ("deepseek_v3", {"n_group": None}, "n_group"),
        ("deepseek_v3", {"first_k_dense_replace": -1}, "first_k_dense_replace"),
        ("deepseek_v3", {"num_hidden_layers": 10**12}, "at most 65,536"),
        ("deepseek_v3", {"num_nextn_predict_layers": "1"}, "num_nextn_predict_layers"),
        ("deepseek_v3", {"index_topk": 8}, "index_topk"),
        ("deepseek_v3", {"architectures": ["DeepseekV32ForCausalLM"]}, "DeepseekV32"),
        ("deepseek_v3", {"hidden_act": "gelu"}, "gelu"),
        ("deepseek_v3", {"routed_scaling_factor": 0}, "routed_scaling_factor"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts"),
        ("qwen3_moe", {"num_hidden_layers": 10**12}, "at most 65,536"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window=64.*embeddings=128"),
        ("qwen3_moe", {"noisy_gate": True, "norm_topk_prob": False}, "noisy"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
        ("mistral", {"sliding_window": 127}, "sliding_window=127.*max_position_embeddings=128"),
        ("mistral", {"sliding_window": 127, "layer_types": ["full_attention"] * 2}, "sliding_window=127"),
        ("mistral", {"sliding_window": "64"}, "sliding_window"),
        ("mistral", {"mlp_bias": True}, "mlp_bias"),
    ],
    ids=str,
)
def test_what_we_do_not_compute_is_refused_with_the_reason(kind: str, change: dict, said: str) -> None:
    assert ModelConfig.from_hf(tiny(kind)).num_hidden_layers == tiny(kind)["num_hidden_layers"]
    with pytest.raises(CheckpointError, match=f"^some/config.json: .*{said}"):
        ModelConfig.from_hf(tiny(kind, **change), "some/config.json")


def test_a_base_of_another_family_is_refused() -> None:
    for ours, base in ((ModelConfig(20), "mistral"), (ModelConfig(20, qk_norm=False, qkv_bias=True), "mistral")):
        with pytest.raises(SettingsError, match="mistral"):
            ours.to_hf({"model_type": base})
