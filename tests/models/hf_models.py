"""Random tiny models of ``transformers`` with weights that matter, and what it makes of a folder."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

BASE = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 40, "max_position_embeddings": 128}


def yarn(random: Random, mscale: bool) -> dict[str, Any]:
    """Rotary embeddings that are stretched from 16 or 32 positions."""
    rope = {"rope_type": "yarn", "rope_theta": random.choice([100.0, 1e4]), "factor": random.choice([2.0, 4.0])}
    rope["original_max_position_embeddings"] = random.choice([16, 32])
    if mscale:
        return {**rope, "mscale": random.choice([0.707, 1.0]), "mscale_all_dim": random.choice([0.5, 1.0])}
    return rope | random.choice([{}, {"attention_factor": 1.3}, {"beta_fast": 8.0, "truncate": False}])


def deepseek_v3(random: Random) -> dict[str, Any]:
    groups, size = random.choice([(1, 6), (2, 4), (4, 2)])
    kept = random.randint(1, groups)
    heads = random.choice([2, 4])
    return {
        **BASE,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": random.choice([6, 10]),
        "q_lora_rank": random.choice([None, 12]),
        "qk_nope_head_dim": random.choice([6, 8]),
        "qk_rope_head_dim": random.choice([4, 8]),
        "v_head_dim": random.choice([5, 8]),
        "rope_interleave": random.random() < 0.5,
        "attention_bias": random.random() < 0.3,
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": random.randint(1, kept * size),
        "n_shared_experts": random.choice([1, 2]),
        "moe_intermediate_size": 12,
        "norm_topk_prob": random.random() < 0.7,
        "routed_scaling_factor": random.choice([1.0, 2.5]),
        "first_k_dense_replace": random.choice([0, 1, 2, 5]),
        "tie_word_embeddings": random.random() < 0.3,
        "num_mtp_layers": random.choice([0, 1]),
    } | random.choice([{}, {"rope_parameters": yarn(random, mscale=True)}, {"rope_parameters": yarn(random, False)}])


def qwen3_moe(random: Random) -> dict[str, Any]:
    experts = random.choice([3, 8])
    return {
        **BASE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": random.choice([1, 2, 4]),
        "head_dim": random.choice([8, 12]),
        "num_experts": experts,
        "num_experts_per_tok": random.randint(1, experts),
        "moe_intermediate_size": 12,
        "norm_topk_prob": random.random() < 0.5,
        "decoder_sparse_step": random.choice([1, 1, 2]),
        "mlp_only_layers": random.choice([[], [0], [1, 2], [0, 1, 2]]),
        "attention_bias": random.random() < 0.3,
        "tie_word_embeddings": random.random() < 0.3,
    } | random.choice([{}, {"rope_parameters": yarn(random, mscale=False)}])


def mistral(random: Random) -> dict[str, Any]:
    return {
        **BASE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": random.choice([1, 2, 4]),
        "head_dim": random.choice([None, 12]),
        "sliding_window": random.choice([None, 128, 4096]),
        "rms_norm_eps": 1e-5,
    } | random.choice([{}, {"rope_parameters": yarn(random, mscale=False)}])


def stretched(random: Random) -> dict[str, Any]:
    """What Qwen2, Qwen3 and Llama have in common, with YaRN."""
    rope = yarn(random, mscale=random.random() < 0.3)
    return {**BASE, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope}


FAMILIES = {
    "deepseek_v3": deepseek_v3,
    "qwen3_moe": qwen3_moe,
    "mistral": mistral,
    "qwen2": stretched,
    "qwen3": stretched,
    "llama": stretched,
}


def of_transformers(kind: str, seed: int, **change: object) -> torch.nn.Module:
    """A random model: every weight, and every bias on the choice of experts, is far from where it begins."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind](Random(seed)) | change)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                tensor.normal_(0.0, 0.3, generator=generator)
            elif "inv_freq" not in name:
                tensor.normal_(1.0 if tensor.dim() == 1 else 0.0, 0.2, generator=generator)
    return model


def opened(folder: Path) -> torch.nn.Module:
    """The model that transformers makes of a folder, with no key missing and none left over."""
    transformers = pytest.importorskip("transformers")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert {name: list(keys) for name, keys in told.items() if name.endswith("_keys")} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
    }
    return model.eval()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
