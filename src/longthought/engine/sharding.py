"""A sampler whose prompts are dealt over the members of a team."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from longthought.core.errors import SettingsError
from longthought.core.protocols import Finished
from longthought.core.types import Completion, SamplingParams, TokenIds
from longthought.engine.draft import Drafts
from longthought.engine.engine import Engine


class Crew(Protocol):
    """Members that run a named handler, each on its part."""

    @property
    def size(self) -> int: ...

    def call(self, name: str, parts: Sequence[tuple[Any, ...]]) -> list[Any]: ...


class ShardedEngine:
    """An ``Engine`` in every member. Completions do not depend on the number of members: a sample's randomness is a
    function of its prompt and number, and equal prompts stay together.

    The native core needs no members: it works with as many threads, which share the rows out among themselves.
    ``drafts``: as ``Engine.drafts``, of all members.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.version, self.drafts = 0, engine.drafts
        self._crew: Crew | None = None
        self._tell: Finished = _nobody

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"engine.sample": self._sample}

    def join(self, crew: Crew) -> None:
        """The team that was built with ``handlers``."""
        self._crew = crew

    def sample(self, prompts: Sequence[TokenIds | str], params: SamplingParams) -> list[list[Completion]]:
        """As ``Engine.sample``. Raises SettingsError, too, for processors that cannot go to another process."""
        return self.stream(prompts, params, _nobody)

    def stream(
        self,
        prompts: Sequence[TokenIds | str],
        params: SamplingParams,
        finished: Finished,
    ) -> list[list[Completion]]:
        """As ``Engine.stream``: this process's groups as they are complete, those of other members at the end."""
        assert self._crew is not None, "join a team first"
        if self.engine.is_native:
            self.engine.version, self.engine.threads = self.version, max(self._crew.size, self.engine.threads)
            groups, drafts = self._counted(prompts, params, finished)
            self.drafts += drafts
            return groups
        params = self.engine.ended(params)
        prompts = self.engine.accepted(prompts, params)
        if params.processors and self._crew.size > 1:
            _check_they_travel(params)
        number: dict[TokenIds, int] = {}
        dealt: list[list[int]] = [[] for _ in range(self._crew.size)]
        for index, prompt in enumerate(prompts):
            dealt[number.setdefault(prompt, len(number)) % self._crew.size].append(index)
        parts = [part for part in dealt if part]
        calls = [(self.version, [prompts[i] for i in part], params) for part in parts]
        results: list[list[Completion]] = [[] for _ in prompts]
        self._tell = lambda place, group: finished(parts[0][place], group)
        try:
            answers = self._crew.call("engine.sample", calls)
        finally:
            self._tell = _nobody
        for member, (part, (groups, drafts)) in enumerate(zip(parts, answers)):
            self.drafts += drafts
            for index, group in zip(part, groups):
                results[index] = group
                if member:
                    finished(index, group)
        return results

    def _sample(
        self, member: int, version: int, prompts: list[TokenIds], params: SamplingParams
    ) -> tuple[list[list[Completion]], Drafts]:
        self.engine.version = version
        return self._counted(prompts, params, _nobody if member else self._tell)

    def _counted(
        self, prompts: Sequence[TokenIds | str], params: SamplingParams, finished: Finished
    ) -> tuple[list[list[Completion]], Drafts]:
        """What was sampled, and what was drafted for it."""
        before = self.engine.drafts
        groups = self.engine.stream(prompts, params, finished)
        return groups, self.engine.drafts - before


def _nobody(prompt: int, completions: list[Completion]) -> None:
    """Is told, and does nothing."""


def _check_they_travel(params: SamplingParams) -> None:
    try:
        pickle.dumps(params.processors, protocol=5)
    except Exception as error:  # pickle raises whatever an object raises
        raise SettingsError(
            f"processors cannot be sent to other processes ({error}): define them at the top level of a module, "
            "or use workers=1"
        ) from error
