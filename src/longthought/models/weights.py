"""Weights in Hugging Face folders: safetensors files, in one piece or in shards, under Hugging Face's names (ours).

The headers of all files are compared with the config before anything is allocated: a config of any size is refused as
fast as a small one. Nothing is unpickled, and no code that a folder brings along is run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.files import exists, read_json, regular_file, shown
from longthought.models import lora
from longthought.models.config import ModelConfig
from longthought.models.safetensors_file import TensorFile, write
from longthought.models.transformer import Transformer

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_LIMIT = 64 * 2**20
"""Largest index that is read, in bytes."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_TABLE = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old Llama folders store the angles
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt", "model.bin")


def state(model: Transformer) -> dict[str, Tensor]:
    """Name → tensor, as in Hugging Face folders: a tied head is stored once, a LoRA is added to what it adapts."""
    found = lora.merged_state(model) if lora.is_adapted(model) else model.state_dict()
    tied = model.config.tie_word_embeddings
    return {name: tensor.detach().contiguous() for name, tensor in found.items() if not (tied and name == _HEAD)}


def save(model: Transformer, path: Path) -> None:
    """Write one safetensors file. Raises OSError when the disk is full."""
    write(path, state(model))


def save_folder(
    model: Transformer, folder: Path, shard_bytes: int = 5 * 2**30, dtype: torch.dtype | None = None
) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` (but at least one tensor) and their index.

    What an earlier save left in the folder under other names is removed. ``dtype``: of the numbers on the disk.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    if shard_bytes < 1:
        raise SettingsError(f"shard_bytes={shard_bytes}: must be at least 1")
    shards = _shards(state(model), shard_bytes, dtype)
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)] if count > 1 else [WHOLE]
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if (file.name in (WHOLE, INDEX) or _SHARD.fullmatch(file.name)) and file.name not in names:
            file.unlink()
    for name, shard in zip(names, shards, strict=True):
        write(folder / name, shard, dtype)
    if count > 1:
        total = sum(_bytes(tensor, dtype) for shard in shards for tensor in shard.values())
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load(config: ModelConfig, path: Path) -> Transformer:
    """Read one safetensors file, in float32. Raises CheckpointError when it is damaged or does not fit the config."""
    return _load(config, [TensorFile.open(path.parent, path.name)], torch.float32)


def load_folder(config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model in a Hugging Face folder, its weights copied from the files and converted to ``dtype``.

    Raises:
        CheckpointError: a file is missing, damaged or leads out of the folder, the weights are not those of the config,
            or one of them is not finite.
    """
    return _load(config, _files(folder), dtype)


def _load(config: ModelConfig, files: list[TensorFile], dtype: torch.dtype) -> Transformer:
    origin = files[0].name if len(files) == 1 else files[0].name.parent
    shapes = {name: entry.shape for file in files for name, entry in file.entries.items()}
    renamed = _names(origin, config, shapes)
    _compare(origin, config, {renamed[name]: shape for name, shape in shapes.items() if name in renamed})
    _refuse_too_large(origin, files, dtype)
    loaded: dict[str, Tensor] = {}
    for file in files:
        for name, stored in file.tensors().items():
            if name in renamed:
                loaded[renamed[name]] = _numbers(file.name, name, stored, dtype)
    if config.tie_word_embeddings:
        head = loaded.setdefault(_HEAD, loaded[_EMBEDDING])
        if not torch.equal(head, loaded[_EMBEDDING]):
            raise CheckpointError(
                f"{origin}: the config ties lm_head.weight to the embeddings, and the file stores another one; "
                "set tie_word_embeddings to false if the head is its own"
            )
    with torch.device("meta"):  # only its tables of angles take memory
        model = Transformer(config)
    model.load_state_dict(loaded, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.cos, model.sin = model.cos.to(dtype), model.sin.to(dtype)
    return model


def _refuse_too_large(origin: Path, files: list[TensorFile], dtype: torch.dtype) -> None:
    """A sparse file of a terabyte takes no place on a disk, and is a sound model until it is read."""
    size = sum(math.prod(entry.shape) for file in files for entry in file.entries.values()) * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise CheckpointError(
            f"{origin}: the weights take {size / 2**30:,.1f} GiB in {dtype}; this machine has {memory / 2**30:,.1f} GiB"
        )


def _numbers(file: Path, name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in memory: training in place must not write to the map of a file."""
    copied = stored.to(dtype, copy=True)
    if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(copied)):
        raise CheckpointError(f"{file}: {name} holds numbers that are not finite in {dtype}")
    return copied


def _names(origin: Path, config: ModelConfig, stored: Mapping[str, object]) -> dict[str, str]:
    """Name in the file → name in the model. The folder of a model without a head has no ``model.`` before its names."""
    names = [name for name in stored if not _TABLE.fullmatch(name)]
    bare = "embed_tokens.weight" in stored and _EMBEDDING not in stored
    renamed = {name: f"model.{name}" if bare and name != _HEAD else name for name in names}
    present = set(renamed.values())
    if config.tie_word_embeddings and _HEAD in present and _EMBEDDING not in present:
        renamed[_HEAD] = _EMBEDDING  # of two names for one tensor, safetensors' save_model keeps the first
    if not config.tie_word_embeddings and _HEAD not in present and _EMBEDDING in present:
        raise CheckpointError(
            f"{origin} has no lm_head.weight: this is a model without a language-model head. If its head is the matrix "
            "of its embeddings, its config must say tie_word_embeddings: true"
        )
    return renamed


def _compare(origin: Path, config: ModelConfig, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Names and shapes in the files against the config's. Takes no longer than the files have names."""
    expected = set()
    for name, shape in _shapes(config, head=_HEAD in stored or not config.tie_word_embeddings):
        if name not in stored:
            raise CheckpointError(f"{origin} lacks {name}, which its config asks for")
        if stored[name] != shape:
            raise CheckpointError(f"{origin}: {name} has shape {list(stored[name])}, config says {list(shape)}")
        expected.add(name)
    if extra := stored.keys() - expected:
        raise CheckpointError(f"{origin} holds {shown(min(extra))}, which its config does not speak of")


def _shapes(config: ModelConfig, head: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the model, lazily: a config may speak of more layers than there is memory for."""
    d, c, f = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * c, config.num_key_value_heads * c
    yield _EMBEDDING, (config.vocab_size, d)
    if head:
        yield _HEAD, (config.vocab_size, d)
    yield "model.norm.weight", (d,)
    projections = {
        "self_attn.q_proj": (q, d, config.qkv_bias),
        "self_attn.k_proj": (kv, d, config.qkv_bias),
        "self_attn.v_proj": (kv, d, config.qkv_bias),
        "self_attn.o_proj": (d, q, config.output_bias),
        "mlp.gate_proj": (f, d, config.mlp_bias),
        "mlp.up_proj": (f, d, config.mlp_bias),
        "mlp.down_proj": (d, f, config.mlp_bias),
    }
    norms = {"input_layernorm": d, "post_attention_layernorm": d}
    norms |= {"self_attn.q_norm": c, "self_attn.k_norm": c} if config.qk_norm else {}
    for layer in (f"model.layers.{number}" for number in range(config.num_hidden_layers)):
        for name, (rows, columns, bias) in projections.items():
            yield f"{layer}.{name}.weight", (rows, columns)
            if bias:
                yield f"{layer}.{name}.bias", (rows,)
        for name, width in norms.items():
            yield f"{layer}.{name}.weight", (width,)


def _files(folder: Path) -> list[TensorFile]:
    """The files with the weights, headers checked and in agreement with the index."""
    if exists(folder, WHOLE):
        return [TensorFile.open(folder, WHOLE)]
    if not exists(folder, INDEX):
        raise _no_weights(folder)
    index = read_json(folder, INDEX, INDEX_LIMIT)
    places = _places(folder / INDEX, index.get("weight_map"))
    for name in places:
        regular_file(folder, name)  # all of them before one is opened
    files = []
    for name, tensors in places.items():
        file = TensorFile.open(folder, name)
        if odd := file.entries.keys() ^ tensors:
            fault = "holds, unknown to" if min(odd) in file.entries else "lacks, named by"
            raise CheckpointError(f"{file.name} {fault} {INDEX}: {shown(min(odd))}")
        files.append(file)
    _check_size(folder / INDEX, index, files)
    return files


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


def _shards(tensors: Mapping[str, Tensor], limit: int, dtype: torch.dtype | None) -> list[dict[str, Tensor]]:
    """The tensors, in order, in as few shards of at most ``limit`` bytes as that allows."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if size > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= size
    return shards


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize
