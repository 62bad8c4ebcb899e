"""A stable description of what a stage was asked to do, so that a finished stage is known again.

Frozen dataclasses are described by their fields (those with ``compare=False`` are left out: a progress bar or a
tracker changes no result), artifacts by the digests of their files, functions by their names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import torch

from longthought.core.errors import RunError
from longthought.runs.files import digests, json_bytes
from longthought.runs.settings import fingerprint_of

Plain: TypeAlias = Any
"""What JSON holds."""


def describe(value: object, where: str = "stage") -> Plain:
    """Plain JSON that is equal for equal values, on every machine and in every process.

    Known are plain values, collections, paths, enums, named functions and classes, partials, torch dtypes and devices,
    dataclasses, anything with a ``path`` (an artifact: its files are read), and anything with a text ``fingerprint``.

    Raises:
        RunError: a value has no stable description (a lambda, an object of another kind); ``where`` it stands is named.
        RunDamaged: a file of an artifact cannot be read.
    """
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [describe(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    return _describe_object(value, where)


def _describe_object(value: object, where: str) -> Plain:
    if isinstance(value, AbstractSet):
        return sorted((describe(inner, where) for inner in value), key=json_bytes)
    if isinstance(value, functools.partial):
        parts = {"partial of": value.func, "arguments": value.args, "keywords": value.keywords}
        return describe(parts, where)
    known: dict[str, Plain] = {"is": type(value).__qualname__}
    path, stated = getattr(value, "path", None), getattr(value, "fingerprint", None)
    if isinstance(path, Path):
        known["files"] = fingerprint_of(digests(path))  # wherever they lie
    if isinstance(stated, str):
        return known | {"fingerprint": stated}
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.compare and not (field.name == "path" and path)]
        return known | {name: describe(getattr(value, name), f"{where}.{name}") for name in names}
    if "files" in known:
        return known
    name = getattr(value, "__qualname__", "<>")
    if callable(value) and "<" not in name:
        return f"{value.__module__}.{name}"
    raise RunError(
        f"{where} ({type(value).__qualname__} {name.strip('<>')}) cannot be recognised in a later process: make it a "
        "named function or a frozen dataclass, give it a text `fingerprint`, or, if no result depends on it, "
        "declare its field with compare=False"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``"key: 1 in the run, 2 now"`` for every key whose value differs."""
    missing = object()
    lines = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key, missing), now.get(key, missing)
        if old != new or type(old) is not type(new):
            shown = ["absent" if value is missing else _shown(value) for value in (old, new)]
            lines.append(f"{key}: {shown[0]} in the run, {shown[1]} now")
    return lines


def leafs(value: Plain, prefix: str) -> dict[str, Any]:
    """Leafs of nested mappings and lists by dotted keys; what is empty is a leaf."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, inner in value.items() for k, v in leafs(inner, f"{prefix}.{name}").items()}
    if isinstance(value, list) and value:
        return {k: v for number, inner in enumerate(value) for k, v in leafs(inner, f"{prefix}[{number}]").items()}
    return {prefix: value}


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else repr(value)
