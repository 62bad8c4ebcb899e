"""The PyTorch rollout engine: a Sampler over a model in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from longthought.core.errors import DataError, LongthoughtError, SettingsError
from longthought.core.protocols import Renderer
from longthought.core.types import Completion, Message, SamplingParams, TokenIds
from longthought.engine.parameters import check, checked_prompt
from longthought.engine.processors import History, process, seen_tokens, steps_of
from longthought.engine.sampling import draw, uniforms
from longthought.engine.scheduler import Row, Scheduler
from longthought.engine.stopping import Decode, StopStrings
from longthought.models.cache import Prefill, SlotCache
from longthought.models.transformer import Transformer


@dataclass(frozen=True)
class EngineSettings:
    """slots: sequences decoded together."""

    slots: int = 256

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise SettingsError(f"slots={self.slots}: must be at least 1")


class Speaker(Protocol):
    """A model with the chat format that it speaks, such as a ``Policy``."""

    @property
    def model(self) -> Transformer: ...

    @property
    def renderer(self) -> Renderer: ...


class Engine:
    """Samples completions with continuous refill.

    A prompt is computed once and its cache given to every sample of its group. The log-prob of a token comes from the
    pass that drew it. ``version`` is stamped on completions: set it after each change of the weights.

    model: a bare model, or one with its chat format: then prompts may be texts (what a user says), and its stop tokens
    and strings end replies unless the parameters name others.
    decode: tokens to text, for stop strings of a bare model.
    """

    def __init__(
        self, model: Transformer | Speaker, settings: EngineSettings = EngineSettings(), decode: Decode | None = None
    ) -> None:
        self.renderer: Renderer | None = getattr(model, "renderer", None)
        self.model: Transformer = model.model if self.renderer is not None else model  # type: ignore[assignment]
        self.decode = decode or (self.renderer.decode if self.renderer else None)
        self.settings, self.version = settings, 0

    @torch.inference_mode()
    def sample(self, prompts: Sequence[TokenIds | str], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt.

        Raises what ``accepted`` raises, and LongthoughtError when no token can be drawn.
        """
        params = self.ended(params)
        prompts = self.accepted(prompts, params)
        if not prompts:
            return []
        context = self.model.config.max_position_embeddings
        scheduler = Scheduler(prompts, params, self.settings.slots, context, self._strings(params))
        longest = min(context, max(map(len, prompts)) + params.max_tokens)
        wave = _Wave(self.model, prompts, params, len(scheduler.slots), longest)
        results: list[list[Completion | None]] = [[None] * params.count for _ in prompts]
        while not scheduler.done:
            wave.admit(scheduler.admit())
            for row in wave.step(scheduler):
                results[row.prompt][row.sample] = self._completion(row)
            kept = scheduler.shrink()
            if kept is not None:
                wave.keep(kept)
        return [[completion for completion in group if completion is not None] for group in results]

    def ended(self, params: SamplingParams) -> SamplingParams:
        """The parameters, with the ends that the chat format knows where they name none."""
        if self.renderer is None or params.stop_tokens or params.stop:
            return params
        return replace(params, stop_tokens=self.renderer.stop_tokens, stop=self.renderer.stop)

    def accepted(self, prompts: Sequence[TokenIds | str], params: SamplingParams) -> list[TokenIds]:
        """The prompts, as tuples of tokens.

        Raises DataError for a prompt that is empty, too long or of unknown tokens, SettingsError for parameters out of
        range.
        """
        config = self.model.config
        check(params, config.vocab_size, decodes=self.decode is not None)
        tokens = [self._tokens(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [checked_prompt(prompt, config.vocab_size, config.max_position_embeddings) for prompt in tokens]

    def _tokens(self, prompt: str) -> TokenIds:
        if self.renderer is None:
            raise DataError("a bare model takes token ids; give Engine a policy, which knows how to write a prompt")
        return self.renderer.prompt((Message("user", prompt),))

    def _strings(self, params: SamplingParams) -> StopStrings | None:
        return StopStrings(params.stop, self.decode, params.min_tokens) if params.stop and self.decode else None

    def _completion(self, row: Row) -> Completion:
        assert row.finish is not None
        return Completion(
            tuple(row.tokens), tuple(row.logprobs), row.finish, self.version, alternatives=tuple(row.alternatives)
        )


class _Wave:
    """The tensors of one call: cache, next tokens, randomness and history of every slot, on the model's device."""

    def __init__(
        self, model: Transformer, prompts: Sequence[TokenIds], params: SamplingParams, slots: int, capacity: int
    ) -> None:
        weight = model.lm_head.weight
        self.model, self.prompts, self.params, self.device = model, prompts, params, weight.device
        self.vocabulary = int(weight.shape[0])
        self.steps = steps_of(params, self.vocabulary, self.device)
        self.cache = SlotCache(model.config, slots, capacity, weight.dtype, self.device)
        self.next = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.uniform = torch.zeros(slots, capacity, dtype=torch.float64, device=self.device)
        self.count = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self.seen = torch.zeros(slots, self.vocabulary, dtype=torch.bool, device=self.device)

    def admit(self, rows: list[tuple[int, Row]]) -> None:
        """Compute the new prompts, all but their last token, which the first decoding step feeds."""
        if not rows:
            return
        needed = {prompt: number for number, prompt in enumerate(dict.fromkeys(row.prompt for _, row in rows))}
        slots = self._index([slot for slot, _ in rows])
        which = self._index([needed[row.prompt] for _, row in rows])
        self._prefill([self.prompts[i] for i in needed], slots, which)
        self.next[slots] = self._index([self.prompts[row.prompt][-1] for _, row in rows])
        self.count[slots] = 0
        for slot, row in rows:
            self.uniform[slot, : row.limit] = uniforms(row.key, row.limit).to(self.device)
        if self.seen is not None:
            self.seen[slots] = seen_tokens([self.prompts[i] for i in needed], self.vocabulary, self.device)[which]

    def _prefill(self, prompts: list[TokenIds], slots: Tensor, which: Tensor) -> None:
        if max(map(len, prompts)) == 1:
            self.cache.length[slots] = 0
            return
        sizes = [len(p) - 1 for p in prompts]
        attend = Prefill([max(1, size) for size in sizes], self.device)
        tokens = self._index([t for p in prompts for t in (p[:-1] or p)])
        self.model(tokens, attend.positions, attend)
        attend.sizes = self._index(sizes)
        self.cache.fill(slots, attend, which)

    def step(self, scheduler: Scheduler) -> list[Row]:
        """Decode one token in every slot; returns the rows that this finished."""
        self.cache.begin_step()
        hidden = self.model(self.next, self.cache.length, self.cache)
        self.cache.end_step()
        u = self.uniform.gather(1, self.count[:, None]).squeeze(1)
        scores = process(hidden @ self.model.lm_head.weight.T, self._history(scheduler), self.steps)
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
        """A free slot goes on decoding garbage at position 0, where it costs nothing and harms nobody."""
        self.cache.length[slot] = 0
        self.count[slot] = 0

    def keep(self, slots: list[int]) -> None:
        """Drop every slot but ``slots``, which move to the front."""
        rows = self._index(slots)
        self.cache.keep(rows)
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
        raise LongthoughtError(
            f"no token can be drawn after {len(row.tokens)} tokens of a reply to prompt {row.prompt}: its logits are "
            "NaN, infinite, or all −∞. Either the weights have diverged, or bad_tokens, min_tokens or a processor "
            "leave no token, or the temperature is too close to 0 (use 0 for greedy)"
        )
