"""Decoding step by step: the logits of many rows, and what is drawn from them under all rules of sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from longthought.core.types import SamplingParams, TokenIds
from longthought.engine.native import no_token
from longthought.engine.processors import History, process, seen_tokens, steps_of
from longthought.engine.sampling import draw, uniforms
from longthought.engine.scheduler import Row, Scheduler
from longthought.models.cache import Prefill, SlotCache
from longthought.models.transformer import Transformer


class Steps(Protocol):
    """A model with the keys and values of ``slots`` sequences, on a device."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int: ...

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """Compute the prompts, all but their last token; prompt ``which[i]`` goes to ``slots[i]``."""
        ...

    def step(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """Feed one token to every slot; the logits of what follows. Those of free slots mean nothing."""
        ...

    def park(self, slot: int) -> None:
        """A slot is free."""
        ...

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """Drop every slot but ``rows``, which move to the front."""
        ...


class TorchSteps:
    """The PyTorch engine."""

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        weight = model.lm_head.weight
        self.model, self.device, self.vocabulary = model, weight.device, int(weight.shape[0])
        self.cache = SlotCache(model.config, slots, capacity, weight.dtype, self.device)

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        if max(map(len, prompts)) == 1:
            self.cache.length[slots] = 0
            return
        sizes = [len(p) - 1 for p in prompts]
        attend = Prefill([max(1, size) for size in sizes], self.device)
        tokens = self._index([t for p in prompts for t in (p[:-1] or p)])
        self.model(tokens, attend.positions, attend)
        attend.sizes = self._index(sizes)
        self.cache.fill(slots, attend, which)

    def step(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``Steps``."""
        self.cache.begin_step()
        hidden: Tensor = self.model(tokens, self.cache.length, self.cache)
        self.cache.end_step()
        return hidden @ self.model.lm_head.weight.T

    def park(self, slot: int) -> None:
        """A free slot goes on decoding garbage at position 0, where it costs nothing and harms nobody."""
        self.cache.length[slot] = 0

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        self.cache.keep(rows)

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


class Wave:
    """The tensors of one call: next tokens, randomness and history of every slot, on the model's device."""

    def __init__(
        self, steps: Steps, prompts: Sequence[TokenIds], params: SamplingParams, slots: int, capacity: int
    ) -> None:
        self.steps, self.prompts, self.params, self.device = steps, prompts, params, steps.device
        self.rules = steps_of(params, steps.vocabulary, self.device)
        self.next = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.uniform = torch.zeros(slots, capacity, dtype=torch.float64, device=self.device)
        self.count = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self.seen = torch.zeros(slots, steps.vocabulary, dtype=torch.bool, device=self.device)

    def admit(self, rows: list[tuple[int, Row]]) -> None:
        """Compute the new prompts, all but their last token, which the first decoding step feeds."""
        if not rows:
            return
        needed = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for _, row in rows))}
        slots = self._index([slot for slot, _ in rows])
        which = self._index([needed[row.prompt] for _, row in rows])
        self.steps.admit([self.prompts[i] for i in needed], slots, which)
        self.next[slots] = self._index([self.prompts[row.prompt][-1] for _, row in rows])
        self.count[slots] = 0
        for slot, row in rows:
            self.uniform[slot, : row.limit] = uniforms(row.key, row.limit).to(self.device)
        if self.seen is not None:
            prompts = [self.prompts[i] for i in needed]
            self.seen[slots] = seen_tokens(prompts, self.steps.vocabulary, self.device)[which]

    def step(self, scheduler: Scheduler) -> list[Row]:
        """Decode one token in every slot; returns the rows that this finished."""
        logits = self.steps.step(self.next)
        u = self.uniform.gather(1, self.count[:, None]).squeeze(1)
        scores = process(logits, self._history(scheduler), self.rules)
        tokens, logp = draw(scores, u, greedy=self.params.temperature == 0)
        self.next = tokens
        self.count = (self.count + 1).clamp_(max=self.uniform.shape[1] - 1)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        alternatives = _best(logp, self.params.top_logprobs)
        drawn = logp.gather(-1, tokens[:, None]).squeeze(-1)
        finished = []
        for slot, (token, logprob) in enumerate(zip(tokens.tolist(), drawn.tolist())):
            row = scheduler.slots[slot]
            if row is None:
                continue
            _check_drawn(logprob, row)
            if alternatives:
                row.alternatives.append(alternatives[slot])
            if scheduler.accept(slot, token, logprob):
                finished.append(row)
                self._park(slot)
        return finished

    def _history(self, scheduler: Scheduler) -> History:
        if not self.params.processors:
            return History(self.count, self.seen)
        rows = scheduler.slots
        tokens = [None if row is None else [*self.prompts[row.prompt], *row.tokens] for row in rows]
        return History(self.count, self.seen, tokens)

    def _park(self, slot: int) -> None:
        self.steps.park(slot)
        self.count[slot] = 0

    def keep(self, slots: list[int]) -> None:
        """Drop every slot but ``slots``, which move to the front."""
        rows = self._index(slots)
        self.steps.keep(rows)
        self.next, self.uniform, self.count = self.next[rows], self.uniform[rows], self.count[rows]
        if self.seen is not None:
            self.seen = self.seen[rows]

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


def _best(logp: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The ``count`` most likely tokens of every row with their log-probs, without those that cannot be drawn."""
    if not count:
        return []
    best = logp.topk(count)
    rows = zip(best.indices.tolist(), best.values.tolist())
    return [tuple((t, value) for t, value in zip(*row) if value > -math.inf) for row in rows]


def _check_drawn(logprob: float, row: Row) -> None:
    if not math.isfinite(logprob):
        raise no_token(row.prompt, len(row.tokens))
