"""A team: this process and forked copies of it that share the weights, so that all cores work on one step.

Tiny models gain nothing from threads inside an operation; they gain almost linearly from processes, each with its own
rows. Only rows, tallies and completions travel; weights and gradients lie in memory that all members map.
"""

from __future__ import annotations

import copyreg
import gc
import io
import mmap
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longthought.core.errors import LongthoughtError, SettingsError

Handler = Callable[..., Any]


def shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A zero tensor in memory that stays shared after a fork."""
    count = 1
    for size in shape:
        count *= size
    if not count:
        return torch.zeros(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def share(modules: Iterable[nn.Module]) -> None:
    """Move the parameters of modules, and the buffers that are saved with them, into shared memory, in place.

    Optimizers built on them stay valid.
    """
    moved: set[int] = set()
    for module in modules:
        for tensor in module.state_dict(keep_vars=True).values():
            if id(tensor) not in moved:
                moved.add(id(tensor))
                copy = shared(tensor.shape, tensor.dtype)
                copy.copy_(tensor.data)
                tensor.data = copy


class Team:
    """``size`` members; member 0 is this process. Handlers are called by name in any member.

    The members are forked by the constructor: what handlers refer to must exist by then, and what changes later is
    seen by all only if it lies in shared memory. Close the team, or use it as a context manager.

    Raises SettingsError when this process has more than one thread of torch (a fork would hang).
    """

    def __init__(self, size: int, handlers: Mapping[str, Handler]) -> None:
        if size < 1:
            raise SettingsError(f"workers={size}: must be at least 1")
        if size > 1 and torch.get_num_threads() > 1:
            raise SettingsError(
                f"workers={size} needs one thread each, but torch has {torch.get_num_threads()}: "
                "use --threads 1, or workers=1"
            )
        self.size = size
        gc.freeze()  # what lives now lives on: collections, here and in the copies, need not look at it again
        self._handlers = dict(handlers)
        self._pipes: list[Connection] = []
        self._children: list[int] = []
        for member in range(1, size):
            self._fork(member)

    def call(self, name: str, parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run handler ``name`` on every part, part i in member i. Results in order. At most ``size`` parts.

        A handler gets the number of the member before its part. What a member raises is raised here.
        """
        if len(parts) > 1 + len(self._pipes):  # of a closed team, this process is left
            raise ValueError(f"{len(parts)} parts for a team of {1 + len(self._pipes)}")
        busy = self._pipes[: max(0, len(parts) - 1)]
        for pipe, part in zip(busy, parts[1:]):
            self._send(pipe, (name, part))
        first: list[Any] = []
        failure: BaseException | None = None
        try:
            first = [self._handlers[name](0, *parts[0])] if parts else []
        except Exception as error:  # the others' answers must be read before it goes up
            failure = error
        others = [self._receive(pipe) for pipe in busy]
        for good, answer in others:
            if not good and failure is None:
                failure = answer
        if failure is not None:
            raise failure
        return first + [answer for _, answer in others]

    def close(self) -> None:
        """Let the others go."""
        for pipe in self._pipes:
            pipe.close()
        for child in self._children:
            os.waitpid(child, 0)
        self._pipes, self._children = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fork(self, member: int) -> None:
        ours, theirs = Pipe()
        child = os.fork()
        if child == 0:
            for pipe in (*self._pipes, ours):  # a member that held them would keep its siblings alive
                pipe.close()
            _serve(theirs, member, self._handlers)
        theirs.close()
        self._pipes.append(ours)
        self._children.append(child)

    def _send(self, pipe: Connection, content: object) -> None:
        try:
            pipe.send_bytes(_packed(content))
        except OSError as error:
            raise _lost() from error

    def _receive(self, pipe: Connection) -> tuple[bool, Any]:
        try:
            answer: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise _lost() from error
        return answer


class _Pickler(pickle.Pickler):
    """Plain tensors travel as arrays of bytes: torch's way takes longer than the step's other bookkeeping together."""

    dispatch_table = copyreg.dispatch_table.copy()


def _flattened(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        reduced: tuple[Any, ...] = tensor.__reduce_ex__(5)
        return reduced
    flat = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return _unflattened, (flat, tensor.dtype, tuple(tensor.shape))


def _unflattened(flat: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(flat).view(dtype).view(shape)


_Pickler.dispatch_table[Tensor] = _flattened


def _packed(content: object) -> memoryview:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(content)
    return buffer.getbuffer()


def _lost() -> LongthoughtError:
    return LongthoughtError(
        "a worker process died (killed, or out of memory); nothing saved was lost: run the same command again, "
        "with workers=1 if memory is short"
    )


def _serve(pipe: Connection, member: int, handlers: Mapping[str, Handler]) -> NoReturn:
    """Answer calls until the other end is closed, be it by a ``kill -9``. Ctrl-C is for member 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            name, part = pickle.loads(pipe.recv_bytes())
            try:
                answer = (True, handlers[name](member, *part))
            except Exception as error:
                answer = (False, error)
            pipe.send_bytes(_packed(answer))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)
