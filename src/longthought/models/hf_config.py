"""What ``transformers`` computes from a ``config.json``: settings of a :class:`ModelConfig`, or the reason why not.

An entry that is missing has the value that ``transformers`` gives it for that type of model. An entry that we do not
know is refused unless it is empty: it could change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown
from longthought.models.rope import LinearScaling, Llama3Scaling, RopeScaling

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
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
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
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128, "attention_bias": False},
}
"""What ``transformers`` 5.23 takes for what a ``config.json`` leaves out; those that matter are the same in 4.57."""

_ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings"}
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
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
}
"""Entries that could change the function, with the values at which they do not."""

_DESCRIPTION = """
architectures attention_dropout attn_implementation auto_map bos_token_id classifier_dropout dtype
dual_chunk_attention_config eos_token_id finetuning_task gradient_checkpointing id2label initializer_range is_decoder
is_llama_config label2id layer_types max_sequence_length model_type name_or_path num_labels output_attentions
output_hidden_states pad_token_id problem_type return_dict sep_token_id task_specific_params tf_legacy_loss
tokenizer_class torch_dtype torchscript transformers.js_config transformers_version trust_remote_code unk_token_id
unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
"""
_GENERATION = """
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
prefix remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p
typical_p
"""
_HARMLESS = frozenset(_DESCRIPTION.split()) | frozenset(_GENERATION.split())
"""Entries that say nothing of the function: tokens, training, other heads, and how to generate."""

_REWRITTEN = frozenset(
    {"auto_map", "name_or_path", "partial_rotary_factor", "torch_dtype", "trust_remote_code", *_ROPE}
)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`ModelConfig`.

    Raises:
        CheckpointError: an entry is garbled, or asks for something that we do not compute.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        code = "; the code that it brings along (auto_map) is never run" if config.get("auto_map") else ""
        raise CheckpointError(f"model_type {shown(kind)} cannot be run; what can: {', '.join(sorted(_DEFAULTS))}{code}")
    _refuse_variants(kind, config)
    entries = {**_DEFAULTS[kind], **{name: config[name] for name in _DEFAULTS[kind] if name in config}}
    heads, width = _whole(entries, "num_attention_heads"), _whole(entries, "hidden_size")
    if entries["num_key_value_heads"] is None:
        entries["num_key_value_heads"] = heads
    if entries["head_dim"] is None and kind != "qwen3":
        entries["head_dim"] = _shared(width, heads)
    _refuse_windows(entries, config)
    if entries["hidden_act"] not in ("silu", "swish"):
        raise CheckpointError(f"activation {shown(entries['hidden_act'])} (hidden_act) cannot be run; known is silu")
    positions = _whole(entries, "max_position_embeddings")
    theta, scaling = _rope(config, positions)
    return {
        "vocab_size": _whole(entries, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": _whole(entries, "intermediate_size"),
        "num_hidden_layers": _whole(entries, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(entries, "num_key_value_heads"),
        "head_dim": _whole(entries, "head_dim"),
        "max_position_embeddings": positions,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_norm_eps": _positive(entries, "rms_norm_eps"),
        "tie_word_embeddings": _switch(entries, "tie_word_embeddings"),
        "qk_norm": kind == "qwen3",
        "qkv_bias": kind == "qwen2" or _switch(entries, "attention_bias"),
        "output_bias": kind != "qwen2" and _switch(entries, "attention_bias"),
        "mlp_bias": kind == "llama" and _switch(entries, "mlp_bias"),
    }


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that stay true when the model is saved anew."""
    return {name: value for name, value in config.items() if name not in _REWRITTEN and not name.startswith("_")}


def _refuse_variants(kind: str, config: Mapping[str, Any]) -> None:
    """Entries that could change the function in a way that we do not compute."""
    architectures = config.get("architectures") or []
    known = {f"{kind}forcausallm", f"{kind}model"}
    if not (isinstance(architectures, list) and {str(name).lower() for name in architectures} <= known):
        raise CheckpointError(f"architectures {shown(architectures)} are not those of a {kind} language model")
    if config.get("quantization_config") is not None:
        raise CheckpointError("quantized weights (quantization_config) cannot be run; use the unquantized model")
    for name, value in config.items():
        if name in _DEFAULTS[kind] or name in _ROPE or name in _HARMLESS or name.startswith("_") or value is None:
            continue
        if name not in _NEUTRAL:
            raise CheckpointError(
                f"the entry {shown(name)} ({shown(value)}) is not known for a {kind}: it could change what the model "
                "computes; remove it if it does not"
            )
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]
        ):
            raise CheckpointError(f"{name}={shown(value)} cannot be run in a {kind}")


def _refuse_windows(entries: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Sliding-window attention, unless no layer has it: Qwen's slide from layer ``max_window_layers`` on."""
    layers, types = _whole(entries, "num_hidden_layers"), config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            raise CheckpointError(f"layer_types must list the types of {layers} layers")
        other = [name for name in types if name != "full_attention"]
        if other:
            raise CheckpointError(f"layers of type {shown(other[0])} cannot be run; known is full_attention")
        return
    windows = "use_sliding_window" in entries and _switch(entries, "use_sliding_window")
    if windows and entries["sliding_window"] is not None and layers > _whole(entries, "max_window_layers", least=0):
        raise CheckpointError("sliding-window attention (use_sliding_window) cannot be run")


def _rope(config: Mapping[str, Any], positions: int) -> tuple[float, RopeScaling | None]:
    """θ, and how the angles are stretched. Version 4's ``rope_scaling`` goes before version 5's ``rope_parameters``."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"the rotary embedding is described by {shown(rope)}, not by an object")
    described = {name: value for name, value in rope.items() if value is not None}
    kind = described.get("rope_type", described.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS or described.get("type", kind) != kind:
        named = " and ".join(sorted({shown(described[name]) for name in ("rope_type", "type") if name in described}))
        raise CheckpointError(f"rotary embedding of type {named} cannot be run; known are {', '.join(_ROPE_FIELDS)}")
    if described.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError("rotary embedding of a part of the head (partial_rotary_factor) cannot be run")
    unknown = described.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_FIELDS[kind]}
    if unknown:
        raise CheckpointError(f"rotary embedding of type {kind!r} with {shown(min(unknown))} cannot be run")
    theta = {"rope_theta": 10000.0} | _present(config, "rope_theta") | _present(rope, "rope_theta")
    return _positive(theta, "rope_theta"), _scaling(kind, described, config, positions)


def _scaling(kind: str, rope: Mapping[str, Any], config: Mapping[str, Any], positions: int) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(_positive(rope, "factor"))
    context = "original_max_position_embeddings"
    return Llama3Scaling(
        _positive(rope, "factor"),
        _positive(rope, "low_freq_factor"),
        _positive(rope, "high_freq_factor"),
        _whole({context: positions} | _present(rope, context) | _present(config, context), context),
    )


def _present(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: entries[name]} if entries.get(name) is not None else {}


def _shared(width: int, heads: int) -> int:
    if width % heads:
        raise CheckpointError(
            f"hidden_size={width} is no multiple of num_attention_heads={heads}, and head_dim is missing"
        )
    return width // heads


def _whole(entries: Mapping[str, Any], name: str, least: int = 1) -> int:
    value = entries.get(name)
    if type(value) is not int or value < least:
        raise CheckpointError(f"{name} must be a whole number, at least {least}, and is {shown(value)}")
    return value


def _positive(entries: Mapping[str, Any], name: str) -> float:
    value = entries.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e300:
        raise CheckpointError(f"{name} must be a number above 0, and is {shown(value)}")
    return float(value)


def _switch(entries: Mapping[str, Any], name: str) -> bool:
    value = entries.get(name)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} must be true or false, and is {shown(value)}")
    return value
