"""Model folders for the tests of this package: a sound one, and the raw parts of one that is not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from conftest import tiny_model
from longthought.models import weights
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer


def logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    attend = PackedAttention([len(tokens)])
    with torch.no_grad():
        return model(tokens, attend.positions, attend) @ model.lm_head.weight.T


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def sound_folder(folder: Path, shard_bytes: int = 2**30, **kind: object) -> Transformer:
    """Config and weights of a tiny model."""
    model = tiny_model(**kind)
    weights.save_folder(model, folder, shard_bytes)
    write_json(folder / "config.json", model.config.to_hf())
    return model


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    return weights.load_folder(ModelConfig.read(folder), folder, dtype)


def change_json(path: Path, **change: object) -> None:
    """Entries of a JSON file set anew."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | change)


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(file: Path, header: Mapping[str, Any] | bytes, numbers: bytes, length: int | None = None) -> None:
    """A safetensors file that says what it is told to say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + numbers)


def store(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A sound file with these tensors, by the library."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, file)
