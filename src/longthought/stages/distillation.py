"""Logit distillation: a student learns what its teacher thinks of every next token, on examples and on its own replies.

Student in, student out; the teacher is only asked. (Learning a teacher's replies as text is ``stages.sft``.)
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from longthought.algorithms.distillation import Distill
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import NotFinite, RunMismatch, SettingsError
from longthought.core.protocols import Task, Weighting
from longthought.core.types import Batch, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.models import lora
from longthought.models.lora import LoRA
from longthought.models.teacher_head import Divergence, Kind
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.runs.state import JSON
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
from longthought.stages.pretrain_guard import Guard, GuardedLearner, Spike, Spikes
from longthought.stages.pretrain_held_out import HeldOut
from longthought.stages.sft_rows import Long, Rendered, Rendering, Unfit, in_steps
from longthought.tasks.examples import Examples
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW
from longthought.training.packing import shards
from longthought.training.schedule import Leg, Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.tally import Tally
from longthought.training.teaching import BesideTeacher, Measuring, Teacher
from longthought.training.team import Team

_WATCHED = Distill(alpha=1.0, temperature=1.0)  # what is measured on what is held out, whatever is learned

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Distillation:
    """``epochs`` times over the examples, or ``steps`` steps: α T² D(teacher, student) + (1 − α) CE on every token of
    the replies (``algorithms.distillation.Distill``). The student's chat format is what both read.

    teacher: of any width, depth and architecture, with the student's vocabulary.
    alpha, temperature, divergence, beta: α, T, and D: ``forward``, ``reverse`` or ``jsd`` with β
    (``models.teacher_head``).
    on_policy: share of every step's rows whose replies the student samples itself, at temperature 1 and at most
    ``max_tokens`` long; CE is left out there. Their prompts are those of the examples that they stand for, or, if
    given, the problems of ``task``. With 1 and a task no examples are needed.
    steps: instead of epochs.  examples_per_step: rows of one optimizer step.
    lr, warmup, final, weighting, context, long, unfit, adapter, spikes: as in ``SFT``; the context may not exceed the
    teacher's either.
    held_out: when the student is measured on examples held out, and on how many; also before and after. Without
    examples, on replies of the teacher to problems of the task's split ``dev``.
    learner: its ``precision`` is the teacher's, too.
    """

    teacher: Checkpoint | Path
    examples: Examples | None = None
    task: Task | None = None
    alpha: float = 0.5
    temperature: float = 2.0
    divergence: Kind = "forward"
    beta: float | None = None
    on_policy: float = 0.0
    max_tokens: int = 256
    epochs: int = 2
    steps: int | None = None
    examples_per_step: int = 32
    lr: float = 5e-5
    warmup: float = 0.03
    final: float = 0.1
    weight_decay: float = 0.0
    weighting: Weighting = token_mean
    context: int | None = None
    long: Long = "refuse"
    unfit: Unfit = "refuse"
    held_out: HeldOut = HeldOut(every=50, documents=256)
    adapter: LoRA | None = None
    learner: LearnerSettings = LearnerSettings(micro_tokens=4096)
    engine: EngineSettings = EngineSettings()
    spikes: Spikes = Spikes()
    seed: int = 0
    save_every: int = 50
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Checkpoint):  # which a run knows again by its files
            object.__setattr__(self, "teacher", Checkpoint(Path(self.teacher)))
        for name in ("max_tokens", "epochs", "steps", "examples_per_step", "save_every", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"distillation: {name}={value} must be at least 1")
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"distillation: lr={self.lr:g} must be positive")
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise SettingsError(
                f"distillation: warmup={self.warmup:g}, final={self.final:g}: from 0 to 1, and warmup below 1"
            )
        if self.long not in ("refuse", "skip", "cut") or self.unfit not in ("refuse", "skip"):
            raise SettingsError(
                f"distillation: long={self.long!r}, unfit={self.unfit!r}; choose refuse, skip or cut, and refuse or "
                "skip"
            )
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
            self.objective, self.compares, self.optimizer(1)
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
        provenance = {"stage": "distillation", "seed": self.seed, **sources, **work.told()}
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    def contexts(self, student: Policy, teacher: Policy) -> int:
        """Tokens of the longest row. Raises SettingsError where one of the models has no room for it."""
        most = min(policy.model.config.max_position_embeddings for policy in (student, teacher))
        context = most if self.context is None else self.context
        if not 2 <= context <= most:
            raise SettingsError(
                f"distillation: context={context:,}: from 2 to the {most:,} tokens that both models read"
            )
        return context

    def optimizer(self, steps: int) -> AdamW:
        """What makes so many steps."""
        schedule = Schedule(math.ceil(self.warmup * steps), legs=(Leg("cosine", 1.0, self.final),))
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, schedule=schedule)

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


class _Teaching:
    """One run of the loop, with everything that changes in it."""

    def __init__(self, stage: Distillation, policy: Policy) -> None:
        assert isinstance(stage.teacher, Checkpoint)
        told = stage.teacher.load()
        check_vocabularies(policy, told)
        self.stage, self.policy, self.context = stage, policy, stage.contexts(policy, told)
        self.rows, held_out = self._rendered()
        self.prompts = Prompts(self.rows, stage.task, policy.renderer, self.context)
        self._compare_formats(told)
        self.held_out = self._watched(held_out, told)
        self.steps = stage.plan(self.rows)
        self.seen = list(accumulate(len(step.taught) + len(step.asked) for step in self.steps))
        if stage.adapter is not None:
            lora.add(policy.model, stage.adapter, stage.seed)
        settings, model = stage.learner, policy.model
        teacher = Teacher(told.model, settings.precision)
        head = BesideTeacher(model, teacher, stage.compares, settings.head_chunk)
        count = len(self.steps)
        self.learner = GuardedLearner(model, stage.optimizer(count), count, settings=settings, head=head)
        self.guard = self.learner.guard = Guard(stage.spikes, "distillation")
        still = replace(settings, balancing=None)
        self.measuring = Measuring(model, AdamW(), 1, settings=still, head=replace(head, divergence=Divergence()))
        self.sharded = ShardedLearner(self.learner, stage.workers)
        self.engine = ShardedEngine(Engine(policy, stage.engine))
        self.tokens = self.trained = self.own = 0
        self.measured: list[list[float | None]] = []  # steps done, and the KL to the teacher on what is held out

    def run(self, place: Place) -> None:
        """All steps, or those that are left."""
        stage, last = self.stage, len(self.steps)
        start = self._restored(place)
        handlers = {**self.sharded.handlers, **self.engine.handlers, "held_out": self._tally}
        with Team(stage.workers, handlers) as team, progress("distill", last, start=start, quiet=stage.quiet) as bar:
            self.sharded.join(team)
            self.engine.join(team)
            began = time.perf_counter()
            if not start and self.held_out is not None:
                place.log(0, self._measure(team, 0))
            for step in range(start + 1, last + 1):
                metrics = self._step(step)
                if self.held_out is not None and (step % stage.held_out.every == 0 or step == last):
                    metrics |= self._measure(team, step)
                place.log(step, metrics)
                if step % stage.save_every == 0 or step == last:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    self._save(place, step)
                bar.update(step, self._headline(metrics))

    def told(self) -> dict[str, Any]:
        """What was learned from, and what became of it."""
        examples = self.stage.examples
        return {
            "examples": None if examples is None else examples.conversations.fingerprint,
            "replies": 0 if self.rows is None else len(self.rows),
            "left out": {} if self.rows is None else self.rows.skipped,
            "cut": 0 if self.rows is None else self.rows.cut,
            "steps": len(self.steps),
            "steps left out": self.guard.skipped,
            "tokens": self.tokens,
            "trained tokens": self.trained,
            "tokens of the student's own": self.own,
            "held-out kl": self.measured,
        }

    def _rendered(self) -> tuple[Rendered | None, Rendered | None]:
        """The examples as tokens, those to learn and those held out."""
        stage = self.stage
        if stage.examples is None:
            return None, None
        rendering = Rendering(stage.examples, self.policy.renderer, self.context, stage.long, stage.unfit)
        with Team(stage.workers, {"render": rendering.some}) as team:
            rows = Rendered.of(rendering, "train", team, "render")
            held_out = Rendered.of(rendering, "held_out", team, "render", stage.held_out.documents)
        lost = [f"{count:,} left out: {reason}" for reason, count in rows.skipped.items()]
        lost += [f"{rows.cut:,} cut at the context, so that their end is not learned"] if rows.cut else []
        if lost:
            _warn(f"distillation: of the examples, {'; '.join(lost)}; {len(rows):,} are learned")
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

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; counts alone if it was left out."""
        taught, asked = self.steps[step - 1]
        own = Replies([], [])
        if asked:
            self.engine.version = self.learner.version
            own = sampled(self.engine, self.prompts.some(asked), self._sampling(step, self.policy), self.context)
        batch = batch_of(self.rows, taught, own, self.stage.weighting)
        metrics: dict[str, float] = {}
        try:
            metrics |= self.sharded.step(batch, self.stage.objective).metrics
        except (NotFinite, Spike) as error:
            self.guard.left_out(step, error)
        else:
            self.guard.took(step, metrics["loss"], metrics["grad_norm"])
            self.tokens += int(batch.lengths.sum())
            self.trained += int(batch.mask.sum())
            metrics |= _cross_entropy(batch, metrics.pop("ce"))
        if asked:
            self.own += sum(map(sum, own.masks))
            metrics["reply_tokens"] = sum(map(sum, own.masks)) / len(own.masks)
        epoch = {} if self.rows is None else {"epoch": self.seen[step - 1] / len(self.rows)}
        counts = {"tokens": self.tokens, "trained": self.trained, "own": self.own}
        return {**metrics, **epoch, **counts, **self.guard.counts}

    def _measure(self, team: Team, step: int) -> dict[str, float]:
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

    def _headline(self, metrics: Mapping[str, float]) -> dict[str, float | None]:
        held = {"held out": self.measured[-1][1]} if self.measured else {}
        return {"kl (nats/token)": metrics.get("kl"), "agreement": metrics.get("agreement"), **held}

    def _save(self, place: Place, step: int) -> None:
        tensors, values = self.learner.state()
        counts: dict[str, JSON] = {"tokens": self.tokens, "trained": self.trained, "own": self.own}
        known = {**counts, "measured": self.measured, "mark": self._mark()}
        place.save_state(step, tensors, {"learner": values, "guard": self.guard.state(), **known})

    def _restored(self, place: Place) -> int:
        """Steps that were done before."""
        state = place.load_state()
        if state is None:
            return 0
        values = state.values
        if values["mark"] != self._mark():
            raise RunMismatch(
                "the examples are not the tokens any more that this run began with: the chat template writes the date "
                "of today, another version of the package tokenizers reads them, or the teacher replies otherwise; "
                "start a new run"
            )
        self.learner.restore(state.tensors, values["learner"])
        self.guard.restore(values["guard"])
        self.tokens, self.trained, self.own = (values[name] for name in ("tokens", "trained", "own"))
        self.measured = values["measured"]
        return state.step

    def _mark(self) -> str:
        """SHA-256 of the tokens that are learned, and of those that are measured."""
        rows = "" if self.rows is None else self.rows.fingerprint
        held = b"" if self.held_out is None else self.held_out.tokens.numpy().tobytes()
        return f"{rows} {sha256(held).hexdigest()}"


def _cross_entropy(batch: Batch, total: float) -> dict[str, float]:
    """``ce``, the mean over the tokens of examples, from the share of the step's mean; nothing where there is none."""
    assert batch.imitation is not None
    share = float(batch.imitation.sum() / batch.weight.sum())
    return {"ce": total / share} if share else {}
