"""Answers that are a path: through the nodes of a graph, or the fields of a grid. Any shortest one is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 2000

_NODES = re.compile(r"\w+(?:(?:\s*(?:->|→|-|,|，)\s*|\s+)\w+)*")
_MOVES = re.compile(r"[UDLR](?:[\s,]*[UDLR])*")
_STEP = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}


def nodes(answer: str, lengths: Mapping[tuple[str, str], int], ends: tuple[str, str], shortest: int) -> Verdict:
    """1.0 when ``answer`` is a path between ``ends`` of length ``shortest``, else 0.0 with the reason. Never raises.

    ``lengths``: of every edge, in each direction that may be walked. Nodes are separated by white space, a comma,
    ``-``, ``->`` or ``→``. Anything else, and more than ``MAX_CHARS`` characters, is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    if not _NODES.fullmatch(answer.strip()):
        return _unparsable("not a list of nodes")
    path = re.findall(r"\w+", answer)
    if (path[0], path[-1]) != ends:
        return _wrong(f"does not lead from {ends[0]} to {ends[1]}")
    steps = list(pairwise(path))
    for step in steps:
        if step not in lengths:
            return _wrong(f"there is no edge from {step[0][:20]!a} to {step[1][:20]!a}")
    return _measured(sum(lengths[step] for step in steps), shortest)


def moves(answer: str, grid: Sequence[str], shortest: int) -> Verdict:
    """1.0 when the moves lead from ``S`` to ``G`` in ``shortest`` steps, else 0.0 with the reason. Never raises.

    ``grid``: rows of equal length of ``S``, ``G``, ``.`` (free) and anything else (a wall). Moves are the capital
    letters U, D, L and R; white space and commas between them do not count. Anything else, and more than ``MAX_CHARS``
    characters, is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    if not _MOVES.fullmatch(answer.strip()):
        return _unparsable("not a list of moves U, D, L, R")
    fields = {(row, column): field for row, line in enumerate(grid) for column, field in enumerate(line)}
    at = next((place for place, field in fields.items() if field == "S"), (0, 0))
    path = re.findall("[UDLR]", answer)
    for number, move in enumerate(path, 1):
        at = (at[0] + _STEP[move][0], at[1] + _STEP[move][1])
        if fields.get(at, "#") not in (".", "S", "G"):
            return _wrong(f"move {number} runs into a wall")
    if fields.get(at) != "G":
        return _wrong("does not end at G")
    return _measured(len(path), shortest)


def _measured(length: int, shortest: int) -> Verdict:
    if length != shortest:
        return _wrong(f"has length {length}, not {shortest}")
    return Verdict(1.0, Outcome.GRADED, f"has length {length}, as short as can be")


def _wrong(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.GRADED, reason)


def _unparsable(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
