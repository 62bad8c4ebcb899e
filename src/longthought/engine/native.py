"""The native engine: whole replies, or single steps, by the C++ core (``csrc/generate.h``, ``csrc/session.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from longthought.core.errors import LongthoughtError
from longthought.core.protocols import Finished
from longthought.core.types import Completion, Finish, TokenIds
from longthought.engine.scheduler import Row
from longthought.models.kernels.core import Core, at
from longthought.models.kernels.packed import Packed, PackedLayer, pack
from longthought.models.transformer import Transformer

_TALL = 6  # rows of the core's tallest tile: waves are a multiple of it
_WIDEST = 30  # rows of a wave
_STREAMED = 60  # the same, where the weights do not fit into the cache and every step reads them from memory
_SHARE = 1 / 3  # of the last cache, for weights, keys and values; other programs use it, too
_USUAL = 16 * 2**20  # bytes of a last cache that does not tell its size
_FULL = "no memory is left for the keys and values of the replies: fewer slots, or shorter replies"
_DONE, _STOPPED, _NO_MEMORY, _NO_TOKEN = range(4)
_POINTERS = (
    *("qkv", "out", "gate_up", "down", "qkv_bias", "out_bias", "gate_up_bias", "down_bias"),
    *("attention_norm", "ffn_norm", "q_gain", "k_gain"),
)
_SIZES = ("vocabulary", "width", "ffn", "layers", "queries", "keys", "head_width", "positions")
_Report = ctypes.CFUNCTYPE(c_int32, POINTER(c_int32), c_int64)


class _Layer(Structure):
    _fields_ = [(name, c_void_p) for name in _POINTERS]


class _Decoder(Structure):
    _fields_ = [
        *((name, c_int64) for name in _SIZES),
        ("eps", c_float),
        ("narrow_embedding", c_int32),
        *((name, c_void_p) for name in ("embedding", "head", "norm", "cos", "sin", "layer")),
    ]


class _Request(Structure):
    _fields_ = [
        ("prompts", c_int64),
        ("rows", c_int64),
        *((name, c_void_p) for name in ("tokens", "offset", "prompt", "key", "limit", "stops")),
        ("temperature", c_float),
        ("threads", c_int32),
        ("wave", c_int32),
        *((name, c_void_p) for name in ("drawn", "logprobs", "start", "length")),
    ]


class NativeDecoder:
    """The weights of a model as they are now, ready to sample. Nothing of it is seen when the model changes."""

    def __init__(self, model: Transformer, core: Core) -> None:
        config, self.core = model.config, core
        self.vocabulary = config.vocab_size
        self._packed: Packed = pack(model, core)
        self._layers = (_Layer * len(self._packed.layers))(*map(_layer, self._packed.layers))
        embedding = self._packed.embedding
        self._struct = _Decoder(
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
            config.rms_norm_eps,
            int(embedding.dtype == torch.bfloat16),
            *map(at, (embedding, self._packed.head.panels, self._packed.norm, self._packed.cos, self._packed.sin)),
            ctypes.cast(self._layers, c_void_p),
        )
        self._item = 2 if core.narrow else 4

    @property
    def address(self) -> int:
        """Of the C structure."""
        return ctypes.addressof(self._struct)

    def wave(self, tokens: float, threads: int) -> int:
        """How many rows of this many tokens one thread keeps going: as many as leave weights, keys and values in the
        cache; where the weights alone do not fit, so many that reading them for a step is worth it."""
        config = self._packed.config
        room = _SHARE * _last_cache() - self._item * config.parameters()
        if room < 0:
            return _STREAMED
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
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
    """What is to be sampled. rows: in the order of their prompts; a reply ends with one of ``stop_tokens``."""

    prompts: Sequence[TokenIds]
    rows: Sequence[Row]
    temperature: float
    stop_tokens: Sequence[int]


class _Replies:
    """Where C writes what was asked for: row i from ``starts[i]`` on, ``lengths[i]`` tokens once it has ended."""

    def __init__(self, asked: Asked, version: int) -> None:
        self.asked, self.version = asked, version
        self.starts = list(accumulate((row.limit for row in asked.rows), initial=0))
        self.drawn = torch.empty(self.starts[-1], dtype=torch.int32, device="cpu")
        self.logprobs = torch.empty(self.starts[-1], device="cpu")
        self.lengths = torch.zeros(len(asked.rows), dtype=torch.int64, device="cpu")
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
        return Completion(ids, tuple(self.logprobs[first : first + len(ids)].tolist()), finish, self.version)


def generate(decoder: NativeDecoder, asked: Asked, threads: int, slots: int, finished: Finished, version: int) -> None:
    """Sample every row; ``finished`` is given the completions of a prompt as soon as all of them are there.

    slots: the most rows that all threads together keep going. Raises LongthoughtError where no token can be drawn,
    MemoryError, and what ``finished`` raises.
    """
    replies = _Replies(asked, version)
    stops = torch.zeros(decoder.vocabulary, dtype=torch.uint8, device="cpu")
    stops[torch.tensor(asked.stop_tokens, dtype=torch.int64, device="cpu")] = 1
    tokens, offset = _laid(asked.prompts)
    prompt = torch.tensor([row.prompt for row in asked.rows], dtype=torch.int32, device="cpu")
    keys, limit, start = (
        torch.tensor(values, dtype=torch.int64, device="cpu")
        for values in ([_signed(row.key) for row in asked.rows], [row.limit for row in asked.rows], replies.starts)
    )
    usual = sum(map(len, asked.prompts)) / len(asked.prompts) + replies.starts[-1] / len(asked.rows) / 2
    wave = min(decoder.wave(usual, threads), -(-slots // threads), -(-len(asked.rows) // threads))
    request = _Request(
        len(asked.prompts),
        len(asked.rows),
        *map(at, (tokens, offset, prompt, keys, limit, stops)),
        asked.temperature,
        threads,
        wave,
        *map(at, (replies.drawn, replies.logprobs, start, replies.lengths)),
    )
    status = _run(decoder, request, lambda number: finished(number, replies.of(number)))
    if status == _NO_MEMORY:
        raise MemoryError(_FULL)
    if status == _NO_TOKEN:
        number = int((replies.lengths < 0).nonzero()[0])
        raise no_token(asked.rows[number].prompt, -1 - int(replies.lengths[number]))


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
    """The logits of single steps, for callers that choose the tokens themselves: a cache of ``slots`` rows."""

    def __init__(self, decoder: NativeDecoder, slots: int, capacity: int, threads: int) -> None:
        self._decoder, core = decoder, decoder.core
        types: dict[str, tuple[tuple[Any, ...], Any]] = {
            "new": ((c_int, c_void_p, c_int64, c_int64, c_int), c_void_p),
            "free": ((c_int, c_void_p), c_int),
            "admit": ((c_int, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64), c_int),
            "step": ((c_int, c_void_p, c_void_p, c_void_p, c_int64, c_void_p), c_int),
        }
        self._call = {name: core.library.bind(f"lt_session_{name}", *form) for name, form in types.items()}
        self.device, self.vocabulary = torch.device("cpu"), decoder.vocabulary
        self._slots, self._busy = torch.arange(slots, device="cpu"), torch.zeros(slots, dtype=torch.bool, device="cpu")
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
        self._checked("admit", tokens, offset, len(prompts), real, which, len(real))

    def step(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r v"]:
        """See ``wave.Steps``. Nothing is computed for free slots."""
        busy = self._busy.nonzero().squeeze(1)
        logits = torch.empty(len(busy), self.vocabulary, device="cpu")
        self._checked("step", self._slots[busy], tokens[busy], len(busy), logits)
        if len(busy) == len(tokens):
            return logits
        return logits.new_zeros(len(tokens), self.vocabulary).index_copy(0, busy, logits)

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


def no_token(prompt: int, tokens: int) -> LongthoughtError:
    """What is said when a distribution is empty or not finite."""
    return LongthoughtError(
        f"no token can be drawn after {tokens} tokens of a reply to prompt {prompt}: its logits are "
        "NaN, infinite, or all −∞. Either the weights have diverged, or bad_tokens, min_tokens or a processor "
        "leave no token, or the temperature is too close to 0 (use 0 for greedy)"
    )


def _layer(layer: PackedLayer) -> _Layer:
    a, n = layer.attention, layer.net
    matrices = (one.panels for one in (a.qkv, a.out, n.gate_up, n.down))
    biases = (a.qkv_bias, a.out_bias, n.gate_up_bias, n.down_bias)
    return _Layer(*map(at, (*matrices, *biases, layer.attention_norm, layer.ffn_norm, a.q_gain, a.k_gain)))


def _laid(prompts: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    """Prompts end to end, and where each begins."""
    tokens = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32, device="cpu")
    return tokens, torch.tensor(list(accumulate(map(len, prompts), initial=0)), dtype=torch.int64, device="cpu")


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
