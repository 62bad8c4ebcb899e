"""``longthought findings``: the papers' findings at laptop scale, over several seeds."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, add_settings, add_threads, at_least
from longthought.core.errors import SettingsError

if TYPE_CHECKING:
    from longthought.cli.launch import Order
    from longthought.evaluation.findings_rules import Result

_WIDE = 160  # columns of the table in a file
_EPILOG = """  longthought findings                               three seeds into runs/findings
  longthought findings --seed 0 --reuse runs/r1      one seed; what that run of recipe r1 has made is copied
  longthought findings --read                        judge what is there, and run nothing"""


def parser() -> Parser:
    """The command line of ``findings``."""
    made = Parser(
        "findings",
        "Run recipe `findings` once for every seed, and judge the papers' findings by what it shows: reproduced, not\n"
        "reproduced, opposite, or not decided. The same command goes on with what was stopped.",
        _EPILOG,
    )
    made.add_argument("--seeds", type=at_least(1), metavar="N", help="seeds 0 to N − 1 (default: 3)")
    made.add_argument("--seed", nargs="+", action="extend", metavar="N", help="these seeds")
    made.add_argument("--out", type=Path, default=Path("runs/findings"), help="folder of all (default: runs/findings)")
    made.add_argument(
        "--reuse",
        nargs="+",
        action="extend",
        metavar="RUN",
        help="runs, of recipe r1 for example: each gives its finished stages to the seed that it had",
    )
    made.add_argument("--read", action="store_true", help="run nothing: judge what the folder holds")
    made.add_argument("--settings", type=Path, metavar="FILE.yaml", help="settings to change; key=value comes after it")
    made.add_argument("--accept-changes", action="store_true", help="go on under other versions, threads or CPU")
    made.add_argument("--quiet", action="store_true", help="no progress")
    add_threads(made)
    add_settings(made)
    return made


def execute(arguments: Namespace) -> int:
    """Run what is left, judge, write and print."""
    seeds, folders, assignments = _sorted_out(arguments)
    if arguments.read:
        _refuse_with_read(arguments, assignments)
        _print(_judge(arguments.out))
        return 0
    from longthought.cli.launch import launch
    from longthought.core.errors import NotReady

    for order in _orders(arguments, seeds, folders, assignments):
        try:
            launch(order)
        except NotReady as error:  # one seed's base; the others may be better
            print(f"seed {order.settings.seed}: {error}", file=sys.stderr)
        results = _judge(arguments.out)
    _print(results)
    print(f"\nTables: {arguments.out / 'findings.md'}\nPage:   {arguments.out / 'findings.html'}")
    return 0


def _sorted_out(arguments: Namespace) -> tuple[list[int], list[Path], list[str]]:
    """Seeds, runs to reuse, and settings; argparse takes a key=value after an option of many words for one of them."""
    words = [*(arguments.seed or []), *(arguments.reuse or [])]
    assignments = [*arguments.assignments, *(word for word in words if "=" in word)]
    if arguments.seed and arguments.seeds:
        raise SettingsError("findings: give --seeds or --seed, not both")
    if any(one.partition("=")[0] == "seed" for one in assignments):
        raise SettingsError("findings: seed=… is set by --seed or --seeds")
    told = [word for word in arguments.seed or map(str, range(arguments.seeds or 3)) if "=" not in word]
    if wrong := [word for word in told if not word.isdecimal()]:
        raise SettingsError(f"findings: --seed {wrong[0]}: a whole number of at least 0 is needed")
    seeds = list(dict.fromkeys(map(int, told)))
    return seeds, [Path(word) for word in arguments.reuse or [] if "=" not in word], assignments


def _refuse_with_read(arguments: Namespace, assignments: Sequence[str]) -> None:
    if assignments or arguments.reuse or arguments.seed or arguments.seeds or arguments.settings:
        raise SettingsError("findings: --read takes only --out: it judges all seeds that are there, as they were run")


def _orders(arguments: Namespace, seeds: Sequence[int], folders: Sequence[Path], assignments: list[str]) -> list[Order]:
    from dataclasses import replace

    from longthought.cli.launch import Order
    from longthought.recipes.catalogue import find
    from longthought.runs.settings import from_yaml, override

    recipe = find("findings")
    start = from_yaml(recipe.settings, arguments.settings) if arguments.settings else recipe.settings
    chosen: Any = override(start, assignments)
    reuse = _by_seed(folders, seeds)
    return [
        Order(
            recipe,
            replace(chosen, seed=seed),
            arguments.out / f"seed_{seed}",
            arguments.threads,
            accept_changes=arguments.accept_changes,
            quiet=arguments.quiet,
            reuse=reuse.get(seed),
        )
        for seed in seeds
    ]


def _by_seed(folders: Sequence[Path], seeds: Sequence[int]) -> dict[int, Path]:
    from longthought.runs.record import Record

    found: dict[int, Path] = {}
    for folder in folders:
        seed: Any = Record.read(folder).settings.get("seed")
        if seed not in seeds:
            raise SettingsError(f"findings: {folder} was run with seed {seed}, which is not asked for")
        if seed in found:
            raise SettingsError(f"findings: {found[seed]} and {folder} both have seed {seed}: give one of them")
        found[seed] = folder
    return found


def _judge(out: Path) -> tuple[Result, ...]:
    from longthought.evaluation.findings import judged
    from longthought.evaluation.findings_page import write

    results = judged(out)
    write(results, out)
    return results


def _print(results: Sequence[Result]) -> None:
    from rich.console import Console

    from longthought.evaluation.findings_page import terminal

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)
    console.print(terminal(results))
