"""The loss on documents that training never reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longthought.core.types import TokenIds, rows_of
from longthought.stages.held_out import Evaluates, HeldOut
from longthought.stages.pretrain_reading import Pages, cut
from longthought.tasks.corpus import held_out

_ROWS = 64  # windows that are measured together


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
