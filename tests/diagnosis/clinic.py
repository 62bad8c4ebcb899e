"""Patients for the doctor: an RL stage in the world of the parrot, in good health unless something is planted."""

from __future__ import annotations

from pathlib import Path

from longthought.diagnosis.doctor import examine
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient
from longthought.recipes.methods import Knobs, method
from longthought.stages.method import Method
from longthought.stages.rl import RL
from longthought.training.optimizer import AdamW
from stages.parrot import Parrot, checkpoint

GRPO = method("grpo", Knobs(), 4)


def stage(chosen: Method = GRPO, **changes: object) -> RL:
    fields = {"steps": 60, "prompts": 6, "samples": 8, "updates": 2, "max_tokens": 4, "task": Parrot(), "quiet": True}
    return RL(**{**fields, "method": chosen, "optimizer": AdamW(lr=6e-3), **changes})  # type: ignore[arg-type]


def patient(folder: Path, chosen: Method = GRPO, **changes: object) -> Patient:
    """A sharp little model, so that temperatures and tokens can be told apart."""
    return Patient(stage(chosen, **changes), checkpoint(folder / "base", noise=0.4).load())


def findings(sick: Patient, *checks: str) -> dict[str, Finding]:
    """By name; of some checks, or of all."""
    return {finding.name: finding for finding in examine(sick, checks)}
