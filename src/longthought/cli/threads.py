"""How many threads to compute with."""

from __future__ import annotations

import torch

from longthought.cli.rehearsal import Rehearsal
from longthought.core.errors import SettingsError

DEFAULT_THREADS = 1
"""Tiny models gain nothing from threads inside an operation; the cores are used by processes (``workers``)."""


def set_threads(wanted: int | None) -> int:
    """Compute with ``wanted`` threads, or ``DEFAULT_THREADS`` for None; returns them."""
    threads = wanted or DEFAULT_THREADS
    torch.set_num_threads(threads)
    return threads


def check_threads(rehearsal: Rehearsal, threads: int) -> None:
    """Raises SettingsError, before anything is written, when several processes would have several threads each."""
    for step in rehearsal.steps:
        workers = getattr(step.stage, "workers", 1)
        if workers > 1 and threads > 1:
            raise SettingsError(
                f"the stage {step.name} works with {workers} processes of one thread each: "
                f"leave out --threads {threads}, or set workers=1"
            )
