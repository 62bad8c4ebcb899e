"""Where problems come from, by name: files, generators with levels, reasoning-gym."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Final

from longthought.core.errors import SettingsError
from longthought.core.protocols import Task
from longthought.tasks.arithmetic import Arithmetic
from longthought.tasks.chains import Chains
from longthought.tasks.circuits import Circuits
from longthought.tasks.countdown import Countdown
from longthought.tasks.gym import GymTask
from longthought.tasks.knights import Knights
from longthought.tasks.mixture import Mixture
from longthought.tasks.paths import Mazes, Paths
from longthought.tasks.permutations import Permutations
from longthought.tasks.squares import Squares
from longthought.tasks.sudoku import Sudoku

GENERATORS: Final[dict[str, Any]] = {
    "arithmetic": Arithmetic,
    "chains": Chains,
    "squares": Squares,
    "permutations": Permutations,
    "circuits": Circuits,
    "knights": Knights,
    "countdown": Countdown,
    "paths": Paths,
    "mazes": Mazes,
    "sudoku": Sudoku,
}
"""Each has levels 1 (easy) to 6; see ``docs/tasks.md``."""


def mixture(sources: Sequence[str], read: Callable[[str], Task], seed: int, format_weight: float) -> Task:
    """The task of one source, or the mixture of several.

    A source is a file, ``knights:3`` (a generator and its level; 1 without), or ``gym:NAME`` (reasoning-gym), each with
    ``@WEIGHT`` after it if its share is not to be 1. ``read`` makes the task of a file.

    Raises SettingsError for a source that does not exist, and what ``read`` raises.
    """
    parts = [(_task(name, read, seed, format_weight), weight) for name, weight in map(weighted, sources)]
    if not parts:
        raise SettingsError("there are no problems: name a file or a generator")
    if len(parts) == 1:
        if parts[0][1] != 1.0:
            raise SettingsError(f"{sources[0]}: the weight of the only source changes nothing; leave it out")
        return parts[0][0]
    return Mixture(tuple(parts), seed)


def weighted(source: str) -> tuple[str, float]:
    """The source and its weight: ``name@2`` is (name, 2)."""
    name, sign, weight = source.rpartition("@")
    if not sign:
        return source, 1.0
    try:
        value = float(weight)
    except ValueError:
        return source, 1.0  # a file whose name holds an @
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"{source}: the weight must be positive and finite")
    return name, value


def _task(name: str, read: Callable[[str], Task], seed: int, format_weight: float) -> Task:
    kind, _, rest = name.partition(":")
    if kind == "gym":
        return GymTask(rest, seed=seed, format_weight=format_weight)
    if kind in GENERATORS:
        if rest and not rest.isdecimal():
            raise SettingsError(f"{name}: the level is a whole number, as in {kind}:2")
        task: Task = replace(GENERATORS[kind].level(int(rest or 1)), seed=seed, format_weight=format_weight)
        return task
    if "." in name or "/" in name:
        return read(name)
    near = get_close_matches(kind, GENERATORS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = f"{', '.join(GENERATORS)}, gym:NAME"
    raise SettingsError(f"{name} is neither a file nor a generator: {hint}Generators: {known}")
