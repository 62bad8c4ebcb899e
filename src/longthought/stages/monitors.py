"""What is watched while a run learns: early signs of a dead verifier, reward hacking, collapse and runaway."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from longthought.core.errors import Alarm, SettingsError
from longthought.core.types import Outcome

_FAILED: Final = tuple(f"outcome/{o}" for o in (Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.INVALID, Outcome.NO_GOLD))
_FOLLOWED: Final = ("reward", "length", "entropy")
_MEMORY: Final = 0.8  # of the running means: about five steps

_NO_SIGNAL: Final = (
    "no group has had both right and wrong replies for some steps, so nothing is learned: easier or harder problems, "
    "more samples, or a look at the verifier with `longthought doctor` may help"
)

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Monitors:
    """Bounds on the metrics of a step. Crossing one warns once, until it is crossed back; those named in ``stop`` end
    the run. Usual means a running mean over about five steps, and counts from the ``warmup``-th step on.

    failures: share of the replies on which the verifier failed (timed out, crashed, no grade, no gold answer), or that
    have no reward for another reason, such as a NaN in its shaping.
    reward_jump: how far the reward rises above the usual in one step: look for a trick in the traces.
    kl: nats per token to the reference.
    entropy_low: nats per token; below, all replies to a problem become the same.
    entropy_rise: factor above the usual.
    length_change: factor above or below the usual length.
    cut: share of the replies that a limit ended.
    dead: steps in a row in which no group held right and wrong replies, so that nothing was learned.
    stop: names of the alarms that end the run.
    """

    failures: float = 0.2
    reward_jump: float = 0.3
    kl: float = 1.0
    entropy_low: float = 0.01
    entropy_rise: float = 2.0
    length_change: float = 2.0
    cut: float = 0.5
    dead: int = 5
    warmup: int = 5
    stop: tuple[str, ...] = ("failures",)

    def __post_init__(self) -> None:
        names = [name for name in self.__dataclass_fields__ if name not in ("warmup", "stop")]
        for name in names:
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise SettingsError(f"monitors: {name}={getattr(self, name)} must be 0 or more")
        if unknown := set(self.stop) - set(names):
            raise SettingsError(f"monitors: there is no alarm {sorted(unknown)[0]!r}; alarms: {', '.join(names)}")

    def start(self) -> Watch:
        """A watch that has seen nothing yet."""
        return Watch(self)

    def crossed(self, metrics: Mapping[str, float], usual: Mapping[str, float]) -> dict[str, str]:
        """The alarms that the metrics of a step raise, with the reason. ``usual`` empty: too early to compare."""
        failed = max(sum(metrics.get(name, 0.0) for name in _FAILED), metrics.get("ungraded", 0.0))
        checks: dict[str, tuple[str, Callable[[], bool], str]] = {
            "failures": ("", lambda: failed > self.failures, f"the verifier failed on {failed:.0%} of the replies"),
            "kl": ("kl", lambda: metrics["kl"] > self.kl, "far from the reference"),
            "entropy_low": ("entropy", lambda: metrics["entropy"] < self.entropy_low, "the entropy has collapsed"),
            "dead": ("", lambda: metrics.get("dead", 0) > self.dead, _NO_SIGNAL),
            "cut": ("cut", lambda: metrics["cut"] > self.cut, "replies are cut by a limit"),
        }
        if usual:
            checks |= {
                "reward_jump": (
                    "reward",
                    lambda: metrics["reward"] > usual.get("reward", metrics["reward"]) + self.reward_jump,
                    "the reward has jumped: is there a trick in the traces?",
                ),
                "entropy_rise": (
                    "entropy",
                    lambda: metrics["entropy"] > self.entropy_rise * usual.get("entropy", metrics["entropy"]),
                    "the entropy is running away",
                ),
                "length_change": (
                    "length",
                    lambda: not 1 / self.length_change <= metrics["length"] / usual["length"] <= self.length_change,
                    "the length of the replies has changed at once",
                ),
            }
        return {
            name: f"{why} ({metric} {metrics[metric]:.3g})" if metric else why
            for name, (metric, holds, why) in checks.items()
            if (not metric or metric in metrics) and holds()
        }


class Watch:
    """Monitors with their memory."""

    def __init__(self, monitors: Monitors) -> None:
        self._monitors = monitors
        self._steps = 0
        self._dead = 0
        self._usual: dict[str, float] = {}
        self._raised: list[str] = []

    def read(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """``alarm/<name>``: 1 for every alarm that the step raises. Raises Alarm for one that ends the run."""
        early = self._steps < self._monitors.warmup
        self._dead = 0 if metrics.get("live", 1.0) else self._dead + 1
        crossed = self._monitors.crossed({**metrics, "dead": self._dead}, {} if early else self._usual)
        for name, why in crossed.items():
            if name in self._monitors.stop:
                raise Alarm(
                    f"step {step}: {why} (alarm {name!r}), so the run was stopped; what was saved is kept. Look at the "
                    "replies with `longthought traces`, mend the cause, and start again"
                )
            if name not in self._raised:
                _warn(f"step {step}: {why}")
        self._raised, self._steps = list(crossed), self._steps + 1
        for name in _FOLLOWED:
            if isfinite(metrics.get(name, float("nan"))):  # without any reward the mean is NaN
                before = self._usual.get(name, metrics[name])
                self._usual[name] = _MEMORY * before + (1 - _MEMORY) * metrics[name]
        return {f"alarm/{name}": 1.0 for name in crossed}

    def finish(self) -> None:
        """Warn when the whole run has learned nothing and was too short for the alarm to say so."""
        if self._steps and self._dead == self._steps and "dead" not in self._raised:
            _warn(_NO_SIGNAL)

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        return {"steps": self._steps, "dead": self._dead, "usual": dict(self._usual), "raised": list(self._raised)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self._steps, self._dead = state["steps"], state["dead"]
        self._usual, self._raised = dict(state["usual"]), list(state["raised"])
