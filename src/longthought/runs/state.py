"""The training state: what must survive a kill so that the run goes on as if nothing had happened.

Layout: ``state/step-000123/{tensors.safetensors, values.json, manifest.json}``; the manifest holds the step and the
SHA-256 of the two others. The newest two states are kept, and an older one goes only when the new one is on the disk.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from longthought.core.errors import RunDamaged
from longthought.runs.files import digest, json_bytes, new_folder, write_file

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

KEPT = 2
TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class State:
    """Tensors (on the CPU) and plain values as they were after ``step``."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def folder_of(states: Path, step: int) -> Path:
    """Where the state of a step is kept."""
    return states / f"step-{step:06d}"


def steps(states: Path) -> list[int]:
    """Steps of the states in a folder, newest first, unverified."""
    if not states.is_dir():
        return []
    names = (_NAME.fullmatch(entry.name) for entry in states.iterdir())
    return sorted((int(name[1]) for name in names if name), reverse=True)


def save(states: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, JSON]) -> None:
    """Write the state of ``step`` durably; then remove all but it and the one before it.

    Raises:
        RunError: the disk is full or cannot be written; the older states are still there.
        ValueError: a value does not come back equal from JSON (a tuple, a NaN, a key that is no text).
    """
    data = {TENSORS: safetensors.torch.save(_storable(tensors)), VALUES: _json(values)}
    manifest = {"step": step, "files": {name: digest(content) for name, content in data.items()}}
    with new_folder(folder_of(states, step)) as made:
        for name, content in data.items():
            write_file(made / name, content)
        write_file(made / MANIFEST, json_bytes(manifest, indent=1) + b"\n")
    keep_newest(states, step)


def load(states: Path, warn: Callable[[str], None]) -> State | None:
    """The newest state whose files are all as they were written; None if there never was one.

    A damaged state is passed over with a warning and left where it is; the next save removes it.

    Raises:
        RunDamaged: there are states and none is whole.
    """
    complaints = []
    for step in steps(states):
        try:
            state = read(folder_of(states, step), step)
        except RunDamaged as error:
            complaints.append(str(error))
            continue
        for complaint in complaints:
            warn(f"{complaint}; going on from the older state of step {step}")
        if not complaints:
            keep_newest(states, step)
        return state
    if complaints:
        raise RunDamaged(
            f"no state in {states} can be used: {'; '.join(complaints)}. "
            "Restore the files from a copy, or delete that folder to start the stage from its beginning"
        )
    return None


def keep_newest(states: Path, step: int) -> None:
    """Remove every state but that of ``step`` and the ``KEPT - 1`` before it."""
    older = [other for other in steps(states) if other < step]
    for other in steps(states):
        if other > step or other in older[KEPT - 1 :]:
            shutil.rmtree(folder_of(states, other), ignore_errors=True)


def read(folder: Path, step: int) -> State:
    """The state of a step, checked against its manifest. Raises RunDamaged when it is truncated or altered."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = dict(manifest["files"])
        whole = manifest["step"] == step and set(files) == {TENSORS, VALUES}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunDamaged(f"{folder / MANIFEST} is missing or damaged") from error
    if not whole:
        raise RunDamaged(f"{folder / MANIFEST} is damaged")
    content = {name: _verified(folder / name, files[name]) for name in (TENSORS, VALUES)}
    try:
        return State(step, safetensors.torch.load(content[TENSORS]), json.loads(content[VALUES]))
    except (SafetensorError, ValueError) as error:
        raise RunDamaged(f"{folder} cannot be read: {error}") from error


def _verified(path: Path, expected: object) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunDamaged(f"{path} cannot be read: {error.strerror}") from error
    if digest(data) != expected:
        raise RunDamaged(f"{path} is truncated or altered")
    return data


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two names on one storage (the format holds each tensor's bytes once)."""
    storable: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        owner = plain.untyped_storage().data_ptr()
        storable[name] = plain.clone() if owner in seen else plain
        seen.add(owner)
    return storable


def _json(values: Mapping[str, JSON]) -> bytes:
    try:
        data = json_bytes(dict(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the values of a state must be plain JSON: {error}") from error
    back = json.loads(data)
    changed = [name for name in values if name not in back or back[name] != values[name]]
    if changed:
        raise ValueError(
            f"values of a state that JSON would change: {', '.join(map(str, changed))}; use lists and text"
        )
    return data
