"""Writes that a kill, a power cut or a full disk cannot leave half done.

A file or folder is written under a temporary name beside its final one, brought to the disk, and renamed. One process
writes in a run folder at a time (the lock of the run), so that whatever bears a temporary name when a run is opened is
left over from a killed one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longthought.core.errors import RunDamaged, RunError

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>partial|older)")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BLOCK = 1 << 20


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``path`` so that every reader, at any time, finds the older file or all of ``data``.

    Raises:
        RunError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    partial = temporary(path)
    with plain_errors(path):
        try:
            write_file(partial, data)
            sync(partial)
            os.rename(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes ``final`` at the end of the block, and vanishes if the block fails.

    Raises:
        RunError: the disk is full or the folder cannot be written; an older ``final`` stays as it was.
    """
    partial = temporary(final)
    with plain_errors(final):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            replace_folder(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def replace_folder(made: Path, final: Path) -> None:
    """Bring the folder ``made`` to the disk and put it in the place of ``final``, on the same file system.

    Killed between the two renames, ``final`` is back after the next :func:`sweep`.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    older = temporary(final, "older")
    with plain_errors(final):
        sync_tree(made)
        if final.exists():
            os.rename(final, older)
        os.rename(made, final)
        sync(final.parent)
        shutil.rmtree(older, ignore_errors=True)


def temporary(path: Path, kind: str = "partial") -> Path:
    """The temporary name beside ``path`` that :func:`sweep` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name was left by a killed write."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed writes left anywhere below ``folder``; a folder that was being replaced gets its name back.

    Only for the process that holds the lock of the run.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            found = _TEMPORARY.fullmatch(name)
            if found is None:
                continue
            left, final = Path(parent, name), Path(parent, found["name"])
            if found["kind"] == "older" and not final.exists():
                os.rename(left, final)
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not is_temporary(name)]


def write_file(path: Path, data: bytes) -> None:
    """Write all of ``data``, not yet brought to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(handle, data)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """``os.write`` until every byte is written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync(path: Path) -> None:
    """Bring one file, or the names in one folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk."""
    if path.is_dir():
        for parent, _, files in os.walk(path, topdown=False):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
    else:
        sync(path)


def json_bytes(value: object, indent: int | None = None) -> bytes:
    """JSON in UTF-8; lone surrogates, which UTF-8 cannot hold, become the escapes that JSON has for them.

    Raises:
        TypeError, ValueError: ``value`` is not JSON, or holds a NaN or an infinity.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "backslashreplace")


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file in a folder, by its name relative to ``path`` (``"."`` for a file itself).

    Raises:
        RunDamaged: ``path`` does not exist or cannot be read.
    """
    try:
        if not path.is_dir():
            return {".": _digest_file(path)}
        files = (Path(parent, name) for parent, _, names in os.walk(path) for name in names if not is_temporary(name))
        return {file.relative_to(path).as_posix(): _digest_file(file) for file in sorted(files)}
    except OSError as error:
        raise RunDamaged(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Tell a failed write of ``path`` in plain words.

    Raises:
        RunError: in place of any ``OSError`` of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = (
                f"no space left on the disk of {path.parent}: the run stopped, nothing finished was lost; "
                "free space and run the same command again"
            )
        else:
            message = f"cannot write {path}: {error.strerror or error}; the run stopped, nothing finished was lost"
        raise RunError(message) from error
