"""One thread that works beside the main one."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class WorkFailed(Exception):
    """Tells who hands work over that there is no point in going on. The end of the context raises what went wrong."""


class Beside(Generic[T]):
    """A context whose thread does ``work`` on what it is given: on everything at once that came while it was busy.

    The end of the context waits until all is done, or after an error until the thread has finished what it is at; then
    the thread is gone. What ``work`` raised is raised there, and a ``give`` that comes in between raises
    ``WorkFailed``. Ctrl-C does not wait for ``work``: it ends it by ``SystemExit``, where it next runs Python.
    """

    def __init__(self, work: Callable[[list[T]], None], name: str) -> None:
        self._work = work
        self._given: SimpleQueue[T | None] = SimpleQueue()  # None: the end
        self._working = self._abandoned = False
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        # A daemon: an impatient second Ctrl-C ends the process.
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=name, daemon=True)

    def give(self, item: T) -> None:
        """Something more to work on. Returns at once."""
        if self._failure is not None:
            raise WorkFailed(f"{self._thread.name} failed")
        self._given.put(item)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C while it starts: it must not wait for work that never comes
            self._given.put(None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._abandoned = error is not None
            self._given.put(None)
            if error is not None and not isinstance(error, Exception):
                self._interrupt()
            self._wait()
        except BaseException:  # Ctrl-C during the wait
            self._interrupt()
            self._wait()
            raise
        if self._failure is not None and (error is None or isinstance(error, WorkFailed)):
            raise self._failure

    def _run(self) -> None:
        try:
            while (items := self._next()) and not self._abandoned:
                self._working = True
                self._work(items)
                self._working = False
        except BaseException as error:  # whatever it is, it belongs to the main thread
            self._failure = error
        finally:
            self._ended.set()

    def _next(self) -> list[T]:
        """What has been given, as soon as there is something; nothing at the end."""
        items: list[T] = []
        while (not items or not self._given.empty()) and (item := self._given.get()) is not None:
            items.append(item)
        if items and item is None:
            self._given.put(None)
        return items

    def _wait(self) -> None:
        """Until the thread is gone. A Ctrl-C inside ``join`` would make Python 3.11 believe that it already is."""
        while not self._ended.wait(1.0) and self._thread.is_alive():
            pass
        self._thread.join()

    def _interrupt(self) -> None:
        if self._working and self._thread.ident is not None:
            thread, error = ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)
