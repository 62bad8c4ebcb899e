"""``longthought doctor``: check a configuration before a long run."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, add_recipe, add_settings, add_threads

if TYPE_CHECKING:
    from longthought.cli.rehearsal import Rehearsal
    from longthought.diagnosis.finding import Finding
    from longthought.diagnosis.patient import Patient, Walk
    from longthought.recipes.catalogue import Recipe

UNWELL = 4
"""The exit code when a check failed."""


def parser() -> Parser:
    """The command line of ``doctor``."""
    made = Parser(
        "doctor",
        "Check a recipe with your settings, your problems and your model before a long run: does every row, token,\n"
        "parameter and setting count as it should, and does the reward pay for right answers alone? Some seconds for\n"
        f"a small model; nothing is kept. Exit code 0: well, or warnings; {UNWELL}: something failed.",
    )
    add_recipe(made)
    made.add_argument("--json", action="store_true", help="print JSON, and nothing else, to standard output")
    add_threads(made)
    add_settings(made)
    return made


def execute(arguments: Namespace) -> int:
    """Examine every RL stage of the recipe; print the findings."""
    from longthought.cli.rehearsal import chosen, rehearse
    from longthought.cli.threads import check_threads, set_threads
    from longthought.core.errors import SettingsError
    from longthought.diagnosis.finding import worst

    recipe, settings = chosen(arguments)
    rehearsal = rehearse(recipe, settings)
    check_threads(rehearsal, set_threads(arguments.threads))
    began = time.perf_counter()
    found: dict[str, list[Finding]] = {}
    for name, patient in patients(recipe, settings, rehearsal):
        found[name] = _examined(name, patient)
    if not found:
        why = f" before it looks at a result ({rehearsal.stopped})" if rehearsal.stopped else ""
        raise SettingsError(
            f"{recipe.name}: no RL stage that starts from a known model{why}: there is nothing to examine"
        )
    status = worst(finding for findings in found.values() for finding in findings)
    if arguments.json:
        print(json.dumps(_plain(found, status), ensure_ascii=False, indent=1))
    else:
        _print(found, time.perf_counter() - began)
    return UNWELL if status == "fail" else 0


def patients(recipe: Recipe, settings: Any, rehearsal: Rehearsal) -> Iterator[tuple[str, Patient]]:
    """Every RL stage of a recipe by its name, with the model that it starts from, or one of the same shape.

    A model that the recipe makes itself is not there yet. A freshly initialised one stands in for a pretrained base;
    for what a later stage makes, the model that the road started from.
    """
    from longthought.diagnosis import patient as diagnosis
    from longthought.runs.artifacts import Checkpoint, Policy
    from longthought.stages.measure import Evaluate
    from longthought.stages.pretrain import Pretrain
    from longthought.stages.rl import RL

    looks = [step.stage.settings for step in rehearsal.steps if isinstance(step.stage, Evaluate)]
    road: diagnosis.Recipe | None = diagnosis.Recipe(settings, lambda changed: _walk(recipe, changed))
    base: tuple[Policy, str] | None = None
    for step in rehearsal.steps:
        if isinstance(step.given, Checkpoint):
            base = (step.given.load(), "")
        elif isinstance(step.stage, Pretrain):
            base = (step.stage.new_policy(), f"{step.name} is not trained yet: a fresh model of its shape stands in")
        if isinstance(step.stage, RL) and base is not None:
            policy, note = base
            if not note and not isinstance(step.given, Checkpoint):
                note = "the model is made by an earlier stage: the one that the road starts from stands in"
            made = diagnosis.Patient(step.stage, policy, not note, looks, road, [note] if note else [])
            yield step.name, made
            road = None  # once is enough


def _walk(recipe: Recipe, settings: Any) -> Walk:
    from longthought.cli.rehearsal import Promise, rehearse
    from longthought.diagnosis.patient import Walk
    from longthought.runs.artifacts import Checkpoint

    def told(given: Any) -> str:
        if isinstance(given, Checkpoint):
            return f"{given.path} {given.template}"
        return "made" if isinstance(given, Promise) else type(given).__qualname__

    walked = rehearse(recipe, settings)
    return Walk([(step.name, step.stage, told(step.given)) for step in walked.steps], walked.stopped)


def _examined(name: str, patient: Patient) -> list[Finding]:
    """All findings; what is being looked at is named on a terminal while it lasts."""
    from longthought.diagnosis.doctor import examine

    shows = sys.stderr.isatty()
    findings = []
    for finding in examine(patient):
        findings.append(finding)
        if shows:
            print(f"\r\x1b[K{name}: {finding.name} {finding.status}", end="", file=sys.stderr, flush=True)
    if shows:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return findings


def _plain(found: dict[str, list[Finding]], status: str) -> dict[str, Any]:
    stages = {name: [asdict(finding) for finding in findings] for name, findings in found.items()}
    return {"status": status, "stages": stages}


def _print(found: dict[str, list[Finding]], seconds: float) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    for name, findings in found.items():
        print(_summary(name, findings, seconds))
        console.print(_table(findings))


def _summary(name: str, findings: list[Finding], seconds: float) -> str:
    """What is worst, in one line."""
    from longthought.diagnosis.finding import listed

    by = {status: [f.name for f in findings if f.status == status] for status in ("fail", "warn", "skipped", "ok")}
    if by["fail"]:
        head = f"{len(by['fail'])} failed: {listed(by['fail'], 6)}"
    else:
        head = f"well, with {len(by['warn'])} warnings: {listed(by['warn'], 6)}" if by["warn"] else "well"
    return f"{name}: {head} ({len(by['ok'])} ok, {len(by['skipped'])} skipped, {seconds:.0f} s)"


def _table(findings: list[Finding]) -> Any:
    from rich.table import Table

    from longthought.diagnosis.finding import ordered

    colours = {"fail": "bold red", "warn": "yellow", "skipped": "dim", "ok": "green"}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    from rich.text import Text

    for finding in ordered(findings):
        told = finding.what + (f"\n→ {finding.why}" if finding.why and finding.status != "ok" else "")
        table.add_row(Text(finding.status, style=colours[finding.status]), Text(finding.name), Text(told))
    return table
