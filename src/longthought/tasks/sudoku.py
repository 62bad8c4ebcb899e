"""Sudoku of 4, 6 or 9 digits: one solution each, proved. Unlimited, seeded, exactly graded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import islice
from random import Random
from typing import ClassVar, Final, NamedTuple, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight, check_languages
from longthought.tasks.splits import problem_random, proposals, split_of
from longthought.verifiers.grid import sudoku

Grid: TypeAlias = tuple[int, ...]
"""Digits row by row; 0 where a field is empty."""

BOXES: Final = {4: (2, 2), 6: (2, 3), 9: (3, 3)}

PROMPTS: Final = {
    "en": (
        "fill this sudoku of {size} rows , separated by / , where . is empty : {shown} . every row , every column and "
        "every box of {height} rows and {width} columns holds each digit from 1 to {size} once . "
        "answer with the {size} full rows , separated by / ."
    ),
    "zh": (
        "填这个 {size} 行的数独，各行用 / 隔开，. 是空格：{shown} 。每行、每列、每个 {height} 行 {width} 列的宫里，"
        "1 到 {size} 各出现一次。答案写出填好的 {size} 行，用 / 隔开。"
    ),
}


class _Sudoku(NamedTuple):
    solution: Grid
    clues: Grid


@dataclass(frozen=True)
class Sudoku:
    """Sudoku of ``size`` 4 (boxes of 2 rows by 2 columns), 6 (2 by 3) or 9 (3 by 3).

    Clues are taken away in random order, as long as the solution stays the only one and more than ``clues`` are left:
    so there are never fewer, and more only where none can be spared. Splits are disjoint by solution, at size 4 (which
    has 288 solutions) by clues, up to the names of digits, turning and mirroring, whatever the seed and the level.
    Languages alternate with the index. The reward is ``accuracy + format_weight · format``.

    Example: ``Sudoku().problem("train", 0).messages[0].content`` is like ``"… : 1 . . 4 / . . 2 . / … every row …"``.

    Raises ``SettingsError`` on a setting out of range; ``problem`` raises ``DataError`` on an unknown split.
    """

    size: int = 4
    clues: int = 8
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0
    format_weight: float = 0.1

    levels: ClassVar[int] = 6

    def __post_init__(self) -> None:
        """Refuse settings under which no problem could be drawn."""
        if self.size not in BOXES:
            raise SettingsError(f"sudoku: size is {self.size}; choose 4, 6 or 9")
        if not self.size - 1 <= self.clues < self.size**2:
            raise SettingsError(f"sudoku: clues is {self.clues}; choose {self.size - 1} to {self.size**2 - 1}")
        check_languages(self.name, self.languages, PROMPTS)
        check_format_weight(self.name, self.format_weight)

    @classmethod
    def level(cls, number: int) -> Sudoku:
        """Presets from easy (1) to hard (6): size 4 with 8 and 5 clues, 6 with 18 and 11, 9 with 36 and 27."""
        presets = ((4, 8), (4, 5), (6, 18), (6, 11), (9, 36), (9, 27))
        if not 1 <= number <= cls.levels:
            raise SettingsError(f"sudoku: level is {number}; choose 1 to {cls.levels}")
        return cls(*presets[number - 1])

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return "sudoku"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        drawn = next(proposals(split, lambda: self._drawn(draw), self._split_of))
        clues = drawn.clues if self.size == 4 else _dug(drawn.solution, self.clues, draw)
        language = self.languages[index % len(self.languages)]
        height, width = BOXES[self.size]
        content = PROMPTS[language].format(size=self.size, shown=_shown(clues), height=height, width=width)
        return Problem(
            id=f"{self.name}/{self.size}/{_digest(_shown(clues))}/{language}",
            messages=(Message("user", content),),
            answer=_shown(drawn.solution),
            info={"clues": _shown(clues).replace(" ", "").replace("/", " "), "language": language},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the rules of sudoku. Raises ``DataError`` when the problem is not one of this task."""
        rows = _rows_of(problem)

        def verify(answer: str) -> Verdict:
            return sudoku(answer, rows, BOXES[len(rows)])

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """The one solution. Raises ``DataError`` where there is none, or more than one."""
        clues = tuple(0 if field == "." else int(field) for row in _rows_of(problem) for field in row)
        found = list(islice(solutions(clues), 2))
        if len(found) != 1:
            raise DataError(f"problem {problem.id!r} is no sudoku with one solution")
        return _shown(found[0])

    def _drawn(self, draw: Random) -> _Sudoku:
        """A solution. Its clues, which take long to find, only at size 4, where they tell the split."""
        solution = next(solutions((0,) * self.size**2, draw))
        return _Sudoku(solution, _dug(solution, self.clues, draw) if self.size == 4 else solution)

    def _split_of(self, drawn: _Sudoku) -> str:
        return split_of(self.name, _canonical(drawn.clues))


def solutions(clues: Grid, draw: Random | None = None) -> Iterator[Grid]:
    """All ways to fill a grid of 16, 36 or 81 fields, in a random order where ``draw`` is given.

    Depth first, the field with the fewest possible digits next.
    """
    units, _ = _layout(len(clues))
    used = [0] * (3 * int(len(clues) ** 0.5))  # digits, as bits, in every row, column and box
    for field, digit in enumerate(clues):
        if digit and any(used[unit] >> digit & 1 for unit in units[field]):
            return
        for unit in units[field]:
            used[unit] |= (digit > 0) << digit
    yield from _filled(list(clues), used, draw)


def _filled(grid: list[int], used: list[int], draw: Random | None) -> Iterator[Grid]:
    units, digits = _layout(len(grid))
    best, options = -1, [*digits, 0]
    for field, digit in enumerate(grid):
        if not digit:
            a, b, c = units[field]
            taken = used[a] | used[b] | used[c]
            free = [digit for digit in digits if not taken >> digit & 1]
            if len(free) < len(options):
                best, options = field, free
                if len(free) < 2:
                    break
    if best < 0:
        yield tuple(grid)
        return
    if draw:
        draw.shuffle(options)
    for digit in options:
        for unit in units[best]:
            used[unit] ^= 1 << digit
        grid[best] = digit
        yield from _filled(grid, used, draw)
        grid[best] = 0
        for unit in units[best]:
            used[unit] ^= 1 << digit


@cache
def _layout(fields: int) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """Row, column and box of every field, numbered through; and the digits."""
    size = int(fields**0.5)
    height, width = BOXES[size]
    places = ((field // size, field % size) for field in range(fields))
    units = tuple((r, size + c, 2 * size + r // height * (size // width) + c // width) for r, c in places)
    return units, tuple(range(1, size + 1))


def _dug(solution: Grid, clues: int, draw: Random) -> Grid:
    """Clues of a solution, taken away in random order while it stays the only one."""
    grid, left = list(solution), len(solution)
    for field in draw.sample(range(len(solution)), len(solution)):
        if left == clues:
            break
        digit, grid[field] = grid[field], 0
        if next(islice(solutions(tuple(grid)), 1, None), None) is None:
            left -= 1
        else:
            grid[field] = digit
    return tuple(grid)


def _canonical(grid: Grid) -> str:
    """The same for grids that differ by the names of digits, turning and mirroring alone."""
    size = int(len(grid) ** 0.5)
    rows = [list(grid[at : at + size]) for at in range(0, len(grid), size)]
    forms = []
    for turned in (rows, [list(column) for column in zip(*rows)]):
        for upside in (turned, turned[::-1]):
            forms += [upside, [row[::-1] for row in upside]]
    return min(map(_renamed, forms))


def _renamed(rows: Sequence[Sequence[int]]) -> str:
    """Digits named in the order in which they come."""
    names = {0: "."}
    return "".join(names.setdefault(digit, str(len(names))) for row in rows for digit in row)


def _shown(grid: Grid) -> str:
    size = int(len(grid) ** 0.5)
    fields = [str(digit) if digit else "." for digit in grid]
    return " / ".join(" ".join(fields[at : at + size]) for at in range(0, len(fields), size))


def _rows_of(problem: Problem) -> list[str]:
    rows = problem.info.get("clues", "").split()
    size = len(rows)
    allowed = set("." + "123456789"[:size])
    if size not in BOXES or any(len(row) != size or set(row) - allowed for row in rows):
        raise DataError(f"problem {problem.id!r} is no sudoku of 4, 6 or 9 rows")
    return rows


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
