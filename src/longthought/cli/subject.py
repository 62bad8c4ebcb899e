"""The model that ``eval`` and ``sample`` speak of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longthought.cli.rehearsal import Testing, rehearse
from longthought.core.errors import CheckpointError, RunError, SettingsError
from longthought.recipes.catalogue import find
from longthought.recipes.r1_zero import template_of
from longthought.runs.artifacts import CONFIG, Checkpoint
from longthought.runs.record import RUN, Done, Record, StageRecord
from longthought.runs.settings import from_dict, override
from longthought.text.folder import load as load_renderer
from longthought.text.renderer import PlainRenderer

DEFAULT_RECIPE = "tiny"
_DEPTH = 3  # a model folder lies at most so deep in its run: run/04-rl/model

_warn = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Subject:
    """A model, and the recipe and settings that say what task it is for. ``settings`` None: the recipe's default,
    changed by ``assignments``. ``recipe`` empty: nobody knows what the model is for."""

    label: str
    checkpoint: Checkpoint
    recipe: str = DEFAULT_RECIPE
    settings: dict[str, Any] | None = None
    assignments: tuple[str, ...] = ()
    threads: int | None = None

    def testing(self) -> Testing:
        """Task and evaluation. Raises SettingsError when the recipe is unknown, gone, or has none."""
        if not self.recipe:
            raise SettingsError(
                f"{self.label} belongs to no run, so that its problems are not known; name them, for example: "
                f"--recipe r1_zero model={self.checkpoint.path} problems.file=problems.jsonl"
            )
        recipe = find(self.recipe)
        if self.settings is None:
            return rehearse(recipe, override(recipe.settings, self.assignments)).testing()
        return rehearse(recipe, from_dict(recipe.settings, self.settings)).testing()


def subject(
    path: Path, stage: str | None, recipe: str | None, template: str | None, assignments: Sequence[str] = ()
) -> Subject:
    """The model in a run (of its last finished stage that made one, or of ``stage``), or in a model folder.

    A model folder inside a run gets the run's own task; one elsewhere that of ``recipe`` with ``assignments``,
    and is spoken to with the prompt ``template``, if one is named.

    Raises:
        RunError, RunDamaged, CheckpointError: there is no such model, or it was altered.
        SettingsError: an option that would change nothing.
    """
    if not path.exists():
        raise RunError(f"{path} does not exist: give the folder of a run or of a model")
    if (path / RUN).exists() or not (path / CONFIG).exists():
        record, folder, name = _in_run(path, stage)
        label = f"{path}, stage {name}"
    else:
        if stage is not None:
            raise SettingsError(f"--stage chooses a stage of a run, but {path} is a model folder: leave it out")
        found, folder, label = _run_around(path), path, str(path)
        if found is None:
            checkpoint = Checkpoint(path, template_of(template or ""))
            known = recipe or (DEFAULT_RECIPE if _speaks_our_format(checkpoint) else "")
            return Subject(label, checkpoint, known, None, tuple(assignments))
        record = found
    if recipe is not None or template is not None or assignments:
        raise SettingsError(
            f"{path} belongs to a run, whose own task and settings are used: leave out --recipe, "
            "--template and key=value"
        )
    return Subject(label, Checkpoint(folder), record.recipe, record.settings, (), record.launches[-1].threads)


def _speaks_our_format(checkpoint: Checkpoint) -> bool:
    """Whether the model is one of the small ones that the laptop recipe makes."""
    try:
        return isinstance(load_renderer(checkpoint.path, checkpoint.template), PlainRenderer)
    except CheckpointError:
        return False  # whoever loads the model tells why


def _in_run(path: Path, name: str | None) -> tuple[Record, Path, str]:
    """The run, and folder and stage of its model."""
    if path.is_dir() and not (path / RUN).exists():
        raise CheckpointError(f"{path} holds neither a run ({RUN}) nor a model ({CONFIG}): give the folder of either")
    record = Record.read(path)
    stages = record.stages()
    made = [stage for stage in stages if _makes_model(stage)]
    names = ", ".join(stage.name for stage in made) or "none yet"
    if name is None:
        if not made:
            raise RunError(f"no stage of {path} has made a model yet: run the same command again to go on with it")
        unfinished = [stage.name for stage in stages[stages.index(made[-1]) :] if not stage.finished]
        if unfinished:
            _warn(f"the stage {unfinished[0]} is not finished: this is the model of the stage {made[-1].name}")
        return record, made[-1].artifact(), made[-1].name
    chosen = record.stage(name)
    folder = chosen.artifact()
    if chosen not in made:
        raise CheckpointError(f"the stage {name} of {path} makes no model; stages with a model: {names}")
    return record, folder, name


def _makes_model(stage: StageRecord) -> bool:
    return stage.finished and (stage.path / Done.read(stage.path).artifact / CONFIG).is_file()


def _run_around(path: Path) -> Record | None:
    for folder in list(path.resolve().parents)[:_DEPTH]:
        if (folder / RUN).exists():
            return Record.read(folder)
    return None
