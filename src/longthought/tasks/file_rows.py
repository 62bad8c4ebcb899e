"""Rows of a file, one at a time: JSON Lines, a JSON array, Parquet, CSV and TSV.

A row that cannot be read is told with its place and the reason, so that all of them can be listed; a file that cannot
be read any further raises ``DataError``. Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import json
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from longthought.core.errors import DataError, SettingsError

MAX_ROW: Final = 8 << 20
"""Longest row, in bytes of its line, characters of its JSON object, or characters of a CSV cell."""

_CHUNK = 1 << 16
_PARQUET_BATCH = 256
_SHOWN = 20  # bad rows that an error lists
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


@dataclass(frozen=True, slots=True)
class Row:
    """``place``: number of its (first) line, or of the row in a Parquet file; both count from 1."""

    place: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. ``reason`` is one of few; ``detail`` says what it was in this row."""

    place: int
    reason: str
    detail: str = ""


@dataclass
class BadRows:
    """Rows that cannot be used: all counted, the first ones in full."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, path: Path | str, row: BadRow) -> None:
        """Count a row of a file."""
        self.counts[row.reason] += 1
        if len(self.lines) < _SHOWN:
            self.lines.append(f"{path}:{row.place}: {row.reason}" + (f": {row.detail}" if row.detail else ""))

    @property
    def summary(self) -> str:
        """How many there are for every reason, most first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())

    def refusal(self, advice: str) -> DataError:
        """The error that lists them; ``advice`` says what to do."""
        total = self.counts.total()
        rest = [f"… and {total - len(self.lines):,} more"] if total > len(self.lines) else []
        heading = f"{total:,} {'row' if total == 1 else 'rows'} cannot be used ({self.summary}):"
        return DataError("\n".join([heading, *(f"  {line}" for line in [*self.lines, *rest]), advice]))


Rows: TypeAlias = Iterator[Row | BadRow]


def check_files(paths: Iterable[Path | str], of: str) -> None:
    """Raises SettingsError where no file is named, or one twice. of: what the rows are."""
    places = [Path(path).resolve() for path in paths]
    if not places:
        raise SettingsError(f"name a file of {of}: .jsonl, .json, .parquet, .csv or .tsv")
    for place in places:
        if places.count(place) > 1:
            raise SettingsError(f"{place} is named twice")


def read_rows(path: Path, of: str = "problems") -> Rows:
    """The rows of a file, by its extension. Raises ``DataError`` where the file as a whole cannot be read.

    of: what the rows are, for the errors.
    """
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_array,
        ".parquet": _parquet,
        ".csv": lambda path: _csv(path, ","),
        ".tsv": lambda path: _csv(path, "\t"),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: files of {of} end in {', '.join(readers)}, not in {path.suffix!r}")
    try:
        yield from reader(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no file of {of} {path}") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class _Json:
    """A JSON decoder that notes what is legal JSON and yet ambiguous: a key given twice, NaN and infinities."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, str]] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str, start: int, place: int) -> tuple[Row | BadRow, int]:
        """The row that begins at ``start`` and where it ends. Raises ``ValueError`` where there is no JSON."""
        self._faults.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if self._faults:
            return BadRow(place, *self._faults[0]), end
        if not isinstance(value, dict):
            return BadRow(place, "not an object", f"{type(value).__name__} where {{…}} is needed"), end
        return Row(place, value), end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._faults.append(("a key given twice", repr(twice)))
        return found

    def _constant(self, name: str) -> None:
        self._faults.append(("not a finite number", name))


def _json_lines(path: Path) -> Rows:
    json_ = _Json()
    for place, raw in _lines(path):
        if raw is None:
            yield BadRow(place, "too long", f"more than {MAX_ROW:,} bytes")
            continue
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as error:
            yield BadRow(place, "not UTF-8", _encoding_fault(error))
            continue
        if not text:
            continue
        try:
            row, end = json_.decode(text, 0, place)
        except ValueError as error:
            yield BadRow(place, "not JSON", str(error))
            continue
        yield row if end == len(text) else BadRow(place, "not JSON", f"text after the object: {text[end : end + 30]!r}")


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one that is longer than ``MAX_ROW``."""
    with path.open("rb") as file:
        _skip_mark(path, file)
        number = 0
        while raw := file.readline(MAX_ROW + 1):
            number += 1
            whole = len(raw) <= MAX_ROW or raw.endswith(b"\n")
            yield number, raw if whole else None
            while not whole and (rest := file.readline(MAX_ROW)):
                whole = rest.endswith(b"\n")


def _skip_mark(path: Path, file: BinaryIO) -> None:
    mark = file.read(len(BOM_UTF8))
    if mark.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    file.seek(len(mark) if mark == BOM_UTF8 else 0)


def _encoding_fault(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start + 1}; save the file as UTF-8"


class _Window:
    """The text of a file around the place ``at`` that is read next; ``line`` is the number of the line of ``at``."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self._path, self._file = path, file
        self._decoder = getincrementaldecoder("utf-8")()

    @property
    def unread(self) -> int:
        """How many characters are known from ``at`` on."""
        return len(self.text) - self.at

    def more(self) -> None:
        """Read as much again as is unread, so that trying a long object anew stays linear."""
        raw = self._file.read(max(_CHUNK, self.unread))
        self.ended = not raw
        try:
            self.text = self.text[self.at :] + self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at) + error.object[: error.start].count(b"\n")
            raise DataError(f"{self._path}:{line}: not UTF-8; save the file as UTF-8") from None
        self.at = 0

    def next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = _NOT_SPACE.search(self.text, self.at)
            self.advance(found.start() if found else len(self.text))
            if found or self.ended:
                return found[0] if found else ""
            self.more()

    def advance(self, to: int) -> None:
        """Leave everything before ``to`` behind."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to


def _json_array(path: Path) -> Rows:
    with path.open("rb") as file:
        _skip_mark(path, file)
        window, json_ = _Window(path, file), _Json()
        if window.next() != "[":
            raise DataError(f"{path} holds no JSON array [{{…}}, …]; call it .jsonl if it holds one object per line")
        window.advance(window.at + 1)
        empty = window.next() == "]"
        while not empty:
            yield _element(path, window, json_)
            sign = window.next()
            if sign == "]":
                break
            if sign != ",":
                raise DataError(f"{path}:{window.line}: not JSON: ',' or ']' is missing")
            window.advance(window.at + 1)
            window.next()
        window.advance(window.at + 1)
        if window.next():
            raise DataError(f"{path}:{window.line}: not JSON: text after the array")


def _element(path: Path, window: _Window, json_: _Json) -> Row | BadRow:
    """The next element of an array: tried with what is read, and with more while that may be its beginning."""
    while True:
        try:
            row, end = json_.decode(window.text, window.at, window.line)
            if end < len(window.text) or window.ended:
                window.advance(end)
                return row
        except ValueError as error:
            if window.ended or window.unread > MAX_ROW:
                reason = str(error).partition(": line")[0]
                raise DataError(
                    f"{path}:{window.line}: not JSON from here on, or an element of more than {MAX_ROW:,} characters "
                    f"({reason})"
                ) from None
        window.more()


def _csv(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    reader = csv.reader(_decoded_lines(path), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header or len(set(header)) < len(header) or not all(header):
            raise DataError(f"{path}:1: the first line must name the columns, each once; it is {header}")
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(start, dict(zip(header, cells)))
            elif cells:
                yield BadRow(start, "not as many cells as columns", f"{len(cells)}, not {len(header)}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no valid CSV: {error}") from error


def _decoded_lines(path: Path) -> Iterator[str]:
    for number, raw in _lines(path):
        if raw is None:
            raise DataError(f"{path}:{number}: a line of more than {MAX_ROW:,} bytes")
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8: {_encoding_fault(error)}") from None


def _parquet(path: Path) -> Rows:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{path}: a column name is given twice: {', '.join(names)}")
        place = 0
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError) as error:  # text that is no UTF-8, a date out of range
                raise DataError(f"{path}: rows {place + 1} to {place + len(batch)}: {error}") from error
            for values in rows:
                place += 1
                yield Row(place, values)
