"""One process at a time in a run folder.

The lock is held by the open file, not by the file's existence: it dies with the process, so that ``kill -9`` and power
cuts leave nothing to clean up.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path

from longthought.core.errors import RunError, RunLocked
from longthought.runs.files import plain_errors

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """An exclusive lock on a file, taken at once or not at all.

    Raises:
        RunLocked: another process (or this one, a second time) holds it; its number and host are named.
        RunError: the file system cannot lock, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with plain_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take()
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others in. May be called twice."""
        _held.discard(self)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _take(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"{self._path.parent} is in use by {self._holder()}: wait for it, end it, or choose another folder"
            ) from None
        except OSError as error:
            raise RunError(f"{self._path.parent} cannot be locked ({error.strerror}): choose a local disk") from error
        with plain_errors(self._path):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._handle, 4096, 0))
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"


def _forget_in_child() -> None:
    # A forked worker shares the open file: if it outlived a killed run, it would keep the run locked.
    for lock in list(_held):
        with suppress(OSError):
            lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
