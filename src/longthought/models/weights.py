"""Weights in Hugging Face folders: safetensors files, in one piece or in shards, under Hugging Face's names (ours).

The headers of all files are compared with the config before anything is allocated: a config of any size is refused as
fast as a small one. Nothing is unpickled, and no code that a folder brings along is run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.files import exists, read_json, regular_file, shown
from longthought.models import lora
from longthought.models.config import ModelConfig
from longthought.models.reading import Plan, plan
from longthought.models.safetensors_file import TensorFile, write
from longthought.models.tensors import EMBEDDING, HEAD, tensors
from longthought.models.transformer import Transformer

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_LIMIT = 64 * 2**20
"""Largest index that is read, in bytes."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt", "model.bin")


def state(model: Transformer) -> dict[str, Tensor]:
    """Name → tensor, as in Hugging Face folders: a tied head is stored once, a LoRA is added to what it adapts.

    Views, where there is nothing to be added. The copies of shared matrices in modules that predict further are among
    them: ``transformers`` does without, inference engines may not.
    """
    found = lora.merged_state(model) if lora.is_adapted(model) else model.state_dict()
    written = [item for item in tensors(model.config) if not (item.copy and item.name == HEAD)]
    return {item.name: item.of(found).detach().contiguous() for item in written}


def save(model: Transformer, path: Path) -> None:
    """Write one safetensors file. Raises OSError when the disk is full."""
    found = state(model)
    write(path, found, _types(model.config, found, None))


def save_folder(
    model: Transformer, folder: Path, shard_bytes: int = 5 * 2**30, dtype: torch.dtype | None = None
) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` (but at least one tensor) and their index.

    What an earlier save left in the folder under other names is removed. ``dtype``: of the numbers on the disk; biases
    that balance experts are float32 always.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    found = state(model)
    write_folder(folder, found, _types(model.config, found, dtype), shard_bytes)


def write_folder(
    folder: Path,
    found: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    shard_bytes: int,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """As ``save_folder``, for tensors by name. ``read``: see ``safetensors_file.write``.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    if shard_bytes < 1:
        raise SettingsError(f"shard_bytes={shard_bytes}: must be at least 1")
    shards = _shards(found, shard_bytes, types)
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)] if count > 1 else [WHOLE]
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if (file.name in (WHOLE, INDEX) or _SHARD.fullmatch(file.name)) and file.name not in names:
            file.unlink()
    for name, shard in zip(names, shards, strict=True):
        write(folder / name, shard, types, read)
    if count > 1:
        total = sum(tensor.numel() * types[name].itemsize for name, tensor in found.items())
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load(config: ModelConfig, path: Path) -> Transformer:
    """Read one safetensors file, in float32. Raises CheckpointError when it is damaged or does not fit the config."""
    return load_files(config, [TensorFile.open(path.parent, path.name, float8=True)], torch.float32)


def load_folder(config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model in a Hugging Face folder, its weights copied from the files and converted to ``dtype``.

    Weights of eight bits are multiplied by the scales of their blocks. If the folder has no tensor of any module that
    predicts further tokens, as folders that ``transformers`` has saved, the model has none either, whatever the config
    says: its own ``config`` then has ``num_nextn_predict_layers`` 0, and a warning is logged.

    Raises:
        CheckpointError: a file is missing, damaged or leads out of the folder, the weights are not those of the config,
            or one of them is not finite.
    """
    return load_files(config, open_folder(folder), dtype)


def open_folder(folder: Path) -> list[TensorFile]:
    """The files with the weights of a folder, headers checked and in agreement with the index.

    Raises:
        CheckpointError: a file is missing, damaged or leads out of the folder.
    """
    if exists(folder, WHOLE):
        return [TensorFile.open(folder, WHOLE, float8=True)]
    if not exists(folder, INDEX):
        raise _no_weights(folder)
    index = read_json(folder, INDEX, INDEX_LIMIT)
    places = _places(folder / INDEX, index.get("weight_map"))
    for name in places:
        regular_file(folder, name)  # all of them before one is opened
    files = []
    for name, named in places.items():
        file = TensorFile.open(folder, name, float8=True)
        if odd := file.entries.keys() ^ named:
            fault = "holds, unknown to" if min(odd) in file.entries else "lacks, named by"
            raise CheckpointError(f"{file.name} {fault} {INDEX}: {shown(min(odd))}")
        files.append(file)
    _check_size(folder / INDEX, index, files)
    return files


def compare(config: ModelConfig, files: list[TensorFile]) -> ModelConfig:
    """The config of the model that ``load_folder`` would make of these files. Reads headers and no numbers.

    Raises:
        CheckpointError: names or shapes are not those of the config.
    """
    return plan(config, files).config


def load_files(config: ModelConfig, files: list[TensorFile], dtype: torch.dtype) -> Transformer:
    """As ``load_folder``, from files that are open."""
    source = plan(config, files)
    _refuse_too_large(source, dtype)
    with torch.device("meta"):  # only its tables of angles take memory
        model = Transformer(source.config)
    loaded = _filled(model, source, dtype)
    if config.tie_word_embeddings:
        loaded[HEAD] = loaded[EMBEDDING]
    model.load_state_dict(loaded, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.cos, model.sin = model.cos.to(dtype), model.sin.to(dtype)
    return model


def _refuse_too_large(source: Plan, dtype: torch.dtype) -> None:
    """A sparse file of a terabyte takes no place on a disk, and is a sound model until it is read."""
    size = sum(math.prod(item.shape) for item in source.expected if not item.copy) * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise CheckpointError(
            f"{source.origin}: the weights take {size / 2**30:,.1f} GiB in {dtype}; this machine has "
            f"{memory / 2**30:,.1f} GiB"
        )


def _filled(model: Transformer, source: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of the model: every tensor is copied once, from the map of its file to its place."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    loaded: dict[str, Tensor] = {}
    for item in source.expected:
        if not item.copy:
            if item.place not in loaded:
                loaded[item.place] = torch.empty(shapes[item.place], dtype=item.dtype(dtype))
            source.read(item, item.of(loaded))
    for item in source.expected:
        if item.copy:
            source.check_copy(item, loaded[item.place])
    return loaded


def _places(index: Path, places: object) -> dict[str, set[str]]:
    """Name of a shard → names of its tensors."""
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {shown(tensor)} is said to lie in {shown(name)}, no safetensors file")
        shards.setdefault(name, set()).add(tensor)
    return shards


def _check_size(path: Path, index: Mapping[str, object], files: list[TensorFile]) -> None:
    metadata = index.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(entry.bytes for file in files for entry in file.entries.values())
    if claimed is not None and claimed != total:
        raise CheckpointError(
            f"{path}: total_size says {shown(claimed)}, the tensors of its files have {total:,} bytes"
        )


def _no_weights(folder: Path) -> CheckpointError:
    if any(exists(folder, name) for name in _PICKLED):
        return CheckpointError(
            f"{folder} has its weights in a pickle, which can run any code when it is read, and no {WHOLE}; convert it "
            "where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder, "
            "safe_serialization=True)"
        )
    if exists(folder, lora.CONFIG):
        return CheckpointError(f"{folder} holds a LoRA and no model: load its base model, then the LoRA into it")
    return CheckpointError(f"{folder} has neither {WHOLE} nor {INDEX}")


def _types(config: ModelConfig, found: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What tensors are stored as, by default what they are."""
    stored = [item for item in tensors(config) if item.name in found]
    return {item.name: item.dtype(dtype or found[item.name].dtype) for item in stored}


def _shards(found: Mapping[str, Tensor], limit: int, types: Mapping[str, torch.dtype]) -> list[dict[str, Tensor]]:
    """The tensors, in order, in as few shards of at most ``limit`` bytes as that allows."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in found.items():
        size = tensor.numel() * types[name].itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= size
    return shards
