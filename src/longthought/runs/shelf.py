"""Artifacts by what is in them: which stage of which run made the files that another stage was given.

A stage notes the SHA-256 of what it was given and not where that lay. It is looked for by that digest: among the stages
of its own run, in the model folders that the run's settings name, in the runs around those, and in the runs beside it.
Nothing is trusted: whatever cannot be read is told in ``notes`` and passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from longthought.core.errors import CheckpointError, LongthoughtError, RunDamaged
from longthought.core.files import exists, read_json, regular_file
from longthought.runs.artifacts import CONFIG, PROVENANCE
from longthought.runs.files import digests, is_temporary
from longthought.runs.record import DONE, RUN, Done, Record, StageRecord
from longthought.runs.settings import fingerprint_of

T = TypeVar("T")

_DEPTH = 3  # a model folder lies at most so deep in its run: run/04-rl/model
_LONGEST = 4096  # characters of a path
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
)  # the last: nested too deeply, a loop of links
_NEIGHBOURS = 2000  # entries of a folder of runs that are looked at


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder or file that a stage made, or a model folder that was found elsewhere (``stage`` None).

    files: SHA-256 of its files by name, as they were written down when it was made; None where nobody has.
    """

    path: Path
    files: Mapping[str, str] | None
    record: Record | None = None
    stage: StageRecord | None = None

    @property
    def fingerprint(self) -> str:
        """One digest of all files, as a stage notes it of what it is given; empty where it is not known."""
        return "" if self.files is None else fingerprint_of(self.files)


class Shelf:
    """What can be found from a run. ``check``: models of other people are hashed, however large."""

    def __init__(self, record: Record, check: bool = False) -> None:
        self.notes: list[str] = []
        self.named: dict[str, list[Artifact]] = {}
        """Model folders that the settings of a run name, by the path of the run."""
        self._check = check
        self._found: dict[str, Artifact] = {}
        self._weights: dict[str, Artifact] = {}
        self._added: set[Path] = set()
        self._beside: list[Path] = []  # runs whose neighbours were not read yet
        self._seen: set[Path] = set()  # folders whose runs were
        self.add(record)

    def add(self, record: Record) -> None:
        """The artifacts of a run, and the models that its settings name, with the runs around those."""
        todo = [record]
        while todo:
            record = todo.pop()
            if record.path.resolve() in self._added:
                continue
            self._added.add(record.path.resolve())
            self._beside.append(record.path)
            self._put_stages(record, self.read)
            for folder in _folders(record):
                around = run_around(folder)
                other = self.read(partial(record_of, around)) if around is not None else None
                if other is not None:
                    self._put_stages(other, self.read)  # before the model itself: a stage tells more
                    todo.append(other)
                model = self._model(folder)
                self.named.setdefault(str(record.path), []).append(model)
                self._put(model)

    def find(self, fingerprint: str) -> Artifact | None:
        """The artifact whose files have this digest; runs beside the known ones are read only if they must be."""
        return self._search(fingerprint, self._found)

    def find_stated(self, files: Mapping[str, str]) -> Artifact | None:
        """The model with these files, as the ``provenance.json`` of another tells (it leaves out its own name)."""
        return self._search(fingerprint_of(_without_provenance(files)), self._weights)

    def read(self, reader: Callable[[], T]) -> T | None:
        """What ``reader`` gives; None, and a note, where what it reads is damaged in whatever way."""
        try:
            return reader()
        except LongthoughtError as error:
            self._note(str(error))
        except _DAMAGE as error:
            self._note(f"{type(error).__name__}: {error}")
        return None

    def _note(self, what: str) -> None:
        if what not in self.notes:
            self.notes.append(what)

    def _search(self, fingerprint: str, found: dict[str, Artifact]) -> Artifact | None:
        while fingerprint not in found and self._beside:
            parent = self._beside.pop(0).resolve().parent
            for folder in _runs_in(parent) if parent not in self._seen else ():
                other = _quietly(partial(record_of, folder))
                if other is not None:
                    self._put_stages(other, _quietly)
            self._seen.add(parent)
        return found.get(fingerprint)

    def _put_stages(self, record: Record, read: Callable[[Callable[[], Done]], Done | None]) -> None:
        for stage in stages_of(record):
            if stage.finished and (done := read(partial(done_of, stage))) is not None:
                made = Artifact(stage.path / done.artifact, done.files, record, stage)
                self._put(made)
                if PROVENANCE in done.files:
                    contents = _quietly(lambda: read_json(made.path, PROVENANCE).get("contents"))  # noqa: B023  at once
                    if isinstance(contents, str):
                        self._found.setdefault(contents, made)

    def _put(self, artifact: Artifact) -> None:
        if artifact.files is not None:
            self._found.setdefault(artifact.fingerprint, artifact)
            self._weights.setdefault(fingerprint_of(_without_provenance(artifact.files)), artifact)

    def _model(self, folder: Path) -> Artifact:
        """A model folder as its ``provenance.json`` states it; one of other people's as it is, if it is to be read."""
        if exists(folder, PROVENANCE):
            return Artifact(folder, self.read(partial(_stated, folder)))
        return Artifact(folder, self.read(partial(safe_digests, folder)) if self._check else None)


def record_of(path: Path) -> Record:
    """As ``Record.read``. Raises RunError, RunDamaged."""
    try:
        return Record.read(path)
    except (AttributeError, RecursionError) as error:
        raise RunDamaged(f"{path / RUN} is truncated or altered") from error


def done_of(stage: StageRecord) -> Done:
    """How a stage was finished. Raises RunDamaged where that cannot be read, or names what lies outside the stage."""
    try:
        done = Done.read(stage.path)
        home, made = stage.path.resolve(), (stage.path / done.artifact).resolve()
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise RunDamaged(f"{stage.path / DONE} is truncated or altered") from error
    plain = all(isinstance(name, str) and isinstance(value, str) for name, value in done.files.items())
    if home not in made.parents or not plain:
        raise RunDamaged(f"{stage.path / DONE} is altered: it names {done.artifact!r:.80}")
    return done


def stages_of(record: Record) -> list[StageRecord]:
    """The stages of a run, in order; none where its folder cannot be read any more."""
    try:
        return record.stages()
    except OSError:
        return []


def run_around(path: Path) -> Path | None:
    """The folder of the run in which a model folder lies."""
    return next((folder for folder in list(path.resolve().parents)[:_DEPTH] if (folder / RUN).is_file()), None)


def safe_digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file. Raises RunDamaged where one is no regular file: opening it could hang."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise RunDamaged(f"{path} is no regular file")
    for parent, _, names in os.walk(path):
        for name in names:
            if not is_temporary(name) and not Path(parent, name).is_file():
                raise RunDamaged(f"{Path(parent, name)} is no regular file")
    return digests(path)


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Text anywhere in nested plain values, with its dotted key."""
    for key, inner in nested(value):
        if isinstance(inner, str):
            yield key, inner


def nested(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested plain values, containers first, with its dotted key; as deep as they may be."""
    stack = [(key, value)]
    while stack:
        where, here = stack.pop()
        yield where, here
        if isinstance(here, Mapping):
            stack += [
                (f"{where}.{name}" if where else str(name), inner) for name, inner in reversed(list(here.items()))
            ]
        elif isinstance(here, list):
            stack += [(f"{where}[{number}]", here[number]) for number in range(len(here) - 1, -1, -1)]


def _folders(record: Record) -> list[Path]:
    """Model folders that the settings name: from here, or from a folder around the run (it was started in one)."""
    home = record.path.resolve()
    found: dict[Path, Path] = {}
    for _, text in strings(record.settings):
        if not text or len(text) > _LONGEST or "\0" in text:
            continue
        for start in (Path(), home.parent, *home.parent.parents):
            folder = start / text
            if _is_model(folder):
                found.setdefault(folder.resolve(), folder)
                break
    return list(found.values())


def _is_model(folder: Path) -> bool:
    try:
        return folder.is_dir() and (folder / CONFIG).is_file()
    except (OSError, ValueError):
        return False


def _runs_in(parent: Path) -> list[Path]:
    """The runs in a folder."""
    try:
        with os.scandir(parent) as entries:
            folders = [Path(entry.path) for _, entry in zip(range(_NEIGHBOURS), entries) if entry.is_dir()]
        return sorted(folder for folder in folders if (folder / RUN).is_file())
    except OSError:
        return []


def _quietly(reader: Callable[[], T]) -> T | None:
    """As ``Shelf.read``, without a note: a run beside the one that is asked for may be what it likes."""
    try:
        return reader()
    except (LongthoughtError, *_DAMAGE):
        return None


def _stated(folder: Path) -> dict[str, str]:
    """What ``provenance.json`` says of the other files, and its own digest. Raises CheckpointError."""
    told = read_json(folder, PROVENANCE).get("files")
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise CheckpointError(f"{folder / PROVENANCE}: files must be an object, names and digests")
    return {**told, PROVENANCE: digests(regular_file(folder, PROVENANCE))["."]}


def _without_provenance(files: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if name != PROVENANCE}


def json_in(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises RunDamaged."""
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise RunDamaged(f"{file} is truncated or altered") from error
    if not isinstance(found, dict):
        raise RunDamaged(f"{file} is {'missing' if found is None else 'altered: it holds no object'}")
    return found
