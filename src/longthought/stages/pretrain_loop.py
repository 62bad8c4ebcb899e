"""The loop of pretraining: what every stage does that reads a corpus, from scratch or on from a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from longthought.algorithms.multi_token import MultiToken
from longthought.algorithms.objective import NLL
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import TokenIds
from longthought.models.config import ModelConfig
from longthought.models.precision import Precision
from longthought.models.transformer import Transformer
from longthought.runs.place import Place
from longthought.runs.progress import Progress, progress
from longthought.runs.state import JSON
from longthought.stages.epochs import check_counts, restored, save
from longthought.stages.guard import Guard, GuardedLearner, Spikes
from longthought.stages.held_out import HeldOut
from longthought.stages.pretrain_held_out import Measure
from longthought.stages.pretrain_reading import Packing, Pages, Read, by_length, in_order
from longthought.training.balancing import Balancing
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, LogprobHead
from longthought.training.optimizer import OptimizerSettings
from longthought.training.schedule import Ramp, Switch
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

_EVERY = 10  # steps between two lines of metrics
_MICRO = 16_384  # tokens of one forward pass, unless a window is longer
_WORN = 4  # epochs after which reading on is worth little: Muennighoff et al., arXiv:2305.16264

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Experts:
    """How the load of routed experts is kept even in the course of pretraining.

    rate: γ of the bias.  alpha, importance: see ``Balancing``.
    """

    rate: Switch
    alpha: float = 1e-4
    importance: float = 0.0

    def __post_init__(self) -> None:
        for rate in (self.rate.first, self.rate.then):
            Balancing(rate, self.alpha, self.importance)

    def at(self, step: int, steps: int) -> Balancing:
        """What balances step ``step`` of ``steps`` (counted from 0)."""
        return Balancing(self.rate.value(step, steps), self.alpha, self.importance)


class Usual(NamedTuple):
    """What DeepSeek-V3 does (section 4.2): λ of the modules that predict further, and γ of the experts' bias."""

    mtp_weight: Switch
    rate: Switch


AT_FIRST = Usual(Switch(0.3, 0.1, 10 / 14.8), Switch(1e-3, 0.0, 14.3 / 14.8))
"""In the pretraining on 14.8 T tokens."""

AFTERWARDS = Usual(Switch(0.1, 0.1, 0.5), Switch(0.0, 0.0, 0.5))
"""When that is over: both as they were in the end."""


class Course(Protocol):
    """The settings that every stage of pretraining has; see ``Pretrain``."""

    @property
    def context(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens_per_step(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def packing(self) -> Packing: ...
    @property
    def ramp(self) -> Ramp | None: ...
    @property
    def held_out(self) -> HeldOut | None: ...
    @property
    def spikes(self) -> Spikes: ...
    @property
    def mtp_weight(self) -> Switch | None: ...
    @property
    def balancing(self) -> Experts | None: ...
    @property
    def usual(self) -> Usual: ...
    @property
    def quiet(self) -> bool: ...


def check_course(course: Course) -> None:
    """Raises SettingsError, by name, for numbers out of range and for settings that change nothing."""
    check_counts("pretraining", course, ("steps", "tokens_per_step", "save_every"))
    if course.context < 2:
        raise SettingsError(f"pretraining: context={course.context} must be at least 2: a token is predicted from one")
    if course.packing not in ("by_length", "in_order"):
        raise SettingsError(f"pretraining: packing={course.packing!r}; choose by_length or in_order")
    if course.packing == "by_length":
        if course.ramp is not None:
            raise SettingsError("pretraining: a ramp of the tokens of a step needs packing=in_order")
        return
    least = course.tokens_per_step if course.ramp is None else min(course.ramp.first, course.tokens_per_step)
    if least < course.context:
        raise SettingsError(
            f"pretraining: a step of {least:,} tokens has no room for a window of context={course.context:,}; "
            "raise tokens_per_step (or the first of the ramp), or lower the context"
        )
    if course.ramp is not None and course.ramp.first >= course.tokens_per_step:
        raise SettingsError(
            f"pretraining: the ramp begins with {course.ramp.first:,} tokens and ends with {course.tokens_per_step:,}; "
            "it must grow"
        )


def check_model(course: Course, config: ModelConfig) -> None:
    """Raises SettingsError where a setting is for parts that the model does not have."""
    if course.mtp_weight is not None and not config.num_nextn_predict_layers:
        raise SettingsError("pretraining: mtp_weight changes nothing: the model has no modules that predict further")
    if course.balancing is not None and config.experts is None:
        raise SettingsError("pretraining: balancing changes nothing: the model has no routed experts")


def experts_of(course: Course, config: ModelConfig) -> Experts | None:
    """How experts are balanced: as asked; or as usual where a bias corrects the choice; or by their importance."""
    if config.experts is None:
        return None
    if course.balancing is not None or config.experts.corrects:
        return course.balancing or Experts(course.usual.rate)
    return Experts(Switch(0.0, 0.0, 0.5), 0.0, importance=0.01)


def learner_of(course: Course, model: Transformer) -> GuardedLearner:
    """What trains the model, with all that its parts need."""
    experts = experts_of(course, model.config)
    micro = max(2048, min(course.tokens_per_step, _MICRO), course.context)
    settings = LearnerSettings(
        micro, precision=course.precision, balancing=None if experts is None else experts.at(0, course.steps)
    )
    ahead = LogprobHead(1.0, settings.head_chunk, ahead=True) if model.config.num_nextn_predict_layers else None
    return GuardedLearner(model, course.optimizer, course.steps, settings=settings, head=ahead)


def objective_at(course: Course, config: ModelConfig, step: int) -> Objective:
    """What step ``step`` (counted from 0) minimises."""
    if not config.num_nextn_predict_layers:
        return NLL()
    weight = (course.mtp_weight or course.usual.mtp_weight).value(step, course.steps)
    return MultiToken(NLL(), weight) if weight else NLL()


@dataclass(frozen=True)
class Phase:
    """Steps that read one corpus. name: of the team's handler that makes its tokens."""

    name: str
    pages: Pages
    steps: range


def reading(course: Course, team: Team, phases: Sequence[Phase], start: int, cursor: JSON = None) -> Iterator[Read]:
    """What the steps from ``start`` on read. cursor: where the step before ``start`` stopped."""
    for number, phase in enumerate(phases):
        first, corpus = max(start, phase.steps.start), phase.pages.corpus
        if first >= phase.steps.stop:
            continue
        if course.packing == "by_length":
            seed = f"{course.seed}/{number}" if number else course.seed
            own = range(first - phase.steps.start, len(phase.steps))
            yield from by_length(team, phase.name, corpus, course.tokens_per_step, seed, own)
        else:
            inside = cursor if first > phase.steps.start else None
            steps = range(first, phase.steps.stop)
            yield from in_order(team, phase.name, corpus, lambda step: tokens_at(course, step), steps, inside)


def tokens_at(course: Course, step: int) -> int:
    """Tokens of step ``step`` (counted from 0), at most."""
    full = course.tokens_per_step
    return full if course.ramp is None else course.ramp.tokens(step, course.steps, full)


class Pretraining:
    """One run of the loop, with everything that changes in it."""

    def __init__(self, course: Course, model: Transformer, phases: Sequence[Phase], mark: str = "") -> None:
        check_model(course, model.config)
        self.course, self.phases, self._mark = course, phases, mark
        self.guard = Guard(course.spikes)
        self.learner = learner_of(course, model)
        self.learner.guard = self.guard
        self.tokens = 0
        self._config, self._experts = model.config, experts_of(course, model.config)
        self._measure = Measure.of(phases[0].pages, course.held_out) if course.held_out else None
        self._worn = False

    def run(self, place: Place, title: str) -> None:
        """All steps, or those that are left."""
        course, sharded = self.course, ShardedLearner(self.learner, self.course.workers)
        start, cursor = self._restored(place)
        makers = {phase.name: phase.pages.windows for phase in self.phases}
        with (
            Team(course.workers, sharded.handlers | makers) as team,
            progress(title, course.steps, start=start, quiet=course.quiet) as bar,
        ):
            sharded.join(team)
            loss, began = 0.0, time.perf_counter()
            steps = reading(course, team, self.phases, start, cursor)
            for step, read in enumerate(steps, start + 1):
                metrics = self._step(sharded, step, read.windows)
                if metrics:
                    loss = metrics["loss"] if not loss else 0.98 * loss + 0.02 * metrics["loss"]
                self._log(place, sharded, step, read, metrics)
                if step % _EVERY == 0 or step == course.steps:
                    _show(bar, step, loss, self.tokens)
                if step % course.save_every == 0 or step == course.steps:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    known = {"tokens": self.tokens, "cursor": read.cursor, "mark": self._mark}
                    save(place, step, self.learner, known)

    def _step(self, sharded: ShardedLearner, step: int, windows: list[TokenIds]) -> Mapping[str, float]:
        """One optimizer step; no metrics if it was left out."""
        course = self.course
        if self._experts is not None:
            balancing = self._experts.at(step - 1, course.steps)
            self.learner.settings = replace(self.learner.settings, balancing=balancing)
        objective = objective_at(course, self._config, step - 1)
        metrics = self.guard.step(step, sharded, documents(windows), objective)
        if metrics:
            self.tokens += sum(map(len, windows))
        return metrics

    def _log(self, place: Place, sharded: ShardedLearner, step: int, read: Read, metrics: Mapping[str, float]) -> None:
        course = self.course
        last = step == course.steps
        told: dict[str, Any] = {}
        if step % _EVERY == 0 or last:
            told = {**metrics, "tokens": self.tokens, **self.guard.counts}
            told |= {"epochs": read.epochs} if read.epochs else {}
        if self._measure is not None and course.held_out and (step % course.held_out.every == 0 or last):
            told |= self._measure(sharded)
        if told:
            place.log(step, told)
        if read.epochs > _WORN and not self._worn:
            self._worn = True
            _warn(
                f"pretraining, step {step}: the corpus was read {read.epochs:.1f} times; beyond {_WORN} times it "
                "teaches ever less (Muennighoff et al., 2023): take more text, or fewer steps"
            )

    def _restored(self, place: Place) -> tuple[int, JSON]:
        """The step that was reached, and where in the corpus that was."""
        state = restored(
            place,
            self.learner,
            self._mark,
            "the tokenizer that the corpus gives is not the one that this run began with: another version of the "
            "package tokenizers makes it; install the one that run.json names, or start a new run",
        )
        if state is None:
            return 0, None
        self.tokens = state.values["tokens"]
        return state.step, state.values["cursor"]


def _show(bar: Progress, step: int, loss: float, tokens: int) -> None:
    bar.update(step, {"loss (nats/token)": round(loss, 3), "Mtokens": round(tokens / 1e6, 2)})
