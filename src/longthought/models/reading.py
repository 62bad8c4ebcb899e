"""What of a model is read from where: names and shapes in the headers of files, against those of the config.

Nothing is allocated before they agree, and it takes no longer than the files have names.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longthought.core.errors import CheckpointError
from longthought.core.files import read_json, shown
from longthought.models import float8
from longthought.models.config import ModelConfig
from longthought.models.float8 import Blocks
from longthought.models.safetensors_file import Entry, TensorFile
from longthought.models.tensors import EMBEDDING, HEAD, Stored, tensors

_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_TABLE = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old Llama folders store the angles


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor in a file: ``name`` is what the file calls it."""

    file: TensorFile
    name: str
    entry: Entry


@dataclass(frozen=True)
class Plan:
    """What is read from where, one tensor at a time.

    config: of the model that the files hold.  found: by the names of a whole model.  blocks: of weights of eight bits.
    expected: the tensors that are there.
    """

    origin: Path
    config: ModelConfig
    found: Mapping[str, _Source]
    blocks: Blocks | None
    expected: tuple[Stored, ...]

    def read(self, item: Stored, out: Tensor) -> Tensor:
        """``out``, filled: training in place must not write to the map of a file.

        Raises:
            CheckpointError: a number is not finite in the type of ``out``.
        """
        source = self.found[item.name]
        stored = self._maps[source.file.name][source.name]
        if self.blocks is not None and stored.dtype == float8.DTYPE:
            scale = self.found[item.name + float8.SCALE]
            self.blocks.dequantize(stored, self._maps[scale.file.name][scale.name], out)
        else:
            out.copy_(stored)
        if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(out)):
            raise CheckpointError(f"{source.file.name}: {source.name} holds numbers that are not finite in {out.dtype}")
        return out

    def check_copy(self, item: Stored, shared: Tensor) -> None:
        """Raises CheckpointError if a copy of a matrix that is shared is not equal to it."""
        if not torch.equal(self.read(item, torch.empty_like(shared)), shared):
            raise CheckpointError(_contradiction(self.found[item.name], item))

    @functools.cached_property
    def _maps(self) -> dict[Path, Mapping[str, Tensor]]:
        files = {source.file.name: source.file for source in self.found.values()}
        return {name: file.tensors() for name, file in files.items()}


def plan(config: ModelConfig, files: list[TensorFile]) -> Plan:
    """Compare names and shapes in the headers with the config. Raises CheckpointError when they are others."""
    origin = files[0].name if len(files) == 1 else files[0].name.parent
    held = {name: _Source(file, name, entry) for file in files for name, entry in file.entries.items()}
    found = {renamed: held[name] for name, renamed in _names(origin, config, held).items()}
    config = _without_absent_modules(origin, config, found)
    blocks = _blocks(files[0].name.parent, found)
    return Plan(origin, config, found, blocks, _compared(origin, config, found, blocks))


def _without_absent_modules(origin: Path, config: ModelConfig, found: Mapping[str, object]) -> ModelConfig:
    """The config of what is there: folders derived from DeepSeek-V3 keep its config, but not what predicts further."""
    if not config.num_nextn_predict_layers or any(_number(name) >= config.num_hidden_layers for name in found):
        return config
    _warn_of_absent_modules(origin, config.num_nextn_predict_layers)
    return replace(config, num_nextn_predict_layers=0)


@functools.cache
def _warn_of_absent_modules(origin: Path, count: int) -> None:
    logging.getLogger(__name__).warning(
        "%s: its config speaks of %d module(s) that predict further tokens (num_nextn_predict_layers), and it holds "
        "none; the model is loaded without",
        origin,
        count,
    )


def _number(name: str) -> int:
    """Of the layer that a tensor belongs to; −1: of none."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _blocks(folder: Path, found: Mapping[str, _Source]) -> Blocks | None:
    """How weights of eight bits are scaled; None: there are none."""
    narrow = [source for source in found.values() if source.entry.dtype == float8.DTYPE]
    if not narrow:
        return None
    quantization = read_json(folder, "config.json").get("quantization_config")
    if quantization is None:
        raise CheckpointError(
            f"{narrow[0].file.name}: {narrow[0].name} has eight bits, and config.json has no quantization_config that "
            "tells how they are scaled"
        )
    return Blocks.of(quantization)


def _contradiction(source: _Source, item: Stored) -> str:
    if item.name == HEAD:
        return (
            f"{source.file.name}: the config ties lm_head.weight to the embeddings, and the file stores another one; "
            "set tie_word_embeddings to false if the head is its own"
        )
    return (
        f"{source.file.name}: {source.name} is not equal to {item.place}, which modules that predict further tokens "
        "share with the model; such a model cannot be run"
    )


def _names(origin: Path, config: ModelConfig, stored: Mapping[str, object]) -> dict[str, str]:
    """Name in the file → name in the model. The folder of a model without a head has no ``model.`` before its names."""
    names = [name for name in stored if not _TABLE.fullmatch(name)]
    bare = "embed_tokens.weight" in stored and EMBEDDING not in stored
    renamed = {name: f"model.{name}" if bare and name != HEAD else name for name in names}
    present = set(renamed.values())
    if config.tie_word_embeddings and HEAD in present and EMBEDDING not in present:
        renamed[HEAD] = EMBEDDING  # of two names for one tensor, safetensors' save_model keeps the first
    if not config.tie_word_embeddings and HEAD not in present and EMBEDDING in present:
        raise CheckpointError(
            f"{origin} has no lm_head.weight: this is a model without a language-model head. If its head is the matrix "
            "of its embeddings, its config must say tie_word_embeddings: true"
        )
    return renamed


def _compared(
    origin: Path, config: ModelConfig, found: Mapping[str, _Source], blocks: Blocks | None
) -> tuple[Stored, ...]:
    """Names and shapes in the files against the config's. Takes no longer than the files have names."""
    expected, scales = {}, set()
    for item in tensors(config):
        source = found.get(item.name)
        if source is None and item.copy:
            continue
        if source is None:
            raise CheckpointError(f"{origin} lacks {item.name}, which its config asks for")
        shape = source.entry.shape
        if shape != item.shape:
            raise CheckpointError(f"{origin}: {item.name} has shape {list(shape)}, config says {list(item.shape)}")
        if blocks is not None and source.entry.dtype == float8.DTYPE:
            _check_scale(origin, item, blocks, found.get(item.name + float8.SCALE))
            scales.add(item.name + float8.SCALE)
        expected[item.name] = item
    _refuse_extra(origin, config, found.keys() - expected.keys() - scales)
    return tuple(expected.values())


def _refuse_extra(origin: Path, config: ModelConfig, extra: set[str]) -> None:
    if not extra:
        return
    name, hint = min(extra), ""
    if config.latent is not None and _number(name) >= config.num_hidden_layers:
        hint = f": it says num_nextn_predict_layers={config.num_nextn_predict_layers}"
    raise CheckpointError(f"{origin} holds {shown(name)}, which its config does not speak of{hint}")


def _check_scale(origin: Path, item: Stored, blocks: Blocks, scale: _Source | None) -> None:
    name = item.name + float8.SCALE
    if len(item.shape) != 2:
        raise CheckpointError(f"{origin}: {item.name} has eight bits, which only matrices can have")
    if scale is None:
        raise CheckpointError(f"{origin} lacks {name}, the scales of a matrix of eight bits")
    wanted = blocks.scales(item.shape)
    if scale.entry.shape != wanted or scale.entry.dtype == float8.DTYPE:
        raise CheckpointError(
            f"{origin}: {name} has shape {list(scale.entry.shape)} in {scale.entry.dtype}; blocks of {blocks.rows} × "
            f"{blocks.columns} need scales of shape {list(wanted)} in float32 or less, but no eight bits"
        )
