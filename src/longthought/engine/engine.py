"""The PyTorch rollout engine: a Sampler over a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Completion, SamplingParams, TokenIds
from longthought.engine.sampling import draw, uniforms
from longthought.engine.scheduler import Row, Scheduler
from longthought.models.cache import Prefill, SlotCache
from longthought.models.transformer import Transformer


@dataclass(frozen=True)
class EngineSettings:
    """slots: sequences decoded together."""

    slots: int = 256

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise SettingsError(f"slots={self.slots}: must be at least 1")


class Engine:
    """Samples completions with continuous refill.

    A prompt is computed once and its cache given to every sample of its group. The log-prob of a token comes from the
    pass that drew it. ``version`` is stamped on completions: set it after each change of the weights.
    """

    def __init__(self, model: Transformer, settings: EngineSettings = EngineSettings()) -> None:
        self.model, self.settings, self.version = model, settings, 0

    @torch.inference_mode()
    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt. Raises DataError for an empty or over-long prompt."""
        context = self.model.config.max_position_embeddings
        _check(prompts, params, context)
        if not prompts:
            return []
        scheduler = Scheduler(prompts, params, self.settings.slots, context)
        longest = min(context, max(map(len, prompts)) + params.max_tokens)
        wave = _Wave(self.model, len(scheduler.slots), longest, params.temperature)
        results: list[list[Completion | None]] = [[None] * params.count for _ in prompts]
        while not scheduler.done:
            wave.admit(scheduler.admit(), prompts)
            for row in wave.step(scheduler):
                assert row.finish is not None
                results[row.prompt][row.sample] = Completion(
                    tuple(row.tokens), tuple(row.logprobs), row.finish, self.version
                )
            kept = scheduler.shrink()
            if kept is not None:
                wave.keep(torch.tensor(kept))
        return [[completion for completion in group if completion is not None] for group in results]


class _Wave:
    """The tensors of one call: cache, next tokens and randomness of every slot."""

    def __init__(self, model: Transformer, slots: int, capacity: int, temperature: float) -> None:
        weight = model.lm_head.weight
        self.model, self.temperature = model, temperature
        self.cache = SlotCache(model.config, slots, capacity, weight.dtype, weight.device)
        self.next = torch.zeros(slots, dtype=torch.int64, device=weight.device)
        self.uniform = torch.zeros(slots, capacity, dtype=torch.float64)
        self.count = torch.zeros(slots, dtype=torch.int64)

    def admit(self, rows: list[tuple[int, Row]], prompts: Sequence[TokenIds]) -> None:
        """Compute the new prompts, all but their last token, which the first decoding step feeds."""
        if not rows:
            return
        needed = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for _, row in rows))}
        slots = torch.tensor([slot for slot, _ in rows])
        which = torch.tensor([needed[row.prompt] for _, row in rows])
        self._prefill([prompts[i] for i in needed], slots, which)
        self.next[slots] = torch.tensor([prompts[row.prompt][-1] for _, row in rows])
        self.count[slots] = 0
        for slot, row in rows:
            self.uniform[slot, : row.limit] = uniforms(row.key, row.limit)

    def _prefill(self, prompts: list[TokenIds], slots: Tensor, which: Tensor) -> None:
        if max(map(len, prompts)) == 1:
            self.cache.length[slots] = 0
            return
        sizes = [len(p) - 1 for p in prompts]
        attend = Prefill([max(1, size) for size in sizes])
        tokens = torch.tensor([t for p in prompts for t in (p[:-1] or p)])
        self.model(tokens, attend.positions, attend)
        attend.sizes = torch.tensor(sizes)
        self.cache.fill(slots, attend, which)

    def step(self, scheduler: Scheduler) -> list[Row]:
        """Decode one token in every slot; returns the rows that this finished."""
        self.cache.begin_step()
        hidden = self.model(self.next, self.cache.length, self.cache)
        self.cache.end_step()
        u = self.uniform.gather(1, self.count[:, None]).squeeze(1)
        tokens, logp = draw(hidden @ self.model.lm_head.weight.T, u, self.temperature)
        self.next = tokens
        self.count = (self.count + 1).clamp_(max=self.uniform.shape[1] - 1)
        finished = []
        for slot, (token, logprob) in enumerate(zip(tokens.tolist(), logp.tolist())):
            if scheduler.slots[slot] is not None:
                row = scheduler.accept(slot, token, logprob)
                if row is not None:
                    finished.append(row)
                    self._park(slot)
        return finished

    def _park(self, slot: int) -> None:
        """A free slot goes on decoding garbage at position 0, where it costs nothing and harms nobody."""
        self.cache.length[slot] = 0
        self.count[slot] = 0

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)
        self.next, self.uniform, self.count = self.next[rows], self.uniform[rows], self.count[rows]


def _check(prompts: Sequence[TokenIds], params: SamplingParams, context: int) -> None:
    if params.temperature < 0:
        raise SettingsError(f"temperature={params.temperature}: must be 0 (greedy) or positive")
    if params.max_tokens < 1 or params.count < 1:
        raise SettingsError(f"max_tokens={params.max_tokens}, count={params.count}: both must be at least 1")
    for prompt in prompts:
        if not prompt:
            raise DataError("an empty prompt cannot be continued: it needs at least one token")
        if len(prompt) >= context:
            raise DataError(f"a prompt of {len(prompt)} tokens leaves no room in a context of {context}")
