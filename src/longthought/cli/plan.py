"""``longthought plan``: what a run will take, before it starts."""

from __future__ import annotations

import sys
from argparse import Namespace

from longthought.cli.parser import Parser, add_recipe, add_settings, add_threads


def parser() -> Parser:
    """The command line of ``plan``."""
    made = Parser(
        "plan",
        "Print the arithmetic of a run: prompts, samples, optimizer steps, tokens, memory and disk, and the time that\n"
        "a short measurement on this machine lets expect. Nothing is written.",
    )
    add_recipe(made)
    add_threads(made)
    add_settings(made)
    return made


def execute(arguments: Namespace) -> int:
    """Rehearse the recipe, measure for some seconds, print."""
    from longthought.cli.outlook import outlook
    from longthought.cli.rehearsal import chosen, rehearse
    from longthought.cli.threads import check_threads, set_threads

    recipe, settings = chosen(arguments)
    rehearsal = rehearse(recipe, settings)
    check_threads(rehearsal, set_threads(arguments.threads))
    print("measuring …", file=sys.stderr, flush=True)
    print(outlook(rehearsal))
    return 0
