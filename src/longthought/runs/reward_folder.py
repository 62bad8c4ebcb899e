"""Folders of reward models: what the stage makes, and reinforcement learning or a search reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from longthought.core.errors import CheckpointError, DataError
from longthought.core.files import exists, read_json
from longthought.core.types import Message, TokenIds
from longthought.core.version import __version__
from longthought.models import reward
from longthought.models.reward import RewardModel
from longthought.runs.artifacts import CONFIG, GENERATION, PROVENANCE, Checkpoint
from longthought.runs.files import digests, new_folder
from longthought.text import folder as text
from longthought.text.chat import ChatRenderer
from longthought.text.reasoning import CLOSE, OPEN
from longthought.text.renderer import PlainRenderer, TemplateRenderer, TokensOnly
from longthought.text.tokenizer import PADDING

Reads = Literal["summary", "reply"]
"""What of a reply is read: what follows the reasoning alone (helpfulness), or both (harmlessness)."""

SCALE = "reward.json"


@dataclass(frozen=True)
class Scale:
    """How rewards are to be read.

    mean, std: of the rewards of all replies that were held out.  reads: what of a reply the model was trained on.
    """

    mean: float
    std: float
    reads: Reads

    def standardized(self, rewards: Sequence[float]) -> list[float]:
        """(r − mean) / std of every reward."""
        return [(one - self.mean) / self.std for one in rewards]


class Judge(NamedTuple):
    """A reward model that is ready, with the chat format that it reads and its scale.

    config, generation: the JSON that the model came with; the second names the tokens that end a reply.
    """

    model: RewardModel
    renderer: text.Renderer
    scale: Scale
    config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RewardFolder:
    """A folder that ``transformers`` loads as a sequence classification model: config, weights, tokenizer, chat
    template; beside them ``reward.json`` (the scale) and ``provenance.json``.

    ``config.json`` names a padding token only where that is no end token of replies: ``transformers`` reads the last
    token that is no padding, and would else read the one before the end. Without one it takes one sequence at a time.
    """

    path: Path

    @classmethod
    def save(cls, path: Path, judge: Judge, provenance: Mapping[str, Any]) -> RewardFolder:
        """Write the folder atomically: it is either whole or not there."""
        model, renderer, scale, config, generation = judge
        with new_folder(path) as made:
            _write(made / CONFIG, reward.written_config(model, config) | {"pad_token_id": _padding(judge)})
            if generation:
                _write(made / GENERATION, generation)
            reward.save(model, made)
            text.save(renderer, made)
            _write(made / SCALE, asdict(scale))
            told = {"longthought": __version__, **provenance}
            if isinstance(renderer, TemplateRenderer):
                told["template"] = asdict(renderer.template)
            _write(made / PROVENANCE, {**told, "files": digests(made)})
        return cls(path)

    def load(self, dtype: torch.dtype = torch.float32) -> Judge:
        """Model, chat format and scale.

        Raises CheckpointError when the folder is missing, damaged, or of no reward model that we made.
        """
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path} is no folder: give the folder of a reward model")
        given = Checkpoint(self.path)
        given.verify()
        config = read_json(self.path, CONFIG)
        shape = reward.read_config(config, self.path / CONFIG)
        renderer = text.load(self.path, given.trained_with())
        generation = read_json(self.path, GENERATION) if exists(self.path, GENERATION) else None
        return Judge(reward.load(shape, self.path, dtype), renderer, self._scale(), config, generation)

    def _scale(self) -> Scale:
        told = read_json(self.path, SCALE)
        numbers = [told.get(name) for name in ("mean", "std")]
        sound = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
        if not sound or not told["std"] > 0 or told.get("reads") not in ("summary", "reply"):
            raise CheckpointError(
                f'{self.path / SCALE} needs a finite "mean", a "std" above 0, and "reads": "summary" or "reply"'
            )
        return Scale(float(told["mean"]), float(told["std"]), told["reads"])


def read_tokens(renderer: text.Renderer, prompt: Sequence[Message], reply: Message, reads: Reads) -> TokenIds:
    """What a reward model reads: the conversation up to the end token of the reply, which is the last.

    Where the prompt itself opens a thought, and none is read, an empty one stands there.

    Raises DataError where the chat format has no place for it, and for a reply without a summary.
    """
    if not reply.content.strip():
        raise DataError("the reply has no summary")
    said = reply if reads == "reply" else Message("assistant", reply.content)
    if not said.reasoning and _opens_a_thought(renderer) and not said.content.startswith(OPEN):
        said = Message("assistant", f"{OPEN}\n\n{CLOSE}\n\n{said.content}")
    ids, mask = renderer.example((*prompt, said))
    return ids[: len(mask) - mask[::-1].index(True)]


def _opens_a_thought(renderer: text.Renderer) -> bool:
    if isinstance(renderer, TemplateRenderer):
        return bool(renderer.template.opening)
    return isinstance(renderer, ChatRenderer) and bool(renderer.opening)


def _padding(judge: Judge) -> int | None:
    """The id of a token that pads and ends no reply; None where there is none."""
    renderer = judge.renderer
    if isinstance(renderer, PlainRenderer):
        return renderer.tokenizer.id_of(PADDING)
    if isinstance(renderer, TokensOnly):
        return None
    stated = (judge.config or {}).get("pad_token_id")
    padding = renderer.tokenizer.roles.get("pad_token")
    token = renderer.tokenizer.id_of(padding) if padding else stated
    return token if type(token) is int and token not in renderer.stop_tokens else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
