"""When a stage measures itself on what it never trains on, and on how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from longthought.core.errors import SettingsError
from longthought.core.types import PolicyOutput, Rows


@dataclass(frozen=True)
class HeldOut:
    """every: steps between two measurements; the last step is always measured.  documents: how many, at most."""

    every: int = 100
    documents: int = 64

    def __post_init__(self) -> None:
        if self.every < 1 or self.documents < 1:
            raise SettingsError(f"held_out: every={self.every}, documents={self.documents}: at least 1")


class Evaluates(Protocol):
    """A learner, for what it says of tokens."""

    def evaluate(self, rows: Rows) -> PolicyOutput: ...
