"""Repeat, alternate, count: wall time and CPU time, medians and spread. No torch here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = ("longthought", "torch", "transformers", "trl", "accelerate")


class Sample(NamedTuple):
    """One repetition: seconds on the wall, seconds of CPU (user and system, children included), and what came out."""

    wall: float
    cpu: float
    result: Any


def cpu_seconds() -> float:
    """CPU time of this process, of the children it has had and of all that live below it."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(ticks for _, ticks in _descendants()) / TICKS
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def peak_bytes() -> int:
    """Largest resident memory so far of this process, plus that of the processes below it."""
    return sum(memory("VmHWM", str(pid)) for pid in ("self", *(pid for pid, _ in _descendants())))


def memory(field: str, pid: str = "self") -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of a process, bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def forget_peak() -> None:
    """Let ``VmHWM`` start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def timed(function: Callable[[], Any]) -> Sample:
    """One call."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = function()
    return Sample(time.perf_counter() - wall, cpu_seconds() - cpu, result)


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repetitions: int, budget: float = float("inf")
) -> dict[str, list[Sample]]:
    """Every side once per round, the order turned around from round to round.

    budget: seconds after which no further round begins; the first is always made.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    began = time.perf_counter()
    for number in range(repetitions):
        if number and time.perf_counter() - began > budget:
            break
        for name in rotated(list(sides), number):
            samples[name].append(timed(sides[name]))
    return samples


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of round ``number``: forwards, then backwards, so that no side always goes first."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """``median (least–most)``, or the one value that there is."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}–{format(max(values), form)})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns; the first to the left, the others to the right."""
    lines = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip(), flush=True)
        if not number:
            print("  ".join("-" * width for width in widths))


def arguments(doc: str, threads: int | None = 1, repetitions: int | None = 3) -> argparse.ArgumentParser:
    """A parser with what the scripts share; None leaves an option out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads, help=f"cores for each side (default: {threads})")
    if repetitions is not None:
        text = f"rounds in which each side runs once (default: {repetitions})"
        parser.add_argument("--repetitions", type=int, default=repetitions, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    return parser


def machine() -> dict[str, Any]:
    """What the numbers depend on, for the JSON."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def write_json(path: Path | None, options: argparse.Namespace, measured: Any) -> None:
    """Raw numbers with machine and options; nothing without a path."""
    if path is None:
        return
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {"machine": machine(), "options": asked, "measured": measured}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _descendants() -> Iterator[tuple[int, int]]:
    """(pid, ticks of CPU) of every living process below this one."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (lines := _lines(entry / "stat")):
            fields = lines[0].rsplit(")", 1)[1].split()
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    for pid in parents:
        above = parents[pid]
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            yield pid, ticks[pid]


def _lines(path: Path | str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
