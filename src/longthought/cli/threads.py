"""How many threads to compute with."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MOST = 2
"""Models of a few hundred thousand weights do not gain from more."""


def set_threads(wanted: int | None) -> int:
    """Compute with ``wanted`` threads, or, for None, with one per physical core and at most ``MOST``; returns them."""
    threads = wanted or min(MOST, physical_cores())
    torch.set_num_threads(threads)
    return threads


def physical_cores() -> int:
    """Cores that this process may use; hyperthreads of one core count once where the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(file.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))
