"""What files of text, JSON Lines and Parquet hold, found out by reading them once through.

After that a document is read from its place when it is asked for. Nothing else is kept in memory than some numbers for
every document, and of Parquet files, which cannot be read in the middle, the few row groups that are read next.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.corpus_paths import PARQUET, ROWS
from longthought.tasks.file_rows import BadRow

LONGEST: Final = 16 << 20
"""Longest document, in bytes of its line, paragraph, file or cell."""

LISTED: Final = 20
"""Bad documents that an error lists."""

DECK: Final = 4
"""Row groups of Parquet files whose documents are shuffled together."""

Split: TypeAlias = Literal["file", "line", "paragraph"]
Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class CorpusReading:
    """How files are read.

    documents: what is a document in files of text: the whole file, every line, or what blank lines divide.
    field: key or column of the text in JSON Lines and Parquet files.
    bad: documents that cannot be read are listed and refused, or skipped and counted.
    held_out: share of the documents that training never reads, chosen by a hash of their text.
    seed: of their order.
    """

    documents: Split = "file"
    field: str = "text"
    bad: Literal["refuse", "skip"] = "refuse"
    held_out: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.documents not in ("file", "line", "paragraph"):
            raise SettingsError(f"corpus: documents={self.documents!r}; choose file, line or paragraph")
        if self.bad not in ("refuse", "skip"):
            raise SettingsError(f"corpus: bad={self.bad!r}; choose refuse or skip")
        if not 0 <= self.held_out < 1:
            raise SettingsError(f"corpus: held_out={self.held_out}: the share must be at least 0 and below 1")
        if not self.field:
            raise SettingsError("corpus: field is empty; name the key or column that holds the text")


class Found(NamedTuple):
    """A document in its file: where it begins (a byte, or the number of the row), how many bytes it takes there."""

    place: int  # of a person: line, or row, from 1 on
    start: int
    span: int
    text: str


@dataclass(frozen=True, eq=False)
class Scanned:
    """What one file holds, in numbers.

    starts, spans, places: of every document, see ``Found``.  sizes: bytes of its text in UTF-8.  prints: a hash of it.
    bad: the first damaged ones; ``reasons`` counts them all.  empty: how many are white space alone.
    groups: of a Parquet file, the row with which every row group begins.
    """

    path: Path
    starts: Places
    spans: Places
    places: Places
    sizes: Places
    prints: NDArray[np.uint64]
    bad: tuple[BadRow, ...]
    reasons: Counter[str]
    empty: int
    groups: Places

    @property
    def has_rows(self) -> bool:
        return self.is_parquet or self.path.suffix.lower() in ROWS

    @property
    def is_parquet(self) -> bool:
        return self.path.suffix.lower() == PARQUET

    def text(self, number: int, field: str) -> str:
        """Document ``number`` of the file, read anew. Raises DataError if the file has changed since it was scanned."""
        try:
            text = self._read(number, field)
        except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
            text = None
        if text is None or fingerprint(text) != int(self.prints[number]):
            raise DataError(
                f"{self.path}:{self.places[number]} is not the document any more that stood there when the corpus was "
                "scanned; leave the files as they are while they are read, or start again"
            )
        return text

    def _read(self, number: int, field: str) -> str | None:
        start = int(self.starts[number])
        if self.is_parquet:
            group = bisect_right(self.groups, start) - 1
            column = _row_group(str(self.path), self.path.stat().st_mtime_ns, group, field)
            return _cell(column, start - int(self.groups[group]))
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(int(self.spans[number]))
        if self.path.suffix.lower() in ROWS:
            found = json.loads(raw)[field]
            return found if isinstance(found, str) else None
        return raw.decode()


def scanned(path: Path, reading: CorpusReading) -> Scanned:
    """What a file holds; read again only if it has changed."""
    try:
        state = path.stat()
        is_text = path.suffix.lower() not in (*ROWS, PARQUET)
        what = reading.documents if is_text else reading.field
        return _scan(path, what, (state.st_size, state.st_mtime_ns))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"corpus: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


@lru_cache(maxsize=65536)
def _scan(path: Path, what: str, state: tuple[int, int]) -> Scanned:
    """``what``: the field of files of rows, the division of files of text."""
    del state  # names the version of the file
    kind = path.suffix.lower()
    groups: list[int] = [0]
    if kind == PARQUET:
        groups, documents = _parquet(path, what)
    else:
        reader: Callable[[Path, str], Iterator[Found | BadRow]] = _json_lines if kind in ROWS else _text
        documents = reader(path, what)
    columns = [array("q") for _ in range(4)]
    prints = array("Q")
    bad: list[BadRow] = []
    reasons: Counter[str] = Counter()
    empty = 0
    for found in documents:
        if isinstance(found, BadRow):
            reasons[found.reason] += 1
            if len(bad) < LISTED:
                bad.append(found)
        elif not found.text.strip():
            empty += 1
        else:
            for column, number in zip(columns, (found.start, found.span, found.place, len(found.text.encode()))):
                column.append(number)
            prints.append(fingerprint(found.text))
    starts, spans, places, sizes = (np.array(column, np.int64) for column in columns)
    hashes = np.array(prints, np.uint64)
    return Scanned(path, starts, spans, places, sizes, hashes, tuple(bad), reasons, empty, np.array(groups))


def _decoded(raw: bytes, place: int, start: int, span: int) -> Found | BadRow:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        at = f"byte 0x{raw[error.start]:02x} at {error.start + 1}; save the file as UTF-8"
        return BadRow(place, "not UTF-8", at)
    if "\x00" in text:
        return BadRow(place, "not text", "it holds the character NUL")
    return Found(place, start, span, text)


def _text(path: Path, split: str) -> Iterator[Found | BadRow]:
    if split == "file":
        yield _whole_file(path)
        return
    paragraph: list[bytes] = []
    first = begin = size = 0
    for place, start, raw in _lines(path):
        if split == "line":
            yield _long(place) if raw is None else _decoded(line := raw.rstrip(b"\r\n"), place, start, len(line))
            continue
        if raw is not None and not raw.strip():
            if size:
                yield _paragraph(paragraph, first, begin, size)
            paragraph, size = [], 0
            continue
        if not size:
            first, begin = place, start
        size += LONGEST + 1 if raw is None else len(raw)
        if size <= LONGEST and raw is not None:
            paragraph.append(raw)
    if size:
        yield _paragraph(paragraph, first, begin, size)


def _paragraph(lines: list[bytes], place: int, start: int, size: int) -> Found | BadRow:
    if size > LONGEST:
        return _long(place)
    raw = b"".join(lines).rstrip(b"\r\n")
    return _decoded(raw, place, start, len(raw))


def _whole_file(path: Path) -> Found | BadRow:
    size = path.stat().st_size
    if size > LONGEST:
        return BadRow(1, "too long", f"a document of {size:,} bytes; divide it: corpus.documents=line or paragraph")
    with path.open("rb") as file:
        start = _skip_mark(path, file)
        raw = file.read()
    return _decoded(raw, 1, start, len(raw))


def _long(place: int) -> BadRow:
    return BadRow(place, "too long", f"more than {LONGEST:,} bytes")


def _json_lines(path: Path, field: str) -> Iterator[Found | BadRow]:
    for place, start, raw in _lines(path):
        if raw is None:
            yield _long(place)
        elif raw.strip():
            yield _row(raw, place, start, field)


def _row(raw: bytes, place: int, start: int, field: str) -> Found | BadRow:
    line = _decoded(raw.rstrip(b"\r\n"), place, start, len(raw))
    if isinstance(line, BadRow):
        return line
    try:
        row: Any = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return BadRow(place, "not JSON", "nested too deeply" if isinstance(error, RecursionError) else str(error))
    if not isinstance(row, dict):
        return BadRow(place, "not an object", f"{type(row).__name__} where {{…}} is needed")
    if field not in row:
        return BadRow(place, f"no {field!r}", f"it has {', '.join(map(repr, list(row)[:8])) or 'nothing'}")
    return _checked(row[field], Found(place, start, len(raw), ""), field)


def _checked(text: object, found: Found, field: str) -> Found | BadRow:
    if not isinstance(text, str):
        return BadRow(found.place, f"{field!r} is no text", type(text).__name__ if text is not None else "null")
    try:
        text.encode()
    except UnicodeEncodeError:
        return BadRow(found.place, "not text", "it holds half of a surrogate pair")
    if "\x00" in text:
        return BadRow(found.place, "not text", "it holds the character NUL")
    return found._replace(text=text)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Number of every line, the byte that it begins with, and the line; None for one that is longer than a document."""
    with path.open("rb") as file:
        start = _skip_mark(path, file)
        number = 0
        while raw := file.readline(LONGEST + 1):
            number += 1
            whole = len(raw) <= LONGEST or raw.endswith(b"\n")
            yield number, start, raw if whole else None
            while not whole and (rest := file.readline(LONGEST)):
                whole = rest.endswith(b"\n")
            start = file.tell()


def _skip_mark(path: Path, file: Any) -> int:
    """Go past the byte order mark; where the text begins."""
    mark = file.read(3)
    if mark.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"corpus: {path} is UTF-16; save it as UTF-8")
    start = 3 if mark == b"\xef\xbb\xbf" else 0
    file.seek(start)
    return start


def _parquet(path: Path, field: str) -> tuple[list[int], Iterator[Found | BadRow]]:
    """The first row of every row group, and the documents."""
    with pq.ParquetFile(path) as file:
        names, kinds = file.schema_arrow.names, file.schema_arrow.types
        if names.count(field) != 1:
            wrong = "no column" if field not in names else "more than one column"
            raise DataError(
                f"corpus: {path} has {wrong} {field!r}, which corpus.field asks for; it has {', '.join(names)}"
            )
        kind = kinds[names.index(field)]
        if not _is_text(kind):
            raise DataError(f"corpus: the column {field!r} of {path} holds {kind}, no text")
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    starts = [0, *accumulate(counts)][: max(1, len(counts))]
    return starts, _parquet_rows(path, field, starts if counts else [])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet_rows(path: Path, field: str, starts: Sequence[int]) -> Iterator[Found | BadRow]:
    changed = path.stat().st_mtime_ns
    for group, start in enumerate(starts):
        column = _row_group(str(path), changed, group, field)
        for number in range(len(column)):
            found = Found(start + number + 1, start + number, 0, "")
            try:
                text = _cell(column, number)
            except UnicodeDecodeError:
                yield BadRow(found.place, "not UTF-8")
                continue
            yield _long(found.place) if text and len(text) > LONGEST else _checked(text, found, field)


@lru_cache(maxsize=DECK + 1)
def _row_group(path: str, changed: int, group: int, field: str) -> Any:
    """The texts of one row group, as bytes."""
    del changed  # names the version of the file
    with pq.ParquetFile(path) as file:
        column = file.read_row_group(group, columns=[field]).column(0)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(kind).cast(pa.large_binary()).combine_chunks()


def _cell(column: Any, number: int) -> str | None:
    raw = column[number].as_py()
    return None if raw is None else raw.decode()


def fingerprint(text: str) -> int:
    """64 bits that tell texts apart."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
