"""Decisions between two steps: pure functions of what was measured, so that a resumed run decides alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from longthought.core.errors import SettingsError


def is_live(correct: Sequence[bool | None]) -> bool:
    """DAPO's dynamic sampling: whether a group holds right *and* wrong replies, 0 < right < G.

    Other groups have no advantage and are replaced. Pass what the *task* says: with a shaped reward every group would
    look alive. None is a reply that could not be graded; it says nothing.  Source: arXiv:2503.14476, equation 11.
    """
    graded = {bool(right) for right in correct if right is not None}
    return len(graded) == 2


@dataclass(frozen=True, slots=True)
class EntropyTarget:
    """Adaptive entropy bonus: c ← c + rate below the target, c - rate above it, held in [0, maximum].

    The clamp makes it bounded for every sequence of measurements. target: entropy in nats per token.
    ``bonus`` is what to train with: c while the entropy is at or under the target, else 0, so that entropy is never
    pushed beyond it.  Source: Skywork-OR1, arXiv:2505.22312, section 3 (target 0.2, rate 0.005).
    """

    target: float
    rate: float = 0.005
    maximum: float = 1.0

    def __post_init__(self) -> None:
        for name in ("target", "rate", "maximum"):
            _check_positive(f"EntropyTarget.{name}", getattr(self, name))

    def __call__(self, coefficient: float, measured: float, /) -> float:
        """The next coefficient. Raises SettingsError when the measured entropy is not finite."""
        _check_finite("EntropyTarget", measured)
        moved = coefficient + (self.rate if measured < self.target else -self.rate)
        return min(max(moved, 0.0), self.maximum)

    def bonus(self, coefficient: float, measured: float) -> float:
        """The ``entropy_bonus`` of the next step, where ``measured`` is the entropy of the last one."""
        _check_finite("EntropyTarget", measured)
        return coefficient if measured <= self.target else 0.0


@dataclass(frozen=True, slots=True)
class KLTarget:
    """Adaptive KL weight: β ← β (1 + clip(KL / target - 1, ±0.2) · samples / horizon).

    target: KL in the unit of what is measured.  horizon: samples over which β can change by a fifth.
    β stays positive, and one step changes it by a fifth at most.
    Source: Ziegler et al., arXiv:1909.08593, section 2.2.
    """

    target: float
    horizon: int = 10000

    def __post_init__(self) -> None:
        _check_positive("KLTarget.target", self.target)
        _check_positive("KLTarget.horizon", self.horizon)

    def __call__(self, beta: float, measured: float, samples: int, /) -> float:
        """The next β. Raises SettingsError when KL is not finite, or a step has more samples than the horizon."""
        _check_finite("KLTarget", measured)
        if not 0 <= samples <= self.horizon:
            raise SettingsError(f"KLTarget: a step of {samples} samples does not fit the horizon of {self.horizon}")
        error = min(max(measured / self.target - 1.0, -0.2), 0.2)
        return beta * (1.0 + error * samples / self.horizon)


def _check_positive(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise SettingsError(f"{field} must be above 0 and finite, got {value!r}")


def _check_finite(owner: str, measured: float) -> None:
    if not math.isfinite(measured):
        raise SettingsError(f"{owner}: what was measured must be finite, got {measured}")
