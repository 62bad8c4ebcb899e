"""The child's side of :mod:`longthought.verifiers.pool`: a zygote that forks workers, and what a worker does.

A zygote is one early process with everything imported; workers are its children, so that a killed one is replaced in
milliseconds. It alone waits for them, so that a process id is never used after it may mean another process. This module
imports nothing but the standard library: workers of a ``clean`` pool carry no PyTorch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import importlib
import io
import json
import os
import pickle
import resource
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

HEADER = struct.Struct("!Q")
HEARTBEAT = 0.25
"""Seconds between two looks of the zygote at whether its parent lives."""
TASKS_PER_WORKER = 2000
"""After so many a worker is replaced: caches grow."""
_PDEATHSIG, _SUBREAPER = 1, 36  # of prctl(2)
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Charge:
    """What workers are for. ``memory``: bytes that a task may allocate; ``answer``: bytes of an answer.

    A text is a function by its place, ``package.module:name``.
    """

    function: Callable[..., Any] | str
    warm_up: Callable[[], object] | str | None
    memory: int | None
    answer: int


@dataclass(frozen=True)
class Duty:
    """A charge whose function has been found."""

    function: Callable[..., Any]
    memory: int | None
    answer: int


def zygote(control: socket.socket, charge: Charge, parent: int) -> NoReturn:
    """Fork and end workers as ``control`` asks, until it is closed or ``parent`` is gone. Never returns."""
    workers: set[int] = set()
    status = 1
    try:
        _prctl(_SUBREAPER, 1)  # what a worker leaves behind becomes a child of this process, and is ended with it
        function, warm_up = _found(charge.function), _found(charge.warm_up)
        if warm_up is not None:
            warm_up()
        gc.collect()
        gc.freeze()  # pages stay shared with workers, and inherited objects are never finalised here
        control.send(b"ready")
        while _wait(control, parent):
            order, descriptors, _, _ = socket.recv_fds(control, 64, 2)
            if not order:
                break
            if order == b"fork":
                control.send(
                    str(_spawn(control, descriptors, Duty(function, charge.memory, charge.answer), workers)).encode()
                )
            else:
                worker, grace = order.split()
                control.send(str(_end(int(worker), workers, float(grace))).encode())
        status = 0
    except BaseException as error:  # whatever it is, the other side must hear of it
        with suppress(OSError):
            control.send(f"{type(error).__name__}: {error}"[:400].encode(errors="replace"))
    finally:
        for left in workers.copy():
            _end(left, workers)
        os._exit(status)


def clean_main(control: int, parent: int) -> NoReturn:
    """The zygote of a fresh interpreter: its charge comes through the socket."""
    door = socket.socket(fileno=control)
    settle({control})
    zygote(door, Charge(*json.loads(door.recv(1 << 16))), parent)


def settle(kept: set[int], priority: int = 5) -> None:
    """Make a process of its own out of a fresh child: session, signals, priority, descriptors.

    What the parent had open for writing, its sockets, pipes and locks, is replaced by ``/dev/null`` under the same
    numbers: objects that were inherited may still close them.
    """
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for known in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            ignored = known in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
            signal.signal(known, signal.SIG_IGN if ignored else signal.SIG_DFL)
    faulthandler.disable()
    os.nice(priority)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept and number != nothing:
            with suppress(OSError):
                if number < 3 or not _is_read_only_file(number):
                    os.dup2(nothing, number, inheritable=number < 3)
    os.close(nothing)


def _found(function: Callable[..., Any] | str | None) -> Any:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _is_read_only_file(number: int) -> bool:
    reads = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    return reads and stat.S_ISREG(os.fstat(number).st_mode)


def _wait(control: socket.socket, parent: int) -> bool:
    """Whether something came; False when the parent is gone."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(HEARTBEAT * 1000):
        if os.getppid() != parent:
            return False
    return True


def _spawn(control: socket.socket, descriptors: list[int], duty: Duty, workers: set[int]) -> int:
    here = os.getpid()
    worker = os.fork()
    if worker == 0:
        try:
            control.close()
            _work(descriptors[0], descriptors[1], duty, here)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    workers.add(worker)
    return worker


def _end(worker: int, workers: set[int], grace: float = 0.0) -> int:
    """Kill a worker with all that it started; its wait status if it had ended by itself, else -1."""
    if worker not in workers:
        return -1
    last = time.monotonic() + grace
    while not (ended := os.waitid(os.P_PID, worker, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and time.monotonic() < last:
        time.sleep(0.001)
    for kill in (os.killpg, os.kill):  # it may have died before it had a group
        with suppress(OSError):
            kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    workers.discard(worker)
    with suppress(OSError, ValueError):
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            strays = set(map(int, file.read().split())) - workers
        for stray in strays:
            os.kill(stray, signal.SIGKILL)
            os.waitpid(stray, 0)
    return status if ended else -1


def _work(door: int, output: int, duty: Duty, zygote_id: int) -> NoReturn:
    """Serve one task after another until the door is closed."""
    os.setsid()
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote_id:
        os._exit(1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        buffer = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if duty.memory is not None:
        limit = _private_bytes() + duty.memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection = socket.socket(fileno=door)
    untouched = _surroundings()
    _send(connection, {"ready": True}, duty.answer)
    for served in range(1, TASKS_PER_WORKER + 1):
        task = pickle.loads(_receive(connection))
        started = time.perf_counter()
        reply = _attempt(duty.function, task)
        reply["seconds"] = time.perf_counter() - started
        reply["retire"] = "error" in reply or served == TASKS_PER_WORKER or _surroundings() != untouched
        _send(connection, reply, duty.answer)
    os._exit(0)


def _attempt(function: Callable[..., Any], task: tuple[Any, ...]) -> dict[str, Any]:
    try:
        reply = {"value": function(*task)}
    except BaseException as error:  # also SystemExit: it must not end the worker in silence
        reply = {"error": _told(error, function)}
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    return reply


def _told(error: BaseException, function: Callable[..., Any]) -> str:
    """The last line of a traceback, and the last line of the user's own file that it passes through."""
    try:
        line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:500]
    except BaseException:
        line = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)[1:]
    file = getattr(getattr(function, "__code__", None), "co_filename", None) or getattr(function, "source_file", None)
    own = [frame for frame in frames if frame.filename == file] or frames
    return f"{line} ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else line


def _surroundings() -> tuple[object, ...]:
    """What a task may have changed for the next one: threads, children, folder, environment, signals, streams."""
    try:
        os.waitpid(-1, os.WNOHANG)
        children = True
    except OSError:
        children = False
    try:
        folder = os.getcwd()
    except OSError:
        folder = ""
    handlers = tuple(signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT))
    alarm = signal.getitimer(signal.ITIMER_REAL)
    streams = (id(sys.stdin), id(sys.stdout), id(sys.stderr))
    switches = (sys.getrecursionlimit(), sys.gettrace(), sys.getprofile())
    return threading.active_count(), children, folder, dict(os.environ), handlers, alarm, streams, switches


def _send(connection: socket.socket, reply: dict[str, Any], limit: int) -> None:
    """As JSON: nothing that a worker says is ever unpickled."""
    try:
        content = _encoded(reply, limit)
    except (TypeError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        kind = type(reply.get("value")).__name__
        told = {"invalid": f"returned what cannot be passed on ({kind}: {error})"[:500]}
        content = json.dumps(told | {"seconds": reply.get("seconds", 0.0), "retire": True}).encode()
    connection.sendall(HEADER.pack(len(content)) + content)


def _encoded(reply: dict[str, Any], limit: int) -> bytes:
    buffer = io.StringIO()
    for part in json.JSONEncoder().iterencode(reply):
        buffer.write(part)
        if buffer.tell() > limit:
            raise ValueError(f"longer than {limit} bytes")
    return buffer.getvalue().encode()


def _receive(connection: socket.socket) -> bytes:
    """The next task. The worker ends where its parent hangs up."""
    try:
        (size,) = HEADER.unpack(_exactly(connection, HEADER.size))
        return _exactly(connection, size)
    except (OSError, struct.error):
        os._exit(0)


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = connection.recv(min(size - len(content), 1 << 20))
        if not part:
            os._exit(0)
        content += part
    return bytes(content)


def _private_bytes() -> int:
    """What this process already counts against RLIMIT_DATA."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))


def _prctl(option: int, value: int) -> None:
    _LIBC.prctl(option, value, 0, 0, 0)
