"""The model that is measured, ours and in ``transformers``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.models.weights import save


def random_model(width: int, vocabulary: int) -> Transformer:
    """Random weights with a head that is not zero."""
    model = Transformer(ModelConfig.sized(width, vocabulary, 1024))
    initialize(model, 0)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    return model.eval()


def theirs(model: Transformer) -> torch.nn.Module:
    """The same model in transformers."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps(model.config.to_hf()))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
