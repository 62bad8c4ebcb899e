"""Start a run or go on with it, and show what came out."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from longthought.cli.conversation import example_of
from longthought.cli.parser import program
from longthought.cli.rehearsal import Rehearsal, rehearse
from longthought.cli.reporting import write
from longthought.cli.threads import check_threads, set_threads
from longthought.core.errors import LongthoughtError, NotReady, RunDamaged, RunError
from longthought.evaluation.headline import sentence
from longthought.evaluation.report import terminal_summary
from longthought.recipes.catalogue import Recipe
from longthought.runs.place import METRICS
from longthought.runs.record import RUN, Record
from longthought.runs.run import Given, Made, Run, Stage
from longthought.runs.settings import fingerprint, flatten, to_dict
from longthought.runs.tracking import TensorBoard
from longthought.stages.measure import Evaluate
from longthought.stages.rl import RL
from longthought.tasks.examples import Examples
from longthought.tasks.files import FileTask


@dataclass(frozen=True)
class Order:
    """What is to be run, where and how. ``threads`` None: those that the run had, or the default."""

    recipe: Recipe
    settings: Any
    out: Path
    threads: int | None = None
    accept_changes: bool = False
    quiet: bool = False
    tensorboard: bool = False
    reuse: Path | None = None


class SpokenRun(Run):
    """A run that names every stage as it comes, or is quiet."""

    quiet = False

    def do(self, name: str, stage: Stage[Given, Made], given: Given) -> Made:
        """As :meth:`Run.do`."""
        if self.quiet:
            silent: Any = stage
            if is_dataclass(silent) and not isinstance(silent, type) and hasattr(silent, "quiet"):
                stage = cast("Stage[Given, Made]", replace(silent, quiet=True))
        else:
            finished = any(one.name == name and one.finished for one in self.record.stages())
            print(f"{name}: {'was done before' if finished else 'working'}", file=sys.stderr, flush=True)
        return super().do(name, stage, given)


def default_out(recipe: Recipe, settings: Any) -> Path:
    """``runs/<recipe>-<fingerprint>``: equal settings meet in one folder."""
    return Path("runs") / f"{short_name(recipe.name)}-{fingerprint(settings)[:8]}"


def short_name(recipe: str) -> str:
    """``tiny``, ``mine`` for ``/home/me/mine.py``, ``mine-zero`` for ``mine.py:zero``."""
    file, _, function = recipe.partition(".py")
    return Path(file).name + function.replace(":", "-")


def command_of(recipe: Recipe, settings: Any, threads: int) -> str:
    """The command that reproduces a run bit by bit: recipe, threads, and every setting that is not the default."""
    default, chosen = flatten(to_dict(recipe.settings)), flatten(to_dict(settings))
    words = [f"{key}={_text(value)}" for key, value in chosen.items() if default.get(key, ...) != value]
    return shlex.join(["longthought", "run", recipe.name, "--threads", str(threads), *words])


def launch(order: Order) -> Record:
    """Run, resume, or find that everything is done.

    Raises whatever the run raises; when the readiness gate refuses the base, the report is written before.
    """
    rehearsal = rehearse(order.recipe, order.settings)
    if is_finished(order, rehearsal):
        print(f"{order.out} is finished; nothing is left to do.")
    else:
        _work(order, rehearsal)
    return Record.read(order.out)


def finish(order: Order, record: Record) -> None:
    """Write the report, print the summary, and say what to do next; of a run that only makes a model, where it is."""
    file = record.path / "report.html"
    data = write(record, file, order.recipe)
    if not _measures(rehearse(order.recipe, order.settings)):
        _show_model(record, file)
        return
    print()
    if order.quiet:
        print(sentence(data))
        print(f"Report: {file}")
        return
    Console(highlight=False).print(terminal_summary(data))
    print(f"Report: {file}")
    print("\nNext:")
    print(f"  open {file} in a browser")
    here = shlex.quote(str(record.path))
    with suppress(LongthoughtError):
        task = rehearse(order.recipe, order.settings).testing().task
        prompt = shlex.quote(example_of(task))
        print(f"  {program()} sample {here} --prompt {prompt}")
        print(f"  {program()} eval {here}")
    print(f"  {program()} traces {here}")


def _measures(rehearsal: Rehearsal) -> bool:
    """Whether there is a result to state."""
    return bool(rehearsal.stopped) or any(isinstance(step.stage, Evaluate | RL) for step in rehearsal.steps)


def _show_model(record: Record, report: Path) -> None:
    stage = record.stages()[-1]
    print(f"\nModel: {stage.artifact()}\nMetrics: {stage.path / METRICS}\nReport: {report}\n\nNext:")
    print(f"  {program()} sample {shlex.quote(str(stage.artifact()))} --prompt 'Once upon a time'")


def is_finished(order: Order, rehearsal: Rehearsal) -> bool:
    """Whether the folder holds this very run with every stage done and undamaged; reads, and takes no lock."""
    if rehearsal.stopped or not (order.out / RUN).exists():
        return False
    try:
        record = Record.read(order.out)
        record.refuse_other(order.recipe.name, to_dict(order.settings))
        stages = {stage.name: stage for stage in record.stages()}
        for step in rehearsal.steps:
            if step.name not in stages:
                return False
            stages[step.name].artifact()
    except RunError:
        return False  # the run itself repairs it, or tells what is wrong
    return True


def _work(order: Order, rehearsal: Rehearsal) -> None:
    threads = set_threads(order.threads or _recorded_threads(order.out))
    check_threads(rehearsal, threads)
    run = SpokenRun.open(
        order.out,
        recipe=order.recipe.name,
        settings=order.settings,
        command=command_of(order.recipe, order.settings, threads),
        threads=threads,
        accept_changes=order.accept_changes,
    )
    with run:
        run.quiet = order.quiet
        run.reuse = Record.read(order.reuse) if order.reuse else None
        if order.tensorboard:
            run.tracker = TensorBoard(run.path / "tensorboard")
        if not order.quiet:
            print(f"{order.out}: {run.record.launches[-1].command}", file=sys.stderr)
            _describe(rehearsal)
        try:
            order.recipe.function(order.settings, run)
        except NotReady as error:
            file = run.path / "report.html"
            write(run.record, file, order.recipe)
            raise NotReady(f"{error}\nReport: {file}") from error
        finally:
            if isinstance(run.tracker, TensorBoard):
                run.tracker.close()


def _describe(rehearsal: Rehearsal) -> None:
    """Tell what a task or examples of files have read, and what was left out."""
    read = [getattr(step.stage, name, None) for step in rehearsal.steps for name in ("task", "examples")]
    told = dict.fromkeys(f"{task.name}: {task.describe()}" for task in read if isinstance(task, FileTask))
    told |= dict.fromkeys(f"examples: {one.describe()}" for one in read if isinstance(one, Examples))
    for line in told:
        print(line, file=sys.stderr, flush=True)


def _recorded_threads(out: Path) -> int | None:
    """Those of the last launch, if there is a run: its bits depend on them."""
    if not (out / RUN).exists():
        return None
    try:
        return Record.read(out).launches[-1].threads
    except RunDamaged:
        return None  # opening the run tells


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
