"""A sampler whose prompts are dealt over the members of a team."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from longthought.core.errors import SettingsError
from longthought.core.types import Completion, SamplingParams, TokenIds
from longthought.engine.engine import Engine


class Crew(Protocol):
    """Members that run a named handler, each on its part."""

    @property
    def size(self) -> int: ...

    def call(self, name: str, parts: Sequence[tuple[Any, ...]]) -> list[Any]: ...


class ShardedEngine:
    """An ``Engine`` in every member. Completions do not depend on the number of members: a sample's randomness is a
    function of its prompt and number, and equal prompts stay together."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.version = 0
        self._crew: Crew | None = None

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"engine.sample": self._sample}

    def join(self, crew: Crew) -> None:
        """The team that was built with ``handlers``."""
        self._crew = crew

    def sample(self, prompts: Sequence[TokenIds | str], params: SamplingParams) -> list[list[Completion]]:
        """As ``Engine.sample``. Raises SettingsError, too, for processors that cannot go to another process."""
        assert self._crew is not None, "join a team first"
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
        for part, groups in zip(parts, self._crew.call("engine.sample", calls)):
            for index, group in zip(part, groups):
                results[index] = group
        return results

    def _sample(
        self, member: int, version: int, prompts: list[TokenIds], params: SamplingParams
    ) -> list[list[Completion]]:
        del member
        self.engine.version = version
        return self.engine.sample(prompts, params)


def _check_they_travel(params: SamplingParams) -> None:
    try:
        pickle.dumps(params.processors, protocol=5)
    except Exception as error:  # pickle raises whatever an object raises
        raise SettingsError(
            f"processors cannot be sent to other processes ({error}): define them at the top level of a module, "
            "or use workers=1"
        ) from error
