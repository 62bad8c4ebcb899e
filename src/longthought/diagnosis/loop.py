"""The user's own loop for a few steps in a folder that is thrown away, watched from inside."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from longthought.core.types import Group
from longthought.diagnosis.patient import Contrast, Patient
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.traces import PerRollout, PerTrained, Trained
from longthought.stages.rl import RL
from longthought.training.optimizer import AdamW, MuonAdamW, OptimizerSettings
from longthought.training.schedule import Schedule


@dataclass
class Watched:
    """Metrics of every step, the rollouts of every step, and what the learner made of each."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    groups: list[list[Group]] = field(default_factory=list)
    trained: list[PerTrained] = field(default_factory=list)

    def pairs(self) -> list[tuple[Any, Trained]]:
        """Every rollout with what the learner made of it, where it made something."""
        return [
            (rollout, record)
            for groups, records in zip(self.groups, self.trained)
            for group, row in zip(groups, records)
            for rollout, record in zip(group, row)
            if record is not None and record.logprobs is not None
        ]


def watch(patient: Patient, stage: RL, steps: int) -> Watched:
    """Run ``stage`` from the patient's policy; the rewards alternate, so that every group teaches."""
    changed: RL = replace(stage, task=Contrast(stage.task), steps=steps, save_every=steps)
    with tempfile.TemporaryDirectory(prefix="longthought-doctor-") as folder, _Watching(Path(folder)) as place:
        changed.run(cast(Checkpoint, _Given(patient.policy)), place)
        return place.watched


def with_lr(optimizer: OptimizerSettings, lr: float) -> OptimizerSettings:
    """The optimizer with another learning rate from the first step on, and no schedule."""
    if isinstance(optimizer, MuonAdamW):
        return replace(optimizer, lr=lr, adam_lr=lr, schedule=Schedule())
    return replace(optimizer, lr=lr, schedule=Schedule()) if isinstance(optimizer, AdamW) else optimizer


class _Watching(Place):
    """A folder that remembers what it is told, and keeps no state."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.watched = Watched()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.watched.metrics.append(dict(metrics))

    def trace(
        self,
        step: int,
        groups: Sequence[Group],
        *,
        rewards: PerRollout,
        advantages: PerRollout,
        shaping: Mapping[str, PerRollout],
        trained: PerTrained | None = None,
    ) -> None:
        self.watched.groups.append(list(groups))
        self.watched.trained.append(trained or [])

    def save_state(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        del step, tensors, values


@dataclass(frozen=True)
class _Given:
    """In the place of a checkpoint: a copy of a policy that is in memory."""

    policy: Policy

    def load(self) -> Policy:
        return self.policy._replace(model=copy.deepcopy(self.policy.model))

    def fingerprints(self) -> dict[str, str]:
        return {}
