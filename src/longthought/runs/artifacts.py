"""Model folders: what a stage makes and the next one reads. Every one is a folder that ``transformers`` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.files import exists, read_json, regular_file
from longthought.core.version import __version__
from longthought.models import lora, weights
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer
from longthought.runs.files import digests, new_folder
from longthought.text import folder as text
from longthought.text.renderer import BEGIN, END, PlainRenderer, TemplateRenderer, TokensOnly
from longthought.text.templates import Template
from longthought.text.tokenizer import PADDING

CONFIG, GENERATION, PROVENANCE, ADAPTER = "config.json", "generation_config.json", "provenance.json", "adapter"


class Policy(NamedTuple):
    """A model with the chat format that it speaks.

    ``config`` and ``generation``: the JSON that the model came with, kept when it is saved again.
    """

    model: Transformer
    renderer: text.Renderer
    config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout: config, weights, tokenizer, chat template, generation config.

    If we made it, ``provenance.json`` tells how, and holds the SHA-256 of every other file.

    template: the prompt to speak to a base model with; None: the one that the folder was trained with, or its own chat
    template.
    """

    path: Path
    template: Template | None = None

    @classmethod
    def save(cls, path: Path, policy: Policy, provenance: Mapping[str, Any]) -> Checkpoint:
        """Write the folder atomically: it is either whole or not there. A LoRA is merged, and kept beside the model in
        ``adapter/``, in PEFT's format."""
        model, renderer, config, generation = policy
        special = _special(policy)
        with new_folder(path) as made:
            _write_json(made / CONFIG, {**model.config.to_hf(config), **({} if config else special)})
            _write_json(made / GENERATION, generation or {**special, "do_sample": True, "temperature": 1.0})
            weights.save_folder(model, made)
            text.save(renderer, made)
            if lora.is_adapted(model):
                lora.save(model, made / ADAPTER, path.name)
            told = {"longthought": __version__, **provenance}
            if isinstance(renderer, TemplateRenderer):
                told["template"] = asdict(renderer.template)
            _write_json(made / PROVENANCE, {**told, "files": digests(made)})
        return cls(path)

    def load(self, dtype: torch.dtype = torch.float32, to_look: bool = False) -> Policy:
        """Model and renderer. Raises CheckpointError when the folder is missing, damaged, or of a model that we cannot
        run. Nothing that it holds is executed.

        to_look: a folder without a chat template, or even without a tokenizer, will do (``text.folder.load_to_look``).
        """
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is no folder: give the folder of a model in Hugging Face layout")
        self.verify()
        config = read_json(self.path, CONFIG)
        generation = read_json(self.path, GENERATION) if exists(self.path, GENERATION) else None
        template = self.template or self.trained_with()
        renderer = text.load_to_look(self.path, template) if to_look else text.load(self.path, template)
        model = weights.load_folder(ModelConfig.from_hf(config, self.path / CONFIG), self.path, dtype)
        if not isinstance(renderer, TokensOnly) and renderer.tokenizer.largest_id >= model.config.vocab_size:
            raise CheckpointError(
                f"{self.path}: the tokenizer has the id {renderer.tokenizer.largest_id}, but the model only "
                f"{model.config.vocab_size} rows of embeddings: one of the two belongs to another model"
            )
        return Policy(model.eval(), renderer, config, generation)

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` tells; empty for a model of somebody else's. Raises CheckpointError."""
        return read_json(self.path, PROVENANCE) if exists(self.path, PROVENANCE) else {}

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file, as ``provenance.json`` states them, or computed for a model of somebody else's."""
        stated = self.provenance().get("files")
        if isinstance(stated, dict):
            return stated
        return digests(self.path)

    def trained_with(self) -> Template | None:
        """The prompt template that ``provenance.json`` states, if any. Raises CheckpointError."""
        stated = self.provenance().get("template")
        if stated is None:
            return None
        try:
            return Template(**{**stated, "stop": tuple(stated["stop"])})
        except (TypeError, KeyError, SettingsError) as error:
            raise CheckpointError(f"{self.path / PROVENANCE}: its prompt template cannot be read: {error}") from error

    def verify(self) -> None:
        """Compare the files with what ``provenance.json`` states, if there is one. Raises CheckpointError."""
        stated = self.provenance().get("files", {})
        if not isinstance(stated, dict):
            raise CheckpointError(f"{self.path / PROVENANCE}: files must be an object, names and digests")
        for name, expected in stated.items():
            folder, _, file = str(name).rpartition("/")
            if folder not in ("", ADAPTER):
                raise CheckpointError(f"{self.path / PROVENANCE} names a file outside the folder: {name!r}")
            found = regular_file(self.path / folder if folder else self.path, file)
            if digests(found)["."] != expected:
                raise CheckpointError(f"{found} was altered or cut short since it was written; restore it from a copy")


def load(
    folder: Path | str,
    template: Template | None = None,
    adapter: Path | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """The model in a folder, with the chat format that it speaks; see ``Checkpoint.load``.

    A base model without a chat template continues the text that it is given; one without a tokenizer takes token ids.
    adapter: folder of a LoRA in PEFT's format that is put upon it; ``models.lora.merge`` makes it part of the weights.
    """
    policy = Checkpoint(Path(folder), template).load(dtype, to_look=True)
    if adapter is not None:
        lora.load(policy.model, Path(adapter))
    return policy


def _special(policy: Policy) -> dict[str, int]:
    """Ids of the special tokens of our own small models; a model of somebody else's keeps its own config."""
    if not isinstance(policy.renderer, PlainRenderer):
        return {}
    names = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PADDING}
    return {name: policy.renderer.tokenizer.id_of(token) for name, token in names.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
