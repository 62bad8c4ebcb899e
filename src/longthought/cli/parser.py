"""Parsing of command lines: errors are raised as ours, with the nearest right option."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from longthought.core.errors import SettingsError

_BYTES = re.compile(r"(?P<number>\d+(\.\d+)?|\.\d+) ?(?P<prefix>[kmgtp]?)(?P<binary>i?)b?", re.IGNORECASE)
_PREFIXES = ("", "k", "m", "g", "t", "p")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` for one command that takes no abbreviations and raises SettingsError."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"longthought {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError; for an unknown option, with the nearest known one."""
        _, unrecognized, words = message.partition("unrecognized arguments: ")
        unknown = [word.partition("=")[0] for word in words.split() if unrecognized and word.startswith("-")]
        near = [match for word in unknown for match in get_close_matches(word, self._option_string_actions, 1)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        message = message.replace(", key=value", "")  # argparse calls the optional words required, too
        raise SettingsError(f"{message}{hint} (see {self.prog} --help)")


def at_least(smallest: int) -> Callable[[str], int]:
    """A reader of whole numbers that are not below ``smallest``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least {smallest} is needed")
        return value

    return read


def temperature(text: str) -> float:
    """A reader of temperatures: 0 (greedy) or positive."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: 0 (the most likely word) or a positive number is needed")
    return value


def share(text: str) -> float:
    """A reader of shares, 0 … 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to 1 is needed")
    return value


def amount(text: str) -> int:
    """A reader of bytes: ``80GB`` is 80 × 1000³, ``80GiB`` is 80 × 1024³."""
    found = _BYTES.fullmatch(text.strip())
    if found is None or (found["binary"] and not found["prefix"]):
        raise argparse.ArgumentTypeError(f"{text!r}: a number of bytes is needed, such as 80GB or 80GiB")
    count = float(found["number"]) * (1024 if found["binary"] else 1000) ** _PREFIXES.index(found["prefix"].lower())
    if not 1 <= count < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r}: at least one byte is needed, and less than 2^63")
    return int(count)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe of a command line, and a file of settings for it."""
    parser.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or file.py[:function]")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE.yaml", help="settings to change; key=value comes after it"
    )


def add_settings(parser: argparse.ArgumentParser, what: str = "change a setting of the recipe") -> None:
    """The words ``key=value`` at the end of a command."""
    parser.add_argument("assignments", nargs="*", metavar="key=value", help=f"{what}, for example rl.steps=80")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="threads of each process (default: those that the run had, or 1: cores are used by more processes)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model of ``eval`` and ``sample``: a run or a model folder."""
    parser.add_argument("path", type=Path, metavar="RUN|MODEL_FOLDER", help="folder of a run, or of a model")
    parser.add_argument("--stage", metavar="NAME", help="stage of the run: base, rl, … (default: the last finished)")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="for a model folder outside a run: the recipe whose task it gets (default: tiny)",
    )
    parser.add_argument(
        "--template", metavar="NAME", help="for a base model, which has no chat template: a prompt, such as r1_zero"
    )
    add_threads(parser)


def program() -> str:
    """How a person at this terminal calls us: ``longthought``, or its path where that is not found."""
    if shutil.which("longthought"):
        return "longthought"
    beside = Path(sys.executable).with_name("longthought")
    return os.path.relpath(beside) if beside.exists() else "python -m longthought"
