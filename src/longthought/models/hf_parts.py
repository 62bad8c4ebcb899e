"""Latent attention and routed experts in a ``config.json``: read as ``transformers`` reads them, and written."""

from __future__ import annotations

from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown
from longthought.models.hf_entries import Entries, positive, switch, whole
from longthought.models.parts import Experts, Latent

LAYERS = 2**16
"""Most layers of a model with routed experts: those without are listed one by one."""
WITHOUT_EXPERTS = {"n_routed_experts": 0}
"""A DeepSeek-V3 whose layers are all before ``first_k_dense_replace``."""


def read_latent(entries: Entries) -> Latent:
    """Raises CheckpointError for keys that heads share, and for widths that contradict each other."""
    latent = Latent(
        kv_lora_rank=whole(entries, "kv_lora_rank"),
        qk_nope_head_dim=whole(entries, "qk_nope_head_dim"),
        qk_rope_head_dim=whole(entries, "qk_rope_head_dim"),
        v_head_dim=whole(entries, "v_head_dim"),
        q_lora_rank=None if entries["q_lora_rank"] is None else whole(entries, "q_lora_rank"),
        rope_interleave=switch(entries, "rope_interleave"),
        attention_bias=switch(entries, "attention_bias"),
    )
    implied = {
        "num_key_value_heads": whole(entries, "num_attention_heads"),
        "head_dim": latent.qk_rope_head_dim,
        "qk_head_dim": latent.qk_head_dim,
    }
    for name, value in implied.items():
        if entries[name] is not None and entries[name] != value:
            raise CheckpointError(f"{name}={shown(entries[name])} cannot be run with latent attention, only {value}")
    return latent


def read_v3_experts(entries: Entries) -> Experts | None:
    """DeepSeek-V3's; layers before ``first_k_dense_replace`` have ordinary nets, what predicts further never."""
    first = min(whole(entries, "first_k_dense_replace", least=0), _layers(entries))
    if entries["n_routed_experts"] == 0 and first == entries["num_hidden_layers"]:
        return None
    return Experts(
        n_routed_experts=whole(entries, "n_routed_experts"),
        num_experts_per_tok=whole(entries, "num_experts_per_tok"),
        moe_intermediate_size=whole(entries, "moe_intermediate_size"),
        n_shared_experts=whole(entries, "n_shared_experts"),
        score="sigmoid",
        norm_topk_prob=switch(entries, "norm_topk_prob"),
        routed_scaling_factor=positive(entries, "routed_scaling_factor"),
        n_group=whole(entries, "n_group"),
        topk_group=whole(entries, "topk_group"),
        dense_layers=tuple(range(first)),
    )


def read_qwen_experts(entries: Entries) -> Experts:
    """Qwen3-MoE's; every ``decoder_sparse_step``-th layer has experts, unless ``mlp_only_layers`` names it."""
    step, layers = whole(entries, "decoder_sparse_step"), _layers(entries)
    named = [] if entries["mlp_only_layers"] is None else entries["mlp_only_layers"]
    if not isinstance(named, list) or any(type(layer) is not int for layer in named):
        raise CheckpointError(f"mlp_only_layers must list numbers of layers, and is {shown(named)}")
    plain = set(named)
    return Experts(
        n_routed_experts=whole(entries, "num_experts"),
        num_experts_per_tok=whole(entries, "num_experts_per_tok"),
        moe_intermediate_size=whole(entries, "moe_intermediate_size"),
        score="softmax",
        norm_topk_prob=switch(entries, "norm_topk_prob"),
        dense_layers=tuple(layer for layer in range(layers) if layer in plain or (layer + 1) % step),
        noisy=switch(entries, "noisy_gate"),
    )


def written_latent(latent: Latent) -> dict[str, Any]:
    """The entries of a ``config.json``."""
    return {
        "kv_lora_rank": latent.kv_lora_rank,
        "q_lora_rank": latent.q_lora_rank,
        "qk_nope_head_dim": latent.qk_nope_head_dim,
        "qk_rope_head_dim": latent.qk_rope_head_dim,
        "v_head_dim": latent.v_head_dim,
        "rope_interleave": latent.rope_interleave,
        "attention_bias": latent.attention_bias,
    }


def written_experts(experts: Experts) -> dict[str, Any]:
    """The entries of a ``config.json``: DeepSeek-V3's for sigmoid affinities, Qwen3-MoE's for a softmax."""
    both = {
        "num_experts_per_tok": experts.num_experts_per_tok,
        "moe_intermediate_size": experts.moe_intermediate_size,
        "norm_topk_prob": experts.norm_topk_prob,
    }
    if experts.score == "softmax":
        noisy = {"noisy_gate": True} if experts.noisy else {}
        layers = {"decoder_sparse_step": 1, "mlp_only_layers": list(experts.dense_layers)}
        return {**both, "num_experts": experts.n_routed_experts, **layers, **noisy}
    return {
        **both,
        "n_routed_experts": experts.n_routed_experts,
        "n_shared_experts": experts.n_shared_experts,
        "first_k_dense_replace": len(experts.dense_layers),
        "moe_layer_freq": 1,
        "n_group": experts.n_group,
        "topk_group": experts.topk_group,
        "routed_scaling_factor": experts.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def _layers(entries: Entries) -> int:
    layers = whole(entries, "num_hidden_layers")
    if layers > LAYERS:
        raise CheckpointError(f"num_hidden_layers={shown(layers)}: at most {LAYERS:,} are possible with experts")
    return layers
