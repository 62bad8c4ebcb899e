"""Reading PEFT's ``adapter_config.json``: a plain LoRA, or the reason why we cannot run it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown

_HARMLESS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode"),
        *("layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    )
)
"""Entries that are read below, or that tell how an adapter was made and not what it computes."""

_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base model, too
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
}
_EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


@dataclass(frozen=True)
class PeftSettings:
    """The numbers of a LoRA in PEFT's words.

    ``targets`` is None where PEFT was given a regular expression; ``partial`` tells that not all targets are adapted.
    """

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None
    partial: bool

    def rank_of(self, layer: str) -> int:
        return next((rank for name, rank in self.ranks.items() if ends(layer, name)), self.rank)

    def alpha_of(self, layer: str) -> float:
        return next((alpha for name, alpha in self.alphas.items() if ends(layer, name)), self.alpha)

    def check_targets(self, origin: object, stored: Collection[str], known: Collection[str]) -> None:
        """The layers stored are those ``known`` that are targets. A regular expression is not run: it could hang.

        Raises:
            CheckpointError: the file and the config disagree.
        """
        if self.targets is None:
            return
        for layer in known:
            targeted = any(ends(layer, target) for target in self.targets)
            if layer in stored and not targeted:
                raise CheckpointError(f"{origin}: {layer} has weights, and target_modules does not name it")
            if targeted and layer not in stored and not self.partial:
                raise CheckpointError(f"{origin}: target_modules names {layer}, which has no weights")


def ends(layer: str, name: str) -> bool:
    """Whether ``layer`` is ``name`` or ends with it, whole parts compared."""
    return layer == name or layer.endswith(f".{name}")


def settings(config: Mapping[str, Any], origin: object) -> PeftSettings:
    """Read an ``adapter_config.json``; ``origin`` names it in errors.

    Raises:
        CheckpointError: it is garbled, or of a kind that we cannot run (DoRA, trained biases, whole modules, …).
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{origin}: peft_type {shown(config.get('peft_type'))} cannot be run; known is LORA")
    for name, value in config.items():
        fine = name in _HARMLESS or value in _EMPTY or value in _KNOWN.get(name, ())
        if not fine:
            raise CheckpointError(f"{origin}: a LoRA with {shown(name)}: {shown(value)} cannot be run")
    rslora = config.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise CheckpointError(f"{origin}: use_rslora must be true or false, and is {shown(rslora)}")
    return PeftSettings(
        rank=_rank(origin, "r", config.get("r", 8)),
        alpha=_alpha(origin, "lora_alpha", config.get("lora_alpha", 8)),
        rslora=rslora,
        ranks={name: _rank(origin, name, rank) for name, rank in _pattern(origin, config, "rank_pattern").items()},
        alphas={name: _alpha(origin, name, alpha) for name, alpha in _pattern(origin, config, "alpha_pattern").items()},
        targets=_targets(origin, config.get("target_modules")),
        partial=config.get("layers_to_transform") is not None or bool(config.get("exclude_modules")),
    )


def _targets(origin: object, targets: object) -> tuple[str, ...] | None:
    if isinstance(targets, str) and targets:
        return None
    if isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        return tuple(targets)
    raise CheckpointError(f"{origin}: target_modules must be a list of names or a string, and is {shown(targets)}")


def _pattern(origin: object, config: Mapping[str, Any], entry: str) -> dict[str, Any]:
    """PEFT reads the names as regular expressions; we read those that are names."""
    pattern = config.get(entry) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{origin}: {entry} must be an object, and is {shown(pattern)}")
    plain = {name.removeprefix("^").removesuffix("$").replace("\\.", "."): value for name, value in pattern.items()}
    for name in plain:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise CheckpointError(f"{origin}: {entry} has the regular expression {shown(name)}; only names can be read")
    return plain


def _rank(origin: object, name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{origin}: {shown(name)} must be a whole number, at least 1, and is {shown(value)}")
    return value


def _alpha(origin: object, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e300:
        raise CheckpointError(f"{origin}: {shown(name)} must be a number above 0, and is {shown(value)}")
    return float(value)
