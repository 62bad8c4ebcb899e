"""Append-only JSON lines: one line per call, every line with its ``step``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from longthought.core.errors import RunDamaged, RunError
from longthought.runs.files import json_bytes, plain_errors, write_all


class Log:
    """One file of JSON lines, open while written, one system call per line.

    Floats are written so that they read back equal, what is not finite as ``null``, keys in the order given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._size = 0
        self._last = -1

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line.

        Raises:
            RunError: the disk is full; no half line stays.
            ValueError: a value is named ``step``, or ``step`` is smaller than that of the line before.
        """
        if "step" in values:
            raise ValueError("a metric cannot be named 'step': the step is the first argument")
        if step < self._last:
            raise ValueError(f"step {step} of {self.path.name} comes after step {self._last}")
        row = {"step": step, **{name: _number(value) for name, value in values.items()}}
        line = json_bytes(row) + b"\n"
        handle = self._open()
        with plain_errors(self.path):
            try:
                write_all(handle, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, self._size)
                raise
        self._size += len(line)
        self._last = step

    def rewind(self, step: int | None) -> None:
        """Drop the lines after ``step``, and all lines for None; what a kill left half written goes as well."""
        self.close()
        self._last = -1
        if not self.path.exists():
            return
        with plain_errors(self.path):
            if step is None:
                self.path.unlink()
            else:
                os.truncate(self.path, _end_of(self.path.read_bytes(), step))

    def sync(self) -> None:
        """Bring the lines to the disk."""
        if self._handle is not None:
            with plain_errors(self.path):
                os.fsync(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        if self._handle is None:
            with plain_errors(self.path):
                self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                self._size = os.fstat(self._handle).st_size
        return self._handle


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every line of a log, in order; none if there is no such file. A last line that is half written is left out.

    Raises:
        RunDamaged: a line before the last is no JSON object with a step.
        RunError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        row = _row(line)
        if row is None:
            raise RunDamaged(f"{path}, line {number}: not a JSON object with a step; the file was altered")
        rows.append(row)
    return rows


def _end_of(data: bytes, step: int) -> int:
    """Where the last whole line of at most ``step`` ends."""
    end = offset = 0
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        row = _row(line)
        if row is not None and row["step"] <= step:
            end = offset
    return end


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _number(value: Any) -> bool | int | float | None:
    if value is None or isinstance(value, bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
