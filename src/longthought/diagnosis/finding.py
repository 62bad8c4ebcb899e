"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warn", "fail", "skipped"]

WORST_FIRST: tuple[Status, ...] = ("fail", "warn", "skipped", "ok")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    what: what was measured, with its number and bound.  why: what it means and what to do; empty where all is well.
    """

    name: str
    status: Status
    what: str
    why: str = ""


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status; ``ok`` when nothing was found."""
    found = {finding.status for finding in findings}
    return next((status for status in WORST_FIRST if status in found and status != "skipped"), "ok")


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise as they came."""
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.status))


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest
