"""The families of models that can be run, and what an entry of their ``config.json`` can mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128, "attention_bias": False},
    "qwen3_moe": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": None,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 4096,
        "attention_bias": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "noisy_gate": False,
    },
    "deepseek_v3": {
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "head_dim": None,
        "qk_head_dim": None,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_interleave": True,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "num_nextn_predict_layers": 1,
    },
}
"""What ``transformers`` 5.23 takes for what a ``config.json`` leaves out. What it leaves to the dense families is the
same in 4.57. ``noisy_gate`` is ours: noise on the gates is of training alone, and others may pass it over."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "deepseek_v3": {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"},
    "qwen3_moe": {"num_local_experts": "num_experts"},
}
"""Other spellings of entries → those above."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1,),
    "pretraining_tp": (1,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "rope_traditional": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
    # of the other types, when this type does the same, or its weights tell
    "attention_bias": (True, False),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    # of routed experts
    "moe_layer_freq": (1,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
}
"""Entries that could change the function, with the values at which they do not."""

_DESCRIPTION = """
architectures attention_dropout attn_implementation auto_map bos_token_id classifier_dropout dtype
dual_chunk_attention_config eos_token_id finetuning_task gradient_checkpointing id2label initializer_range is_decoder
is_llama_config label2id layer_types max_sequence_length model_type name_or_path num_labels output_attentions
output_hidden_states pad_token_id problem_type quantization_config return_dict sep_token_id task_specific_params
tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config transformers_version trust_remote_code
unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
"""
_GENERATION = """
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
prefix remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p
typical_p
"""
_BALANCE = "aux_loss_alpha ep_size output_router_logits router_aux_loss_coef seq_aux"
HARMLESS = frozenset(_DESCRIPTION.split()) | frozenset(_GENERATION.split())
"""Entries that say nothing of the function: tokens, training, other heads, and how to generate."""
HARMLESS_IN: Mapping[str, frozenset[str]] = {
    "deepseek_v3": frozenset(_BALANCE.split()),
    "qwen3_moe": frozenset((*_BALANCE.split(), "max_window_layers")),
}
"""Those that say nothing in one family."""

ROPE = frozenset({"rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings"})
REWRITTEN = ROPE | {
    "auto_map",
    "head_dim",
    "name_or_path",
    "num_local_experts",
    "num_mtp_layers",
    "partial_rotary_factor",
    "qk_head_dim",
    "quantization_config",
    "torch_dtype",
    "trust_remote_code",
}
"""Entries that are not kept when a model is saved anew."""
