"""What all stages have in common that go several times over given data: their settings, and the loop of their steps."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from longthought.core.errors import RunMismatch, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch
from longthought.runs.artifacts import Policy
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.runs.state import JSON, State
from longthought.stages.guard import Guard, GuardedLearner, Spikes
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Leg, Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Handler, Team

S = TypeVar("S", bound="Epochs")


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """``epochs`` times over given data, each time in another order.

    lr: rises over the first ``warmup`` share of the steps, and falls to ``final`` × along a cosine.
    context: the longest row, in tokens; None: the model's context.
    spikes: what is unusual in a step, and how many steps in a row may be left out before the stage ends.
    save_every: steps between two states from which a killed run goes on.
    """

    called: ClassVar[str]  # in what is told to people

    epochs: int = 2
    lr: float = 5e-5
    warmup: float = 0.03
    final: float = 0.1
    weight_decay: float = 0.0
    context: int | None = None
    learner: LearnerSettings = LearnerSettings(micro_tokens=4096)
    spikes: Spikes = Spikes()
    seed: int = 0
    save_every: int = 50
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_counts(self.called, self, ("epochs", "save_every", "workers"))
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"{self.called}: lr={self.lr:g} must be positive")
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise SettingsError(
                f"{self.called}: warmup={self.warmup:g}, final={self.final:g}: from 0 to 1, and warmup below 1"
            )
        try:
            self.optimizer(1)
        except SettingsError as error:
            raise SettingsError(f"{self.called}: {error}") from None

    def optimizer(self, steps: int) -> AdamW:
        """What makes so many steps."""
        schedule = Schedule(math.ceil(self.warmup * steps), legs=(Leg("cosine", 1.0, self.final),))
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, schedule=schedule)

    def room(self, *policies: Policy) -> int:
        """Tokens of the longest row. Raises SettingsError where a model that reads it has no room for so many."""
        most = min(policy.model.config.max_position_embeddings for policy in policies)
        context = most if self.context is None else self.context
        if not 2 <= context <= most:
            whose = "of the model's own" if len(policies) == 1 else "that both models read"
            raise SettingsError(f"{self.called}: context={context:,}: from 2 to the {most:,} tokens {whose}")
        return context


def check_counts(owner: str, settings: object, names: Sequence[str]) -> None:
    """Raises SettingsError for a number below 1; None is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise SettingsError(f"{owner}: {name}={value} must be at least 1")


class Plan(NamedTuple):
    """The steps of a run. seen: rows, after every step.  size: rows of an epoch, 0 where there is no such thing.
    every: steps between two measurements; 0: nothing is held out.  mark: SHA-256 of all tokens."""

    seen: Sequence[int]
    size: int
    every: int
    mark: str


class Rounds(ABC, Generic[S]):
    """One run of the steps of a stage, with everything that changes in it.

    counts: tokens of the steps that were made; ``trained``, if it is counted: of them, those that are learned.
    measured: every measurement of what is held out.
    """

    learned_from: ClassVar[str] = "examples"  # in what is told to people

    def __init__(
        self, stage: S, learner: GuardedLearner, objective: Objective, plan: Plan, counted: Sequence[str] = ("tokens",)
    ) -> None:
        self.stage, self.learner, self.objective, self.plan = stage, learner, objective, plan
        self.guard = learner.guard = Guard(stage.spikes, stage.called)
        self.sharded = ShardedLearner(learner, stage.workers)
        self.counts = dict.fromkeys(counted, 0)
        self.measured: list[Any] = []

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """What step ``step`` (counted from 1) learns from."""

    @abstractmethod
    def measure(self, team: Team, step: int) -> dict[str, float]:
        """What the log says of what is held out; also added to ``measured``."""

    @abstractmethod
    def headline(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """What the progress bar says."""

    @property
    def handlers(self) -> dict[str, Handler]:
        """For the team, beside those of the learner."""
        return {}

    def join(self, team: Team) -> None:
        """The team that was built with ``handlers``."""
        self.sharded.join(team)

    def noted(self, step: int, batch: Batch, metrics: dict[str, Any]) -> dict[str, Any]:
        """What the log says of a step, whose metrics are empty if it was left out."""
        del step, batch
        return metrics

    def run(self, place: Place) -> None:
        """All steps, or those that are left."""
        stage, last, every = self.stage, len(self.plan.seen), self.plan.every
        start = self._restored(place)
        with (
            Team(stage.workers, {**self.sharded.handlers, **self.handlers}) as team,
            progress(stage.called, last, start=start, quiet=stage.quiet) as bar,
        ):
            self.join(team)
            began = time.perf_counter()
            if every and not start:
                place.log(0, self.measure(team, 0))
            for step in range(start + 1, last + 1):
                metrics = self._step(step)
                if every and (step % every == 0 or step == last):
                    metrics |= self.measure(team, step)
                place.log(step, metrics)
                if step % stage.save_every == 0 or step == last:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    known: dict[str, JSON] = {"mark": self.plan.mark, "measured": self.measured, **self.counts}
                    save(place, step, self.learner, known)
                bar.update(step, self.headline(metrics))

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; counts alone if it was left out."""
        batch = self.batch(step)
        metrics = self.guard.step(step, self.sharded, batch, self.objective)
        if metrics:
            made = {"tokens": int(batch.lengths.sum()), "trained": int(batch.mask.sum())}
            self.counts |= {name: self.counts[name] + count for name, count in made.items() if name in self.counts}
        noted = self.noted(step, batch, metrics)
        epoch = {"epoch": self.plan.seen[step - 1] / self.plan.size} if self.plan.size else {}
        return {**noted, **epoch, **self.counts, **self.guard.counts}

    def _restored(self, place: Place) -> int:
        """Steps that were done before."""
        changed = (
            f"the {self.learned_from} are not the tokens any more that this run began with: the chat template writes "
            "the date of today, or another version of the package tokenizers reads them; start a new run"
        )
        state = restored(place, self.learner, self.plan.mark, changed)
        if state is None:
            return 0
        self.counts = {name: state.values[name] for name in self.counts}
        self.measured = state.values["measured"]
        return state.step


def save(place: Place, step: int, learner: GuardedLearner, known: Mapping[str, JSON]) -> None:
    """Keep what a killed run goes on from. known: whatever else it must know; its ``mark`` is asked by ``restored``."""
    assert learner.guard is not None
    tensors, values = learner.state()
    place.save_state(step, tensors, {"learner": values, "guard": learner.guard.state(), **known})


def restored(place: Place, learner: GuardedLearner, mark: str, changed: str) -> State | None:
    """What ``save`` kept last, with the learner as it was then; None if there is nothing.

    Raises RunMismatch, saying ``changed``, where that was of another mark.
    """
    state = place.load_state()
    if state is None:
        return None
    if state.values["mark"] != mark:
        raise RunMismatch(changed)
    assert learner.guard is not None
    learner.restore(state.tensors, state.values["learner"])
    learner.guard.restore(state.values["guard"])
    return state
