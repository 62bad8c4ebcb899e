"""Logit distillation: a student learns what its teacher thinks of every next token, on examples and on its own replies.

Student in, student out; the teacher is only asked. (Learning a teacher's replies as text is ``stages.sft``.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar

from longthought.algorithms.distillation import Distill
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import SettingsError
from longthought.core.protocols import Task, Weighting
from longthought.core.types import Batch, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.models import lora
from longthought.models.lora import LoRA
from longthought.models.teacher_head import Divergence, Kind
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.stages.distillation_rows import (
    Prompts,
    Replies,
    Step,
    batch_of,
    check_vocabularies,
    planned,
    same_prompt,
    sampled,
)
from longthought.stages.epochs import Epochs, Plan, Rounds, check_counts
from longthought.stages.guard import GuardedLearner
from longthought.stages.held_out import HeldOut
from longthought.stages.left_out import tell
from longthought.stages.sft_rows import Long, Rendered, Rendering, Unfit, check_choices, in_steps
from longthought.tasks.examples import Examples
from longthought.training.batching import documents
from longthought.training.optimizer import AdamW
from longthought.training.packing import shards
from longthought.training.tally import Tally
from longthought.training.teaching import BesideTeacher, Measuring, Teacher
from longthought.training.team import Handler, Team

_WATCHED = Distill(alpha=1.0, temperature=1.0)  # what is measured on what is held out, whatever is learned

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True, kw_only=True)
class Distillation(Epochs):
    """``epochs`` times over the examples, or ``steps`` steps: α T² D(teacher, student) + (1 − α) CE on every token of
    the replies (``algorithms.distillation.Distill``). The student's chat format is what both read.

    teacher: of any width, depth and architecture, with the student's vocabulary.
    alpha, temperature, divergence, beta: α, T, and D: ``forward``, ``reverse`` or ``jsd`` with β
    (``models.teacher_head``).
    on_policy: share of every step's rows whose replies the student samples itself, at temperature 1 and at most
    ``max_tokens`` long; CE is left out there. Their prompts are those of the examples that they stand for, or, if
    given, the problems of ``task``. With 1 and a task no examples are needed.
    steps: instead of epochs.  examples_per_step: rows of one optimizer step.
    weighting, long, unfit, adapter: as in ``SFT``.
    held_out: when the student is measured on examples held out, and on how many; also before and after. Without
    examples, on replies of the teacher to problems of the task's split ``dev``.
    learner: its ``precision`` is the teacher's, too.
    The other settings are those of ``Epochs``; the context may not exceed the teacher's either.
    """

    called: ClassVar[str] = "distillation"

    teacher: Checkpoint | Path = field(kw_only=False)
    examples: Examples | None = field(default=None, kw_only=False)
    task: Task | None = None
    alpha: float = 0.5
    temperature: float = 2.0
    divergence: Kind = "forward"
    beta: float | None = None
    on_policy: float = 0.0
    max_tokens: int = 256
    steps: int | None = None
    examples_per_step: int = 32
    weighting: Weighting = token_mean
    long: Long = "refuse"
    unfit: Unfit = "refuse"
    held_out: HeldOut = HeldOut(every=50, documents=256)
    adapter: LoRA | None = None
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Checkpoint):  # which a run knows again by its files
            object.__setattr__(self, "teacher", Checkpoint(Path(self.teacher)))
        super().__post_init__()
        check_counts("distillation", self, ("max_tokens", "steps", "examples_per_step"))
        check_choices("distillation", self.long, self.unfit)
        self._check_sources()
        self._check_equation()

    def _check_sources(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise SettingsError(f"distillation: on_policy={self.on_policy:g}: a share of the rows, from 0 to 1")
        if self.task is not None and not self.on_policy:
            raise SettingsError(
                "distillation: task changes nothing while on_policy is 0; set on_policy, or leave it out"
            )
        if self.examples is None:
            if self.task is None or self.on_policy < 1:
                raise SettingsError(
                    "distillation: without examples every reply is the student's own: give a task and on_policy=1"
                )
            if self.steps is None:
                raise SettingsError("distillation: without examples there are no epochs: say how many steps")

    def _check_equation(self) -> None:
        try:
            _ = self.objective, self.compares
        except SettingsError as error:
            raise SettingsError(f"distillation: {error}") from None

    @property
    def objective(self) -> Distill:
        """What a step minimises."""
        return Distill(self.alpha, self.temperature)

    @property
    def compares(self) -> Divergence:
        """How student and teacher are compared."""
        return Divergence(self.divergence, self.temperature, self.beta)

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        policy = given.load()
        work = _Teaching(self, policy)
        work.run(place)
        assert isinstance(self.teacher, Checkpoint)
        sources = {"from": given.fingerprints(), "teacher": self.teacher.fingerprints()}
        provenance = {"stage": "distillation", "seed": self.seed, **sources, **work.account()}
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    def plan(self, rows: Rendered | None) -> list[Step]:
        """What every step learns from."""
        size = self.examples_per_step
        if rows is None:
            assert self.steps is not None
            every: list[list[int]] = [list(range(size))] * self.steps
        else:
            one = -(-len(rows) // size)
            epochs = self.epochs if self.steps is None else -(-self.steps // one)
            every = list(chain.from_iterable(in_steps(rows.lengths, epochs, self.seed, size, None)))[: self.steps]
        return planned(every, self.on_policy, from_task=self.task is not None)


class _Teaching(Rounds[Distillation]):
    """One run, with everything that changes in it."""

    learned_from: ClassVar[str] = "examples, or the replies of the teacher,"

    def __init__(self, stage: Distillation, policy: Policy) -> None:
        assert isinstance(stage.teacher, Checkpoint)
        told = stage.teacher.load()
        check_vocabularies(policy, told)
        self.stage, self.policy, self.context = stage, policy, stage.room(policy, told)
        self.rows, held_out = self._rendered()
        self.prompts = Prompts(self.rows, stage.task, policy.renderer, self.context)
        self._compare_formats(told)
        self.held_out = self._watched(held_out, told)
        self.steps = stage.plan(self.rows)
        if stage.adapter is not None:
            lora.add(policy.model, stage.adapter, stage.seed)
        settings, model, count = stage.learner, policy.model, len(self.steps)
        head = BesideTeacher(model, Teacher(told.model, settings.precision), stage.compares, settings.head_chunk)
        learner = GuardedLearner(model, stage.optimizer(count), count, settings=settings, head=head)
        still = replace(settings, balancing=None)
        self.measuring = Measuring(model, AdamW(), 1, settings=still, head=replace(head, divergence=Divergence()))
        super().__init__(stage, learner, stage.objective, self._plan(), counted=("tokens", "trained", "own"))
        self.engine = ShardedEngine(Engine(policy, stage.engine))

    @property
    def handlers(self) -> dict[str, Handler]:
        return {**self.engine.handlers, "held_out": self._tally}

    def join(self, team: Team) -> None:
        super().join(team)
        self.engine.join(team)

    def account(self) -> dict[str, Any]:
        """What was learned from, and what became of it."""
        examples = self.stage.examples
        return {
            "examples": None if examples is None else examples.conversations.fingerprint,
            "replies": 0 if self.rows is None else len(self.rows),
            "left out": {} if self.rows is None else self.rows.skipped,
            "cut": 0 if self.rows is None else self.rows.cut,
            "steps": len(self.steps),
            "steps left out": self.guard.skipped,
            "tokens": self.counts["tokens"],
            "trained tokens": self.counts["trained"],
            "tokens of the student's own": self.counts["own"],
            "held-out kl": self.measured,
        }

    def _plan(self) -> Plan:
        seen = accumulate(len(step.taught) + len(step.asked) for step in self.steps)
        every = 0 if self.held_out is None else self.stage.held_out.every
        rows = "" if self.rows is None else self.rows.fingerprint
        held = b"" if self.held_out is None else self.held_out.tokens.numpy().tobytes()
        mark = f"{rows} {sha256(held).hexdigest()}"
        return Plan(list(seen), 0 if self.rows is None else len(self.rows), every, mark)

    def _rendered(self) -> tuple[Rendered | None, Rendered | None]:
        """The examples as tokens, those to learn and those held out."""
        stage = self.stage
        if stage.examples is None:
            return None, None
        rendering = Rendering(
            stage.examples, self.policy.renderer, self.context, stage.long, stage.unfit, "Distillation"
        )
        with Team(stage.workers, {"render": rendering.some}) as team:
            rows = Rendered.of(rendering, "train", team, "render")
            held_out = Rendered.of(rendering, "held_out", team, "render", stage.held_out.documents)
        tell("distillation", rows.skipped, f"{len(rows):,} are learned", rows.cut)
        return rows, held_out

    def _compare_formats(self, told: Policy) -> None:
        """Warn of a teacher that is used to other prompts."""
        examples, task = self.stage.examples, self.stage.task
        if examples is not None:
            messages: Sequence[Any] = examples.messages("train", 0)[:-1]
        else:
            assert task is not None
            messages = task.problem("train", 0).messages
        if not same_prompt(self.policy, told, messages):
            _warn(
                "distillation: the teacher's own chat format would write the first prompt otherwise than the student's "
                "does. It is asked in the student's, which it may not have been trained on"
            )

    def _watched(self, held_out: Rendered | None, told: Policy) -> Batch | None:
        """What the student is measured on; None if nothing is held out."""
        stage = self.stage
        if held_out is not None:
            return held_out.batch(range(len(held_out)), token_mean) if len(held_out) else None
        prompts = self.prompts.some(range(stage.held_out.documents), "dev")
        made = sampled(Engine(told, stage.engine), prompts, self._sampling(0, told), self.context)
        return documents(made.rows, made.masks)

    def _sampling(self, step: int, policy: Policy) -> SamplingParams:
        seed, renderer = self.stage.seed * 1_000_003 + step, policy.renderer
        return SamplingParams(
            max_tokens=self.stage.max_tokens, seed=seed, stop_tokens=renderer.stop_tokens, stop=renderer.stop
        )

    def batch(self, step: int) -> Batch:
        taught, asked = self.steps[step - 1]
        own = Replies([], [])
        if asked:
            self.engine.version = self.learner.version
            own = sampled(self.engine, self.prompts.some(asked), self._sampling(step, self.policy), self.context)
        return batch_of(self.rows, taught, own, self.stage.weighting)

    def noted(self, step: int, batch: Batch, metrics: dict[str, Any]) -> dict[str, Any]:
        taught, asked = self.steps[step - 1]
        if metrics:
            metrics |= _cross_entropy(batch, metrics.pop("ce"))
        if asked:
            own = int(batch.mask[len(taught) :].sum())
            self.counts["own"] += own
            metrics["reply_tokens"] = own / len(asked)
        return metrics

    def measure(self, team: Team, step: int) -> dict[str, float]:
        """On what is held out: KL(teacher‖student) and cross-entropy at temperature 1, in nats per token, and the share
        of tokens where both prefer the same one."""
        assert self.held_out is not None
        parts = shards(self.held_out.lengths, team.size)
        tallies: list[Tally] = team.call("held_out", [(self.held_out.select(part),) for part in parts])
        means = sum(tallies, Tally()).means()
        kl = means["kl"]
        self.measured.append([step, kl if math.isfinite(kl) else None])
        return {f"held_out_{name}": means[name] for name in ("kl", "ce", "agreement")}

    def _tally(self, member: int, batch: Batch) -> Tally:
        del member
        return self.measuring.tally(batch, _WATCHED)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        held = {"held out": self.measured[-1][1]} if self.measured else {}
        return {"kl (nats/token)": metrics.get("kl"), "agreement": metrics.get("agreement"), **held}


def _cross_entropy(batch: Batch, total: float) -> dict[str, float]:
    """``ce``, the mean over the tokens of examples, from the share of the step's mean; nothing where there is none."""
    assert batch.imitation is not None
    share = float(batch.imitation.sum() / batch.weight.sum())
    return {"ce": total / share} if share else {}
