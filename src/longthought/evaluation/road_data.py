"""A run of many stages as plain numbers and strings: which models it made, from what, at what cost, how good they are.

Every part may be absent (None or empty). Shares are fractions of one, lengths are in tokens, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from longthought.evaluation.report_data import Curve, Estimate, EvaluationSummary, Reply

Product: TypeAlias = Literal["model", "reward model", "data", "measurement", "other"]


@dataclass(frozen=True, slots=True)
class Stop:
    """One stage of the road.

    what: what is done, in words.  makes: what comes out, or would.
    origin: the model that it began with: name of a stage, or of a folder elsewhere; empty where there is none.
    beside: what else it was given, (as what, its name): a teacher, examples, reward models.
    task: of the problems that it samples.
    steps, planned: optimizer steps or rounds done, and how many were asked for.
    data: what it used and made, (quantity, number).  dropped: of what it sampled, (why it was not kept, how many).
    flops: of the products with the model's matrices: 2 for each number and token sampled, 6 for each learned.
    curves: by their names in ``metrics.jsonl``.  note: the verdict of a watch over it.
    """

    name: str
    what: str
    makes: Product
    finished: bool
    origin: str = ""
    beside: tuple[tuple[str, str], ...] = ()
    task: str = ""
    steps: int | None = None
    planned: int | None = None
    data: tuple[tuple[str, float], ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()
    parameters: int | None = None
    seconds: float | None = None
    flops: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gain:
    """Difference to another model, paired by the problems that both were asked.

    parts: of the mean of every named part of the score.
    """

    against: str
    accuracy: Estimate
    parts: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One evaluation of one model.

    task: its label; evaluations of one label asked the same problems in the same way.
    gain: over the nearest model before it, on its own road, that was measured so.  total: over the first one.
    """

    stage: str
    model: str
    task: str
    summary: EvaluationSummary
    gain: Gain | None = None
    total: Gain | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One problem, with the reply of every model that was asked it: (name of the model, reply)."""

    task: str
    problem: str
    prompt: str
    replies: tuple[tuple[str, Reply], ...]


@dataclass(frozen=True, slots=True)
class Road:
    """The stages in order, and what was measured of their models."""

    stops: tuple[Stop, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    asked: tuple[Asked, ...] = ()

    @property
    def models(self) -> tuple[Stop, ...]:
        """The stages that make a model."""
        return tuple(stop for stop in self.stops if stop.makes == "model")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels of what was measured, in the order in which they came."""
        return tuple(dict.fromkeys(one.task for one in self.measurements))

    def measured(self, model: str, task: str) -> Measurement | None:
        """The last measurement of a model on a task."""
        return next((one for one in reversed(self.measurements) if (one.model, one.task) == (model, task)), None)
