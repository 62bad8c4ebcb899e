"""Decoding step by step: the logits of many rows, and what is drawn from them under all rules of sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor

from longthought.core.types import SamplingParams, TokenIds
from longthought.engine.native import no_token
from longthought.engine.processors import History, process, seen_tokens, steps_of
from longthought.engine.sampling import draw, uniforms
from longthought.engine.scheduler import Row, Scheduler
from longthought.models.cache import Prefill, SlotCache
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer


class Steps(Protocol):
    """A model with the keys and values of ``slots`` sequences, on a device."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def read(self) -> Sequence[Int16[Tensor, "_ l k"]]:
        """The experts of the prompts of the last ``admit`` that had something to compute, if they are recorded: of all
        tokens but the last."""
        ...

    @property
    def choices(self) -> Int16[Tensor, "r *_ l k"] | None:
        """The experts of the tokens that the last ``step`` has fed, if they are recorded."""
        ...

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
    """The PyTorch engine. Keys and values are stored in the type in which products are computed, autocast or not."""

    def __init__(self, model: Transformer, slots: int, capacity: int, routing: bool = False) -> None:
        weight = model.lm_head.weight
        self.model, self.device, self.vocabulary = model, weight.device, int(weight.shape[0])
        kind = self.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.cache = SlotCache(model.config, slots, capacity, self.dtype, self.device)
        self.read: list[Tensor] = []
        self.choices: Tensor | None = None
        self._records = routing

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        if max(map(len, prompts)) == 1:
            self.cache.length[slots] = 0
            return
        self._prefill(prompts, slots, which)

    def _prefill(
        self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "s d"], Prefill]:
        """The states of the prompts, and how they lie; of a prompt of one token, which has no others, that one's."""
        sizes = [len(p) - 1 for p in prompts]
        attend = Prefill([max(1, size) for size in sizes], self.device)
        tokens = self._index([t for p in prompts for t in (p[:-1] or p)])
        routing = self._routing()
        hidden: Tensor = self.model(tokens, attend.positions, attend, routing)
        if routing is not None:
            parts = routing.choices().short().split([max(1, size) for size in sizes])
            self.read = [part[:size] for part, size in zip(parts, sizes)]
        attend.sizes = self._index(sizes)
        self.cache.fill(slots, attend, which)
        return hidden, attend

    def step(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``Steps``."""
        self.cache.begin_step()
        routing = self._routing()
        hidden: Tensor = self.model(tokens, self.cache.length, self.cache, routing)
        if routing is not None:
            self.choices = routing.choices().short()
        self.cache.end_step()
        return hidden @ self.model.lm_head.weight.T

    def park(self, slot: int) -> None:
        """A free slot goes on decoding garbage at position 0, where it costs nothing and harms nobody."""
        self.cache.length[slot] = 0

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        self.cache.keep(rows)

    def _routing(self) -> Routing | None:
        return Routing(self.model.config.routed_layers) if self._records else None

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
        if self.steps.read and max(len(self.prompts[i]) for i in needed) > 1:
            for _, row in rows:
                row.routing.append(self.steps.read[needed[row.prompt]].cpu().numpy())
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
        return self._take(logits, self._everyone(), scheduler, self.steps.choices)

    def _take(
        self,
        logits: Float[Tensor, "n v"],
        slots: Int64[Tensor, " n"],
        scheduler: Scheduler,
        choices: Int16[Tensor, "n l k"] | None,
    ) -> list[Row]:
        """Draw the next token of these slots, which stand in ``next`` afterwards; the rows that this finished.

        choices: the experts of the tokens that the logits come from.
        """
        scores = process(logits, self._history(slots, scheduler), self.rules)
        tokens, logp = self._draw(scores, slots)
        self.next[slots] = tokens
        self.count[slots] = (self.count[slots] + 1).clamp_(max=self.uniform.shape[1] - 1)
        if self.seen is not None:
            self.seen[slots, tokens] = True
        alternatives = _best(logp, self.params.top_logprobs)
        drawn = logp.gather(-1, tokens[:, None]).squeeze(-1)
        experts = None if choices is None else choices.cpu().numpy()
        finished = []
        for place, (slot, token, logprob) in enumerate(zip(slots.tolist(), tokens.tolist(), drawn.tolist())):
            row = scheduler.slots[slot]
            if row is None:
                continue
            _check_drawn(logprob, row)
            if alternatives:
                row.alternatives.append(alternatives[place])
            if experts is not None:
                row.routing.append(experts[place : place + 1])
            if scheduler.accept(slot, token, logprob):
                finished.append(row)
                self._park(slot)
        return finished

    def _draw(
        self, scores: Float[Tensor, "n v"], slots: Int64[Tensor, " n"], ahead: int = 0
    ) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n v"]]:
        """With the numbers that belong to the next tokens of these slots, or to those ``ahead`` of them."""
        place = (self.count[slots] + ahead).clamp_(max=self.uniform.shape[1] - 1)
        return draw(scores, self.uniform[slots, place], greedy=self.params.temperature == 0)

    def _history(self, slots: Int64[Tensor, " n"], scheduler: Scheduler) -> History:
        seen = None if self.seen is None else self.seen[slots]
        if not self.params.processors:
            return History(self.count[slots], seen)
        rows = [scheduler.slots[slot] for slot in slots.tolist()]
        tokens = [None if row is None else [*self.prompts[row.prompt], *row.tokens] for row in rows]
        return History(self.count[slots], seen, tokens)

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

    def _everyone(self) -> Int64[Tensor, " r"]:
        return torch.arange(len(self.next), device=self.device)

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
