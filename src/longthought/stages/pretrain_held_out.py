"""The loss on documents that training never reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from longthought.core.errors import SettingsError
from longthought.core.types import PolicyOutput, Rows, TokenIds, rows_of
from longthought.stages.pretrain_reading import Pages, cut
from longthought.tasks.corpus import held_out

_ROWS = 64  # windows that are measured together


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


@dataclass(frozen=True)
class Measure:
    """Documents held out, as windows; ``size``: bytes of their text, 0 where tokens are words."""

    windows: list[TokenIds]
    size: int

    @classmethod
    def of(cls, pages: Pages, settings: HeldOut) -> Measure:
        """The first held-out documents of a corpus, none twice, and none turned by fill-in-the-middle."""
        numbers = range(settings.documents)
        documents = list(dict.fromkeys(held_out(pages.corpus, number) for number in numbers))
        tokenizer = getattr(pages.renderer, "tokenizer", None)
        plain = tokenizer is not None and not tokenizer.is_closed and all(page.user is None for page in documents)
        size = sum(len(page.text.encode()) for page in documents) if plain else 0
        return cls([window for page in documents for window in cut(pages.plain(page), pages.context)], size)

    def __call__(self, learner: Evaluates) -> dict[str, float]:
        """``held_out_loss``, nats per token, and ``held_out_bits_per_byte``, which does not depend on the tokenizer."""
        total, count = 0.0, 0
        for start in range(0, len(self.windows), _ROWS):
            rows = rows_of(self.windows[start : start + _ROWS])
            total -= float(learner.evaluate(rows).logp.double().sum())
            count += int((rows.lengths - 1).sum())
        found = {"held_out_loss": total / max(1, count)}
        return found | ({"held_out_bits_per_byte": total / math.log(2) / self.size} if self.size else {})
