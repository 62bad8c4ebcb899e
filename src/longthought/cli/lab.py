"""``longthought lab``: bias and variance of the estimators, against an exact gradient."""

from __future__ import annotations

import argparse
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, at_least
from longthought.core.errors import SettingsError

if TYPE_CHECKING:
    from longthought.diagnosis.estimators import Estimator
    from longthought.diagnosis.lab import Measured
    from longthought.stages.method import Method

_EPILOG = """columns

  unbiased?  yes · scale only: a constant factor mends it · no · unclear: no error was seen above the noise of sampling
  angle °    between the expected and the true gradient
  scale      the factor that brings the true gradient closest to the expected one
  bias       |expected - true| / |true|
  variance   trace of the covariance of one step's gradient / |true|²
  steps      independent steps whose mean is known to 10 %

  longthought lab --estimators grpo,dr_grpo,rloo --skew 1 --plot lab.svg
  longthought lab --off-policy 0.5 --group 2
  longthought lab --estimator mine.py:method --estimators rloo"""


def parser() -> Parser:
    """The command line of ``lab``."""
    made = Parser(
        "lab",
        "Measure gradient estimators on a world so small that the true policy gradient is known: who is biased, by\n"
        "how much, and what its variance costs. The code that is measured is the code that trains.",
        _EPILOG,
    )
    add = made.add_argument
    add("--estimators", metavar="NAMES", help="only these, separated by commas (default: all)")
    add("--estimator", metavar="FILE.py:FUNCTION", action="append", help="one of your own: a function () -> Method")
    add("--group", type=at_least(1), default=4, metavar="N", help="replies to a problem in one step (default: 4)")
    add("--problems", type=at_least(1), default=3, metavar="N", help="problems of one step (default: 3)")
    add("--words", type=at_least(1), default=2, metavar="N", help="words beside the end of a reply (default: 2)")
    add("--length", type=at_least(1), default=3, metavar="N", help="tokens of the longest reply (default: 3)")
    add("--skew", type=_number, default=0.7, metavar="X", help="0: problems equally hard … 1: very unequally")
    add(
        "--off-policy", type=_number, default=0.0, metavar="X", help="gap between the sampler's logits and the policy's"
    )
    add(
        "--steps", type=at_least(100), default=1000, metavar="N", help="sampled steps where enumeration is out of reach"
    )
    add("--seed", type=at_least(0), default=0, metavar="N", help="of the world and of the sampling")
    add("--plot", type=Path, metavar="FILE", help="draw bias against variance, .svg or .png")
    add("--json", action="store_true", help="print JSON")
    return made


def execute(arguments: Namespace) -> int:
    """Print a table and what it says; draw a picture."""
    import torch

    from longthought.diagnosis.lab import Budget, measure
    from longthought.diagnosis.lab_chart import check_format, draw
    from longthought.diagnosis.toy import World

    if arguments.plot is not None:
        check_format(arguments.plot)
    torch.set_num_threads(1)
    wanted = _wanted(arguments)
    world = World(
        problems=arguments.problems,
        words=arguments.words,
        length=arguments.length,
        skew=arguments.skew,
        off_policy=arguments.off_policy,
        seed=arguments.seed,
    )
    toy, budget = world.draw(), Budget(arguments.group, arguments.steps, arguments.seed)
    title = f"problems × replies a step: {arguments.problems} × {arguments.group}"
    if arguments.off_policy:
        title += f", {toy.gap:.2f} nats off policy"
    measured = measure(wanted, toy, budget)
    if arguments.json:
        print(json.dumps(_content(measured, toy.success, toy.gap), ensure_ascii=False, allow_nan=False, indent=1))
    else:
        _show(measured, toy, title)
    if arguments.plot is not None:
        draw(measured, arguments.plot, f"Bias and variance: {title}")
        print(f"Picture: {arguments.plot}", file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _wanted(arguments: Namespace) -> tuple[Estimator, ...]:
    from typing import get_args

    from longthought.diagnosis.estimators import Estimator, bare, chosen, estimators
    from longthought.recipes.methods import Knobs, MethodName, method

    named = {name: method(name, Knobs(), arguments.length) for name in get_args(MethodName)}
    known = estimators(named, off_policy=arguments.off_policy > 0)
    own = tuple(Estimator(text, bare(_own(text)())) for text in arguments.estimator or ())
    if arguments.estimators is None:
        fit = tuple(one for one in known if arguments.group > 1 or not one.compares)
        if not own and len(fit) < len(known):
            left = ", ".join(one.name for one in known if one not in fit)
            print(f"longthought: warning: a group of 1 is too small for {left}: they are left out", file=sys.stderr)
        return own or fit
    names = [name.strip() for name in arguments.estimators.split(",") if name.strip()]
    if not names:
        raise SettingsError("--estimators is empty: give names separated by commas, or leave it out")
    return (*own, *chosen(names, known))


def _own(text: str) -> Callable[[], Method]:
    """A function ``() -> Method`` of a Python file; what it returns and raises is checked."""
    from longthought.core.user_code import import_file
    from longthought.stages.method import Method

    file, _, name = text.partition(":")
    if not file.endswith(".py") or not name:
        raise SettingsError(f"--estimator {text}: give a file and a function, as mine.py:method")
    if not Path(file).is_file():
        raise SettingsError(f"--estimator {text}: the file {file} does not exist")
    module = import_file(Path(file), "longthought_estimator_")
    try:
        made = getattr(module, name)()
    except AttributeError as error:
        raise SettingsError(f"--estimator {text}: {error}") from error
    except Exception as error:
        raise SettingsError(f"--estimator {text} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, Method):
        raise SettingsError(f"--estimator {text} must return a Method, not {type(made).__name__}")
    return lambda: made


def _show(measured: tuple[Measured, ...], toy: Any, title: str) -> None:
    from rich.console import Console

    from longthought.diagnosis.lab_table import reading, table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=120)
    console.print(table(measured, title))
    rates = ", ".join(f"{rate:.0%}" for rate in toy.success)
    console.print(
        f"Problems by number: solved {rates} of the time. ± is a standard error; without it the number is exact.\n"
    )
    for line in reading(measured, toy):
        console.print(f"· {line}")


def _content(measured: tuple[Measured, ...], success: list[float], gap: float) -> dict[str, Any]:
    from dataclasses import asdict

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = [{k: plain(v) for k, v in asdict(one).items()} for one in measured]
    return {"success": success, "off_policy_nats": gap, "estimators": rows}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}: a number is needed")
    return value
