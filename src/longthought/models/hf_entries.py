"""Entries of a ``config.json``, checked one by one: what has another type or size is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longthought.core.errors import CheckpointError
from longthought.core.files import shown

Entries = Mapping[str, Any]

LIMIT = 2**63
"""Sizes are below it: no tensor has more numbers."""


def whole(entries: Entries, name: str, least: int = 1) -> int:
    """A whole number of at least ``least``. Raises CheckpointError for anything else."""
    value = entries.get(name)
    if type(value) is not int or value < least:
        raise CheckpointError(f"{name} must be a whole number, at least {least}, and is {shown(value)}")
    if value >= LIMIT:
        raise CheckpointError(f"{name} must be less than 2^63, and is {shown(value)}")
    return value


def positive(entries: Entries, name: str) -> float:
    """A number above 0 of a size that float32 can work with. Raises CheckpointError for anything else."""
    value = entries.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 <= value <= 1e30:
        raise CheckpointError(f"{name} must be a number above 0 (at least 1e-30, at most 1e30), and is {shown(value)}")
    return float(value)


def switch(entries: Entries, name: str) -> bool:
    """True or false. Raises CheckpointError for anything else."""
    value = entries.get(name)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} must be true or false, and is {shown(value)}")
    return value


def present(entries: Entries, *names: str) -> dict[str, Any]:
    """Those of the entries that say something."""
    return {name: entries[name] for name in names if entries.get(name) is not None}
