"""Which files a corpus is read from: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from longthought.core.errors import DataError, SettingsError

TEXT: Final = (".txt", ".text", ".md", ".rst")
ROWS: Final = (".jsonl", ".ndjson")
PARQUET: Final = ".parquet"
_TABLES: Final = (".json", ".csv", ".tsv")
_PACKED: Final = (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z", ".pdf", ".docx")


def named(paths: Sequence[Path | str]) -> tuple[list[Path], str]:
    """The files that are meant, each once, in a fixed order; and what of the folders is left out, in words."""
    if not paths:
        raise SettingsError("corpus: name a file, a folder or a pattern: corpus.path=texts/")
    found: dict[Path, Path] = {}
    others: Counter[str] = Counter()
    for path in paths:
        for file in _below(Path(path), others):
            found.setdefault(file.resolve(), file)
    left = f"left out by their endings: {counted(others)}" if others else ""
    if not found:
        raise DataError(f"corpus {', '.join(map(str, paths))}: there are no files to read{'; ' + left if left else ''}")
    return list(found.values()), left


def title(path: Path | str) -> str:
    """The name of a file or folder, or of the last folder before a pattern; empty if there is none."""
    plain = list(takewhile(lambda part: not glob.has_magic(part), Path(path).resolve().parts[1:]))
    return Path(plain[-1]).stem if plain else ""


def _below(path: Path, others: Counter[str]) -> Iterator[Path]:
    if path.is_dir():
        yield from _walked(path, others)
        return
    if path.exists() or not glob.has_magic(str(path)):
        yield _readable(path)
        return
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [match for match in matches if not match.is_dir()]
    if not files:
        raise DataError(f"corpus: no file matches {path}")
    yield from map(_readable, files)


def _walked(folder: Path, others: Counter[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if name.startswith(".") or not file.is_file():
                continue
            if file.suffix.lower() in (*TEXT, *ROWS, PARQUET):
                yield file
            else:
                others[file.suffix or "without"] += 1


def _readable(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"corpus: there is no file or folder {path}")
    if not path.is_file():
        raise DataError(f"corpus: {path} is no regular file")
    if path.suffix.lower() in (*_TABLES, *_PACKED):
        raise DataError(
            f"corpus: {path} is neither text nor JSON Lines nor Parquet: unpack it, or convert it; one JSON object per "
            "line is called .jsonl"
        )
    return path


def counted(reasons: Counter[str]) -> str:
    """``".png: 3, .svg: 1"``"""
    return ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
