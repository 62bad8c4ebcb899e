"""``longthought run``: a recipe with settings of one's own."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from longthought.cli.parser import Parser, add_settings, add_threads
from longthought.core.errors import SettingsError


def parser() -> Parser:
    """The command line of ``run``."""
    made = Parser(
        "run",
        "Run a recipe into a folder. The same command goes on with a run that was stopped, bit by bit as if it had\n"
        "not been; a finished run is left as it is.",
    )
    made.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of a shipped recipe, or file.py[:function]")
    made.add_argument("--list", action="store_true", help="name the shipped recipes")
    made.add_argument("--show", action="store_true", help="print all settings of the recipe, and run nothing")
    made.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE-FINGERPRINT)")
    made.add_argument("--settings", type=Path, metavar="FILE.yaml", help="settings to change; key=value comes after it")
    made.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run under other versions, threads or CPU than it had; its bits may then differ",
    )
    made.add_argument(
        "--reuse",
        type=Path,
        metavar="RUN",
        help="copy the finished stages of another run that are the same here: several methods from one base",
    )
    made.add_argument("--quiet", action="store_true", help="no progress")
    made.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files, too")
    add_threads(made)
    add_settings(made)
    return made


def execute(arguments: Namespace) -> int:
    """List, show, or run."""
    from longthought.recipes.catalogue import SHIPPED, find

    if arguments.list:
        for name in SHIPPED:
            print(f"{name}  {find(name).summary}")
        return 0
    if arguments.recipe is None:
        raise SettingsError("run: give a recipe, for example `longthought run tiny`; --list names the shipped ones")
    from longthought.cli.launch import Order, default_out, finish, launch
    from longthought.cli.rehearsal import chosen

    recipe, settings = chosen(arguments)
    if arguments.show:
        from longthought.cli.settings_table import table

        print(table(recipe, settings))
        return 0
    order = Order(
        recipe,
        settings,
        arguments.out or default_out(recipe, settings),
        arguments.threads,
        accept_changes=arguments.accept_changes,
        quiet=arguments.quiet,
        tensorboard=arguments.tensorboard,
        reuse=arguments.reuse,
    )
    finish(order, launch(order))
    return 0
