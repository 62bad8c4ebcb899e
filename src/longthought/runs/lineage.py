"""Where the artifacts of a run come from: every stage with what it was given, what it made, what it took, and whether
all of that still holds. Only files are read; nothing is loaded, and no code of a recipe runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from longthought.core.errors import RunDamaged
from longthought.core.files import exists, read_json
from longthought.runs import state, traces
from longthought.runs.artifacts import PROVENANCE
from longthought.runs.describe import differences
from longthought.runs.logs import read_log
from longthought.runs.place import METRICS, STATES, TIMINGS, TRACES
from longthought.runs.record import DONE, Done, Launch, Record, StageRecord
from longthought.runs.run import STAGE
from longthought.runs.settings import fingerprint_of
from longthought.runs.shelf import Artifact, Shelf, done_of, json_in, nested, safe_digests, stages_of

T = TypeVar("T")

COUNTS: Final = frozenset({"step", "tokens"})
"""What ``timings.jsonl`` holds beside seconds."""


@dataclass(frozen=True, slots=True)
class Given:
    """One thing that a stage depends on.

    where: its place in what the stage was asked to do: ``given``, ``stage.examples.conversations`` …
    fingerprint: SHA-256 of its files or of its content, as the stage noted it.
    source: ``Node.key`` of what made it, or of the model folder that it is; empty where that is not found.
    """

    where: str
    kind: str
    fingerprint: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A stage, or a model folder that belongs to no run that was found (``run`` empty).

    key: the path of its folder.  kind: the class of the stage; of a model, what its provenance tells.
    settings: SHA-256 of what the stage was asked to do, without what it was given; empty where it cannot be read.
    artifact: name of what it made; fingerprint, files, bytes: of that; empty and 0 while there is none.
    began, ended: UTC, by the times of its files; seconds: by its clock; None where nothing was noted.
    sampled, trained: tokens; None where nothing was logged.
    faults: what is missing, altered or cannot be read.  again: what the same command would do here, or refuse, where it
    would not simply load what is there.
    """

    key: str
    run: str
    name: str
    kind: str
    state: Literal["finished", "unfinished", "model"]
    settings: str = ""
    given: tuple[Given, ...] = ()
    artifact: str = ""
    fingerprint: str = ""
    files: int = 0
    bytes: int = 0
    began: str = ""
    ended: str = ""
    seconds: float | None = None
    sampled: int | None = None
    trained: int | None = None
    faults: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """The stages of a run, in order, and after them whatever they come from elsewhere.

    conditions: what a launch would refuse to go on with now, beside settings and inputs.
    to_come: names of stages that the recipe would still start; only filled where the recipe was asked.
    notes: what could not be read.  checked: whether the artifacts were hashed, or only looked for.
    """

    run: str
    recipe: str
    settings: str
    started: str
    launches: int
    nodes: tuple[Node, ...]
    conditions: tuple[str, ...]
    notes: tuple[str, ...]
    checked: bool
    to_come: tuple[str, ...] = ()


def lineage(record: Record, check: bool = False) -> Lineage:
    """The lineage of a run in any state. ``check``: hash every file again, and name those that were altered."""
    shelf = Shelf(record, check)
    nodes: dict[str, Node] = {}
    todo: list[Artifact] = [Artifact(stage.path, None, record, stage) for stage in stages_of(record)]
    while todo:
        artifact = todo.pop(0)
        key = _key(artifact)
        if key in nodes:
            continue
        if artifact.record is not None and artifact.stage is not None:
            shelf.add(artifact.record)
            nodes[key], sources = _made(artifact.record, artifact.stage, shelf, check)
        else:
            nodes[key], sources = _told(artifact, shelf, check)
        todo += sources
    last = record.launches[-1]
    now = shelf.read(lambda: Launch.now("", last.threads).conditions()) or {}
    then = shelf.read(last.conditions) or {}
    return Lineage(
        str(record.path),
        record.recipe,
        record.fingerprint,
        str(record.launches[0].started),
        len(record.launches),
        tuple(_depending(node, nodes) for node in nodes.values()),
        tuple(differences(then, now)) if then and now else (),
        tuple(shelf.notes),
        check,
    )


def _key(artifact: Artifact) -> str:
    return str(artifact.path if artifact.stage is None else artifact.stage.path)


def _made(record: Record, stage: StageRecord, shelf: Shelf, check: bool) -> tuple[Node, list[Artifact]]:
    """A stage, and what it was given."""
    faults: list[str] = []
    asked = _or_fault(partial(json_in, stage.path / STAGE), faults)
    tokens = _tokens(shelf, stage)
    found = [] if asked is None else [_traced(one, record, shelf) for one in _given(asked)]
    node = Node(
        str(stage.path),
        str(record.path),
        stage.name,
        _kind(asked.get("stage")) if asked else "",
        "finished" if stage.finished else "unfinished",
        _digest(asked.get("stage")) if asked else "",
        tuple(given for given, _ in found),
        began=_time(stage.path / STAGE),
        ended=_time(stage.path / DONE) if stage.finished else "",
        seconds=_seconds(shelf, stage),
        sampled=tokens.sampled,
        trained=tokens.trained,
    )
    again = [] if asked is not None or not (stage.path / STAGE).exists() else [f"is refused until {STAGE} is restored"]
    if stage.finished:
        done = _or_fault(partial(done_of, stage), faults)
        altered: list[str] = []
        if done is not None:
            node = replace(node, **_size(stage.path / done.artifact, done))
            altered = _altered(stage.path / done.artifact, done.files, check)
        if done is None or altered:
            again.append(_repaired(stage))
        if done is not None and asked is not None and not _as_asked(asked, done):
            altered.append(f"{stage.path / STAGE} was altered after the stage was finished")
            again.append(f"is refused: what the stage was asked is not what it did; restore {STAGE}")
        faults += altered
    else:
        again.append(_going_on(stage))
    again += _changed(node, record, shelf)
    return replace(node, faults=tuple(faults), again=tuple(again)), [one for _, one in found if one is not None]


def _told(artifact: Artifact, shelf: Shelf, check: bool) -> tuple[Node, list[Artifact]]:
    """A model folder outside every run that was found, as its ``provenance.json`` tells, and what it was made from."""
    folder, faults = artifact.path, []
    told = shelf.read(lambda: read_json(folder, PROVENANCE)) if exists(folder, PROVENANCE) else {}
    told = told or {}
    origin = told.get("from")
    source, given = None, []
    if isinstance(origin, Mapping) and origin and all(isinstance(value, str) for value in origin.values()):
        source = shelf.find_stated(origin)
        given = [Given("from", "Checkpoint", fingerprint_of(origin), _key(source) if source else "")]
    if artifact.files is not None and told:
        faults = _altered(folder, artifact.files, check)
    how = f"made by {told['stage']}" if told.get("stage") else "of somebody else" if not told else "of unknown making"
    converted = told.get("converted")
    if isinstance(converted, Mapping):
        how += f", converted to {converted.get('dtype')}"
    node = Node(str(folder), "", folder.name, how, "model", given=tuple(given), artifact=folder.name)
    size = _size(folder, Done(folder.name, dict(artifact.files or {})))
    size["fingerprint"] = artifact.fingerprint
    return replace(node, **size, faults=tuple(faults)), [source] if source is not None else []


def _given(asked: Mapping[str, Any]) -> Iterator[Given]:
    """Whatever in the description of a stage stands for files or content, not only for settings."""
    for part in ("given", "stage"):
        for where, value in nested(asked.get(part), part):
            if isinstance(value, Mapping):
                stated = value.get("files", value.get("fingerprint"))
                if isinstance(stated, str):
                    yield Given(where, str(value.get("is", "")), stated)


def _traced(given: Given, record: Record, shelf: Shelf) -> tuple[Given, Artifact | None]:
    """With its source: what has these very files, else the only model that the settings name, if nobody hashed it."""
    source = shelf.find(given.fingerprint)
    if source is None and given.where.startswith("given") and given.kind == "Checkpoint":
        unknown = [model for model in shelf.named.get(str(record.path), []) if model.files is None]
        source = unknown[0] if len(unknown) == 1 else None
    return (given, None) if source is None else (replace(given, source=_key(source)), source)


def _changed(node: Node, record: Record, shelf: Shelf) -> Iterator[str]:
    """Models that a stage was given and would not be given again."""
    named = shelf.named.get(str(record.path), [])
    unread = {str(model.path) for model in named if model.files is None}
    for given in node.given:
        own = bool(given.source) and Path(given.source).parent == record.path
        if (
            given.kind != "Checkpoint"
            or own
            or given.source in unread
            or any(given.fingerprint == model.fingerprint for model in named)
        ):
            continue
        what = f"the model {given.fingerprint[:12]} that it was given"
        if named:
            folders = " and ".join(str(model.path) for model in named)
            yield f"is refused: {what} is not what the settings name now, {folders}"
        elif not given.source:
            yield f"is refused unless {what} is there again: it was not found"


def _depending(node: Node, nodes: Mapping[str, Node]) -> Node:
    """With a word about every source that is altered."""
    altered = [nodes[given.source] for given in node.given if given.source in nodes and nodes[given.source].faults]
    words = tuple(f"depends on {one.name}, which is not as it was" for one in dict.fromkeys(altered))
    return replace(node, again=node.again + words)


def _altered(path: Path, files: Mapping[str, str], check: bool) -> list[str]:
    """What became of the files of an artifact, in words."""
    if not path.exists():
        return [f"{path} is missing"]
    if not check:
        return [f"{path / name} is missing" for name in files if name != "." and not (path / name).is_file()]
    try:
        found = safe_digests(path)
    except RunDamaged as error:
        return [str(error)]
    words = [
        f"{path if name == '.' else path / name} is {'altered' if name in found else 'missing'}"
        for name, expected in files.items()
        if found.get(name) != expected
    ]
    own = {PROVENANCE, *files}
    return words + [f"{path / name} was added" for name in found if name not in own]


def _repaired(stage: StageRecord) -> str:
    """What the same command does about a damaged artifact."""
    steps = state.steps(stage.path / STATES)
    if steps:
        return f"is made again from its state of step {steps[0]:,}"
    return "is refused until the files are restored from a copy, or done.json is deleted to run the stage again"


def _going_on(stage: StageRecord) -> str:
    steps = state.steps(stage.path / STATES)
    return f"goes on after step {steps[0]:,}" if steps else "starts from its beginning"


def _as_asked(asked: Mapping[str, Any], done: Done) -> bool:
    """Whether ``stage.json`` is still what the finished stage was asked; runs of old did not note it."""
    if not done.stage:
        return True
    return {"stage": done.stage, "given": done.given} == {name: _digest(asked.get(name)) for name in ("stage", "given")}


def _digest(asked: Any) -> str:
    """As ``done.json`` notes it."""
    try:
        return fingerprint_of({"asked": asked})
    except (ValueError, RecursionError):
        return ""


def _kind(asked: Any) -> str:
    return str(asked.get("is", "")) if isinstance(asked, Mapping) else ""


def _or_fault(reader: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return reader()
    except RunDamaged as error:
        faults.append(str(error))
        return None


def _size(path: Path, done: Done) -> dict[str, Any]:
    sizes = [_bytes(path if name == "." else path / name) for name in done.files]
    return {
        "artifact": done.artifact,
        "fingerprint": fingerprint_of(done.files),
        "files": len(sizes),
        "bytes": sum(sizes),
    }


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return 0


def _time(file: Path) -> str:
    """When a file was written, UTC."""
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except (OSError, ValueError, OverflowError):
        return ""


def _seconds(shelf: Shelf, stage: StageRecord) -> float | None:
    rows = shelf.read(partial(read_log, stage.path / TIMINGS)) or []
    known = [
        v for row in rows for name, value in row.items() if name not in COUNTS and (v := _number(value)) is not None
    ]
    return sum(known) if known else None


class _Tokens(NamedTuple):
    """What a stage cost; None where nothing was logged."""

    sampled: int | None = None
    trained: int | None = None


def _tokens(shelf: Shelf, stage: StageRecord) -> _Tokens:
    """Those of its rollouts where it has some, else as it logged them."""
    folder = _rollouts(stage)
    if folder is not None:
        damaged: list[RunDamaged] = []
        found = list(traces.scan(folder, traces.steps(folder), ("length", "left_out"), lambda t: t, damaged.append))
        for error in damaged:
            shelf.read(partial(_raise, error))
        return _counted(pa.concat_tables(found)) if found else _Tokens()
    rows = shelf.read(partial(read_log, stage.path / METRICS)) or []
    last: Mapping[str, Any] = rows[-1] if rows else {}
    trained = _number(last.get("trained", last.get("tokens")))
    return _Tokens(None, None if trained is None else round(trained))


def _raise(error: RunDamaged) -> None:
    raise error


def _counted(table: pa.Table) -> _Tokens:
    used = table.filter(pc.equal(table["left_out"], ""))
    known = table["left_out"].null_count < table.num_rows
    return _Tokens(pc.sum(table["length"]).as_py(), (pc.sum(used["length"]).as_py() or 0) if known else None)


def _rollouts(stage: StageRecord) -> Path | None:
    """The folder of the stage's rollouts, as training keeps them, or as an evaluation does."""
    try:
        inside: Sequence[Path] = [
            stage.path / TRACES,
            *sorted(entry for entry in stage.path.iterdir() if entry.is_dir()),
        ]
        return next((folder for folder in inside if traces.steps(folder)), None)
    except OSError:
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
