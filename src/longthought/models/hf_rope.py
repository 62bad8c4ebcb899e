"""The rotary embedding in a ``config.json``: read as ``transformers`` reads it, and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown
from longthought.models.hf_entries import Entries, positive, present, switch, whole
from longthought.models.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_CONTEXT = "original_max_position_embeddings"
_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _CONTEXT),
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        _CONTEXT,
    ),
}


def read(config: Entries, positions: int) -> tuple[float, RopeScaling | None]:
    """θ, and how the angles are stretched. Version 4's ``rope_scaling`` goes before version 5's ``rope_parameters``.

    positions: ``max_position_embeddings``.

    Raises:
        CheckpointError: it is garbled, or of a type that we do not compute.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"the rotary embedding is described by {shown(rope)}, not by an object")
    described = {name: value for name, value in rope.items() if value is not None}
    kind = described.get("rope_type", described.get("type", "default"))
    if not isinstance(kind, str) or kind not in _FIELDS or described.get("type", kind) != kind:
        named = " and ".join(sorted({shown(described[name]) for name in ("rope_type", "type") if name in described}))
        raise CheckpointError(f"rotary embedding of type {named} cannot be run; known are {', '.join(_FIELDS)}")
    if described.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError("rotary embedding of a part of the head (partial_rotary_factor) cannot be run")
    unknown = described.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_FIELDS[kind]}
    if unknown:
        raise CheckpointError(f"rotary embedding of type {kind!r} with {shown(min(unknown))} cannot be run")
    theta = {"rope_theta": 10000.0} | present(config, "rope_theta") | present(rope, "rope_theta")
    context = {_CONTEXT: positions} | present(rope, _CONTEXT) | present(config, _CONTEXT)
    return positive(theta, "rope_theta"), _scaling(kind, {**rope, **context}, positions)


def written(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The entries of a ``config.json``, for version 5, and for version 4 and the inference engines of its time."""
    plain = {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    if scaling is None:
        return plain
    said = {name: value for name, value in asdict(scaling).items() if value is not None}
    if said.get("truncate"):
        del said["truncate"]  # what others take, too, and some of them do not know the word
    said = {"rope_type": scaling.rope_type, **said}
    return plain | {
        "rope_parameters": {**said, "rope_theta": theta},
        "rope_scaling": {"type": scaling.rope_type, **said},
    }


def _scaling(kind: str, rope: Entries, positions: int) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(positive(rope, "factor"))
    if kind == "yarn":
        return _yarn(rope, positions)
    return Llama3Scaling(
        positive(rope, "factor"),
        positive(rope, "low_freq_factor"),
        positive(rope, "high_freq_factor"),
        whole(rope, _CONTEXT),
    )


def _yarn(rope: Entries, positions: int) -> YarnScaling:
    """Without a factor it is that of the contexts; a β or mscale of 0 is none."""
    context = whole(rope, _CONTEXT)
    numbers = {"factor": positions / context}
    numbers |= present(rope, "factor", "attention_factor")
    numbers |= {name: rope[name] for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if rope.get(name)}
    truncate = "truncate" not in rope or switch(rope, "truncate")
    return YarnScaling(
        original_max_position_embeddings=context,
        truncate=truncate,
        **{name: positive(numbers, name) for name in numbers},
    )
