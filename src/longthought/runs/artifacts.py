"""Model folders: what a stage makes and the next one reads. Every one is a folder that ``transformers`` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from longthought import __version__
from longthought.core.errors import CheckpointError
from longthought.models import weights
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer
from longthought.runs.files import digest, new_folder
from longthought.text.renderer import BEGIN, CHAT_TEMPLATE, END, PlainRenderer
from longthought.text.tokenizer import PADDING, Tokenizer

CONFIG, GENERATION, WEIGHTS, PROVENANCE = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "provenance.json",
)


class Policy(NamedTuple):
    """A model with the chat format that it speaks."""

    model: Transformer
    renderer: PlainRenderer


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout: config, weights, tokenizer, chat template, generation config; and
    ``provenance.json``, which tells how it was made and the SHA-256 of every other file."""

    path: Path

    @classmethod
    def save(cls, path: Path, policy: Policy, provenance: Mapping[str, Any]) -> Checkpoint:
        """Write the folder atomically: it is either whole or not there."""
        model, renderer = policy
        tokenizer = renderer.tokenizer
        ids = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PADDING}
        special = {name: tokenizer.id_of(token) for name, token in ids.items()}
        with new_folder(path) as made:
            _write_json(made / CONFIG, {**model.config.to_hf(), **special})
            _write_json(made / GENERATION, {**special, "do_sample": True, "temperature": 1.0})
            weights.save(model, made / WEIGHTS)
            tokenizer.save(made, CHAT_TEMPLATE, end=END, begin=BEGIN)
            files = {file.name: digest(file.read_bytes()) for file in sorted(made.iterdir())}
            _write_json(made / PROVENANCE, {"longthought": __version__, **provenance, "files": files})
        return cls(path)

    def load(self) -> Policy:
        """Model and renderer. Raises CheckpointError when the folder is missing, damaged, or not of our making."""
        self._verify()
        tokenizer = Tokenizer.load(self.path)
        model = weights.load(ModelConfig.from_hf(self._json(CONFIG)), self.path / WEIGHTS)
        if tokenizer.size > model.config.vocab_size:
            raise CheckpointError(f"{self.path}: the tokenizer has more tokens than the model ({tokenizer.size})")
        return Policy(model.eval(), PlainRenderer(tokenizer))

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` tells. Raises CheckpointError."""
        return self._json(PROVENANCE)

    def _verify(self) -> None:
        for name, expected in self.provenance().get("files", {}).items():
            file = self.path / Path(name).name
            try:
                found = digest(file.read_bytes())
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
            if found != expected:
                raise CheckpointError(f"{file} was altered or cut short since it was written; restore it from a copy")

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} is no model folder made by longthought: it has no {name}") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{file} holds no JSON object")
        return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
