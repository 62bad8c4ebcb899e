"""Killable worker processes with a deadline of our own, for code that may hang, crash or eat the machine.

``signal.alarm`` works on the main thread only and cannot stop C code; a thread cannot be stopped at all. Here
every task runs in a process that can be killed at any moment with all that it started, and is replaced in milliseconds.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from longthought.core.errors import SettingsError
from longthought.core.types import Outcome
from longthought.verifiers.crew import START_UP, Crew, Place
from longthought.verifiers.worker import HEADER, Charge

STARVED = 5
"""A task that waits for a processor may take so many deadlines: other work on the machine is no fault of its own."""
ANSWER_BYTES = 1 << 20
OUTPUT_TAIL = 2000
GRACE = 0.1
"""Seconds for a process that hung up to end by itself, so that its exit code is known."""
MEMORY = 2 << 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a task.

    ``GRADED``: it returned ``value`` (what JSON can hold: a tuple comes back as a list). ``CRASHED``: it raised, or its
    process ended. ``TIMED_OUT``: it was killed at its deadline. ``INVALID``: what it returned cannot be passed on.
    ``evidence`` says why; ``output`` is the end of what it printed; ``seconds`` is what it took.
    """

    outcome: Outcome
    value: Any = None
    evidence: str = ""
    seconds: float = 0.0
    output: str = ""


@dataclass(eq=False)
class Pool:
    """``function(*task)`` in worker processes, many tasks at once, any of which may be killed.

    function: a callable, forked from this process with all it refers to, so it may be a closure; or
        ``"package.module:name"``, imported by a fresh interpreter: its workers share no memory with this process
        (of which forked ones keep a copy of every page that is written later) and inherit no lock of its threads.
    deadline: seconds of wall clock that one task may take, counted from its start in a worker that is ready. A task
        that computes but gets no processor, because other work has them, may take up to ``STARVED`` times as long.
    memory: bytes that a task may allocate beyond what its process had at the start; None: no limit.
    warm_up: of the same kind; called once before the first worker is made; costs no task its deadline.

    Workers start with the first task, run at low priority, print into a bounded tail, read an empty standard input,
    and end with this process however it ends. Safe from any thread; a forked copy of this process makes its own.
    """

    function: Callable[..., Any] | str
    workers: int = 2
    deadline: float = 5.0
    memory: int | None = MEMORY
    label: str = "grader"
    warm_up: Callable[[], object] | str | None = None
    _crew: Crew | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError(f"workers={self.workers} of the {self.label}: must be at least 1")
        if not 0 < self.deadline < float("inf"):
            raise SettingsError(f"deadline={self.deadline} of the {self.label}: seconds, more than 0 and finite")
        _POOLS.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.function, self.workers, self.deadline, self.memory, self.label, self.warm_up)
        return type(self), fields

    def call(self, *task: Any) -> Answer:
        """One task."""
        return self.map([task])[0]

    def map(self, tasks: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """Every task, as many at once as there are workers. Answers in order; never raises for what a task does.

        Raises LongthoughtError when no worker can be started at all.
        """
        answers = [Answer(Outcome.CRASHED)] * len(tasks)
        pending = deque(enumerate(tasks))
        crew = self._ready() if tasks else None
        running: dict[int, _Run] = {}
        try:
            while crew is not None and (pending or running):
                self._start_some(crew, pending, running)
                for number, answer in _finished(running, self.deadline):
                    answers[number] = answer
                    crew.give_back(running.pop(number).worker)
        finally:
            for run in running.values():  # interrupted, by Ctrl-C for example
                run.worker.end()
                crew.give_back(run.worker)  # type: ignore[union-attr]
        return answers

    def start(self) -> None:
        """Start now what the first task would start: before this process grows, or before a clock runs."""
        crew = self._ready()
        first = crew.take(wait=True)
        try:
            assert first is not None
            first.begin()
        finally:
            crew.give_back(first)

    def close(self) -> None:
        """End all workers. A later task starts new ones."""
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked copy of the process: let go of what belongs to the original."""
        self._crew, self._lock = None, threading.Lock()

    def _ready(self) -> Crew:
        with self._lock:
            if self._crew is None:
                charge = Charge(self.function, self.warm_up, self.memory, ANSWER_BYTES)
                self._crew = Crew(charge, self.workers, self.label)
                weakref.finalize(self, Crew.close, self._crew)  # at exit, too
            return self._crew

    def _start_some(self, crew: Crew, pending: deque[tuple[int, tuple[Any, ...]]], running: dict[int, _Run]) -> None:
        """Hand tasks to free workers; wait for one only when there is nothing else to wait for."""
        while pending and (worker := crew.take(wait=not running)):
            number, task = pending.popleft()
            running[number] = run = _Run(worker)
            run.begin(task)


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)


class _Run:
    """One task in one worker."""

    def __init__(self, worker: Place) -> None:
        self.worker = worker
        self.started = time.monotonic()
        self._spent = 0.0
        self._received = bytearray()
        self._tail = bytearray()

    def begin(self, task: tuple[Any, ...]) -> None:
        content = pickle.dumps(task, protocol=5)
        door = self.worker.begin()
        _, self._spent = _processor(self.worker.id)
        self.started = time.monotonic()
        with suppress(OSError):  # its end is read below
            door.settimeout(START_UP)
            door.sendall(HEADER.pack(len(content)) + content)
            door.setblocking(False)

    def late(self, deadline: float) -> bool:
        """Whether the task is to be killed: its time is up, and it had a processor to use it."""
        passed = time.monotonic() - self.started
        if passed < deadline:
            return False
        waits, spent = _processor(self.worker.id)
        return passed >= STARVED * deadline or not waits or spent - self._spent >= 0.9 * deadline

    def descriptors(self) -> Iterator[int]:
        if self.worker.door is not None:
            yield self.worker.door.fileno()
        if self.worker.output is not None:
            yield self.worker.output

    def read(self) -> Answer | None:
        """Read what there is; the answer when it is complete or can never be."""
        self._drain(1 << 20)
        assert self.worker.door is not None
        try:
            part = self.worker.door.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        if not part:
            return self.stop(Outcome.CRASHED, "")
        self._received += part
        if len(self._received) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._received)
        if size > 2 * ANSWER_BYTES:
            return self.stop(Outcome.INVALID, f"its answer is longer than {ANSWER_BYTES} bytes")
        if len(self._received) < HEADER.size + size:
            return None
        return self._answer(bytes(self._received[HEADER.size :]))

    def stop(self, outcome: Outcome, reason: str) -> Answer:
        """Kill, and say why; without a reason, how the process had ended."""
        seconds = time.monotonic() - self.started
        self._drain(1 << 20)
        ended = self.worker.end(GRACE if outcome is Outcome.CRASHED else 0.0)
        return Answer(outcome, None, reason or ended, seconds, self._output())

    def _answer(self, content: bytes) -> Answer:
        try:
            reply = json.loads(content)
            seconds, retire = float(reply["seconds"]), reply["retire"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.stop(Outcome.INVALID, "its process sent no readable answer")
        self._drain(1 << 20)
        if retire:
            self.worker.end()
        for key, outcome in (("error", Outcome.CRASHED), ("invalid", Outcome.INVALID)):
            if key in reply:
                return Answer(outcome, None, str(reply[key]), seconds, self._output())
        return Answer(Outcome.GRADED, reply.get("value"), "", seconds, self._output())

    def _drain(self, most: int) -> None:
        """Read what was printed, keep its end."""
        with suppress(OSError):
            while most > 0 and self.worker.output is not None:
                part = os.read(self.worker.output, 1 << 16)
                if not part:
                    break
                most -= len(part)
                self._tail = (self._tail + part)[-OUTPUT_TAIL:]

    def _output(self) -> str:
        return self._tail.decode(errors="replace").strip()


def _finished(running: dict[int, _Run], deadline: float) -> list[tuple[int, Answer]]:
    """Wait until a task says something or its time is up; those that are done now."""
    with _polling(running) as poll:
        now = time.monotonic()
        first = min(run.started for run in running.values()) + deadline
        heard = {descriptor for descriptor, _ in poll.poll(max(0.02, first - now + 0.001) * 1000)}
    done = []
    for number, run in running.items():
        answer = run.read() if heard.intersection(run.descriptors()) else None
        if answer is None and run.late(deadline):
            answer = run.stop(Outcome.TIMED_OUT, f"no answer within {deadline:g} s")
        if answer is not None:
            done.append((number, answer))
    return done


def _processor(process: int | None) -> tuple[bool, float]:
    """Whether a process wants a processor now, and the seconds of one that it has used."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return False, 0.0


@contextmanager
def _polling(running: dict[int, _Run]) -> Iterator[select.poll]:
    poll = select.poll()
    for run in running.values():
        for descriptor in run.descriptors():
            poll.register(descriptor, select.POLLIN)
    yield poll
