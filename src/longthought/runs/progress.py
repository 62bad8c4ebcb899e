"""How far a stage is: a live line on a terminal, plain lines in a log file, or nothing.

Example::

    with progress("rl", total=120, start=40) as bar:
        for step in range(41, 121):
            ...
            bar.update(step, {"reward": 0.61, "pass@1": 0.52, "length": 71})
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

Headline: TypeAlias = Mapping[str, float | int | str | None]
"""Short label → value, in the order to show."""

SECONDS_BETWEEN_LINES = 10.0
_HEADLINE = "{task.fields[headline]}"


class Progress(Protocol):
    """Told by a stage after every step."""

    def update(self, step: int, headline: Headline) -> None: ...


@contextmanager
def progress(
    title: str, total: int, *, start: int = 0, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Progress]:
    """Show the progress of a stage of ``total`` steps, of which ``start`` were done before (a resumed run).

    On a terminal a live line with bar, rate, time left and headline; elsewhere one plain line at the first step, every
    ten seconds and at the end, without control codes. ``stream`` is standard error unless given.
    """
    console = Console(file=stream or sys.stderr)
    if quiet:
        yield _Silent()
    elif console.is_terminal and not console.is_dumb_terminal:
        title_column, headline = (TextColumn(what, markup=False) for what in ("{task.description}", _HEADLINE))
        columns = (title_column, BarColumn(bar_width=24), MofNCompleteColumn(), _RateAndTime(), headline)
        with Bar(*columns, console=console, refresh_per_second=2) as bar:
            yield _Live(bar, title, total, start)
    else:
        lines = Lines(title, total, start, stream or sys.stderr)
        try:
            yield lines
        finally:
            lines.finish()


class Lines:
    """Progress as plain lines of text, at most one per ``SECONDS_BETWEEN_LINES``."""

    def __init__(
        self, title: str, total: int, start: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._total, self._start = title, total, start
        self._stream, self._clock = stream, clock
        self._began = clock()
        self._shown_at = -float("inf")
        self._pending: str | None = None

    def update(self, step: int, headline: Headline) -> None:
        now = self._clock()
        self._pending = self._line(step, headline, now - self._began)
        if now - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._shown_at = now
            self.finish()

    def finish(self) -> None:
        """Print the last line if it was held back."""
        if self._pending is not None:
            print(self._pending, file=self._stream, flush=True)
            self._pending = None

    def _line(self, step: int, headline: Headline, seconds: float) -> str:
        done = step - self._start
        parts = [f"{self._title} {step}/{self._total}"]
        if done > 0 and seconds > 0:
            parts.append(f"{rate(done / seconds)}, {clock((self._total - step) * seconds / done)} left")
        return "  ".join([*parts, *describe(headline)])


class _Live:
    def __init__(self, bar: Bar, title: str, total: int, start: int) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=start, headline="")

    def update(self, step: int, headline: Headline) -> None:
        self._bar.update(self._task, completed=step, headline="  ".join(describe(headline)))


class _Silent:
    def update(self, step: int, headline: Headline) -> None:
        pass


class _RateAndTime(ProgressColumn):
    """Steps per second (or seconds per step) and the time left."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.time_remaining is None:
            return Text("")
        return Text(f"{rate(task.speed)}, {clock(task.time_remaining)} left")


def describe(headline: Headline) -> list[str]:
    """``{"reward": 0.6123, "length": 71}`` as ``["reward 0.612", "length 71"]``."""
    return [f"{label} {_short(value)}" for label, value in headline.items()]


def rate(steps_per_second: float) -> str:
    """``"2.5 steps/s"``, or ``"4.0 s/step"`` when slower than one."""
    return f"{steps_per_second:.1f} steps/s" if steps_per_second >= 1 else f"{1 / steps_per_second:.1f} s/step"


def clock(seconds: float) -> str:
    """``"1:05"`` or ``"2:00:09"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
