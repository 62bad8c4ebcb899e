"""Supervised fine-tuning: a model learns to say what the assistant says in examples.

The loss is on what the assistant says alone, its end token included; ``sft_rows`` makes tokens of the examples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, ClassVar

from longthought.algorithms.multi_token import MultiToken
from longthought.algorithms.objective import NLL
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective, Weighting
from longthought.core.types import Batch
from longthought.models import lora
from longthought.models.config import ModelConfig
from longthought.models.lora import LoRA
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.files import write_atomic
from longthought.runs.place import Place
from longthought.stages.epochs import Epochs, Plan, Rounds, check_counts
from longthought.stages.guard import GuardedLearner
from longthought.stages.held_out import HeldOut
from longthought.stages.left_out import tell
from longthought.stages.sft_rows import Long, Rendered, Rendering, Unfit, check_choices, in_steps
from longthought.tasks.examples import Examples
from longthought.training.learner import LogprobHead
from longthought.training.team import Team

_EXAMPLES = 32  # of a step, where nothing else is said
_MTP = 0.1  # λ with which DeepSeek-V3's pretraining ends
_ROWS = 64  # held-out examples that are measured together


@dataclass(frozen=True, kw_only=True)
class SFT(Epochs):
    """Examples are imitated. Checkpoint in, checkpoint out. (DeepSeek-R1: an ``lr`` of 5e-5 that falls to a tenth.)

    examples_per_step: of one optimizer step; 32 if nothing is said (DeepSeek-R1: 128).  tokens_per_step: instead, steps
    of at most so many tokens, of examples of similar lengths; a longer one is a step alone.
    weighting: how the tokens of a step are averaged; ``token_mean``: each counts the same.
    long: what is longer than the context is refused, skipped and counted, or cut and counted.  unfit: so is what the
    model's chat format has no place for, such as a system message.
    held_out: when the loss on the examples held out is measured, and of how many; also before and after.
    mtp_weight: λ of the modules that predict further tokens; None: 0.1 where the model has some and they are trained.
    adapter: train a LoRA instead of the weights.
    The other settings are those of ``Epochs``.
    """

    called: ClassVar[str] = "sft"

    examples: Examples = field(kw_only=False)
    examples_per_step: int | None = None
    tokens_per_step: int | None = None
    weighting: Weighting = token_mean
    long: Long = "refuse"
    unfit: Unfit = "refuse"
    held_out: HeldOut = HeldOut(every=50, documents=256)
    mtp_weight: float | None = None
    adapter: LoRA | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("sft", self, ("examples_per_step", "tokens_per_step"))
        check_choices("sft", self.long, self.unfit)
        if self.examples_per_step is not None and self.tokens_per_step is not None:
            raise SettingsError(
                "sft: examples_per_step and tokens_per_step both say how large a step is; leave one out"
            )
        if self.mtp_weight is not None and not 0 <= self.mtp_weight < math.inf:
            raise SettingsError(f"sft: mtp_weight={self.mtp_weight:g} must be at least 0 and finite")

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        policy = given.load()
        work = _Tuning(self, policy)
        work.run(place)
        told = work.account()
        write_atomic(place.path / "examples.json", json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n")
        provenance = {"stage": "sft", "seed": self.seed, "from": given.fingerprints(), **told}
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    def rendering(self, policy: Policy) -> Rendering:
        """How the examples become tokens for this model. Raises SettingsError where the context is too long for it."""
        return Rendering(self.examples, policy.renderer, self.room(policy), self.long, self.unfit)

    def steps(self, rows: Rendered) -> list[list[list[int]]]:
        """The rows of every step of every epoch."""
        count = None if self.tokens_per_step else self.examples_per_step or _EXAMPLES
        return in_steps(rows.lengths, self.epochs, self.seed, count, self.tokens_per_step)

    def examples_in_step(self, tokens: float) -> float:
        """About how many examples a step has, if one has so many tokens."""
        return max(1.0, self.tokens_per_step / tokens) if self.tokens_per_step else self.examples_per_step or _EXAMPLES

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


class _Tuning(Rounds[SFT]):
    """One run, with everything that changes in it."""

    def __init__(self, stage: SFT, policy: Policy) -> None:
        objective, rendering = stage.objective(policy.model.config), stage.rendering(policy)
        with Team(stage.workers, {"render": rendering.some}) as team:
            self.rows = Rendered.of(rendering, "train", team, "render")
            self.held_out = Rendered.of(rendering, "held_out", team, "render", stage.held_out.documents)
        tell("sft", self.rows.skipped, f"{len(self.rows):,} are learned", self.rows.cut)
        self.steps = list(chain.from_iterable(stage.steps(self.rows)))
        if stage.adapter is not None:
            lora.add(policy.model, stage.adapter, stage.seed)
        settings, count = stage.learner, len(self.steps)
        head = LogprobHead(1.0, settings.head_chunk, ahead=isinstance(objective, MultiToken))
        learner = GuardedLearner(policy.model, stage.optimizer(count), count, settings=settings, head=head)
        every = stage.held_out.every if len(self.held_out) else 0
        mark = f"{self.rows.fingerprint} {self.held_out.fingerprint}"
        plan = Plan(list(accumulate(map(len, self.steps))), len(self.rows), every, mark)
        super().__init__(stage, learner, objective, plan, counted=("tokens", "trained"))

    def account(self) -> dict[str, Any]:
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
            "tokens": self.counts["tokens"],
            "trained tokens": self.counts["trained"],
            "held-out loss": self.measured,
        }

    def batch(self, step: int) -> Batch:
        return self.rows.batch(self.steps[step - 1], self.stage.weighting)

    def measure(self, team: Team, step: int) -> dict[str, float]:
        """The mean loss of the learned tokens of what is held out, in nats."""
        del team
        total, count = 0.0, 0
        for start in range(0, len(self.held_out), _ROWS):
            batch = self.held_out.batch(range(start, min(start + _ROWS, len(self.held_out))), token_mean)
            total -= float(self.sharded.evaluate(batch).logp[batch.mask].double().sum())
            count += int(batch.mask.sum())
        loss = total / count
        self.measured.append([step, loss if math.isfinite(loss) else None])
        return {"held_out_loss": loss}

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        held = {"held out": self.measured[-1][1]} if self.measured else {}
        return {"loss (nats/token)": metrics.get("nll"), "epoch": metrics["epoch"], **held}
