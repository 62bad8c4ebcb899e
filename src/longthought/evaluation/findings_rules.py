"""What a finding claims, and the rule by which the claim is judged.

A claim is a difference between two models, or two ways to use one, and a threshold: 0 unless said otherwise. It is
measured for every seed, with a 95 % interval over problems. Then

- reproduced: in every seed the whole interval lies above the threshold;
- opposite: in every seed the whole interval lies below it;
- not reproduced: neither, and in no seed the difference itself lies above it;
- not decided: anything else: the seeds disagree, or an interval holds the threshold;
- not measured: no seed has finished the stages.

The interval tells how sure a difference between two models of one seed is; whether another training run shows it, only
the seeds tell. A finding of several claims bears their common verdict, and is ``reproduced in part`` where some are
reproduced and others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from longthought.evaluation.findings_read import Seed
from longthought.evaluation.report_data import Estimate

Verdict: TypeAlias = Literal[
    "reproduced", "reproduced in part", "not reproduced", "opposite", "not decided", "not measured"
]
Unit: TypeAlias = Literal["points", "percent", "tokens", "number", "ratio"]
Measure: TypeAlias = Callable[[Seed], Estimate | None]

RULE: Final = (
    "Reproduced: in every seed that was run, the whole 95 % interval lies above the claim's threshold. Opposite: in "
    "every seed it lies below. Not reproduced: neither, and in no seed the difference itself lies above the threshold. "
    "Not decided: anything else; the seeds disagree, or an interval holds the threshold. A finding of several claims "
    "bears their common verdict; it is reproduced in part where some of them are and others are not."
)


@dataclass(frozen=True)
class Quantity:
    """A number with its unit; shares are fractions of one, and shown as points or per cent."""

    label: str
    measure: Measure
    unit: Unit = "points"


@dataclass(frozen=True)
class Claim(Quantity):
    """A quantity that is claimed to lie above a threshold."""

    threshold: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What a paper says, what would show it, and what is told beside.

    key: one letter.  paper: what it says, with its number and where.
    beside: quantities without a verdict.  plot: inline SVG of all seeds.  reading: how to read it.
    """

    key: str
    title: str
    paper: str
    claims: tuple[Claim, ...]
    plot: Callable[[Sequence[Seed]], str]
    reading: str
    beside: tuple[Quantity, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A quantity in every seed. ``verdict`` and ``threshold`` are None where nothing is claimed."""

    label: str
    unit: Unit
    by_seed: Mapping[int, Estimate]
    threshold: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Result:
    """A finding with all that was measured. ``plot`` is empty where there is nothing to draw."""

    key: str
    title: str
    paper: str
    verdict: Verdict
    claims: tuple[Measured, ...]
    beside: tuple[Measured, ...] = ()
    plot: str = field(default="", repr=False)
    reading: str = ""


def verdict_on(estimates: Iterable[Estimate], threshold: float = 0.0) -> Verdict:
    """The verdict on one claim, from its estimates in the seeds. An estimate without an interval decides nothing."""
    found = list(estimates)
    if not found:
        return "not measured"
    if all(one.low is not None and one.low > threshold for one in found):
        return "reproduced"
    if all(one.high is not None and one.high < threshold for one in found):
        return "opposite"
    return "not decided" if any(one.value > threshold for one in found) else "not reproduced"


def verdict_together(verdicts: Iterable[Verdict]) -> Verdict:
    """That of a finding, from those of its claims; what was not measured is left out."""
    known = {verdict for verdict in verdicts if verdict != "not measured"}
    if not known:
        return "not measured"
    if len(known) == 1:
        return known.pop()
    if "reproduced" in known:
        return "reproduced in part"
    return "not decided" if "not decided" in known else "not reproduced"
