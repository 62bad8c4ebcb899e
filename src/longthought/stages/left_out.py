"""What makes no row to learn from: refused with its place, or counted and told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from longthought.tasks.file_rows import BadRow, BadRows

LeftOut: TypeAlias = tuple[str, BadRow]
"""The file that it comes from, and why it is none."""

_warn = logging.getLogger(__name__).warning


class Left(Exception):
    """Something that makes no row. ``reason`` is one of few; ``detail`` says what it was here."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def of(self, where: tuple[str, int]) -> LeftOut:
        """With the file and the line that it comes from."""
        file, place = where
        return file, BadRow(place, self.reason, self.detail)


def gathered(found: Iterable[LeftOut]) -> BadRows:
    """All of them, counted."""
    rows = BadRows()
    for file, row in found:
        rows.add(file, row)
    return rows


def refuse(found: Iterable[LeftOut], reason: str, advice: str) -> None:
    """Raises DataError, listing those that are left out for this reason, if there are any."""
    rows = gathered(one for one in found if one[1].reason == reason)
    if rows.counts:
        raise rows.refusal(advice)


def tell(owner: str, skipped: Mapping[str, int], kept: str, cut: int = 0) -> None:
    """Warn of what is not learned, or not whole. kept: what became of the others."""
    lost = [f"{count:,} left out: {reason}" for reason, count in skipped.items()]
    lost += [f"{cut:,} cut at the context, so that their end is not learned"] if cut else []
    if lost:
        _warn(f"{owner}: {'; '.join(lost)}; {kept}")
