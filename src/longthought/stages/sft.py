"""Supervised fine-tuning: a model learns to say what the assistant says in examples.

The loss is on what the assistant says alone, its end token included; ``sft_rows`` makes tokens of the examples.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from longthought.algorithms.multi_token import MultiToken
from longthought.algorithms.objective import NLL
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import NotFinite, RunMismatch, SettingsError
from longthought.core.protocols import Objective, Weighting
from longthought.models import lora
from longthought.models.config import ModelConfig
from longthought.models.lora import LoRA
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.files import write_atomic
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.runs.state import JSON
from longthought.stages.pretrain_guard import Guard, GuardedLearner, Spike, Spikes
from longthought.stages.pretrain_held_out import Evaluates, HeldOut
from longthought.stages.sft_rows import Long, Rendered, Rendering, Unfit, in_steps
from longthought.tasks.examples import Examples
from longthought.training.learner import LearnerSettings, LogprobHead
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Leg, Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

_EXAMPLES = 32  # of a step, where nothing else is said
_MTP = 0.1  # λ with which DeepSeek-V3's pretraining ends
_ROWS = 64  # held-out examples that are measured together

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class SFT:
    """``epochs`` times over the examples, each time in another order. Checkpoint in, checkpoint out.

    examples_per_step: of one optimizer step; 32 if nothing is said (DeepSeek-R1: 128).  tokens_per_step: instead, steps
    of at most so many tokens, of examples of similar lengths; a longer one is a step alone.
    lr: rises over the first ``warmup`` share of the steps, and falls to ``final`` × along a cosine (R1: 5e-5, a tenth).
    weighting: how the tokens of a step are averaged; ``token_mean``: each counts the same.
    context: the longest example, in tokens; None: the model's context.  long: what is longer is refused, skipped and
    counted, or cut and counted.  unfit: so is what the model's chat format has no place for, such as a system message.
    held_out: when the loss on the examples held out is measured, and of how many; also before and after.
    mtp_weight: λ of the modules that predict further tokens; None: 0.1 where the model has some and they are trained.
    adapter: train a LoRA instead of the weights.
    spikes: what is unusual in a step, and how many steps in a row may be left out before the stage ends.
    """

    examples: Examples
    epochs: int = 2
    examples_per_step: int | None = None
    tokens_per_step: int | None = None
    lr: float = 5e-5
    warmup: float = 0.03
    final: float = 0.1
    weight_decay: float = 0.0
    weighting: Weighting = token_mean
    context: int | None = None
    long: Long = "refuse"
    unfit: Unfit = "refuse"
    held_out: HeldOut = HeldOut(every=50, documents=256)
    mtp_weight: float | None = None
    adapter: LoRA | None = None
    learner: LearnerSettings = LearnerSettings(micro_tokens=4096)
    spikes: Spikes = Spikes()
    seed: int = 0
    save_every: int = 50
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "examples_per_step", "tokens_per_step", "save_every", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"sft: {name}={value} must be at least 1")
        if self.examples_per_step is not None and self.tokens_per_step is not None:
            raise SettingsError(
                "sft: examples_per_step and tokens_per_step both say how large a step is; leave one out"
            )
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"sft: lr={self.lr:g} must be positive")
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise SettingsError(f"sft: warmup={self.warmup:g}, final={self.final:g}: from 0 to 1, and warmup below 1")
        if self.long not in ("refuse", "skip", "cut") or self.unfit not in ("refuse", "skip"):
            raise SettingsError(
                f"sft: long={self.long!r}, unfit={self.unfit!r}; choose refuse, skip or cut, and refuse or skip"
            )
        if self.mtp_weight is not None and not 0 <= self.mtp_weight < math.inf:
            raise SettingsError(f"sft: mtp_weight={self.mtp_weight:g} must be at least 0 and finite")
        self.optimizer(1)

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        policy = given.load()
        work = _Tuning(self, policy)
        work.run(place)
        told = work.told()
        write_atomic(place.path / "examples.json", json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n")
        provenance = {"stage": "sft", "seed": self.seed, "from": given.fingerprints(), **told}
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    def rendering(self, policy: Policy) -> Rendering:
        """How the examples become tokens for this model. Raises SettingsError where the context is too long for it."""
        most = policy.model.config.max_position_embeddings
        context = most if self.context is None else self.context
        if not 2 <= context <= most:
            raise SettingsError(f"sft: context={context:,}: from 2 to the {most:,} tokens of the model's own")
        return Rendering(self.examples, policy.renderer, context, self.long, self.unfit)

    def steps(self, rows: Rendered) -> list[list[list[int]]]:
        """The rows of every step of every epoch."""
        count = None if self.tokens_per_step else self.examples_per_step or _EXAMPLES
        return in_steps(rows.lengths, self.epochs, self.seed, count, self.tokens_per_step)

    def examples_in_step(self, tokens: float) -> float:
        """About how many examples a step has, if one has so many tokens."""
        return max(1.0, self.tokens_per_step / tokens) if self.tokens_per_step else self.examples_per_step or _EXAMPLES

    def optimizer(self, steps: int) -> AdamW:
        """What makes so many steps."""
        schedule = Schedule(math.ceil(self.warmup * steps), legs=(Leg("cosine", 1.0, self.final),))
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, schedule=schedule)

    def objective(self, config: ModelConfig) -> Objective:
        """What a step minimises. Raises SettingsError for ``mtp_weight`` where the model has nothing for it."""
        if self.mtp_weight and not config.num_nextn_predict_layers:
            raise SettingsError(
                f"sft: mtp_weight={self.mtp_weight:g} changes nothing: the model has no modules that predict further "
                "tokens; leave it out"
            )
        usual = _MTP if config.num_nextn_predict_layers and self.adapter is None else 0.0
        weight = usual if self.mtp_weight is None else self.mtp_weight
        return MultiToken(NLL(), weight) if weight else NLL()


class _Tuning:
    """One run of the loop, with everything that changes in it."""

    def __init__(self, stage: SFT, policy: Policy) -> None:
        self.stage, self.objective = stage, stage.objective(policy.model.config)
        rendering = stage.rendering(policy)
        with Team(stage.workers, {"render": rendering.some}) as team:
            self.rows = Rendered.of(rendering, "train", team, "render")
            self.held_out = Rendered.of(rendering, "held_out", team, "render", stage.held_out.documents)
        _tell(self.rows)
        epochs = stage.steps(self.rows)
        self.steps = list(chain.from_iterable(epochs))
        self.seen = list(accumulate(map(len, self.steps)))  # rows, after every step
        if stage.adapter is not None:
            lora.add(policy.model, stage.adapter, stage.seed)
        settings = stage.learner
        head = LogprobHead(1.0, settings.head_chunk, ahead=isinstance(self.objective, MultiToken))
        optimizer = stage.optimizer(len(self.steps))
        self.learner = GuardedLearner(policy.model, optimizer, len(self.steps), settings=settings, head=head)
        self.guard = self.learner.guard = Guard(stage.spikes, "sft")
        self.tokens = self.trained = 0
        self.measured: list[list[float | None]] = []  # steps done, and the loss on what is held out; None: not finite
        self._mark = f"{self.rows.fingerprint} {self.held_out.fingerprint}"

    def run(self, place: Place) -> None:
        """All steps, or those that are left."""
        stage, last = self.stage, len(self.steps)
        start = self._restored(place)
        sharded = ShardedLearner(self.learner, stage.workers)
        with (
            Team(stage.workers, sharded.handlers) as team,
            progress("sft", last, start=start, quiet=stage.quiet) as bar,
        ):
            sharded.join(team)
            began = time.perf_counter()
            if not start and len(self.held_out):
                place.log(0, self._measure(sharded, 0))
            for step in range(start + 1, last + 1):
                metrics = self._step(sharded, step)
                if len(self.held_out) and (step % stage.held_out.every == 0 or step == last):
                    metrics |= self._measure(sharded, step)
                place.log(step, metrics)
                if step % stage.save_every == 0 or step == last:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    self._save(place, step)
                bar.update(step, self._headline(metrics))

    def told(self) -> dict[str, Any]:
        """Which examples were learned, and what became of the others."""
        conversations = self.stage.examples.conversations
        return {
            "examples": conversations.fingerprint,
            "columns": list(dict.fromkeys(conversations.columns.values())),
            "conversations": len(conversations),
            "bad rows": dict(conversations.skipped),
            "duplicates": conversations.repeated,
            "replies": len(self.rows),
            "left out": self.rows.skipped,
            "cut": self.rows.cut,
            "epochs": self.stage.epochs,
            "steps": len(self.steps),
            "steps left out": self.guard.skipped,
            "tokens": self.tokens,
            "trained tokens": self.trained,
            "held-out loss": self.measured,
        }

    def _step(self, sharded: ShardedLearner, step: int) -> dict[str, float]:
        """One optimizer step; counts alone if it was left out."""
        batch = self.rows.batch(self.steps[step - 1], self.stage.weighting)
        metrics: Mapping[str, float] = {}
        try:
            metrics = sharded.step(batch, self.objective).metrics
        except (NotFinite, Spike) as error:
            self.guard.left_out(step, error)
        else:
            self.guard.took(step, metrics["loss"], metrics["grad_norm"])
            self.tokens += int(batch.lengths.sum())
            self.trained += int(batch.mask.sum())
        counts = {"epoch": self.seen[step - 1] / len(self.rows), "tokens": self.tokens, "trained": self.trained}
        return {**metrics, **counts, **self.guard.counts}

    def _measure(self, learner: Evaluates, step: int) -> dict[str, float]:
        """The mean loss of the learned tokens of what is held out, in nats."""
        total, count = 0.0, 0
        for start in range(0, len(self.held_out), _ROWS):
            batch = self.held_out.batch(range(start, min(start + _ROWS, len(self.held_out))), token_mean)
            total -= float(learner.evaluate(batch).logp[batch.mask].double().sum())
            count += int(batch.mask.sum())
        loss = total / count
        self.measured.append([step, loss if math.isfinite(loss) else None])
        return {"held_out_loss": loss}

    def _headline(self, metrics: Mapping[str, float]) -> dict[str, float | None]:
        held = {"held out": self.measured[-1][1]} if self.measured else {}
        return {"loss (nats/token)": metrics.get("nll"), "epoch": metrics["epoch"], **held}

    def _save(self, place: Place, step: int) -> None:
        tensors, values = self.learner.state()
        seen: dict[str, JSON] = {"tokens": self.tokens, "trained": self.trained, "measured": self.measured}
        place.save_state(step, tensors, {"learner": values, "guard": self.guard.state(), "mark": self._mark, **seen})

    def _restored(self, place: Place) -> int:
        """Steps that were done before."""
        state = place.load_state()
        if state is None:
            return 0
        values = state.values
        if values["mark"] != self._mark:
            raise RunMismatch(
                "the examples are not the tokens any more that this run began with: the chat template writes the date "
                "of today, or another version of the package tokenizers reads them; start a new run"
            )
        self.learner.restore(state.tensors, values["learner"])
        self.guard.restore(values["guard"])
        self.tokens, self.trained, self.measured = values["tokens"], values["trained"], values["measured"]
        return state.step


def _tell(rows: Rendered) -> None:
    """Warn of what is not learned, or not whole."""
    lost = [f"{count:,} left out: {reason}" for reason, count in rows.skipped.items()]
    lost += [f"{rows.cut:,} cut at the context, so that their end is not learned"] if rows.cut else []
    if lost:
        _warn(f"sft: of the examples, {'; '.join(lost)}; {len(rows):,} are learned")
