"""The native engine: whole replies, or single steps, by the C++ core (``csrc/generate.h``, ``csrc/session.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from longthought.core.errors import LongthoughtError
from longthought.core.protocols import Finished
from longthought.core.types import Completion, Finish, TokenIds
from longthought.engine.scheduler import Row
from longthought.models.config import ModelConfig
from longthought.models.kernels.core import Core, at
from longthought.models.kernels.decoding import PackedDecoder
from longthought.models.transformer import Transformer

_TALL = 6  # rows of the core's tallest tile: waves are a multiple of it
_WIDEST = 30  # rows of a wave
_STREAMED = 60  # the same, where the weights do not fit into the cache and every step reads them from memory
_DRAFTED = _TALL  # rows of a step up to which drafts are checked: further ones cost as much as they can save
_SHARE = 1 / 3  # of the last cache, for weights, keys and values; other programs use it, too
_USUAL = 16 * 2**20  # bytes of a last cache that does not tell its size
_FULL = "no memory is left for the keys and values of the replies: fewer slots, or shorter replies"
_DONE, _STOPPED, _NO_MEMORY, _NO_TOKEN = range(4)
_Report = ctypes.CFUNCTYPE(c_int32, POINTER(c_int32), c_int64)


class _Request(Structure):
    _fields_ = [
        ("prompts", c_int64),
        ("rows", c_int64),
        *((name, c_void_p) for name in ("tokens", "offset", "prompt", "key", "limit", "stops")),
        ("temperature", c_float),
        ("threads", c_int32),
        ("wave", c_int32),
        *((name, c_void_p) for name in ("drawn", "logprobs", "start", "length", "prompt_choices", "choices")),
        ("draft_rows", c_int64),
        ("drafts", c_void_p),
    ]


class NativeDecoder:
    """The weights of a model as they are now, ready to sample. Nothing of it is seen when the model changes.

    draft: whether its modules of multi-token prediction draft.
    """

    def __init__(self, model: Transformer, core: Core, draft: bool = False) -> None:
        self.config = model.config if draft else replace(model.config, num_nextn_predict_layers=0)
        self.core = core
        self._packed = PackedDecoder(model, core, draft)
        self._item = 2 if core.narrow else 4

    @property
    def address(self) -> int:
        """Of the C structure."""
        return self._packed.address

    def wave(self, tokens: float, threads: int) -> int:
        """How many rows of this many tokens one thread keeps going: as many as leave weights, keys and values in the
        cache; where the weights alone do not fit, so many that reading them for a step is worth it."""
        config = self.config
        room = _SHARE * _last_cache() - self._item * config.parameters()
        if room < 0:
            return _STREAMED
        heads, key, _ = config.cached
        value = key if config.latent is None else config.latent.kv_lora_rank
        numbers = (config.num_hidden_layers + config.num_nextn_predict_layers) * heads * (key + value)
        rows = int(room / (threads * self._item * numbers * max(1.0, tokens)))
        return max(_TALL, min(_WIDEST, rows - rows % _TALL))


@cache
def _last_cache() -> int:
    """Bytes of the cache that the cores share."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return _USUAL


@dataclass(frozen=True)
class Asked:
    """What is to be sampled. rows: in the order of their prompts; a reply ends with one of ``stop_tokens``.

    routing: whether the experts of every token are recorded.
    """

    prompts: Sequence[TokenIds]
    rows: Sequence[Row]
    temperature: float
    stop_tokens: Sequence[int]
    routing: bool = False


class _Replies:
    """Where C writes what was asked for: row i from ``starts[i]`` on, ``lengths[i]`` tokens once it has ended.

    choices: of experts, as ``drawn`` lies; prompt_choices: as the prompts lie, end to end. (tokens, routed layers, K)
    """

    def __init__(self, asked: Asked, version: int, config: ModelConfig) -> None:
        self.asked, self.version = asked, version
        self.starts = list(accumulate((row.limit for row in asked.rows), initial=0))
        self.drawn = torch.empty(self.starts[-1], dtype=torch.int32, device="cpu")
        self.logprobs = torch.empty(self.starts[-1], device="cpu")
        self.lengths = torch.zeros(len(asked.rows), dtype=torch.int64, device="cpu")
        self.choices: Tensor | None = None
        self.prompt_choices: Tensor | None = None
        if asked.routing:
            self.choices = _room_for_choices(config, self.starts[-1])
            self.prompt_choices = _room_for_choices(config, sum(map(len, asked.prompts)))
        self._first = list(accumulate(map(len, asked.prompts), initial=0))
        self._stop = frozenset(asked.stop_tokens)
        self._rows: dict[int, list[int]] = {}
        for number, row in enumerate(asked.rows):
            self._rows.setdefault(row.prompt, []).append(number)

    def of(self, prompt: int) -> list[Completion]:
        """The completions of a prompt, in the order of its rows."""
        return [self._completion(number) for number in self._rows[prompt]]

    def _completion(self, number: int) -> Completion:
        row, first = self.asked.rows[number], self.starts[number]
        ids = tuple(self.drawn[first : first + int(self.lengths[number])].tolist())
        finish = Finish.STOP if ids[-1] in self._stop else row.cut
        logprobs = tuple(self.logprobs[first : first + len(ids)].tolist())
        return Completion(ids, logprobs, finish, self.version, routing=self._routing(row.prompt, first, len(ids)))

    def _routing(self, prompt: int, first: int, length: int) -> NDArray[np.int16] | None:
        """The choices of all tokens that were fed, the prompt's first; its last one was fed with the reply's."""
        if self.choices is None or self.prompt_choices is None:
            return None
        start = self._first[prompt]
        read = self.prompt_choices[start : start + len(self.asked.prompts[prompt]) - 1]
        return torch.cat((read, self.choices[first : first + length])).numpy()


def _room_for_choices(config: ModelConfig, tokens: int) -> Tensor | None:
    """(tokens, routed layers, K) int16; None for a model without experts."""
    if config.experts is None:
        return None
    layers = sum(layer < config.num_hidden_layers for layer in config.routed_layers)
    return torch.empty(tokens, layers, config.experts.num_experts_per_tok, dtype=torch.int16, device="cpu")


def generate(
    decoder: NativeDecoder, asked: Asked, threads: int, slots: int, finished: Finished, version: int
) -> tuple[int, int]:
    """Sample every row; ``finished`` is given the completions of a prompt as soon as all of them are there.

    Returns how many tokens were drafted, and how many of these were drawn.

    slots: the most rows that all threads together keep going. Raises LongthoughtError where no token can be drawn,
    MemoryError, and what ``finished`` raises.
    """
    replies = _Replies(asked, version, decoder.config)
    stops = torch.zeros(decoder.config.vocab_size, dtype=torch.uint8, device="cpu")
    stops[torch.tensor(asked.stop_tokens, dtype=torch.int64, device="cpu")] = 1
    tokens, offset = _laid(asked.prompts)
    prompt = torch.tensor([row.prompt for row in asked.rows], dtype=torch.int32, device="cpu")
    keys, limit, start = (
        torch.tensor(values, dtype=torch.int64, device="cpu")
        for values in ([_signed(row.key) for row in asked.rows], [row.limit for row in asked.rows], replies.starts)
    )
    usual = sum(map(len, asked.prompts)) / len(asked.prompts) + replies.starts[-1] / len(asked.rows) / 2
    wave = min(decoder.wave(usual, threads), -(-slots // threads), -(-len(asked.rows) // threads))
    drafts = torch.zeros(2, dtype=torch.int64, device="cpu")
    request = _Request(
        len(asked.prompts),
        len(asked.rows),
        *map(at, (tokens, offset, prompt, keys, limit, stops)),
        asked.temperature,
        threads,
        wave,
        *map(at, (replies.drawn, replies.logprobs, start, replies.lengths)),
        *map(at, (replies.prompt_choices, replies.choices)),
        _DRAFTED,
        at(drafts),
    )
    status = _run(decoder, request, lambda number: finished(number, replies.of(number)))
    if status == _NO_MEMORY:
        raise MemoryError(_FULL)
    if status == _NO_TOKEN:
        number = int((replies.lengths < 0).nonzero()[0])
        raise no_token(asked.rows[number].prompt, -1 - int(replies.lengths[number]))
    return int(drafts[0]), int(drafts[1])


def _run(decoder: NativeDecoder, request: _Request, done: Callable[[int], object]) -> int:
    """The status in which C ends. ``done`` is told of every prompt in this thread; what it raises ends C, too."""
    run = decoder.core.library.bind("lt_generate", (c_int, c_void_p, c_void_p, _Report), c_int)
    told: SimpleQueue[list[int] | int] = SimpleQueue()  # prompts that are done; at last, the status
    ended = Event()

    def report(some: Any, count: int) -> int:
        if count:
            told.put(some[:count])
        return int(ended.is_set())

    def work() -> None:  # not in this thread: an interrupt must not end in C
        told.put(run(decoder.core.narrow, decoder.address, ctypes.addressof(request), _Report(report)))

    thread = Thread(target=work)
    thread.start()
    try:
        while isinstance(news := told.get(), list):
            for number in news:
                done(number)
        return news
    finally:
        ended.set()
        thread.join()


class NativeSteps:
    """The logits of single steps, for callers that choose the tokens themselves: a cache of ``slots`` rows.

    routing: whether choices of experts are recorded. ``read`` then holds those of the prompts of the last ``admit``,
    each (tokens, routed layers, K), and ``choices`` those of the last step, (slots, …, routed layers, K), int16.
    """

    def __init__(self, decoder: NativeDecoder, slots: int, capacity: int, threads: int, routing: bool = False) -> None:
        self._decoder, core = decoder, decoder.core
        types: dict[str, tuple[tuple[Any, ...], Any]] = {
            "new": ((c_int, c_void_p, c_int64, c_int64, c_int), c_void_p),
            "free": ((c_int, c_void_p), c_int),
            "admit": ((c_int, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p), c_int),
            "next": ((c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int64), c_int),
            "ahead": ((c_int, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p), c_int),
            "feed": ((c_int, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p), c_int),
        }
        self._call = {name: core.library.bind(f"lt_session_{name}", *form) for name, form in types.items()}
        self.device, self.vocabulary = torch.device("cpu"), decoder.config.vocab_size
        self._slots, self._busy = torch.arange(slots, device="cpu"), torch.zeros(slots, dtype=torch.bool, device="cpu")
        self._routing = routing
        self.read: list[Int16[Tensor, "t l k"]] = []
        self.choices: Int16[Tensor, "r *_ l k"] | None = None
        self._session = self._call["new"](core.narrow, decoder.address, slots, capacity, threads)

    def close(self) -> None:
        """Give the memory back."""
        if self._session:
            self._call["free"](self._decoder.core.narrow, self._session)
            self._session = None

    __del__ = close

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """See ``wave.Steps``."""
        tokens, offset = _laid(prompts)
        real = self._slots[slots]
        self._busy[slots] = True
        choices = _room_for_choices(self._decoder.config, len(tokens)) if self._routing else None
        self._checked("admit", tokens, offset, len(prompts), real, which, len(real), choices)
        if choices is not None:
            self.read = [choices[first : end - 1] for first, end in pairwise(offset.tolist())]

    def step(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``wave.Steps``. Nothing is computed for free slots."""
        busy = self._busy.nonzero().squeeze(1)
        self._checked("next", self._slots[busy], tokens[busy], None, len(busy))
        logits, choices = self._fed(busy, None, 1)
        self.choices = None if choices is None else choices.squeeze(1)
        return logits.squeeze(1)

    def _fed(
        self, busy: Int64[Tensor, " b"], drafts: Int64[Tensor, " b"] | None, rows: int
    ) -> tuple[Float[Tensor, "r {rows} v"], Int16[Tensor, "r {rows} l k"] | None]:
        """Logits, and choices of experts if they are recorded, of up to so many rows in every slot."""
        logits = torch.zeros(len(busy), rows, self.vocabulary, device="cpu")
        choices = _room_for_choices(self._decoder.config, len(busy) * rows) if self._routing else None
        self._checked("feed", self._slots[busy], drafts, len(busy), logits, choices)
        if choices is not None:
            choices = self._spread(choices.unflatten(0, (-1, rows)), busy, -1)
        return self._spread(logits, busy, 0), choices

    def _spread(
        self, values: Shaped[Tensor, "b ..."], busy: Int64[Tensor, " b"], other: int
    ) -> Shaped[Tensor, "r ..."]:
        """The values of busy slots in their places, ``other`` in those of free ones."""
        if len(values) == len(self._slots):
            return values
        return values.new_full((len(self._slots), *values.shape[1:]), other).index_copy(0, busy, values)

    def park(self, slot: int) -> None:
        """See ``wave.Steps``."""
        self._busy[slot] = False

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """See ``wave.Steps``."""
        self._slots, self._busy = self._slots[rows], self._busy[rows]

    def _checked(self, name: str, *arguments: Any) -> None:
        values = (at(a) if isinstance(a, Tensor) else a for a in arguments)
        if self._call[name](self._decoder.core.narrow, self._session, *values) != _DONE:
            raise MemoryError(_FULL)


class NativeDraftSteps(NativeSteps):
    """Steps of up to 1 + D tokens for every slot, as ``draft.DraftSteps``; with many slots, of one token."""

    def __init__(self, decoder: NativeDecoder, slots: int, capacity: int, threads: int, routing: bool = False) -> None:
        super().__init__(decoder, slots, capacity, threads, routing)
        self.depth = decoder.config.num_nextn_predict_layers
        self._threads, self._taken = threads, torch.zeros(slots, dtype=torch.int64, device="cpu")
        self._last: Tensor | None = None

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """See ``wave.Steps``."""
        super().admit(prompts, slots, which)
        self._taken[slots] = 0

    def propose(self, tokens: Int64[Tensor, " r"], choose: Callable[[int, Tensor], Tensor]) -> Int64[Tensor, "r depth"]:
        """See ``draft.Drafter``."""
        busy = self._busy.nonzero().squeeze(1)
        slots, drafts = self._slots[busy], tokens.new_full((len(tokens), self.depth), -1)
        self._checked("next", slots, tokens[busy], self._taken[busy], len(busy))
        self._taken.zero_()
        self._last = None
        if -(-len(busy) // self._threads) * (1 + self.depth) > _DRAFTED:
            return drafts
        for k in range(self.depth):
            logits = torch.zeros(len(busy), self.vocabulary, device="cpu")
            told = torch.zeros(len(busy), dtype=torch.bool, device="cpu")
            self._checked("ahead", k, slots, self._last, len(busy), logits, told)
            chosen = choose(k + 1, self._spread(logits, busy, 0))
            self._last = torch.where(told, chosen[busy], -1)
            drafts[busy, k] = self._last
        return drafts

    def verify(self) -> Float[Tensor, "r new v"]:
        """See ``draft.Drafter``."""
        logits, self.choices = self._fed(self._busy.nonzero().squeeze(1), self._last, 1 + self.depth)
        return logits

    def confirm(self, slots: Int64[Tensor, " n"]) -> None:
        """See ``draft.Drafter``."""
        self._taken[slots] += 1

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """See ``wave.Steps``."""
        super().keep(rows)
        self._taken = self._taken[rows]


def no_token(prompt: int, tokens: int) -> LongthoughtError:
    """What is said when a distribution is empty or not finite."""
    return LongthoughtError(
        f"no token can be drawn after {tokens} tokens of a reply to prompt {prompt}: its logits are "
        "NaN, infinite, or all −∞. Either the weights have diverged, or bad_tokens, min_tokens or a processor "
        "leave no token, or the temperature is too close to 0 (use 0 for greedy)"
    )


def _laid(prompts: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    """Prompts end to end, and where each begins."""
    tokens = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32, device="cpu")
    return tokens, torch.tensor(list(accumulate(map(len, prompts), initial=0)), dtype=torch.int64, device="cpu")


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
