"""Weights in safetensors files, under Hugging Face's names (which are ours)."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from longthought.core.errors import CheckpointError
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer


def state(model: Transformer) -> dict[str, Tensor]:
    """Name → tensor; a tied head is stored once, as in Hugging Face folders."""
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def save(model: Transformer, path: Path) -> None:
    """Write one safetensors file. Raises OSError when the disk is full."""
    path.write_bytes(to_bytes(state(model), metadata={"format": "pt"}))


def load(config: ModelConfig, path: Path) -> Transformer:
    """Read one safetensors file. Raises CheckpointError when it is damaged or does not fit the config."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    model = Transformer(config)
    expected = {name: tensor.shape for name, tensor in state(model).items()}
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise CheckpointError(f"{path}: missing {sorted(missing)[:3]}, not expected {sorted(extra)[:3]}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"{path}: {name} has shape {list(tensors[name].shape)}, config says {list(shape)}")
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model
