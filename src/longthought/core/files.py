"""Reading files of a model folder that somebody else made: nothing in it is trusted.

A name is the name of a file in the folder, never a path. What is read is a regular file (opening a FIFO or a device
could hang), lies in the folder after every link is followed, and is no larger than its kind can need to be. The one
link out of a folder that is followed is that of a Hugging Face cache, ``snapshots/<revision>/file`` → ``blobs/…``.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from longthought.core.errors import CheckpointError

CONFIG_LIMIT = 10 * 2**20
"""Largest config.json that is read, in bytes; real ones have some thousand."""

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80


def shown(value: object) -> str:
    """``repr``, cut to a length that fits into an error message: what is shown may be hostile."""
    return _brief.repr(value)


def exists(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of this name, of whatever kind."""
    return _is_plain(name) and os.path.lexists(folder / name)


def regular_file(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``, links followed.

    Raises:
        CheckpointError: ``name`` is a path, there is no such file, it is not a regular one, or a link leads out.
    """
    if not _is_plain(name):
        raise CheckpointError(f"{folder}: {shown(name)} is no file name; a model folder's files lie in it")
    file = folder / name
    try:
        home, target = folder.resolve(strict=True), file.resolve(strict=True)
        kind = target.stat().st_mode
    except FileNotFoundError:
        where = file if folder.exists() else folder
        raise CheckpointError(f"{where} {'is a link to nothing' if os.path.lexists(where) else 'is missing'}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not any(target.is_relative_to(place) for place in _places(home)):
        raise CheckpointError(f"{file} is a link out of its folder, to {target}; copy the file into the folder")
    if not stat.S_ISREG(kind):
        raise CheckpointError(f"{file} is not a regular file")
    return target


def read_text(folder: Path, name: str, limit: int = CONFIG_LIMIT) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes.

    Raises:
        CheckpointError: see :func:`regular_file`; or it is too large, unreadable, or not UTF-8.
    """
    file = regular_file(folder, name)
    try:
        if file.stat().st_size > limit:
            raise CheckpointError(f"{folder / name} is larger than {limit:,} bytes; no {name} needs to be")
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / name} is not text in UTF-8: {error.reason} at byte {error.start}") from None


def read_json(folder: Path, name: str, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises:
        CheckpointError: see :func:`read_text`; or it is not one JSON object of unique names and finite numbers.
    """
    return json_object(read_text(folder, name, limit), folder / name)


def json_object(text: str, origin: object) -> dict[str, Any]:
    """The JSON object that ``text`` is; ``origin`` names its source in errors.

    Raises:
        CheckpointError: it is not JSON, not an object, nested too deeply, names something twice, or holds NaN or an
            infinity.
    """
    try:
        found = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise CheckpointError(f"{origin} is nested too deeply to be read as JSON") from None
    except ValueError as error:
        raise CheckpointError(f"{origin} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{origin} holds no JSON object but a {type(found).__name__}")
    return found


def _is_plain(name: str) -> bool:
    """Whether ``name`` is one component of a path, on any system, and can be shown as it is."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\") and len(name) <= 255


def _places(home: Path) -> tuple[Path, ...]:
    """Where the files of the folder ``home`` may really lie."""
    return (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"the number {word[:40]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(name)} stands there twice")
    return found
