"""Learning-rate schedules."""

from __future__ import annotations

from dataclasses import dataclass

from longthought.core.errors import SettingsError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup`` steps, constant, linear decay to ``final`` × over the last ``decay`` share."""

    warmup: int = 0
    decay: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.final <= 1:
            raise SettingsError("schedule: warmup must be >= 0, decay and final within 0 … 1")
        if self.final and not self.decay:
            raise SettingsError(f"schedule.final={self.final} changes nothing without schedule.decay")

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate for optimizer step ``step`` of ``steps`` (counted from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = steps * (1 - self.decay)
        if step < start or not self.decay:
            return 1.0
        return 1.0 + (self.final - 1.0) * min(1.0, (step + 1 - start) / (steps - start))
