"""A reward model as a summand of the reward in reinforcement learning, and as a scorer of replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.types import Message, Problem, Rollout, TokenIds
from longthought.models.reward import rewards
from longthought.runs.reward_folder import SCALE, Judge, Reads, RewardFolder, read_tokens
from longthought.text.reasoning import split

_REMEMBERED = 1 << 16  # texts whose rewards are kept


@dataclass(frozen=True)
class PreferenceReward:
    """weight · (r − mean) / std of every reply, by the reward model in the folder ``path`` and its held-out scale.

    reads: what of a reply is read; None: what the model was trained on. DeepSeek-R1 (arXiv:2501.12948v2) reads the
    summary for helpfulness, and reasoning and summary for harmlessness.
    clip: standardised rewards beyond ± so much count as that; None: none do.
    unreadable: standardised reward of a reply that cannot be read: it has no summary, is too long for the model, or its
    chat format has no place for it.
    pass_tokens: None: every text has a pass of its own, so that its reward depends on nothing else, and a run that was
    killed goes on with the same bits. A number: so many tokens of different texts in a pass, which is faster where
    texts are short; their last bits then depend on what is scored together.
    only: names of the tasks whose prompts are scored, such as the parts of a ``Mixture``: the part of a problem's id
    before the first /. Replies to other prompts get 0, and are not read; empty: all are scored. Nothing here knows
    which tasks there are, so a name that no prompt bears scores nothing, silently.

    A text is scored once, and then remembered. A reply that was cut is read as if it had ended there.
    """

    path: Path
    weight: float = 1.0
    name: str = "preference"
    reads: Reads | None = None
    clip: float | None = None
    unreadable: float = -3.0
    pass_tokens: int | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight):
            raise SettingsError(f"{self.name}: weight={self.weight} must be finite, and not 0")
        if not math.isfinite(self.unreadable):
            raise SettingsError(f"{self.name}: unreadable={self.unreadable} must be finite")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise SettingsError(f"{self.name}: clip={self.clip} must be positive and finite")
        if self.pass_tokens is not None and self.pass_tokens < 1:
            raise SettingsError(f"{self.name}: pass_tokens={self.pass_tokens} must be at least 1")
        if self.reads not in (None, "summary", "reply"):
            raise SettingsError(f"{self.name}: reads={self.reads!r}; choose summary or reply")
        if isinstance(self.only, str) or any(not name or "/" in name for name in self.only):
            raise SettingsError(f"{self.name}: only={self.only!r} must be a tuple of names of tasks, such as ('chat',)")
        if not (self.path / SCALE).is_file():
            raise CheckpointError(f"{self.path} has no {SCALE}: give the folder of a reward model that we trained")

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        chosen = [number for number, rollout in enumerate(group) if self._is_scored(rollout.problem)]
        asked = [(group[number].problem.messages, group[number].text) for number in chosen]
        values = dict(zip(chosen, self.standardized(asked), strict=True)) if asked else {}
        return [self.weight * values[number] if number in values else 0.0 for number in range(len(group))]

    def _is_scored(self, problem: Problem) -> bool:
        return not self.only or problem.id.partition("/")[0] in self.only

    def standardized(self, asked: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """(r − mean) / std of replies, each a prompt and the raw text of the model. Raises CheckpointError."""
        texts = [self._read(prompt, text) for prompt, text in asked]
        self._score(list(dict.fromkeys(text for text in texts if text is not None and text not in self._known)))
        scale, bound = self.judge.scale, math.inf if self.clip is None else self.clip
        values = [self.unreadable if text is None else scale.standardized([self._known[text]])[0] for text in texts]
        found = [max(-bound, min(bound, value)) for value in values]
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        return found

    @cached_property
    def judge(self) -> Judge:
        """The reward model, loaded when it is first asked for. Raises CheckpointError."""
        return RewardFolder(self.path).load()

    @cached_property
    def _known(self) -> dict[TokenIds, float]:
        return {}

    def _read(self, prompt: Sequence[Message], text: str) -> TokenIds | None:
        """What the model reads of a reply; None where it cannot."""
        reasoning, content = split(text)
        reply = Message("assistant", content.strip(), reasoning.strip())
        try:
            ids = read_tokens(self.judge.renderer, prompt, reply, self.reads or self.judge.scale.reads)
        except DataError:
            return None
        return ids if len(ids) <= self.judge.model.config.max_position_embeddings else None

    def _score(self, texts: Sequence[TokenIds]) -> None:
        """Remember the rewards of texts. A pass of one token holds one text."""
        if texts:
            found: list[float] = rewards(self.judge.model, texts, self.pass_tokens or 1).tolist()
            self._known.update(zip(texts, found, strict=True))
