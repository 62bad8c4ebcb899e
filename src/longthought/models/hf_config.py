"""What ``transformers`` computes from a ``config.json``: settings of a :class:`ModelConfig`, or the reason why not.

An entry that is missing has the value that ``transformers`` gives it for that family of models. An entry that we do
not know is refused unless it is empty: it could change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown
from longthought.models import hf_parts, hf_rope
from longthought.models.float8 import Blocks
from longthought.models.hf_entries import Entries, positive, switch, whole
from longthought.models.hf_families import ALIASES, DEFAULTS, HARMLESS, HARMLESS_IN, NEUTRAL, REWRITTEN, ROPE


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`ModelConfig`.

    Raises:
        CheckpointError: an entry is garbled, or asks for something that we do not compute.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        code = "; the code that it brings along (auto_map) is never run" if config.get("auto_map") else ""
        raise CheckpointError(f"model_type {shown(kind)} cannot be run; what can: {', '.join(sorted(DEFAULTS))}{code}")
    config = _spelled(kind, config)
    _refuse_variants(kind, config)
    entries = {**DEFAULTS[kind], **{name: config[name] for name in DEFAULTS[kind] if name in config}}
    positions = whole(entries, "max_position_embeddings")
    _refuse_windows(kind, entries, config)
    if entries["hidden_act"] not in ("silu", "swish"):
        raise CheckpointError(f"activation {shown(entries['hidden_act'])} (hidden_act) cannot be run; known is silu")
    theta, scaling = hf_rope.read(config, positions)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{name: whole(entries, name) for name in sizes},
        "max_position_embeddings": positions,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_norm_eps": positive(entries, "rms_norm_eps"),
        "tie_word_embeddings": switch(entries, "tie_word_embeddings"),
        **(_latent(entries) if kind == "deepseek_v3" else _grouped(kind, entries)),
    }


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that stay true when the model is saved anew."""
    return {name: value for name, value in config.items() if name not in REWRITTEN and not name.startswith("_")}


def _latent(entries: Entries) -> dict[str, Any]:
    return {
        "qk_norm": False,
        "latent": hf_parts.read_latent(entries),
        "experts": hf_parts.read_v3_experts(entries),
        "num_nextn_predict_layers": whole(entries, "num_nextn_predict_layers", least=0),
    }


def _grouped(kind: str, entries: dict[str, Any]) -> dict[str, Any]:
    """Grouped-query attention, and what follows it."""
    heads = whole(entries, "num_attention_heads")
    if entries["num_key_value_heads"] is None:
        entries["num_key_value_heads"] = heads
    if entries["head_dim"] is None and kind != "qwen3":
        entries["head_dim"] = _shared(whole(entries, "hidden_size"), heads)
    biased = kind == "qwen2" or ("attention_bias" in entries and switch(entries, "attention_bias"))
    return {
        "num_key_value_heads": whole(entries, "num_key_value_heads"),
        "head_dim": whole(entries, "head_dim"),
        "qk_norm": kind in ("qwen3", "qwen3_moe"),
        "qkv_bias": biased,
        "output_bias": kind != "qwen2" and biased,
        "mlp_bias": kind == "llama" and switch(entries, "mlp_bias"),
        "experts": hf_parts.read_qwen_experts(entries) if kind == "qwen3_moe" else None,
    }


def _spelled(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one spelling for every entry."""
    aliases = ALIASES.get(kind, {})
    spelled = {name: value for name, value in config.items() if name not in aliases}
    for alias, name in aliases.items():
        if config.get(alias) is not None and config[alias] != spelled.setdefault(name, config[alias]):
            raise CheckpointError(f"{name}={shown(spelled[name])} contradicts {alias}={shown(config[alias])}")
    return spelled


def _refuse_variants(kind: str, config: Mapping[str, Any]) -> None:
    """Entries that could change the function in a way that we do not compute."""
    architectures = config.get("architectures") or []
    known = {f"{kind.replace('_', '')}forcausallm", f"{kind.replace('_', '')}model"}
    if not (isinstance(architectures, list) and {str(name).lower() for name in architectures} <= known):
        raise CheckpointError(f"architectures {shown(architectures)} are not those of a {kind} language model")
    if config.get("quantization_config") is not None:
        Blocks.of(config["quantization_config"])
    passed = DEFAULTS[kind].keys() | ROPE | HARMLESS | HARMLESS_IN.get(kind, frozenset())
    for name, value in config.items():
        if name in passed or name.startswith("_") or value is None:
            continue
        if name not in NEUTRAL:
            raise CheckpointError(
                f"the entry {shown(name)} ({shown(value)}) is not known for a {kind}: it could change what the model "
                "computes; remove it if it does not"
            )
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]
        ):
            raise CheckpointError(f"{name}={shown(value)} cannot be run in a {kind}")


def _refuse_windows(kind: str, entries: Entries, config: Mapping[str, Any]) -> None:
    """Sliding-window attention, unless no layer has it, or the window is as long as the context."""
    layers, types = whole(entries, "num_hidden_layers"), config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            raise CheckpointError(f"layer_types must list the types of {layers} layers")
        other = [name for name in types if name != "full_attention"]
        if other:
            raise CheckpointError(f"layers of type {shown(other[0])} cannot be run; known is full_attention")
    if entries.get("sliding_window") is None or ("use_sliding_window" in entries and not _slides(kind, entries, types)):
        return
    window, positions = whole(entries, "sliding_window"), entries["max_position_embeddings"]
    if window < positions:
        raise CheckpointError(
            f"sliding-window attention cannot be run: the window (sliding_window={window}) is shorter than the context "
            f"(max_position_embeddings={positions})"
        )


def _slides(kind: str, entries: Entries, types: object) -> bool:
    """Whether some layer of a Qwen has a window: of the dense ones those from ``max_window_layers`` on."""
    if not switch(entries, "use_sliding_window"):
        return False
    if kind == "qwen3_moe":
        return True
    return types is None and whole(entries, "num_hidden_layers") > whole(entries, "max_window_layers", least=0)


def _shared(width: int, heads: int) -> int:
    if width % heads:
        raise CheckpointError(
            f"hidden_size={width} is no multiple of num_attention_heads={heads}, and head_dim is missing"
        )
    return width // heads
