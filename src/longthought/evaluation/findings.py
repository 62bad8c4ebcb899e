"""The papers' findings, judged by the runs of recipe ``findings``.

What each finding claims stands in ``findings_training`` and ``findings_use``, the rule of the verdicts in
``findings_rules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from longthought.core.errors import RunError
from longthought.evaluation.findings_measures import safely
from longthought.evaluation.findings_read import Seed, seeds_in
from longthought.evaluation.findings_rules import (
    Claim,
    Finding,
    Measured,
    Quantity,
    Result,
    verdict_on,
    verdict_together,
)
from longthought.evaluation.findings_training import TRAINING
from longthought.evaluation.findings_use import USE

FINDINGS: Final[tuple[Finding, ...]] = tuple(sorted((*TRAINING, *USE), key=lambda finding: finding.key))


def judged(out: Path) -> tuple[Result, ...]:
    """The verdict on every finding, from the runs in the folders of ``out``.

    What is not finished, or damaged, is not measured; the latter with a warning. Raises RunError when there is no run.
    """
    seeds = seeds_in(out)
    if not seeds:
        raise RunError(f"{out} holds no run: `longthought findings --out {out}` makes one for every seed")
    return tuple(judge(finding, seeds) for finding in FINDINGS)


def judge(finding: Finding, seeds: Sequence[Seed]) -> Result:
    """One finding in all seeds."""
    claims = tuple(_measured(claim, seeds) for claim in finding.claims)
    return Result(
        finding.key,
        finding.title,
        finding.paper,
        verdict_together(one.verdict for one in claims if one.verdict is not None),
        claims,
        tuple(_measured(one, seeds) for one in finding.beside),
        finding.plot(seeds),
        finding.reading,
    )


def _measured(told: Quantity, seeds: Sequence[Seed]) -> Measured:
    found = ((seed.number, safely(told.measure, seed, told.label)) for seed in seeds)
    by_seed = {number: one for number, one in found if one is not None}
    if not isinstance(told, Claim):
        return Measured(told.label, told.unit, by_seed)
    return Measured(told.label, told.unit, by_seed, told.threshold, verdict_on(by_seed.values(), told.threshold))
