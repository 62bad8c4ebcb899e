"""What a model is and costs, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from longthought.models import cost
from longthought.models.config import ModelConfig
from longthought.models.safetensors_file import TensorFile

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PARTS = {
    "embeddings": "embeddings",
    "head": "head",
    "attention": "attention",
    "dense_nets": "dense nets",
    "shared_experts": "shared experts",
    "routed_experts": "routed experts",
    "routers": "routers",
    "vectors": "norms and biases",
}
_LABELS = {"decoding_absorbed": "decoding, absorbed", "mtp": "MTP modules"}
_WIDTHS = {"bfloat16": 2, "float32": 4}


def facts(kind: str, config: ModelConfig, context: int, fit: cost.Fit | None) -> dict[str, Any]:
    """What :func:`lines` tells, as JSON: parameters, bytes, and FLOPs of one token.  kind: the config's model_type."""
    own, main = cost.own_cache(config), cost.main_parameters(config)
    told = {
        "architecture": kind,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
        "positions": config.max_position_embeddings,
        "attention": own.kind,
        "parameters": {
            "total": main,
            "active": config.active_parameters(),
            "mtp": config.parameters() - main,
            "parts": cost.parts(config)._asdict(),
        },
        "cache": [
            {**cache._asdict(), **{f"{name}_bytes": width * cache.numbers for name, width in _WIDTHS.items()}}
            for cache in (own, *cost.other_caches(config))
        ],
        "flops": {"context": context, **_flops(config, context)},
    }
    return told if fit is None else {**told, "fit": {**asdict(fit), "sequences": fit.sequences, "fits": fit.left >= 0}}


def lines(kind: str, config: ModelConfig, context: int, fit: cost.Fit | None) -> list[str]:
    """The shape of the model, and tables of its parameters, cache and FLOPs; what fits into a memory."""
    blocks = [
        _aligned([("architecture", kind), *_shape(config)]),
        _parameters(config),
        _caches(config),
        _flop_lines(config, context),
    ]
    if fit is not None:
        blocks.append(_fit_lines(fit))
    return [line for block in blocks for line in ("", *block)][1:]


def weight_facts(files: Sequence[TensorFile], fault: Exception | None) -> dict[str, Any] | None:
    """What :func:`weight_lines` tells, as JSON; None without weights."""
    if not files and fault is None:
        return None
    return {
        "files": {file.name.name: _bytes(file) for file in files},
        "bytes": sum(map(_bytes, files)),
        "tensors": sum(len(file.entries) for file in files),
        "dtypes": dict(_dtypes(files)),
        "fault": None if fault is None else str(fault),
    }


def weight_lines(files: Sequence[TensorFile], fault: Exception | None) -> list[str]:
    """Files, size and types of the weights, and whether they are those of the config."""
    if not files:
        return ["weights  none" if fault is None else "weights  cannot be used, see below"]
    first, rest = min(file.name.name for file in files), len(files) - 1
    types = ", ".join(f"{name} ({count:,})" for name, count in _dtypes(files))
    told = [
        ("weights", f"{first}{f' and {rest:,} more files' if rest > 1 else ' and 1 more file' if rest else ''}"),
        ("  size", size(sum(map(_bytes, files)))),
        ("  tensors", f"{sum(len(file.entries) for file in files):,}: {types}"),
        ("  names and shapes", "those of the config" if fault is None else "not those of the config, see below"),
    ]
    return _aligned(told)


def _bytes(file: TensorFile) -> int:
    return sum(entry.bytes for entry in file.entries.values())


def _dtypes(files: Sequence[TensorFile]) -> list[tuple[str, int]]:
    """Type of numbers → how many tensors have it, the most frequent first."""
    types = (str(entry.dtype).removeprefix("torch.") for file in files for entry in file.entries.values())
    return Counter(types).most_common()


def _fit_lines(fit: cost.Fit) -> list[str]:
    precision = next(name for name, width in _WIDTHS.items() if width == fit.width)
    if fit.left < 0:
        answer = f"does not fit: weights alone take {size(fit.weights)}"
    elif not fit.sequences:
        answer = f"none: {size(fit.left)} are left beside the weights"
    else:
        answer = f"{fit.sequences:,} (activations are not counted)"
    told = [
        (f"memory of {size(fit.memory)}", f"in {precision}"),
        ("  weights", size(fit.weights)),
        ("  cache of a sequence", f"{size(fit.cache)}, {fit.context:,} tokens"),
        ("  sequences", answer),
    ]
    return _aligned(told)


def size(count: int) -> str:
    """``"1.34 TB"``: powers of ten, as memories are sold."""
    return _scaled(count, _BYTES) if count >= 1000 else f"{count} B"


def short(count: int) -> str:
    """``"671.03 B"``: parameters by the billion, million or thousand."""
    return _scaled(count, ((1e9, "B"), (1e6, "M"), (1e3, "k"))) if count >= 1000 else str(count)


def _scaled(count: float, units: Sequence[tuple[float, str]]) -> str:
    scale, unit = next((known for known in units if count >= known[0]), units[-1])
    return f"{count / scale:,.2f} {unit}"


def _shape(config: ModelConfig) -> list[tuple[str, str]]:
    scaling = f", {config.rope_scaling.rope_type} scaling" if config.rope_scaling else ""
    shape = [
        ("layers", f"{config.num_hidden_layers:,} of width {config.hidden_size:,}"),
        ("vocabulary", f"{config.vocab_size:,}{', head tied to the embeddings' * config.tie_word_embeddings}"),
        ("positions", f"{config.max_position_embeddings:,}{scaling}"),
        ("attention", _attention(config)),
        ("nets", _nets(config)),
    ]
    if modules := config.num_nextn_predict_layers:
        shape.append(("MTP modules", f"{modules:,}, for one further token each"))
    return shape


def _attention(config: ModelConfig) -> str:
    heads, latent = f"{config.num_attention_heads:,} heads", config.latent
    if latent is None:
        shared = f", {config.num_key_value_heads:,} of keys and values"
        return f"{cost.attention_kind(config)}: {heads} of width {config.head_dim}{shared}"
    queries = "" if latent.q_lora_rank is None else f", c^Q of {latent.q_lora_rank:,}"
    return (
        f"MLA: {heads} of width {latent.qk_nope_head_dim} + {latent.qk_rope_head_dim} rotated, values of "
        f"{latent.v_head_dim}; c^KV of {latent.kv_lora_rank:,}{queries}"
    )


def _nets(config: ModelConfig) -> str:
    experts = config.experts
    if experts is None:
        return f"SwiGLU of width {config.intermediate_size:,}"
    dense, layers = len(experts.dense_layers), config.num_hidden_layers
    groups = f" (in {experts.topk_group} of {experts.n_group} groups)" if experts.n_group > 1 else ""
    shared = f" and {experts.n_shared_experts:,} shared" if experts.n_shared_experts else ""
    ordinary = f"; {dense:,} dense of width {config.intermediate_size:,}" if dense else ""
    return (
        f"{layers - dense:,} layers with {experts.n_routed_experts:,} experts of width "
        f"{experts.moe_intermediate_size:,}, {experts.num_experts_per_tok:,} chosen{groups}{shared}{ordinary}"
    )


def _parameters(config: ModelConfig) -> list[str]:
    total, active = cost.main_parameters(config), config.active_parameters()
    rows = [
        ("parameters", f"{total:,}", short(total)),
        ("  of these active", f"{active:,}", short(active)),
        *(
            (f"  {_PARTS[name]}", f"{count:,}", f"{100 * count / total:.2f} %")
            for name, count in cost.parts(config)._asdict().items()
            if count
        ),
    ]
    told = ["Embeddings and head are counted. Active: what computes one token, so of the routed experts those chosen."]
    if config.experts is None:
        told = ["Embeddings and head are counted."]
    if modules := config.num_nextn_predict_layers:
        ahead = config.parameters() - total
        copies = 2 * modules * config.vocab_size * config.hidden_size
        rows.append(("MTP modules", f"{ahead:,}", short(ahead)))
        told.append(
            f"MTP modules are not; files store {short(ahead + copies)} for them, with copies of "
            f"embeddings and head: {short(total + ahead + copies)} in all."
        )
    return [*_columns(rows), *told]


def _caches(config: ModelConfig) -> list[str]:
    own, others = cost.own_cache(config), cost.other_caches(config)
    rows = [("cache of a token", "key heads", "numbers", *(f"{name}, bytes" for name in _WIDTHS), "of this model's")]
    for cache, mark in ((own, " (this model)"), *((other, "") for other in others if other != own)):
        amounts = (f"{width * cache.numbers:,}" for width in _WIDTHS.values())
        share = f"{cache.numbers / own.numbers:,.2f} ×"
        rows.append((f"  {cache.kind}{mark}", f"{cache.heads:,}", f"{cache.numbers:,}", *amounts, share))
    mha = others[0].numbers
    if own.numbers >= mha:
        return _columns(rows)
    return [
        *_columns(rows),
        f"{100 - 100 * own.numbers / mha:.2f} % less than MHA with the same heads: {mha / own.numbers:.1f} × smaller.",
    ]


def _flops(config: ModelConfig, context: int) -> dict[str, int]:
    """Label → FLOPs of one token."""
    found = {
        "matrices": 2 * cost.active_matrices(config),
        "reading": cost.prefill_flops(config, context),
        "decoding": cost.forward_flops(config, context),
    }
    if config.latent is not None:
        found["decoding_absorbed"] = cost.forward_flops(config, context, absorbed=True)
    found["training"] = cost.training_flops(config, context)
    if config.num_nextn_predict_layers:
        found["mtp"] = cost.prediction_flops(config, context)
    return found


def _flop_lines(config: ModelConfig, context: int) -> list[str]:
    mla = config.latent is not None
    told = {
        "matrices": "2 × active parameters in matrices; the embeddings are looked up",
        "reading": f"prefill: mean over a sequence of {context:,} tokens{', expanded form' * mla}",
        "decoding": f"the token that attends to {context:,}{', expanded form (all keys and values kept)' * mla}",
        "decoding_absorbed": "the same, absorbed form (latents kept)",
        "training": "3 × reading: forward, and backward twice as much",
        "mtp": "what the MTP modules add to reading",
    }
    rows = [("FLOPs of a token", "", "")]
    for name, count in _flops(config, context).items():
        rows.append((f"  {_LABELS.get(name, name)}", f"{_scaled(count, _UNITS)}FLOP", told[name]))
    label, number = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return [f"{a:<{label}}  {b:>{number}}  {c}".rstrip() for a, b, c in rows]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
