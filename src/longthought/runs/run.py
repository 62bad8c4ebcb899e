"""A run: a folder that a recipe fills stage by stage, and that can be killed and resumed at any moment.

::

    runs/mine/
    ├── run.json        recipe, settings, and every launch with versions and machine
    ├── lock            held by the process that works here
    ├── 01-base/        a stage: see longthought.runs.place
    └── 02-rl/
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from longthought.core.errors import RunDamaged, RunError, RunMismatch
from longthought.core.protocols import Artifact
from longthought.runs.describe import describe, differences, leafs
from longthought.runs.files import (
    digests,
    is_temporary,
    json_bytes,
    new_folder,
    plain_errors,
    sweep,
    sync_tree,
    write_atomic,
)
from longthought.runs.lock import Lock
from longthought.runs.place import Place
from longthought.runs.record import DONE, RUN, Done, Launch, Record
from longthought.runs.settings import fingerprint_of, to_dict
from longthought.runs.tracking import Tracker

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LOCK, STAGE = "lock", "stage.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")

_warn = logging.getLogger(__name__).warning

Given_contra = TypeVar("Given_contra", contravariant=True)
Made_co = TypeVar("Made_co", bound=Artifact, covariant=True)
Given = TypeVar("Given")
Made = TypeVar("Made", bound=Artifact)


class Stage(Protocol[Given_contra, Made_co]):
    """A box of the pipeline, usually a frozen dataclass whose fields are its hyperparameters.

    ``run`` makes an artifact whose ``path`` is a file or folder inside ``place.path``, durably; ``load`` gives the same
    artifact back from ``place`` when the stage was finished by an earlier process. ``given`` is an artifact, a
    collection of artifacts, or None.
    """

    def run(self, given: Given_contra, place: Place, /) -> Made_co: ...

    def load(self, place: Place, /) -> Made_co: ...


class Run:
    """A run folder, locked by this process. Made by :meth:`open`; a context manager.

    ``tracker`` may be set before the first stage; it receives what the stages log. ``reuse`` may be set to another run:
    its finished stages with the same fields and inputs are copied instead of being made again, so that several methods
    can start from one base.
    """

    def __init__(self, record: Record, lock: Lock) -> None:
        self.record = record
        self.tracker: Tracker | None = None
        self.reuse: Record | None = None
        self._lock = lock
        self._done: list[str] = []

    @property
    def path(self) -> Path:
        return self.record.path

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        recipe: str,
        settings: DataclassInstance,
        command: str,
        threads: int | None = None,
        accept_changes: bool = False,
    ) -> Self:
        """Start a run in a new or empty folder, or resume the one that is there.

        A resumed run must have the same recipe and settings, and, unless ``accept_changes``, the same versions of torch
        and longthought, number of threads and model of CPU: bits depend on them. ``threads`` is recorded, not set.

        Raises:
            RunLocked: another process works in the folder.
            RunMismatch: the run there was made with other settings, or under other conditions.
            RunDamaged: ``run.json`` there is truncated or altered.
            RunError: the folder holds something else than a run, or cannot be written.
            SettingsError: a setting does not fit its declared type.
        """
        plain = to_dict(settings)
        _refuse_foreign(path)
        with plain_errors(path / RUN):
            path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path / LOCK)
        try:
            _refuse_foreign(path)
            with plain_errors(path / RUN):
                sweep(path)
            launch = Launch.now(command, threads)
            if (path / RUN).exists():
                record = Record.read(path)
                record.refuse_other(recipe, plain)
                if not accept_changes:
                    record.refuse_changed(launch)
            else:
                record = Record(path, recipe, plain)
            record = replace(record, launches=(*record.launches, launch))
            record.write()
        except BaseException:
            lock.release()
            raise
        return cls(record, lock)

    @staticmethod
    def read(path: Path) -> Record:
        """A run to look at, without the lock: it may be running, killed or finished.

        Raises:
            RunError: there is no run in ``path``.
            RunDamaged: ``run.json`` is truncated or altered.
        """
        return Record.read(path)

    def do(self, name: str, stage: Stage[Given, Made], given: Given) -> Made:
        """The artifact of a stage: loaded if the stage is finished, resumed if it was started, else made.

        Stages are numbered in the order of the calls. The files of a finished stage are verified; if one is damaged,
        the stage goes on from its last training state, which makes the same artifact again.

        Raises:
            RunMismatch: the stage was made with other fields or from other inputs, or another stage has its number.
            RunDamaged: the artifact is damaged and no training state is left to make it again.
            RunError: the name is used twice or no plain name, or the artifact lies outside the stage's folder.
        """
        path = self._folder(name)
        asked = {"stage": describe(stage), "given": describe(given, "given")}
        if self.reuse is not None and not path.exists():
            _borrow(self.reuse, name, path, asked)
        with Place(path, tracker=self.tracker) as place:
            _agree(path, asked)
            if (path / DONE).exists():
                if _intact(place):
                    return stage.load(place)
                with plain_errors(path / DONE):
                    (path / DONE).unlink()
            made = stage.run(given, place)
            _finish(path, made.path, asked)
            return made

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RunError(f"{name!r} is no name for a stage: lower-case letters, digits and _ are")
        if name in self._done:
            raise RunError(f"two stages of one run are named {name}: give them different names")
        self._done.append(name)
        number = len(self._done)
        for stage in self.record.stages():
            if (stage.number == number) != (stage.name == name):
                raise RunMismatch(
                    f"{stage.path} was made by a recipe with other stages: stage {number} is now {name}. "
                    "Choose another folder to start a new run."
                )
        return self.path / f"{number:02d}-{name}"


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file: choose another name for the run's folder")
    names = {entry.name for entry in path.iterdir()}
    others = sorted(name for name in names if name != LOCK and not is_temporary(name))
    if others and RUN not in names:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise RunError(f"{path} holds other files ({shown}) and no run: choose a new or empty folder")


def _agree(path: Path, asked: dict[str, Any]) -> None:
    """Write down what the stage is asked to do, or compare it with what it was asked when it was started."""
    file = path / STAGE
    if not file.exists():
        write_atomic(file, json_bytes(asked, indent=1) + b"\n")
        return
    try:
        before = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RunDamaged(f"{file} is truncated or altered: restore it from a copy, or start a new run") from error
    lines = differences(leafs(before, path.name), leafs(json.loads(json_bytes(asked)), path.name))
    if lines:
        raise RunMismatch(
            f"the stage in {path} was started with other fields or inputs:\n  " + "\n  ".join(lines) + "\n"
            "Choose another folder to start a new run."
        )


def _borrow(other: Record, name: str, path: Path, asked: dict[str, Any]) -> None:
    """Copy a finished stage of another run, if it was asked the same. Raises RunDamaged if its artifact is damaged."""
    for stage in other.stages():
        if stage.name == name and stage.finished and _asked_same(stage.path / STAGE, asked):
            stage.artifact()
            with new_folder(path) as made, plain_errors(path):
                shutil.copytree(stage.path, made, dirs_exist_ok=True)


def _asked_same(file: Path, asked: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(file.read_bytes()) == json.loads(json.dumps(asked)))
    except (OSError, ValueError):
        return False


def _intact(place: Place) -> bool:
    """Whether the artifact is as it was made. Raises RunDamaged if it is not and cannot be made again."""
    try:
        Done.read(place.path).verified(place.path)
    except RunDamaged as error:
        if not place.has_state:
            raise RunDamaged(
                f"{error}. Restore it from a copy, or delete {place.path / DONE} to run this stage again"
            ) from error
        _warn(f"{error}: going on from the stage's last training state to make it again")
        return False
    return True


def _finish(path: Path, artifact: Path, asked: dict[str, Any]) -> None:
    folder, inside = path.resolve(), artifact.resolve()
    if folder not in inside.parents or not inside.exists():
        raise RunError(f"the stage in {path} made {artifact}, which is not inside its folder")
    with plain_errors(artifact):
        sync_tree(artifact)
    prints = {name: fingerprint_of({"asked": part}) for name, part in asked.items()}
    Done(inside.relative_to(folder).as_posix(), digests(artifact), **prints).write(path)
