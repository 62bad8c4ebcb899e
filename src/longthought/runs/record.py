"""``run.json``: what a run is, and every launch that worked on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from longthought.core.errors import RunDamaged, RunError, RunMismatch
from longthought.runs import machine
from longthought.runs.describe import differences
from longthought.runs.files import digests, json_bytes, write_atomic
from longthought.runs.settings import fingerprint_of, flatten

RUN, DONE = "run.json", "done.json"
FORMAT = 1
_STAGE = re.compile(r"(\d{2,})-(.+)")


@dataclass(frozen=True, slots=True)
class Launch:
    """One process that worked on the run: when, how it was called, and on what it computed."""

    command: str
    threads: int
    started: str
    versions: dict[str, str]
    machine: dict[str, Any]

    @classmethod
    def now(cls, command: str, threads: int | None) -> Launch:
        """This process; ``threads`` are those of torch unless given."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(command, threads or torch.get_num_threads(), started, machine.versions(), machine.facts())

    def conditions(self) -> dict[str, Any]:
        """What the bits of a result depend on beside the settings."""
        return {
            "torch": self.versions.get("torch"),
            "longthought": self.versions.get("longthought"),
            "threads": self.threads,
            "cpu": self.machine.get("cpu"),
            "native core": self.machine.get("native", "none"),
        }


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage of a run, as found on the disk."""

    number: int
    name: str
    path: Path

    @property
    def finished(self) -> bool:
        return (self.path / DONE).is_file()

    def artifact(self) -> Path:
        """The folder or file that the stage made, its digests verified.

        Raises:
            RunError: the stage is not finished.
            RunDamaged: a file is missing, truncated or altered.
        """
        if not self.finished:
            raise RunError(f"the stage {self.name} in {self.path} is not finished: run the same command again")
        return Done.read(self.path).verified(self.path)


@dataclass(frozen=True, slots=True)
class Done:
    """``done.json``: the artifact of a finished stage and the SHA-256 of its files."""

    artifact: str
    files: dict[str, str]
    stage: str = ""
    given: str = ""

    @classmethod
    def read(cls, place: Path) -> Done:
        """Raises RunDamaged: it cannot be read."""
        try:
            found = json.loads((place / DONE).read_bytes())
            return cls(str(found["artifact"]), dict(found["files"]), str(found["stage"]), str(found["given"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunDamaged(f"{place / DONE} is truncated or altered") from error

    def write(self, place: Path) -> None:
        """Raises RunError: the disk is full."""
        write_atomic(place / DONE, json_bytes(asdict(self), indent=1) + b"\n")

    def verified(self, place: Path) -> Path:
        """The artifact. Raises RunDamaged, with the name of the file, unless it is as it was made."""
        path = place / self.artifact
        found = digests(path)
        for name, expected in self.files.items():
            if found.get(name) != expected:
                file = path if name == "." else path / name
                raise RunDamaged(f"{file} is {'missing' if name not in found else 'truncated or altered'}")
        return path


@dataclass(frozen=True, slots=True)
class Record:
    """A run, as ``run.json`` tells: recipe, settings as nested plain values, their fingerprint, and all launches."""

    path: Path
    recipe: str
    settings: dict[str, Any]
    launches: tuple[Launch, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.settings)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The run in a folder; it may be running, killed or finished.

        Raises:
            RunError: there is no run in ``path``.
            RunDamaged: ``run.json`` is truncated or altered.
        """
        file = path / RUN
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            what = "is no run folder (it has no run.json)" if path.is_dir() else "is no folder"
            raise RunError(f"{path} {what}: give the folder of a run") from None
        except OSError as error:
            raise RunError(f"{file} cannot be read: {error.strerror}") from error
        try:
            return cls._from(path, json.loads(data))
        except (ValueError, TypeError, KeyError) as error:
            raise RunDamaged(f"{file} is truncated or altered: restore it from a copy, or start a new run") from error

    @classmethod
    def _from(cls, path: Path, found: Mapping[str, Any]) -> Record:
        if found["format"] != FORMAT:
            raise RunError(f"{path} was made by another version of longthought (format {found['format']})")
        launches = tuple(Launch(**launch) for launch in found["launches"])
        record = cls(path, str(found["recipe"]), dict(found["settings"]), launches)
        if record.fingerprint != found["fingerprint"] or not launches:
            raise ValueError("the settings are not those of the fingerprint")
        return record

    def write(self) -> None:
        """Raises RunError: the disk is full."""
        content = {
            "format": FORMAT,
            "recipe": self.recipe,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "launches": [asdict(launch) for launch in self.launches],
        }
        write_atomic(self.path / RUN, json_bytes(content, indent=1) + b"\n")

    def stages(self) -> list[StageRecord]:
        """The stages that were started, in order."""
        names = ((_STAGE.fullmatch(entry.name), entry) for entry in self.path.iterdir() if entry.is_dir())
        found = [StageRecord(int(name[1]), name[2], entry) for name, entry in names if name]
        return sorted(found, key=lambda stage: stage.number)

    def stage(self, name: str) -> StageRecord:
        """Raises RunError: there is no stage of this name."""
        stages = self.stages()
        for stage in stages:
            if stage.name == name:
                return stage
        there = ", ".join(stage.name for stage in stages) or "none yet"
        raise RunError(f"{self.path} has no stage {name}; its stages: {there}")

    def refuse_other(self, recipe: str, settings: Mapping[str, Any]) -> None:
        """Raises RunMismatch, with every key that differs, unless recipe and settings are those of this run."""
        if recipe != self.recipe:
            raise RunMismatch(
                f"{self.path} is a run of the recipe {self.recipe}, not of {recipe}: "
                "choose another folder for a new run"
            )
        lines = differences(flatten(self.settings), flatten(settings))
        if lines:
            raise RunMismatch(
                f"{self.path} was made with other settings:\n  " + "\n  ".join(lines) + "\n"
                "Choose another folder to start a new run, or repeat the run's settings to continue this one."
            )

    def refuse_changed(self, launch: Launch) -> None:
        """Raises RunMismatch if ``launch`` could not give, bit by bit, what the last one would have given."""
        lines = differences(self.launches[-1].conditions(), launch.conditions())
        if lines:
            raise RunMismatch(
                f"{self.path} was computed under other conditions, so that its continuation would differ from an "
                "uninterrupted run:\n  " + "\n  ".join(lines) + "\n"
                "Set them as they were, choose another folder to start a new run, or say that the change is "
                "acceptable (--accept-changes)."
            )
