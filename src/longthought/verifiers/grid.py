"""Answers that fill a sudoku."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from longthought.core.types import Outcome, Verdict

MAX_CHARS = 1000

_ROW_END = re.compile(r"\s*[/\n]\s*")
_ROW = re.compile(r"[1-9](?:[ ,]*[1-9])*", re.ASCII)


def sudoku(answer: str, clues: Sequence[str], box: tuple[int, int]) -> Verdict:
    """1.0 when ``answer`` fills the grid by the rules, else 0.0 with the reason. Never raises.

    ``clues``: rows of digits, ``.`` where a field is empty; ``box``: rows and columns of a box. In every row, column
    and box each digit from 1 to the size stands once, and the clues are kept. Rows are separated by ``/`` or line ends;
    spaces and commas between digits do not count. Anything that is no grid of this size, and more than ``MAX_CHARS``
    characters, is ``UNPARSABLE``.
    """
    if len(answer) > MAX_CHARS:
        return _unparsable(f"longer than {MAX_CHARS} characters")
    rows = _ROW_END.split(answer.strip())
    if not all(_ROW.fullmatch(row) for row in rows):
        return _unparsable("not rows of digits")
    grid = [re.findall("[1-9]", row) for row in rows]
    size = len(clues)
    if [len(row) for row in grid] != [size] * size:
        return _unparsable(f"not {size} rows of {size} digits")
    if any(clue not in (".", digit) for row, line in zip(grid, clues) for digit, clue in zip(row, line)):
        return _wrong("a clue was changed")
    digits = {str(digit) for digit in range(1, size + 1)}
    for what, group in _groups(grid, box):
        if set(group) != digits:
            return _wrong(f"{what} does not hold each digit once")
    return Verdict(1.0, Outcome.GRADED, "filled by the rules")


def _groups(grid: Sequence[Sequence[str]], box: tuple[int, int]) -> Iterator[tuple[str, list[str]]]:
    """Rows, columns and boxes, each with its name."""
    size, (height, width) = len(grid), box
    for place in range(size):
        yield f"row {place + 1}", list(grid[place])
        yield f"column {place + 1}", [row[place] for row in grid]
        top, left = place // (size // width) * height, place % (size // width) * width
        yield f"box {place + 1}", [d for row in grid[top : top + height] for d in row[left : left + width]]


def _wrong(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.GRADED, reason)


def _unparsable(reason: str) -> Verdict:
    return Verdict(0.0, Outcome.UNPARSABLE, reason)
