"""``longthought lineage``: where the artifacts of a run come from, and whether all of that still holds."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from longthought.cli.parser import Parser
from longthought.core.errors import LongthoughtError

if TYPE_CHECKING:
    from longthought.cli.rehearsal import Step
    from longthought.runs.lineage import Lineage
    from longthought.runs.record import Record

_EPILOG = """  longthought lineage runs/r1                 every stage: from what, when, how long, how many tokens
  longthought lineage runs/r1 --check         hash every file again, and ask the recipe what it would do now
  longthought lineage runs/r1 --json"""


def parser() -> Parser:
    """The command line of ``lineage``."""
    made = Parser(
        "lineage",
        "Show the tree of a run: what every stage was given and made, when, how long it took, how many tokens, and\n"
        "what the same command would do again or refuse. A model that another run made is followed to that run.",
        _EPILOG,
    )
    add = made.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run")
    add("--check", action="store_true", help="hash all files, and compare settings and data with what the recipe reads")
    add("--json", action="store_true", help="print JSON")
    return made


def execute(arguments: Namespace) -> int:
    """Print the tree, or JSON."""
    from dataclasses import asdict

    from longthought.cli.lineage_view import view
    from longthought.runs.lineage import lineage
    from longthought.runs.shelf import record_of

    record = record_of(arguments.run)
    found = lineage(record, arguments.check)
    if arguments.check:
        found = _compared(record, found)
    if arguments.json:
        print(json.dumps(asdict(found), ensure_ascii=False, allow_nan=False, indent=1))
        return 0
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    console.print(view(found))
    return 0


def _compared(record: Record, found: Lineage) -> Lineage:
    """With what the recipe would ask of every stage now, where that differs; the recipe is called and does nothing."""
    from dataclasses import replace

    from longthought.cli.rehearsal import rehearse
    from longthought.recipes.catalogue import find
    from longthought.runs.settings import from_dict

    try:
        recipe = find(record.recipe)
        rehearsal = rehearse(recipe, from_dict(recipe.settings, record.settings))
    except LongthoughtError as error:
        return replace(found, notes=(*found.notes, f"what the recipe asks for now: {error}"))
    notes = list(found.notes)
    if rehearsal.stopped:
        notes.append(f"the recipe looks at results; its later stages are not compared ({rehearsal.stopped})")
    words: dict[str, tuple[str, ...]] = {}
    to_come = []
    for number, step in enumerate(rehearsal.steps, 1):
        folder = record.path / f"{number:02d}-{step.name}"
        if not folder.exists():
            to_come.append(step.name)
        try:
            words[str(folder)] = tuple(f"is refused: {line}" for line in _differences(folder, step))
        except LongthoughtError as error:
            notes.append(f"what the recipe asks of {step.name} now: {error}")
    nodes = tuple(replace(node, again=node.again + words.get(node.key, ())) for node in found.nodes)
    return replace(found, nodes=nodes, notes=tuple(notes), to_come=tuple(to_come))


def _differences(folder: Path, step: Step) -> Iterator[str]:
    """What differs between a stage as it was asked and as the recipe asks for it now; nothing if it was not started."""
    from longthought.cli.rehearsal import Promise
    from longthought.runs.describe import describe, differences, leafs
    from longthought.runs.files import json_bytes
    from longthought.runs.run import STAGE
    from longthought.runs.shelf import json_in

    if not (folder / STAGE).exists():
        return
    before = json_in(folder / STAGE)
    asked = {"stage": step.stage}
    if not isinstance(step.given, Promise | list | tuple | dict):
        asked["given"] = step.given
    for part, value in asked.items():
        now = json.loads(json_bytes(describe(value, part)))
        yield from differences(leafs(before.get(part), part), leafs(now, part))
