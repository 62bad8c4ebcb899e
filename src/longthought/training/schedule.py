"""What changes in the course of training: learning rate, tokens of a step, weights of losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from longthought.core.errors import SettingsError


@dataclass(frozen=True)
class Leg:
    """A stretch of a schedule, over ``share`` of all steps.

    kind: constant: ``to`` all along; linear, cosine: from where the leg before ended (the first one: from 1) to ``to``,
    which the last step of the leg has.
    """

    kind: Literal["constant", "linear", "cosine"]
    share: float
    to: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise SettingsError(f"schedule: a leg is constant, linear or cosine, not {self.kind!r}")
        if not 0 < self.share <= 1 or not 0 <= self.to < math.inf:
            raise SettingsError(
                f"schedule: the {self.kind} leg has share={self.share}, to={self.to}; needed are a share above 0 and "
                "at most 1, and a factor of at least 0"
            )

    def at(self, progress: float, before: float) -> float:
        """The factor after ``progress`` (0 … 1) of the leg, if the leg before ended with ``before``."""
        if self.kind == "constant":
            return self.to
        down = 1 - progress if self.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.to + (before - self.to) * down


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup`` steps, constant, linear decay to ``final`` × over the last ``decay`` share.

    legs: any other course, in place of decay and final; their shares add up to 1, and the warm-up multiplies them.
    """

    warmup: int = 0
    decay: float = 0.0
    final: float = 0.0
    legs: tuple[Leg, ...] = ()

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.final <= 1:
            raise SettingsError("schedule: warmup must be >= 0, decay and final within 0 … 1")
        if self.final and not self.decay:
            raise SettingsError(f"schedule.final={self.final} changes nothing without schedule.decay")
        if self.legs and self.decay:
            raise SettingsError(f"schedule.decay={self.decay}: the legs say it all; leave decay out")
        whole = sum(leg.share for leg in self.legs)
        if self.legs and abs(whole - 1) > 1e-9:
            raise SettingsError(f"schedule: the shares of the legs add up to {whole:.6g}; they must add up to 1")

    @classmethod
    def deepseek_v3(cls, warmup: int = 2000) -> Schedule:
        """The course of DeepSeek-V3 (arXiv:2412.19437, section 4.2), its 14.8 T tokens as shares of the steps.

        Constant for 10 T, cosine to a tenth over 4.3 T, constant for 333 B, and at 7.3e-6 of 2.2e-4 for 167 B.
        """
        tokens = 14.8e12
        return cls(
            warmup,
            legs=(
                Leg("constant", 10e12 / tokens),
                Leg("cosine", 4.3e12 / tokens, 0.1),
                Leg("constant", 333e9 / tokens, 0.1),
                Leg("constant", 167e9 / tokens, 7.3e-6 / 2.2e-4),
            ),
        )

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate for optimizer step ``step`` of ``steps`` (counted from 0)."""
        if self.legs:
            return self._on_legs(step, steps) * (min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0)
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = steps * (1 - self.decay)
        if step < start or not self.decay:
            return 1.0
        return 1.0 + (self.final - 1.0) * min(1.0, (step + 1 - start) / (steps - start))

    def _on_legs(self, step: int, steps: int) -> float:
        """A step belongs to the leg that it ends in."""
        begin, before = 0.0, 1.0
        for leg in self.legs:
            end = begin + leg.share * steps
            if step + 1 <= end + 1e-6:
                return leg.at(min(1.0, (step + 1 - begin) / (end - begin)), before)
            begin, before = end, leg.to
        return before


@dataclass(frozen=True)
class Ramp:
    """Tokens of a step that grow linearly from ``first`` to the full number, over the first ``share`` of all steps."""

    first: int
    share: float

    def __post_init__(self) -> None:
        if self.first < 1 or not 0 < self.share <= 1:
            raise SettingsError(f"ramp: first={self.first}, share={self.share}: at least 1, and above 0 and at most 1")

    def tokens(self, step: int, steps: int, full: int) -> int:
        """Tokens of step ``step`` of ``steps`` (counted from 0)."""
        return round(self.first + (full - self.first) * min(1.0, step / (self.share * steps)))


@dataclass(frozen=True)
class Switch:
    """A number that is ``first``, and ``then`` from the share ``at`` of all steps on."""

    first: float
    then: float
    at: float

    def __post_init__(self) -> None:
        if not (0 <= self.first < math.inf and 0 <= self.then < math.inf and 0 < self.at < 1):
            raise SettingsError(
                f"a switch from {self.first} to {self.then} at {self.at}: the numbers must be at least 0 and finite, "
                "the share between 0 and 1"
            )

    def value(self, step: int, steps: int) -> float:
        """The number at step ``step`` of ``steps`` (counted from 0)."""
        return self.first if step < self.at * steps else self.then
