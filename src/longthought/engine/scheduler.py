"""Which sample sits in which slot. Pure Python: no tensors."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longthought.core.types import Finish, SamplingParams, TokenIds
from longthought.engine.sampling import sample_key
from longthought.engine.stopping import StopStrings


@dataclass(slots=True)
class Row:
    """A sample on its way. ``prompt`` and ``sample`` say where its completion goes; ``key`` is its randomness.

    ``routing``: the experts of the tokens that were fed, (tokens, L_r, K_r) each; empty where they are not recorded.
    ``bounded``: its limit is what the context leaves, not what was asked for.
    """

    prompt: int
    sample: int
    key: int
    limit: int
    bounded: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    routing: list[NDArray[np.int16]] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def cut(self) -> Finish:
        """What its end is called if it comes by the limit."""
        return Finish.BUDGET if self.bounded else Finish.LENGTH


class Scheduler:
    """Rows wait in order; a finished row makes room for the next.

    The samples of a prompt that appears twice in one call continue its numbering, so that no two samples share their
    randomness, and the draws of a prompt do not depend on what else is in the call.
    """

    def __init__(
        self,
        prompts: Sequence[TokenIds],
        params: SamplingParams,
        slots: int,
        context: int,
        strings: StopStrings | None = None,
    ) -> None:
        seen: Counter[TokenIds] = Counter()
        self._stop, self._strings = frozenset(params.stop_tokens), strings
        self.waiting: deque[Row] = deque()
        for index, prompt in enumerate(prompts):
            room = context - len(prompt)
            limit, bounded = min(params.max_tokens, room), room < params.max_tokens
            for sample in range(params.count):
                key = sample_key(params.seed, prompt, seen[prompt] + sample)
                self.waiting.append(Row(index, sample, key, limit, bounded))
            seen[prompt] += params.count
        self.slots: list[Row | None] = [None] * min(slots, len(self.waiting))

    @property
    def done(self) -> bool:
        return not self.waiting and all(row is None for row in self.slots)

    def admit(self) -> list[tuple[int, Row]]:
        """Fill free slots: pairs (slot, row). Waits until an eighth of the slots are free, to admit many at once."""
        free = [slot for slot, row in enumerate(self.slots) if row is None]
        if not self.waiting or len(free) < min(len(self.waiting), max(1, len(self.slots) // 8)):
            return []
        admitted = [(slot, self.waiting.popleft()) for slot in free[: len(self.waiting)]]
        for slot, row in admitted:
            self.slots[slot] = row
        return admitted

    def shrink(self) -> list[int] | None:
        """When nothing waits and a quarter of the slots are free: the slots to keep, after dropping the others."""
        kept = [slot for slot, row in enumerate(self.slots) if row is not None]
        if self.waiting or not kept or len(kept) > 0.75 * len(self.slots):
            return None
        self.slots = [self.slots[slot] for slot in kept]
        return kept

    def accept(self, slot: int, token: int, logprob: float) -> Row | None:
        """Append a drawn token. Returns the row when it is finished, and frees its slot."""
        row = self.slots[slot]
        assert row is not None
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if token in self._stop:
            row.finish = Finish.STOP
        elif self._strings is not None and self._strings.completed(row.tokens):
            row.finish = Finish.STOP_STRING
        elif len(row.tokens) == row.limit:
            row.finish = row.cut
        if row.finish is None:
            return None
        self.slots[slot] = None
        return row
