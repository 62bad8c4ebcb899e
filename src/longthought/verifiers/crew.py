"""The processes behind a pool: one zygote and its workers, started when they are needed, ended for certain."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import warnings
import weakref
from contextlib import suppress
from dataclasses import astuple

from longthought.core.errors import LongthoughtError, SettingsError
from longthought.verifiers.worker import HEADER, Charge, settle, zygote

START_UP = 120.0
"""Seconds that workers may take to start, imports included."""
_FRESH = (
    "import sys; sys.path[:] = {path!r}; from longthought.verifiers.worker import clean_main; clean_main(3, {parent})"
)


class Crew:
    """The zygote of a pool and its workers: what lives, and must be ended."""

    def __init__(self, charge: Charge, size: int, label: str) -> None:
        self.home = os.getpid()
        self._charge, self._label = charge, label
        self._zygote: tuple[int, socket.socket] | None = None
        self._orders = threading.RLock()
        self._free: list[Place] = [Place(self) for _ in range(size)]
        self._changed = threading.Condition()
        _CREWS.add(self)

    def take(self, wait: bool) -> Place | None:
        """A free worker, the one that worked last; None when all are busy and we shall not wait."""
        with self._changed:
            while wait and not self._free:
                self._changed.wait()
            return self._free.pop() if self._free else None

    def give_back(self, worker: Place | None) -> None:
        with self._changed:
            if worker is not None:
                self._free.append(worker)
            self._changed.notify()

    def fork(self, door: socket.socket, output: int) -> int:
        """A worker that serves at the other end of ``door``; its process id."""
        with self._orders:
            said = ""
            for _ in range(2):  # the second time when the zygote was killed, for memory perhaps
                try:
                    control = self._control()
                    socket.send_fds(control, [b"fork"], [door.fileno(), output])
                    said = control.recv(1024).decode(errors="replace")
                    return int(said)
                except (OSError, ValueError):
                    self._drop_zygote()
        raise self._unable(said or "its process ends at once")

    def end(self, worker: int, grace: float) -> int | None:
        """Kill a worker that does not end by itself within ``grace`` seconds; its wait status, None if killed."""
        with self._orders:
            if self._zygote is None or self.home != os.getpid():
                return None
            try:
                self._zygote[1].send(f"{worker} {grace}".encode())
                status = int(self._zygote[1].recv(1024))
            except (OSError, ValueError):
                self._drop_zygote()
                return None
            return None if status < 0 else status

    def close(self) -> None:
        if self.home != os.getpid():
            return
        with self._orders:
            self._drop_zygote()
        with self._changed:
            for worker in self._free:
                worker.forget()

    def abandon(self) -> None:
        """In a forked copy: let go of what belongs to the original."""
        if self._zygote is not None:
            self._zygote[1].close()
        for place in list(_PLACES):
            if place.crew is self:
                place.forget()

    def _control(self) -> socket.socket:
        if self._zygote is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            start = self._start_fresh if isinstance(self._charge.function, str) else self._start_fork
            try:
                self._zygote = start(ours, theirs), ours
            finally:
                theirs.close()
            ours.settimeout(START_UP)
            try:
                said = ours.recv(1024).decode(errors="replace")
            except OSError:
                said = f"not ready after {START_UP:g} s"
            if said != "ready":
                self._drop_zygote()
                raise self._unable(said or "its process ended before it was ready")
        return self._zygote[1]

    def _start_fork(self, ours: socket.socket, theirs: socket.socket) -> int:
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child runs the function alone
            child = os.fork()
        if child == 0:
            try:
                settle({theirs.fileno()})
                zygote(theirs, self._charge, parent)
            finally:
                os._exit(1)
        return child

    def _start_fresh(self, ours: socket.socket, theirs: socket.socket) -> int:
        if not sys.executable:
            raise SettingsError(f"the {self._label} needs the Python interpreter as a program; sys.executable is empty")
        code = _FRESH.format(path=[path or os.getcwd() for path in sys.path], parent=os.getpid())
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3), *null]
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], settings, file_actions=actions)
        ours.send(json.dumps(astuple(self._charge)).encode())
        return child

    def _drop_zygote(self) -> None:
        if self._zygote is None:
            return
        (child, control), self._zygote = self._zygote, None
        control.close()  # it ends its workers and then itself
        deadline = time.monotonic() + 2
        with suppress(ChildProcessError):
            while not os.waitpid(child, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.002)

    def _unable(self, reason: str) -> LongthoughtError:
        return LongthoughtError(f"no worker of the {self._label} can be started: {reason}")


class Place:
    """A place for one worker process, which comes with the first task and after every kill."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.id: int | None = None
        self.door: socket.socket | None = None
        self.output: int | None = None
        _PLACES.add(self)

    def begin(self) -> socket.socket:
        """The connection to a process that is ready."""
        if self.door is None:
            ours, theirs = socket.socketpair()
            read, write = os.pipe()
            try:
                self.door, self.output = ours, read
                os.set_blocking(read, False)
                self.id = self.crew.fork(theirs, write)
            except BaseException:
                self.forget()
                raise
            finally:
                theirs.close()
                os.close(write)
            ours.settimeout(START_UP)
            with suppress(OSError, struct.error):  # an end is noticed by the task
                ours.recv(HEADER.unpack(ours.recv(HEADER.size, socket.MSG_WAITALL))[0], socket.MSG_WAITALL)
        return self.door

    def end(self, grace: float = 0.0) -> str:
        """Kill the process and all that it started; how it ended, if it did so within ``grace`` seconds."""
        status = None if self.id is None else self.crew.end(self.id, grace)
        self.forget()
        if status is None:
            return "its process hung up"
        if os.WIFEXITED(status):
            return f"its process ended with exit code {os.WEXITSTATUS(status)}"
        return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"

    def forget(self) -> None:
        if self.door is not None:
            self.door.close()
        if self.output is not None:
            with suppress(OSError):
                os.close(self.output)
        self.id = self.door = self.output = None


_CREWS: weakref.WeakSet[Crew] = weakref.WeakSet()
_PLACES: weakref.WeakSet[Place] = weakref.WeakSet()


def _abandon_all() -> None:
    for crew in list(_CREWS):
        crew.abandon()


os.register_at_fork(after_in_child=_abandon_all)
