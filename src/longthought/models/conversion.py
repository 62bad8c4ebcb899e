"""The weights of a folder written anew, in another type and other shards, one tensor in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longthought.core.errors import CheckpointError
from longthought.models import lora, weights
from longthought.models.config import ModelConfig
from longthought.models.reading import Plan
from longthought.models.tensors import HEAD, Stored, tensors
from longthought.models.transformer import Transformer


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    source: the weights that are read.  dtype: of the numbers written.  adapter: folder of a LoRA that is merged.
    A copy of a matrix is written if ``weights.save_folder`` would write it, and compared if there is one.
    """

    source: Plan
    dtype: torch.dtype
    adapter: Path | None = None

    @property
    def config(self) -> ModelConfig:
        """Of the model that is written."""
        return self.source.config

    @property
    def written(self) -> list[Stored]:
        """The tensors that the new folder will have."""
        return [item for item in tensors(self.config) if not (item.copy and item.name == HEAD)]

    @property
    def types(self) -> dict[str, torch.dtype]:
        """Name → type on the disk."""
        return {item.name: item.dtype(self.dtype) for item in self.written}

    @property
    def exact(self) -> bool:
        """Whether no number is rounded: the model that is written computes what the one that is read does."""
        found = {item.name: self.source.found[item.name].entry.dtype for item in self.source.expected}
        kept = all(item.dtype(self.dtype) in (found[item.name], torch.float32) for item in self.source.expected)
        return kept and self.adapter is None

    @property
    def bytes(self) -> int:
        """Of all numbers written."""
        types = self.types
        return sum(torch.Size(item.shape).numel() * types[item.name].itemsize for item in self.written)

    def write(self, folder: Path, shard_bytes: int, told: Callable[[], None] = lambda: None) -> None:
        """Read, convert and write. ``told`` is called after every tensor.

        Raises:
            CheckpointError: a number is not finite in the type wanted, a copy differs from what it is a copy of, or
                the LoRA is none of this model.
            OSError: the disk is full or the folder cannot be written.
        """
        items, types = {item.name: item for item in self.written}, self.types
        adapted = {} if self.adapter is None else _adapted(self.config, self.adapter)
        originals = {item.place: item for item in self.source.expected if not item.copy}
        self._check_copies(originals)

        def read(name: str) -> Tensor:
            item = items[name]
            change = adapted.get(item.place.removesuffix(".weight"))
            out = torch.empty(item.shape, dtype=types[name] if change is None else torch.float32)
            self.source.read(originals[item.place] if item.copy else item, out)
            told()
            return out if change is None else _finite(name, out.add_(change.merged()).to(types[name]))

        shapes = {name: torch.empty(item.shape, dtype=types[name], device="meta") for name, item in items.items()}
        weights.write_folder(folder, shapes, types, shard_bytes, read)

    def _check_copies(self, originals: Mapping[str, Stored]) -> None:
        for item in self.source.expected:
            if item.copy:
                self.source.check_copy(item, self.source.read(originals[item.place], torch.empty(item.shape)))

    def verify(self, folder: Path) -> None:
        """Read the headers of the new folder back. Raises CheckpointError when they are not what was to be written."""
        files = weights.open_folder(folder)
        config = ModelConfig.read(folder)
        if config != self.config or weights.compare(config, files) != config:
            raise CheckpointError(f"{folder}: the config was not written as it is")
        found = {name: (entry.dtype, entry.shape) for file in files for name, entry in file.entries.items()}
        types = self.types
        if found != {item.name: (types[item.name], item.shape) for item in self.written}:
            raise CheckpointError(f"{folder}: the headers on the disk are not those that were written")


def stored_types(source: Plan) -> Counter[torch.dtype]:
    """Type of numbers → how many have it in the files; scales are not counted."""
    counts: Counter[torch.dtype] = Counter()
    for item in source.expected:
        counts[source.found[item.name].entry.dtype] += torch.Size(item.shape).numel()
    return counts


def natural_type(source: Plan) -> torch.dtype:
    """The type to write where none is asked for: that of most numbers, and bfloat16 for eight bits."""
    [(most, _)] = stored_types(source).most_common(1)
    return torch.bfloat16 if most.itemsize == 1 else most


def _adapted(config: ModelConfig, adapter: Path) -> dict[str, lora.AdaptedLinear]:
    """Name → adapted layer, whose W is zero and takes no memory: what it merges to is s B A."""
    with torch.device("meta"):
        model = Transformer(config)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.zeros(()).expand(module.weight.shape))
    lora.load(model, adapter)
    return {name: module for name, module in model.named_modules() if isinstance(module, lora.AdaptedLinear)}


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor)):
        raise CheckpointError(f"{name}, the LoRA added, holds numbers that are not finite in {tensor.dtype}")
    return tensor
