"""The loop of a reward model: steps, what is held out, states from which a killed run goes on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import accumulate, chain
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longthought.algorithms.length_balance import balanced_subset, balanced_weights, effective_size
from longthought.core.errors import DataError, NotFinite, RunMismatch, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch
from longthought.evaluation.reward_measures import LabelMeasures, PairMeasures, measure_labels, measure_pairs
from longthought.models.reward import RewardModel, rewards
from longthought.runs.artifacts import Policy
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.runs.reward_folder import Judge, Reads, RewardFolder, Scale
from longthought.runs.state import JSON
from longthought.stages.pretrain_guard import Guard, GuardedLearner, Spike, Spikes
from longthought.stages.reward_rows import Reading, Sheet, Skip, labels_of, pairs_of
from longthought.stages.sft_rows import in_steps
from longthought.tasks.preference_rows import check_choice
from longthought.tasks.preferences import Labels, Preferences
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW
from longthought.training.reward import RewardHead
from longthought.training.schedule import Leg, Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

LengthBalance: TypeAlias = Literal["none", "weigh", "drop"]

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all reward models have in common: ``epochs`` times over the judgements, each time in another order.

    batch: judgements of an optimizer step, at most; the steps of an epoch are of equal size.
    lr: rises over the first ``warmup`` share of the steps and falls to ``final`` × along a cosine. DeepSeek-R1 has one
    epoch, 256 in a step and 6e-6, for the helpful and the safety model alike (arXiv:2501.12948v2).
    reads: what of a reply the model reads: the summary alone, or the reasoning as well.
    context: the longest prompt with reply, in tokens; None: the model's context.  long, unfit: what is longer, or what
    the chat format has no place for, is refused, or skipped and counted.
    measure_every: steps between two measurements of what is held out, beside those at the beginning and the end.
    spikes: what is unusual in a step, and how many steps in a row may be left out before the stage ends.
    """

    epochs: int = 1
    batch: int = 256
    lr: float = 6e-6
    warmup: float = 0.03
    final: float = 0.1
    weight_decay: float = 0.0
    reads: Reads = "summary"
    context: int | None = None
    long: Skip = "refuse"
    unfit: Skip = "refuse"
    measure_every: int = 50
    learner: LearnerSettings = LearnerSettings(micro_tokens=8192)
    spikes: Spikes = Spikes()
    seed: int = 0
    save_every: int = 50
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "measure_every", "save_every", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"reward model: {name}={getattr(self, name)} must be at least 1")
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"reward model: lr={self.lr:g} must be positive")
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise SettingsError(
                f"reward model: warmup={self.warmup:g}, final={self.final:g}: from 0 to 1, and warmup below 1"
            )
        check_choice("reward model", "reads", self.reads, ("summary", "reply"))
        for name in ("long", "unfit"):
            check_choice("reward model", name, getattr(self, name), ("refuse", "skip"))
        self.optimizer(1)

    def optimizer(self, steps: int) -> AdamW:
        """What makes so many steps."""
        schedule = Schedule(math.ceil(self.warmup * steps), legs=(Leg("cosine", 1.0, self.final),))
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, schedule=schedule)

    def load(self, place: Place) -> RewardFolder:
        return RewardFolder(place.path / "model")


@dataclass(frozen=True)
class Aim:
    """What a step minimises, and what pairs count; see ``stages.reward_model.RewardModel``."""

    objective: Objective
    margin: float = 0.0
    length_balance: LengthBalance = "none"


class Learning:
    """A reward model on its way."""

    def __init__(self, stage: Budget, aim: Aim, data: Preferences | Labels, policy: Policy) -> None:
        self.stage, self.aim, self.data, self.policy = stage, aim, data, policy
        reading = _reading(stage, policy)
        self.rows, self.held_out = (Sheet.of(data, part, reading) for part in ("train", "held_out"))
        self.weights = np.ones(len(self.rows))
        self._balance()
        planned = in_steps(self.rows.tokens, stage.epochs, stage.seed, stage.batch, None)
        self.steps = list(chain.from_iterable(planned))
        self.seen = list(accumulate(map(len, self.steps)))
        self.model = RewardModel.of(policy.model, stage.seed)
        self.learner = GuardedLearner(
            self.model, stage.optimizer(len(self.steps)), len(self.steps), settings=stage.learner, head=RewardHead()
        )
        self.guard = self.learner.guard = Guard(stage.spikes, "reward model")
        self.tokens = 0
        self.measured: list[dict[str, Any]] = []  # every measurement, with its step
        self._last: NDArray[np.float64] | None = None  # rewards of what is held out, when it was measured last
        self._mark = _fingerprint(self.rows, self.held_out)
        _tell(self.rows, self.held_out)

    def run(self, place: Place) -> None:
        """All steps, or those that are left."""
        stage, last = self.stage, len(self.steps)
        start = self._restored(place)
        sharded = ShardedLearner(self.learner, stage.workers)
        with (
            Team(stage.workers, {**sharded.handlers, "rewards": self._some}) as team,
            progress("reward model", last, start=start, quiet=stage.quiet) as bar,
        ):
            sharded.join(team)
            began = time.perf_counter()
            if not start:
                place.log(0, self._measure(team, 0))
            for step in range(start + 1, last + 1):
                metrics = self._step(sharded, step)
                if step % stage.measure_every == 0 or step == last:
                    metrics |= self._measure(team, step)
                place.log(step, metrics)
                if step % stage.save_every == 0 or step == last:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    self._save(place, step)
                bar.update(step, self._headline(metrics))
            if self._last is None:
                self._last = self._rewards(team)

    def judge(self) -> Judge:
        """The model with its scale. Raises NotFinite where the rewards of what is held out are all the same."""
        assert self._last is not None
        mean, std = float(self._last.mean()), float(self._last.std())
        if not 0 < std < float("inf"):
            raise NotFinite(
                f"the rewards of what is held out have the standard deviation {std}: they tell nothing apart; look at "
                "the learning rate and at the judgements"
            )
        _, renderer, config, generation = self.policy
        return Judge(self.model, renderer, Scale(mean, std, self.stage.reads), config, generation)

    def told(self) -> dict[str, Any]:
        """Which judgements were learned, what became of the others, and how well those held out are told."""
        assert self._last is not None
        data, spread = self.data, {"mean": float(self._last.mean()), "std": float(self._last.std())}
        return {
            "judgements": data.fingerprint,
            "columns": list(dict.fromkeys(data.columns.values())),
            "given": len(data),
            "bad rows": dict(data.skipped),
            "duplicates": data.repeated,
            **({"contradictions": data.contradictions} if isinstance(data, Preferences) else {}),
            "trained on": len(self.rows),
            "effective size": effective_size(self.weights),
            "held out": len(self.held_out),
            "left out": self.rows.skipped,
            "left out of what is held out": self.held_out.skipped,
            "epochs": self.stage.epochs,
            "steps": len(self.steps),
            "steps left out": self.guard.skipped,
            "tokens": self.tokens,
            "rewards": spread,
            "measures": asdict(self._measures(self._last)),
            "measured": self.measured,
        }

    def _balance(self) -> None:
        """Weights or a subset in which the longer reply is as often the better as the worse."""
        if self.aim.length_balance == "none":
            return
        difference = self.rows.lengths[:, 0] - self.rows.lengths[:, 1]
        if self.aim.length_balance == "weigh":
            weights = balanced_weights(difference)
            kept = np.flatnonzero(weights)
        else:
            kept = balanced_subset(difference, self.stage.seed)
            weights = np.ones(len(difference))
        if len(kept) < 2:
            raise DataError(
                "length_balance: of all pairs the better reply is the longer one, or of all the shorter: nothing can "
                "be balanced; leave it out, and look at length_pull in what is measured"
            )
        counts = {**self.rows.skipped, "no pair of the other sign": len(difference) - len(kept)}
        self.rows = self.rows.select(kept.tolist())
        self.rows.skipped.update({name: count for name, count in counts.items() if count})
        self.weights = weights[kept]

    def _step(self, sharded: ShardedLearner, step: int) -> dict[str, float]:
        """One optimizer step; counts alone if it was left out."""
        batch = self._batch(self.steps[step - 1])
        metrics: Mapping[str, float] = {}
        try:
            metrics = sharded.step(batch, self.aim.objective).metrics
        except (NotFinite, Spike) as error:
            self.guard.left_out(step, error)
        else:
            self.guard.took(step, metrics["loss"], metrics["grad_norm"])
            self.tokens += int(batch.lengths.sum())
        counts = {"epoch": self.seen[step - 1] / len(self.rows), "tokens": self.tokens}
        return {**metrics, **counts, **self.guard.counts}

    def _batch(self, numbers: Sequence[int]) -> Batch:
        if isinstance(self.data, Preferences):
            return pairs_of(self.rows, numbers, self.weights, self.aim.margin)
        return labels_of(self.rows, numbers)

    def _measure(self, team: Team, step: int) -> dict[str, float]:
        """What the log says of what is held out."""
        self._last = self._rewards(team)
        told = asdict(self._measures(self._last))
        self.measured.append({"step": step} | {name: told[name] for name in _NAMES if name in told})
        return {f"held_out_{name}": told[name] for name in _NAMES if told.get(name) is not None}

    def _rewards(self, team: Team) -> NDArray[np.float64]:
        """Of all replies that are held out, (N · k)."""
        numbers = [range(len(self.held_out.flat))[member :: team.size] for member in range(team.size)]
        found = np.zeros(len(self.held_out.flat))
        for some, said in zip(numbers, team.call("rewards", [(part,) for part in numbers])):
            found[list(some)] = said
        if not np.isfinite(found).all():
            raise NotFinite("the rewards of what is held out are not finite; start anew with a lower learning rate")
        return found

    def _some(self, member: int, numbers: Sequence[int]) -> NDArray[np.float64]:
        """For the members of a team: the rewards of those replies."""
        del member
        replies, settings = self.held_out.flat, self.stage.learner
        chosen = [replies[number] for number in numbers]
        found = rewards(self.model, chosen, settings.micro_tokens, settings.precision)
        return found.double().numpy()

    def _measures(self, found: NDArray[np.float64]) -> PairMeasures | LabelMeasures:
        sheet = self.held_out
        if isinstance(self.data, Preferences):
            return measure_pairs(found.reshape(-1, 2), sheet.lengths, sheet.prompts)
        return measure_labels(found, sheet.target, sheet.lengths[:, 0], sheet.prompts)

    def _headline(self, metrics: Mapping[str, float]) -> dict[str, float | None]:
        return {"loss (nats)": metrics.get("loss"), "held-out accuracy": self.measured[-1]["accuracy"]}

    def _save(self, place: Place, step: int) -> None:
        tensors, values = self.learner.state()
        seen: dict[str, JSON] = {"tokens": self.tokens, "measured": self.measured, "mark": self._mark}
        place.save_state(step, tensors, {"learner": values, "guard": self.guard.state(), **seen})

    def _restored(self, place: Place) -> int:
        """Steps that were done before."""
        state = place.load_state()
        if state is None:
            return 0
        values = state.values
        if values["mark"] != self._mark:
            raise RunMismatch(
                "the judgements are not the tokens any more that this run began with: the chat template writes the "
                "date of today, or another version of the package tokenizers reads them; start a new run"
            )
        self.learner.restore(state.tensors, values["learner"])
        self.guard.restore(values["guard"])
        self.tokens, self.measured = values["tokens"], values["measured"]
        return state.step


_NAMES = ("accuracy", "margin", "calibration_error", "length_correlation", "length_pull", "area")


def _reading(stage: Budget, policy: Policy) -> Reading:
    most = policy.model.config.max_position_embeddings
    context = most if stage.context is None else stage.context
    if not 2 <= context <= most:
        raise SettingsError(f"reward model: context={context:,}: from 2 to the {most:,} tokens of the model's own")
    return Reading(policy.renderer, stage.reads, context, stage.long, stage.unfit)


def _fingerprint(*sheets: Sheet) -> str:
    found = sha256()
    for sheet in sheets:
        found.update(sheet.target.tobytes() + sheet.lengths.tobytes())
        for reply in sheet.flat:
            found.update(len(reply).to_bytes(8, "big") + reply.tobytes())
    return found.hexdigest()


def _tell(*sheets: Sheet) -> None:
    """Warn of what is left out."""
    for name, sheet in zip(("trained on", "held out"), sheets):
        lost = [f"{count:,} left out: {reason}" for reason, count in sheet.skipped.items()]
        if lost:
            _warn(f"reward model: {'; '.join(lost)}; {len(sheet):,} are {name}")
