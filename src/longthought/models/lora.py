"""LoRA: what training learns is a matrix of low rank beside each frozen one (Hu et al., arXiv:2106.09685, section 4.1).

``h = W x + s B A x`` with s = α / r, or α / √r (rsLoRA, arXiv:2312.03732). There is no dropout: the sampler and the
learner must compute the same log-probabilities. Folders are those of PEFT.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.files import exists, read_json, shown
from longthought.models import peft_config
from longthought.models.safetensors_file import TensorFile, write
from longthought.models.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT puts before the names of a language model


@dataclass(frozen=True)
class LoRA:
    """Which linear layers are adapted, and how.

    ``targets`` are endings of module names (``"q_proj"``, ``"mlp.up_proj"``), or ``"all-linear"``: every linear layer
    of the blocks. The head and the embeddings are never adapted, nor what PEFT has no linear layer for: routers, the
    stacked matrices of routed experts, and modules that predict further tokens. ``rslora`` scales by α / √r in place of
    α / r.

    Example: ``LoRA(rank=32, alpha=64.0, targets=("q_proj", "v_proj"))``
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rslora: bool = False

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise SettingsError(f"rank={self.rank!r}: must be a whole number, at least 1")
        if not 0 < self.alpha < math.inf:
            raise SettingsError(f"alpha={self.alpha}: must be above 0")
        if self.targets != "all-linear" and (isinstance(self.targets, str) or not self.targets):
            raise SettingsError(f'targets={self.targets!r}: must be "all-linear" or several endings of module names')


class AdaptedLinear(nn.Linear):
    """A frozen linear layer with a trained B A beside it. W and its bias keep their names and are not copied.

    ``lora_A`` (r, in) and ``lora_B`` (out, r) are float32 or wider also where W is narrower: their steps are small.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, rslora: bool) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device="meta")
        wide, place = torch.promote_types(base.weight.dtype, torch.float32), base.weight.device
        for half in (self.lora_A, self.lora_B):
            half.weight = nn.Parameter(torch.zeros(half.weight.shape, dtype=wide, device=place))
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.enabled = True

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def forward(self, x: Float[Tensor, "*s d"]) -> Float[Tensor, "*s f"]:
        out = linear(x, self.weight, self.bias)
        if not self.enabled:
            return out
        low = linear(x.to(self.lora_A.weight.dtype), self.lora_A.weight)
        return out + (linear(low, self.lora_B.weight) * self.scale).to(out.dtype)

    def effective(self) -> Float[Tensor, "f d"]:
        """W + s B A, or W alone while the adapter is off; with gradients to A and B."""
        if not self.enabled:
            return self.weight
        change = self.scale * (self.lora_B.weight @ self.lora_A.weight)
        return self.weight.to(change.dtype) + change

    def merged(self) -> Float[Tensor, "f d"]:
        """W + s B A, in the type of W."""
        with torch.no_grad():
            change = self.scale * (self.lora_B.weight @ self.lora_A.weight)
            return (self.weight.to(change.dtype) + change).to(self.weight.dtype)


def add(model: Transformer, lora: LoRA, seed: int) -> None:
    """Adapt the model in place: B = 0, so that it computes what it did, and everything else is frozen.

    A is uniform in ±1/√in and depends on the seed and the name of its layer alone.

    Raises:
        SettingsError: a target names no linear layer of the blocks, or the model is adapted already.
    """
    linears = _linears(model)
    names = list(linears) if lora.targets == "all-linear" else _targeted(linears, lora.targets)
    _adapt(model, dict.fromkeys(names, (lora.rank, lora.alpha, lora.rslora)))
    for name, module in _adapted(model).items():
        key = int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
        drawn = torch.rand(module.lora_A.weight.shape, generator=torch.Generator().manual_seed(key % 2**63))
        with torch.no_grad():
            module.lora_A.weight.copy_((2 * drawn - 1) / math.sqrt(module.in_features))


def is_adapted(model: nn.Module) -> bool:
    """Whether the model has a LoRA."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what it did before it was adapted: the reference policy, at no cost."""
    before = {module: module.enabled for module in _adapted(model).values()}
    try:
        for module in before:
            module.enabled = False
        yield
    finally:
        for module, enabled in before.items():
            module.enabled = enabled


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained: name → tensor of every A and B, by the names that they have in the model."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if _is_low_rank(name)}


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the plain model that computes the same; the model stays as it is."""
    found = {name: tensor for name, tensor in model.state_dict().items() if not _is_low_rank(name)}
    return found | {f"{name}.weight": module.merged() for name, module in _adapted(model).items()}


def merge(model: Transformer) -> None:
    """Add every B A to its W, in place: a plain model again, all of it trainable."""
    for name, module in _adapted(model).items():
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(module.merged()), module.bias
        model.set_submodule(name, plain)
    model.requires_grad_(True)


def save(model: Transformer, folder: Path, base_name: str) -> None:
    """Write the folder that PEFT loads on top of the model ``base_name`` (a folder, or a name on the hub).

    Of a model with routed experts PEFT 0.21 takes every ``gate_proj``, ``up_proj`` and ``down_proj`` for those of the
    experts: it reads a LoRA of the attention alone. We read any.

    Raises:
        SettingsError: the model has no LoRA.
        OSError: the disk is full or the folder cannot be written.
    """
    adapted = _adapted(model)
    if not adapted:
        raise SettingsError("the model has no LoRA that could be saved")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / WEIGHTS, {_PREFIX + name: tensor for name, tensor in adapter_state(model).items()})
    [(rank, _)] = Counter(module.rank for module in adapted.values()).most_common(1)
    [(alpha, _)] = Counter(module.alpha for module in adapted.values()).most_common(1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": _endings(model),
        "rank_pattern": {name: module.rank for name, module in adapted.items() if module.rank != rank},
        "alpha_pattern": {name: module.alpha for name, module in adapted.items() if module.alpha != alpha},
        "use_rslora": next(iter(adapted.values())).rslora,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(model: Transformer, folder: Path) -> None:
    """Adapt the model in place with the LoRA in a folder of PEFT's, and freeze everything else.

    Raises:
        CheckpointError: a file is missing, damaged or leads out of the folder, the LoRA is of a kind that we cannot
            run, or it is not one for this model. The model is then as it was.
        SettingsError: the model is adapted already.
    """
    settings = peft_config.settings(read_json(folder, CONFIG), folder / CONFIG)
    if not exists(folder, WEIGHTS) and exists(folder, "adapter_model.bin"):
        raise CheckpointError(
            f"{folder} has its weights in a pickle, which can run any code when it is read, and no {WEIGHTS}; convert "
            "it where you trust it: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)"
        )
    file, linears = TensorFile.open(folder, WEIGHTS), _linears(model)
    layers = _layers_of(file, linears)
    settings.check_targets(folder / CONFIG, layers, linears)
    for name, rank in layers.items():
        if rank != settings.rank_of(name):
            raise CheckpointError(f"{file.name}: {name} has rank {rank}, {CONFIG} says {settings.rank_of(name)}")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in file.tensors().items()}
    for name, tensor in tensors.items():
        if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor)):
            raise CheckpointError(f"{file.name}: {name} holds numbers that are not finite")
    _adapt(model, {name: (rank, settings.alpha_of(name), settings.rslora) for name, rank in layers.items()})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_low_rank(name):
                parameter.copy_(tensors[name])


def _is_low_rank(name: str) -> bool:
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def _adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def _linears(model: Transformer) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by their names in the model. Raises SettingsError when there is a LoRA."""
    if is_adapted(model):
        raise SettingsError("the model has a LoRA already; merge it first")
    blocks = model.model.layers.named_modules(prefix="model.layers")
    return {name: module for name, module in blocks if isinstance(module, nn.Linear)}


def _targeted(linears: Mapping[str, nn.Linear], targets: Sequence[str]) -> list[str]:
    for target in targets:
        if not any(peft_config.ends(name, target) for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"targets: {target!r} names no linear layer of the blocks; {hint}")
    return [name for name in linears if any(peft_config.ends(name, target) for target in targets)]


def _adapt(model: Transformer, layers: Mapping[str, tuple[int, float, bool]]) -> None:
    """Put (rank, alpha, rslora) adapters in place of the layers named, and freeze the rest."""
    model.requires_grad_(False)
    for name, (rank, alpha, rslora) in layers.items():
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        model.set_submodule(name, AdaptedLinear(base, rank, alpha, rslora))


def _endings(model: Transformer) -> list[str]:
    """What PEFT is told to adapt: last parts of names where they say it all, whole names otherwise."""
    adapted = _adapted(model)
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in adapted)
    plain = [name for name in linears if not name.startswith("model.mtp.")]  # which transformers does not have
    kept = {name.rpartition(".")[2] for name in plain if not name.endswith(("lora_A", "lora_B"))}
    return sorted({name if name.rpartition(".")[2] in kept else name.rpartition(".")[2] for name in adapted})


def _layers_of(file: TensorFile, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
    """Name of an adapted layer → rank, from the names and shapes of its A and B."""
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    layers: dict[str, Any] = {}
    for name in shapes:
        layer = name.removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".lora_A").removesuffix(".lora_B")
        if name not in {f"{_PREFIX}{layer}.lora_{half}.weight" for half in "AB"} or layer not in linears:
            raise CheckpointError(
                f"{file.name}: {shown(name)} is no LoRA of a linear layer in the blocks of this model"
            )
        layers[layer] = shapes.get(f"{_PREFIX}{layer}.lora_A.weight", (0,))[0]
    for layer, rank in layers.items():
        base = linears[layer]
        expected = {"A": (rank, base.in_features), "B": (base.out_features, rank)}
        found = {half: shapes.get(f"{_PREFIX}{layer}.lora_{half}.weight") for half in "AB"}
        if rank < 1 or found != expected:
            raise CheckpointError(f"{file.name}: the LoRA of {layer} has shapes {found}, where {expected} fits")
    return layers
