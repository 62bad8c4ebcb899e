"""A reward model on its way: what its steps learn from, and what is measured on what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import accumulate, chain
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longthought.algorithms.length_balance import balanced_subset, balanced_weights, effective_size
from longthought.core.errors import DataError, NotFinite
from longthought.core.protocols import Objective
from longthought.core.types import Batch
from longthought.evaluation.reward_measures import LabelMeasures, PairMeasures, measure_labels, measure_pairs
from longthought.models.reward import RewardModel, rewards
from longthought.runs.artifacts import Policy
from longthought.runs.place import Place
from longthought.runs.reward_folder import Judge, Reads, RewardFolder, Scale
from longthought.stages.epochs import Epochs, Plan, Rounds, check_counts
from longthought.stages.guard import GuardedLearner
from longthought.stages.left_out import tell
from longthought.stages.reward_rows import Reading, Sheet, Skip, labels_of, pairs_of
from longthought.stages.sft_rows import in_steps
from longthought.tasks.preference_rows import check_choice
from longthought.tasks.preferences import Labels, Preferences
from longthought.training.learner import LearnerSettings
from longthought.training.reward import RewardHead
from longthought.training.team import Handler, Team

LengthBalance: TypeAlias = Literal["none", "weigh", "drop"]


@dataclass(frozen=True, kw_only=True)
class Budget(Epochs):
    """What all reward models have in common, beside the settings of ``Epochs``. DeepSeek-R1 has one epoch, 256 in a
    step and 6e-6, for the helpful and the safety model alike (arXiv:2501.12948v2).

    batch: judgements of an optimizer step, at most; the steps of an epoch are of equal size.
    reads: what of a reply the model reads: the summary alone, or the reasoning as well.
    long, unfit: what is longer than the context, prompt with reply, or what the chat format has no place for, is
    refused, or skipped and counted.
    measure_every: steps between two measurements of what is held out, beside those at the beginning and the end.
    """

    called: ClassVar[str] = "reward model"

    epochs: int = 1
    batch: int = 256
    lr: float = 6e-6
    reads: Reads = "summary"
    long: Skip = "refuse"
    unfit: Skip = "refuse"
    measure_every: int = 50
    learner: LearnerSettings = LearnerSettings(micro_tokens=8192)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts("reward model", self, ("batch", "measure_every"))
        check_choice("reward model", "reads", self.reads, ("summary", "reply"))
        for name in ("long", "unfit"):
            check_choice("reward model", name, getattr(self, name), ("refuse", "skip"))

    def load(self, place: Place) -> RewardFolder:
        return RewardFolder(place.path / "model")


@dataclass(frozen=True)
class Aim:
    """What a step minimises, and what pairs count; see ``stages.reward_model.RewardModel``."""

    objective: Objective
    margin: float = 0.0
    length_balance: LengthBalance = "none"


class Learning(Rounds[Budget]):
    """A reward model on its way."""

    learned_from: ClassVar[str] = "judgements"

    def __init__(self, stage: Budget, aim: Aim, given: Preferences | Labels, policy: Policy) -> None:
        self.aim, self.given, self.policy = aim, given, policy
        reading = Reading(policy.renderer, stage.reads, stage.room(policy), stage.long, stage.unfit)
        self.rows, self.held_out = (Sheet.of(given, part, reading) for part in ("train", "held_out"))
        self.weights = np.ones(len(self.rows))
        self._balance(stage.seed)
        planned = in_steps(self.rows.tokens, stage.epochs, stage.seed, stage.batch, None)
        self.steps = list(chain.from_iterable(planned))
        self.model = RewardModel.of(policy.model, stage.seed)
        self._last: NDArray[np.float64] | None = None  # rewards of what is held out, when it was measured last
        for sheet, name in ((self.rows, "trained on"), (self.held_out, "held out")):
            tell("reward model", sheet.skipped, f"{len(sheet):,} are {name}")
        count, head = len(self.steps), RewardHead()
        learner = GuardedLearner(self.model, stage.optimizer(count), count, settings=stage.learner, head=head)
        mark = _fingerprint(self.rows, self.held_out)
        plan = Plan(list(accumulate(map(len, self.steps))), len(self.rows), stage.measure_every, mark)
        super().__init__(stage, learner, aim.objective, plan)

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"rewards": self._some}

    def run(self, place: Place) -> None:
        super().run(place)
        if self._last is None:  # killed between the last state and the end
            with Team(self.stage.workers, self.handlers) as team:
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

    def account(self) -> dict[str, Any]:
        """Which judgements were learned, what became of the others, and how well those held out are told."""
        assert self._last is not None
        given, spread = self.given, {"mean": float(self._last.mean()), "std": float(self._last.std())}
        return {
            "judgements": given.fingerprint,
            "columns": list(dict.fromkeys(given.columns.values())),
            "given": len(given),
            "bad rows": dict(given.skipped),
            "duplicates": given.repeated,
            **({"contradictions": given.contradictions} if isinstance(given, Preferences) else {}),
            "trained on": len(self.rows),
            "effective size": effective_size(self.weights),
            "held out": len(self.held_out),
            "left out": self.rows.skipped,
            "left out of what is held out": self.held_out.skipped,
            "epochs": self.stage.epochs,
            "steps": len(self.steps),
            "steps left out": self.guard.skipped,
            "tokens": self.counts["tokens"],
            "rewards": spread,
            "measures": asdict(self._measures(self._last)),
            "measured": self.measured,
        }

    def _balance(self, seed: int) -> None:
        """Weights or a subset in which the longer reply is as often the better as the worse."""
        if self.aim.length_balance == "none":
            return
        difference = self.rows.lengths[:, 0] - self.rows.lengths[:, 1]
        if self.aim.length_balance == "weigh":
            weights = balanced_weights(difference)
            kept = np.flatnonzero(weights)
        else:
            kept = balanced_subset(difference, seed)
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

    def batch(self, step: int) -> Batch:
        numbers = self.steps[step - 1]
        if isinstance(self.given, Preferences):
            return pairs_of(self.rows, numbers, self.weights, self.aim.margin)
        return labels_of(self.rows, numbers)

    def measure(self, team: Team, step: int) -> dict[str, float]:
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
        if isinstance(self.given, Preferences):
            return measure_pairs(found.reshape(-1, 2), sheet.lengths, sheet.prompts)
        return measure_labels(found, sheet.target, sheet.lengths[:, 0], sheet.prompts)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        return {"loss (nats)": metrics.get("loss"), "held-out accuracy": self.measured[-1]["accuracy"]}


_NAMES = ("accuracy", "margin", "calibration_error", "length_correlation", "length_pull", "area")


def _fingerprint(*sheets: Sheet) -> str:
    found = sha256()
    for sheet in sheets:
        found.update(sheet.target.tobytes() + sheet.lengths.tobytes())
        for reply in sheet.flat:
            found.update(len(reply).to_bytes(8, "big") + reply.tobytes())
    return found.hexdigest()
