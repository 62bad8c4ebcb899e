"""The rollout engine: a Sampler over a model in memory, by the native core where it can, by PyTorch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Finished, Renderer
from longthought.core.types import Completion, Message, SamplingParams, TokenIds
from longthought.engine.draft import Drafter, DraftingWave, Drafts, DraftSteps
from longthought.engine.native import Asked, NativeDecoder, NativeDraftSteps, NativeSteps, generate
from longthought.engine.parameters import check, checked_prompt
from longthought.engine.scheduler import Row, Scheduler
from longthought.engine.stopping import Decode, StopStrings
from longthought.engine.wave import Steps, TorchSteps, Wave
from longthought.models.precision import Precision, autocast, check_precision, native
from longthought.models.transformer import Transformer


@dataclass(frozen=True)
class EngineSettings:
    """slots: sequences decoded together, at most.

    precision: of the matrix products, and of the stored keys and values; see ``models/precision.py``.
    threads: of the native core; 0: as many as PyTorch has.
    draft: whether the model's modules of multi-token prediction draft the tokens that follow; replies stay the same,
    see ``engine/draft.py``.
    routing: whether completions tell which experts every token has chosen, so that a learner can choose the same.
    """

    slots: int = 256
    precision: Precision = "auto"
    threads: int = 0
    draft: bool = False
    routing: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise SettingsError(f"slots={self.slots}: must be at least 1")
        check_precision("engine", self.precision)
        if self.threads < 0:
            raise SettingsError(f"threads={self.threads}: must be at least 1, or 0 for as many as PyTorch has")
        for name in ("draft", "routing"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name}={getattr(self, name)!r}: must be True or False")


class Speaker(Protocol):
    """A model with the chat format that it speaks, such as a ``Policy``."""

    @property
    def model(self) -> Transformer: ...

    @property
    def renderer(self) -> Renderer: ...


class Engine:
    """Samples completions with continuous refill.

    A prompt is computed once and its cache given to every sample of its group. The log-prob of a token comes from the
    pass that drew it. ``version`` is stamped on completions: set it after each change of the weights. The weights are
    those that the model has when a call begins. ``drafts`` counts what was drafted since the engine was made.

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
        self.threads = settings.threads or torch.get_num_threads()
        self.drafts = Drafts()
        if settings.draft and not self.model.config.num_nextn_predict_layers:
            raise SettingsError(
                "draft=True: the model has no modules of multi-token prediction (num_nextn_predict_layers is 0), "
                "which are what drafts; set draft=False"
            )
        if settings.routing and self.model.config.experts is None:
            raise SettingsError("routing=True: the model has no routed experts to tell of; set routing=False")

    def sample(self, prompts: Sequence[TokenIds | str], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt.

        Raises what ``accepted`` raises, and LongthoughtError when no token can be drawn.
        """
        return self.stream(prompts, params, lambda prompt, completions: None)

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[TokenIds | str],
        params: SamplingParams,
        finished: Finished,
    ) -> list[list[Completion]]:
        """As ``sample``; ``finished`` is given the index of a prompt and its completions once they are all there."""
        params = self.ended(params)
        prompts = self.accepted(prompts, params)
        if not prompts:
            return []
        context = self.model.config.max_position_embeddings
        scheduler = Scheduler(prompts, params, self.settings.slots, context, self._strings(params))
        results: list[list[Completion]] = [[] for _ in prompts]

        def complete(prompt: int, completions: list[Completion]) -> None:
            results[prompt] = completions
            finished(prompt, completions)

        core = native(self.model, self.settings.precision)
        decoder = None if core is None else NativeDecoder(self.model, core, self.settings.draft)
        if decoder is not None and _is_drawn_natively(params):
            routing = self.settings.routing
            asked = Asked(prompts, list(scheduler.waiting), params.temperature, params.stop_tokens, routing)
            self.drafts += Drafts(*generate(decoder, asked, self.threads, self.settings.slots, complete, self.version))
        else:
            with autocast(self.model, self.settings.precision) if decoder is None else nullcontext():
                self._step_by_step(decoder, prompts, params, scheduler, complete)
        return results

    @property
    def is_native(self) -> bool:
        """Whether the native core computes the model."""
        return native(self.model, self.settings.precision) is not None

    def _step_by_step(
        self,
        decoder: NativeDecoder | None,
        prompts: Sequence[TokenIds],
        params: SamplingParams,
        scheduler: Scheduler,
        finished: Finished,
    ) -> None:
        context, slots = self.model.config.max_position_embeddings, len(scheduler.slots)
        routing = self.settings.routing
        longest = min(context, max(map(len, prompts)) + params.max_tokens)
        capacity = min(params.max_tokens, context)
        if self.settings.draft:
            drafter: Drafter
            if decoder is None:
                drafter = DraftSteps(self.model, slots, longest, routing)
            else:
                drafter = NativeDraftSteps(decoder, slots, capacity, self.threads, routing)
            wave = DraftingWave(drafter, prompts, params, slots, longest)
            try:
                self._play(wave, params.count, scheduler, finished)
            finally:
                self.drafts += wave.drafts
            return
        steps: Steps
        if decoder is None:
            steps = TorchSteps(self.model, slots, longest, routing)
        else:
            steps = NativeSteps(decoder, slots, capacity, self.threads, routing)
        self._play(Wave(steps, prompts, params, slots, longest), params.count, scheduler, finished)

    def _play(self, wave: Wave, count: int, scheduler: Scheduler, finished: Finished) -> None:
        """Go on until every row has ended; ``count`` of them for every prompt."""
        prompts = wave.prompts
        groups: list[list[Completion | None]] = [[None] * count for _ in prompts]
        missing = [count] * len(prompts)
        while not scheduler.done:
            wave.admit(scheduler.admit())
            for row in wave.step(scheduler):
                groups[row.prompt][row.sample] = self._completion(row)
                missing[row.prompt] -= 1
                if not missing[row.prompt]:
                    finished(row.prompt, [one for one in groups[row.prompt] if one is not None])
            kept = scheduler.shrink()
            if kept is not None:
                wave.keep(kept)

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
            tuple(row.tokens),
            tuple(row.logprobs),
            row.finish,
            self.version,
            tuple(row.alternatives),
            np.concatenate(row.routing) if row.routing else None,
        )


def _is_drawn_natively(params: SamplingParams) -> bool:
    """Whether the core draws the tokens itself. Otherwise it gives the logits, and every other rule applies to them."""
    return params.is_plain and not params.stop and not params.top_logprobs
