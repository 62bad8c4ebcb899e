"""A checkpoint as the model that judges: answers the questions of a ``Judge`` in this process, without a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longthought.core.errors import CheckpointError, LongthoughtError, SettingsError
from longthought.core.types import CUT, Message, Outcome, SamplingParams, TokenIds
from longthought.engine.engine import Engine, EngineSettings
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.text.reasoning import split
from longthought.text.templates import Template
from longthought.verifiers.endpoint import Answered, Failed, Reply


@dataclass(frozen=True)
class LocalModel:
    """The model in the folder ``path``, for ``Judge``, ``PairJudge`` and ``Constitution``.

    max_tokens: of a reply, thinking included; a reply that reaches it is cut, and no verdict is read from it.
    temperature: 0 is greedy. Otherwise the reply to a question is a function of ``seed`` and the question, so that
    several votes need a judge with several seeds (which number its fences).
    template: the prompt to speak to a base model with; None: as ``Checkpoint``.

    The model is loaded when it is first asked. Its thinking (up to ``</think>``) is no part of the reply. A question
    that it cannot be asked, such as one too long for its context, is a ``Failed`` of its own. Raises CheckpointError
    where the folder is none, or damaged.
    """

    path: Path
    max_tokens: int = 1024
    temperature: float = 0.0
    template: Template | None = None
    seed: int = 0
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.temperature < math.inf:
            raise SettingsError(
                f"local model: max_tokens={self.max_tokens} must be at least 1, temperature={self.temperature} finite "
                "and not negative"
            )
        if not self.path.is_dir():
            raise CheckpointError(f"local model: {self.path} is no folder of a model")

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    def ask_many(self, conversations: Sequence[Sequence[Message]], json_object: bool = False) -> list[Reply]:
        """A reply for every conversation, in order; equal ones are asked once. ``json_object`` cannot be enforced: a
        reply that is no object is refused by who reads it."""
        prompts = [self._prompt(conversation) for conversation in conversations]
        wanted = list(dict.fromkeys(prompt for prompt in prompts if not isinstance(prompt, Failed)))
        replies: dict[TokenIds, Reply] = {}
        if wanted:
            try:
                found = self._engine.sample(wanted, self._params)
            except LongthoughtError as error:  # such as logits that are no numbers
                failed = Failed(Outcome.CRASHED, f"{self.name}: {error}")
                return [prompt if isinstance(prompt, Failed) else failed for prompt in prompts]
            for prompt, (completion,) in zip(wanted, found, strict=True):
                text = self._policy.renderer.text(completion.token_ids)
                replies[prompt] = Answered(split(text).content.strip(), completion.finish in CUT)
        return [prompt if isinstance(prompt, Failed) else replies[prompt] for prompt in prompts]

    def _prompt(self, conversation: Sequence[Message]) -> TokenIds | Failed:
        """The tokens of a question, or why it cannot be asked."""
        renderer = self._policy.renderer
        try:
            return self._engine.accepted([renderer.prompt(conversation)], self._params)[0]
        except LongthoughtError as error:
            return Failed(Outcome.CRASHED, f"{self.name}: {error}")

    @cached_property
    def _policy(self) -> Policy:
        return Checkpoint(self.path, self.template).load()

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self._policy, self.engine)

    @cached_property
    def _params(self) -> SamplingParams:
        return self._engine.ended(SamplingParams(1, self.max_tokens, self.temperature, self.seed))
