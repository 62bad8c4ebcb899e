"""Replies of a checkpoint, sampled in rounds: what the stages share that keep, rate, compare or label them."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from longthought.core.errors import SettingsError
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import Group, Problem, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.rollout.collect import collect
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.stages.epochs import check_counts
from longthought.training.team import Team


class Player(NamedTuple):
    """A model that can be asked, and the chat format that it speaks."""

    sampler: Sampler
    renderer: Renderer


class InRounds:
    """What a stage has that works in rounds, and goes on after the last whole one when it was killed.

    Each stage declares these fields itself, behind its own: runs have them written down in that order.
    """

    called: ClassVar[str]  # in what is told to people

    seed: int
    prompts_per_round: int
    engine: EngineSettings
    workers: int

    def _in_rounds(self, problems: Sequence[Problem]) -> list[Sequence[Problem]]:
        """The problems of every round."""
        size = self.prompts_per_round
        return [problems[start : start + size] for start in range(0, len(problems), size)]

    @contextmanager
    def _opened(self, given: Checkpoint, *longest: tuple[str, int]) -> Iterator[Player]:
        """The model of a checkpoint, ready to be asked by all workers.

        longest: who asks, for the error, and the ``max_tokens`` of a reply.

        Raises SettingsError where such a reply does not fit into the context.
        """
        policy = given.load()
        context = policy.model.config.max_position_embeddings
        for name, tokens in longest:
            if tokens >= context:
                raise SettingsError(
                    f"{name}: max_tokens={tokens} does not fit into the model's context of {context} tokens, where the "
                    "prompt needs room, too"
                )
        sampler = ShardedEngine(Engine(policy, self.engine))
        with Team(self.workers, sampler.handlers) as team:
            sampler.join(team)
            yield Player(sampler, policy.renderer)


@dataclass(frozen=True, kw_only=True)
class Sampled(InRounds, ABC):
    """``samples`` replies to each of ``prompts`` problems of a task.

    top_p, top_k: of the sampling; nothing here needs log-probs of the model itself.
    prompts_per_round: after each round, a killed run can go on; what is made does not depend on it.
    """

    afterwards: ClassVar[str] = "sampling"  # what the time is called that keeping the replies takes

    task: Task = field(kw_only=False)
    prompts: int = 256
    samples: int
    max_tokens: int = 192
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_counts(self.called, self, ("prompts", "samples", "max_tokens", "prompts_per_round", "workers"))
        if not 0 <= self.temperature < math.inf or (self.temperature == 0 and self.samples > 1):
            raise SettingsError(
                f"{self.called}: temperature={self.temperature}, samples={self.samples}: at 0 all replies to a prompt "
                "are equal; set samples=1 or a positive temperature"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SettingsError(f"{self.called}: top_p={self.top_p} in (0, 1], top_k={self.top_k} at least 0")

    def sample(self, sampler: Sampler, renderer: Renderer, place: Place) -> list[Problem]:
        """Sample, grade and keep, round by round; goes on after the last whole round. Returns what was asked."""
        problems = self._problems()
        rounds = self._in_rounds(problems)
        state = place.load_state()
        start, values = (0, {}) if state is None else (state.step, state.values)
        done = sum(map(len, rounds[:start]))
        params = SamplingParams(
            self.samples, self.max_tokens, self.temperature, self.seed, top_p=self.top_p, top_k=self.top_k
        )
        with progress(self.called, len(problems), start=done, quiet=self.quiet) as bar:
            for step, chosen in enumerate(rounds[start:], start + 1):
                began = time.perf_counter()
                groups = collect(self.task, chosen, sampler, renderer, params)
                sampled = time.perf_counter()
                told = self._keep(step, groups, place, values)
                spent = {"sampling": sampled - began}
                spent[self.afterwards] = spent.get(self.afterwards, 0.0) + time.perf_counter() - sampled
                place.time(step, spent)
                place.save_state(step, {}, values)
                done += len(chosen)
                bar.update(done, told)
        return problems

    def _sampled(self, given: Checkpoint, place: Place) -> list[Problem]:
        """As ``sample``, by the model of a checkpoint."""
        with self._opened(given, (self.called, self.max_tokens)) as player:
            return self.sample(*player, place)

    @abstractmethod
    def _problems(self) -> list[Problem]:
        """What is asked."""

    @abstractmethod
    def _keep(self, step: int, groups: list[Group], place: Place, values: dict[str, Any]) -> Mapping[str, float]:
        """Keep the replies of a round in the trace store, and log it; what the progress bar tells.

        values: of the state, as after the round before, to be brought up to date.
        """
