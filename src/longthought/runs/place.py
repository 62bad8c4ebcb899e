"""The folder of one stage, with everything a stage may keep in it.

::

    01-rl/
    ├── stage.json      what the stage was asked to do, written before it starts
    ├── metrics.jsonl   one line per step; the same bytes however often the run was killed and resumed
    ├── timings.jsonl   wall-clock, kept apart because no two runs agree about it
    ├── traces/         rollouts, one Parquet file per step
    ├── state/          training states, the newest two
    ├── …               the artifact, named by the stage
    └── done.json       digests of the artifact: the stage is finished
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from longthought.core.types import Group
from longthought.runs import state, traces
from longthought.runs.files import plain_errors, sweep
from longthought.runs.logs import Log
from longthought.runs.state import JSON, State
from longthought.runs.tracking import Tracker

METRICS, TIMINGS, TRACES, STATES = "metrics.jsonl", "timings.jsonl", "traces", "state"

_warn = logging.getLogger(__name__).warning


class Place:
    """Where a stage writes. For the process that holds the lock of the run.

    A stage that can be killed starts with :meth:`load_state` and ends every step that it wants to come back to with
    :meth:`save_state`, after the step's :meth:`log` and :meth:`trace`::

        state = place.load_state()
        for step in range(state.step + 1 if state else 1, steps + 1):
            ...
            place.log(step, metrics)
            if step % every == 0:
                place.save_state(step, tensors, values)

    What was logged or traced after the state that is loaded is dropped, so that the files of a resumed run are those
    of an uninterrupted one, byte by byte. A stage that starts to log without loading a state starts afresh.
    """

    def __init__(self, path: Path, *, tracker: Tracker | None = None, warn: Callable[[str], None] = _warn) -> None:
        self.path = path
        self._tracker = tracker
        self._warn = warn
        self._metrics = Log(path / METRICS)
        self._timings = Log(path / TIMINGS)
        self._begun = False
        self._saved = -1
        with plain_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of a step to ``metrics.jsonl``; NaN and infinities become ``null``.

        Raises:
            RunError: the disk is full.
            ValueError: the state of ``step`` is saved already, or a line for a later step is written.
        """
        self._begin(step)
        self._metrics.append(step, metrics)
        if self._tracker is not None:
            self._tracker.log(self.path.name, step, metrics)

    def time(self, step: int, timings: Mapping[str, Any]) -> None:
        """Add what depends on the clock to ``timings.jsonl``.

        Raises:
            RunError: the disk is full.
        """
        if not self._begun:
            self._rewind(None)
        self._timings.append(step, timings)

    def trace(
        self,
        step: int,
        groups: Sequence[Group],
        *,
        rewards: traces.PerRollout,
        advantages: traces.PerRollout,
        shaping: Mapping[str, traces.PerRollout],
        trained: traces.PerTrained | None = None,
    ) -> None:
        """Keep the rollouts of a step; see :func:`longthought.runs.traces.write`.

        Raises:
            RunError: the disk is full.
            ValueError: the state of ``step`` is saved already, or the values do not match the groups.
        """
        self._begin(step)
        traces.write(
            self.path / TRACES,
            step,
            groups,
            rewards=rewards,
            advantages=advantages,
            shaping=shaping,
            trained=trained,
        )

    def save_state(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, JSON]) -> None:
        """Make the state after ``step`` durable, and all that was logged until now; the newest two states are kept.

        Raises:
            RunError: the disk is full; older states are still there.
            ValueError: a later state is saved already, or a value does not come back equal from JSON.
        """
        if not self._begun:
            self._rewind(None)
        if step < self._saved:
            raise ValueError(f"the state of step {step} comes after that of step {self._saved}")
        self._metrics.sync()
        self._timings.sync()
        state.save(self.path / STATES, step, tensors, values)
        self._saved = step

    def load_state(self) -> State | None:
        """The newest whole state, with the logs and traces rewound to it; None, and nothing logged, if there is none.

        Raises:
            RunDamaged: there are states and every one is truncated or altered.
        """
        with plain_errors(self.path):
            sweep(self.path)
        found = state.load(self.path / STATES, self._warn)
        self._rewind(None if found is None else found.step)
        return found

    @property
    def has_state(self) -> bool:
        """Whether a training state is there, whole or not."""
        return bool(state.steps(self.path / STATES))

    def close(self) -> None:
        self._metrics.close()
        self._timings.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        if not self._begun:
            self._rewind(None)
        if step <= self._saved:
            raise ValueError(
                f"step {step} is logged after its state was saved: a resumed run would lose it; save the state last"
            )

    def _rewind(self, step: int | None) -> None:
        self._metrics.rewind(step)
        self._timings.rewind(step)
        with plain_errors(self.path / TRACES):
            traces.drop_after(self.path / TRACES, step)
        self._saved = -1 if step is None else step
        self._begun = True
