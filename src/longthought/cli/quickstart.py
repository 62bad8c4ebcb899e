"""``longthought quickstart``: the main job, from nothing to a report."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from longthought.cli.parser import Parser, add_settings, add_threads

RECIPE = "tiny"
OUT, QUICK_OUT = Path("runs/quickstart"), Path("runs/quickstart-quick")
QUICK = {
    "base.width": "64",
    "base.steps": "800",
    "base.tokens_per_step": "1024",
    "rl.steps": "10",
    "rl.prompts": "8",
    "rl.samples": "8",
    "evaluation.problems": "40",
    "evaluation.samples": "8",
    "gate.fact": "0",
    "gate.hit": "0",
    "gate.miss": "1",
    "gate.pass_at_1": "[0,1]",
    "gate.pass_at_8": "0",
}
"""Budgets that show that everything works, and bounds of the readiness gate that let every base through."""


def parser() -> Parser:
    """The command line of ``quickstart``."""
    made = Parser(
        "quickstart",
        "Pretrain a tiny transformer on a procedural corpus, train it by reinforcement alone to solve Countdown,\n"
        "evaluate it on held-out problems, and write report.html. Can be stopped and run again at any time.",
        "--quick sets: " + " ".join(f"{key}={value}" for key, value in QUICK.items()),
    )
    made.add_argument("--out", type=Path, help=f"folder of the run (default: {OUT}, with --quick {QUICK_OUT})")
    made.add_argument(
        "--quick",
        action="store_true",
        help="a smoke run of a minute or two with small budgets and an open readiness gate: its result means nothing",
    )
    add_threads(made)
    add_settings(made)
    return made


def execute(arguments: Namespace) -> int:
    """Run the recipe and show what came out."""
    from longthought.cli.launch import Order, finish, launch
    from longthought.recipes.catalogue import find
    from longthought.runs.settings import override

    recipe = find(RECIPE)
    words: list[str] = arguments.assignments
    if arguments.quick:
        print(
            "A smoke run: budgets are small and the readiness gate is open. It shows that everything works on this "
            "machine; its numbers mean nothing.\n"
        )
        chosen = {word.partition("=")[0].strip() for word in words}
        words = [f"{key}={value}" for key, value in QUICK.items() if key not in chosen] + words
    out = arguments.out or (QUICK_OUT if arguments.quick else OUT)
    order = Order(recipe, override(recipe.settings, words), out, arguments.threads)
    finish(order, launch(order))
    if arguments.quick:
        print("\nThis was a smoke run (--quick): its numbers mean nothing. Run the command without --quick.")
    return 0
