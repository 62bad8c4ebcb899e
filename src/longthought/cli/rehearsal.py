"""Walk through a recipe without running it: which stages there are, on which task, with which settings."""

from __future__ import annotations

import shlex
from argparse import Namespace
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from longthought.cli.parser import program
from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.protocols import Task
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.recipes.catalogue import SHIPPED, Recipe, find
from longthought.runs.record import RUN, Record
from longthought.runs.run import Run
from longthought.runs.settings import from_yaml, override
from longthought.stages.measure import Evaluate
from longthought.stages.rl import RL


class Step(NamedTuple):
    """A stage of a recipe under its name, and what it is given (a :class:`Promise` for what a stage will make)."""

    name: str
    stage: Any
    given: Any


class Testing(NamedTuple):
    """How a recipe evaluates its models, and with how many processes."""

    task: Task
    lexicon: Lexicon
    settings: EvaluationSettings
    workers: int


@dataclass(frozen=True)
class Rehearsal:
    """The stages of a recipe, in order. ``stopped`` says why the rehearsal could not come to the end, if it could not:
    the recipe looks at what a stage made before it goes on."""

    steps: tuple[Step, ...]
    stopped: str = ""

    def testing(self) -> Testing:
        """The last evaluation of the recipe, or its last RL's task. Raises SettingsError when it has neither."""
        for step in reversed(self.steps):
            if isinstance(step.stage, Evaluate):
                return Testing(step.stage.task, step.stage.lexicon, step.stage.settings, step.stage.workers)
        for step in reversed(self.steps):
            if isinstance(step.stage, RL):
                return Testing(step.stage.task, step.stage.lexicon, EvaluationSettings(), step.stage.workers)
        why = f" before it looks at a result ({self.stopped})" if self.stopped else ""
        raise SettingsError(f"the recipe has neither an Evaluate nor an RL stage{why}, so that no task is known")


def chosen(arguments: Namespace) -> tuple[Recipe, Any]:
    """The recipe that a command line names, and its settings: the default, then those of a file, then key=value.

    Raises SettingsError for the folder of a run, which is no recipe.
    """
    if arguments.recipe not in SHIPPED and (Path(arguments.recipe) / RUN).is_file():
        record = Record.read(Path(arguments.recipe))
        raise SettingsError(
            f"{arguments.recipe} is the folder of a run, and a recipe is needed: give its recipe, {record.recipe}, and "
            f"the settings in its command ({record.launches[-1].command}). What the run has done: "
            f"{program()} report {shlex.quote(arguments.recipe)}"
        )
    recipe = find(arguments.recipe)
    settings = from_yaml(recipe.settings, arguments.settings) if arguments.settings else recipe.settings
    return recipe, override(settings, arguments.assignments)


@lru_cache(maxsize=8)
def rehearse(recipe: Recipe, settings: Any) -> Rehearsal:
    """Call the recipe with a run that does nothing but remember.

    Raises SettingsError, before anything is computed, for settings that a stage refuses.
    """
    stand_in = _StandIn()
    try:
        recipe.function(settings, cast(Run, stand_in))
    except LongthoughtError:
        raise
    except Exception as error:  # whatever a recipe does with an artifact that is not there
        return Rehearsal(tuple(stand_in.steps), f"{type(error).__name__}: {error}")
    return Rehearsal(tuple(stand_in.steps))


class Promise:
    """What a stage will make. Nothing about it is known yet."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} of what the stage {self._stage} makes is known only when it has run")


class _StandIn:
    """In the place of a Run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def do(self, name: str, stage: Any, given: Any) -> Promise:
        self.steps.append(Step(name, stage, given))
        return Promise(name)
