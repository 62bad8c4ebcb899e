"""Steps that go wrong, by spikes or numbers that are not finite: they are told, counted, left out."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, NoReturn, Protocol

import torch

from longthought.core.errors import LongthoughtError, NotFinite, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Metrics, Update
from longthought.runs.state import JSON
from longthought.training.learner import PolicyLearner
from longthought.training.tally import Tally

_NORMAL = 1.4826  # median absolute deviations → standard deviations, of a normal distribution
_LEAST_LOSS, _LEAST_NORM = 0.02, 1.0  # of the median: a deviation is never taken to be smaller

_warn = logging.getLogger(__name__).warning


class Spike(LongthoughtError):
    """A step was left out because its loss or gradient was far above what is usual."""


class Steps(Protocol):
    """A learner, for its steps."""

    def step(self, batch: Batch, objective: Objective) -> Update: ...


@dataclass(frozen=True)
class Spikes:
    """What counts as a spike, and what follows.

    above: a loss or gradient norm that lies so many deviations above the median of the last steps; a deviation is
    1.4826 times the median distance from the median, and at least 2 % of the median of losses, all of that of norms,
    which jump by themselves.
    window: how many steps are looked back upon; nothing is judged before a quarter of them.
    skip: a spike's step is left out; otherwise it is told and counted.
    patience: steps left out in a row, spikes or not finite, that end the stage.
    """

    above: float = 10.0
    window: int = 128
    skip: bool = False
    patience: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.above < math.inf:
            raise SettingsError(f"spikes: above={self.above} must be at least 1 and finite")
        if self.window < 8 or self.patience < 1:
            raise SettingsError(f"spikes: window={self.window}, patience={self.patience}: at least 8, and at least 1")


class Guard:
    """The last losses and gradient norms, and counts of what went wrong."""

    def __init__(self, settings: Spikes, stage: str = "pretraining") -> None:
        self.settings, self._stage = settings, stage
        self.spikes = self.skipped = 0
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._norms: deque[float] = deque(maxlen=settings.window)

    @property
    def counts(self) -> dict[str, int]:
        """Steps left out and spikes, so far."""
        return {"skipped": self.skipped, "spikes": self.spikes}

    def spike(self, loss: float, norm: float) -> str:
        """What is unusual about a step, in words; empty if nothing is."""
        said = [
            self._unusual("loss", loss, self._losses, _LEAST_LOSS),
            self._unusual("gradient norm", norm, self._norms, _LEAST_NORM),
        ]
        return "; ".join(filter(None, said))

    def step(self, number: int, learner: Steps, batch: Batch, objective: Objective) -> dict[str, float]:
        """The metrics of an optimizer step; none where it was left out. Raises NotFinite after too many of those."""
        try:
            metrics = learner.step(batch, objective).metrics
        except (NotFinite, Spike) as error:
            self.left_out(number, error)
            return {}
        self.took(number, metrics["loss"], metrics["grad_norm"])
        return dict(metrics)

    def took(self, step: int, loss: float, norm: float) -> None:
        """A step that was made."""
        if told := self.spike(loss, norm):
            self.spikes += 1
            _warn(f"{self._stage}, step {step}: a spike: {told}; the step was made")
        self._in_a_row = 0
        self._losses.append(loss)
        self._norms.append(norm)

    def left_out(self, step: int, error: LongthoughtError) -> None:
        """A step that was not made. Raises NotFinite after too many of them."""
        self.spikes += isinstance(error, Spike)
        self.skipped += 1
        self._in_a_row += 1
        _warn(f"{self._stage}, step {step} was left out: {error}")
        if self._in_a_row >= self.settings.patience:
            self._give_up(step)

    def state(self) -> dict[str, JSON]:
        """What ``restore`` goes on from."""
        return {**self.counts, "in_a_row": self._in_a_row, "losses": [*self._losses], "norms": [*self._norms]}

    def restore(self, state: Any) -> None:
        """Undo everything since ``state``."""
        self.skipped, self.spikes, self._in_a_row = state["skipped"], state["spikes"], state["in_a_row"]
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])

    def _unusual(self, name: str, value: float, last: deque[float], least: float) -> str:
        if len(last) < self.settings.window // 4:
            return ""
        middle = median(last)
        deviation = max(_NORMAL * median(abs(other - middle) for other in last), least * middle, 1e-12)
        if value <= middle + self.settings.above * deviation:
            return ""
        return (
            f"the {name} is {value:.4g}, {(value - middle) / deviation:.0f} deviations above {middle:.4g}, the median "
            f"of the last {len(last)} steps"
        )

    def _give_up(self, step: int) -> NoReturn:
        raise NotFinite(
            f"{self._stage}, step {step}: {self._in_a_row} steps in a row were left out: nothing is learnt any more. "
            "The last training state is whole. Start anew with a lower learning rate or a longer warm-up, and look at "
            "the documents of these steps; with spikes.skip, spikes.above may be too low"
        )


class GuardedLearner(PolicyLearner):
    """A learner that leaves out steps: those whose loss is not finite, and spikes, if they are to be skipped."""

    guard: Guard | None = None

    def apply(self, tally: Tally) -> Metrics:
        """As ``PolicyLearner.apply``; the weights stay as they were where it raises NotFinite or Spike."""
        if not math.isfinite(tally.loss):
            self._drop()
            raise NotFinite(f"the loss is {tally.loss}; the weights were left as they are")
        if self.guard is not None and self.guard.settings.skip:
            norm = self._norm()
            if math.isfinite(norm) and (told := self.guard.spike(tally.loss, norm)):
                self._drop()
                raise Spike(f"a spike: {told}")
        return super().apply(tally)

    def _drop(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def _norm(self) -> float:
        gradients = [p.grad for p in self._trained if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
