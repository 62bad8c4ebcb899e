"""The problems of files, read once, checked row by row, compactly kept, and divided into splits without leakage."""

from __future__ import annotations

import json
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.cells import UnfitRow
from longthought.tasks.fields import Columns, Fields, columns_of
from longthought.tasks.file_problem import NO_ID, Stated, stated
from longthought.tasks.file_rows import BadRow, BadRows, Row, read_rows
from longthought.tasks.splits import SPLITS

_SAMPLE = 100  # rows from which the columns are told
_ADVICE = 'Mend them, or leave them out with problems.bad=skip (in Python: Reading(bad="skip")).'
_HASHED = "files"  # one key for all files: a problem is in the same split of whichever file it stands in
_NO_WORD = re.compile(r"[\W_]+")
_FIRST_TEST = 0.05  # where ``splits.split_of`` has the border of dev and test


@dataclass(frozen=True)
class Reading:
    """How files are read.

    fields: which columns hold what.
    dev_share, test_share: of the problems whose split is not given. A larger share keeps all that a smaller one had.
    bad: what happens when rows cannot be used: ``refuse`` lists them and stops, ``skip`` counts them and goes on.
    name: of the task; empty: that of the first file.
    seed: of the order in which the problems of train are asked.
    instruction: follows every question on a line of its own, such as how to write the answer.
    """

    fields: Fields = Fields()
    dev_share: float = 0.05
    test_share: float = 0.10
    bad: Literal["refuse", "skip"] = "refuse"
    name: str = ""
    seed: int = 0
    instruction: str = ""

    def __post_init__(self) -> None:
        if not (self.dev_share >= 0 and self.test_share >= 0 and self.dev_share + self.test_share <= 1):
            raise SettingsError(
                f"reading: dev_share={self.dev_share} and test_share={self.test_share}: each must be 0 or more, both "
                "together at most 1"
            )
        if self.bad not in ("refuse", "skip"):
            raise SettingsError(f"reading: bad is {self.bad!r}; choose refuse or skip")

    def split_of(self, messages: Sequence[tuple[str, str]]) -> str:
        """The split of a prompt, by its letters and digits alone.

        Prompts that differ in case, width, white space, punctuation, signs or system message fall into the same. With
        the default shares this is ``splits.split_of``.
        """
        digest = blake2b(_essence(messages).encode(), digest_size=8, key=_HASHED.encode()).digest()
        place = (int.from_bytes(digest, "big") / 2**64 - _FIRST_TEST) % 1.0
        if place < self.test_share:
            return "test"
        return "dev" if place >= 1.0 - self.dev_share else "train"


@dataclass(frozen=True)
class Source:
    """A file, and the split that its problems belong to; empty: told by the file, or by their hash."""

    path: Path
    split: str = ""


def normalized(messages: Sequence[tuple[str, str]]) -> str:
    """A prompt without its system message, in one case, width (NFKC) and kind of white space."""
    text = "\n".join(content for role, content in messages if role != "system")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _essence(messages: Sequence[tuple[str, str]]) -> str:
    """Letters and digits of a normalised prompt; all of it where there are none."""
    text = normalized(messages)
    return _NO_WORD.sub("", text) or text


class Problems:
    """Problems in the order of their files, as JSON bytes: about as large as the columns that are used.

    ``splits`` holds the numbers of the problems of each split; ``fingerprint`` is a SHA-256 over the problems of all
    splits and the columns they come from, so that a run that goes on notices a changed file; ``notes`` say what was
    left out; ``skipped`` counts bad rows by reason.
    """

    def __init__(self) -> None:
        self.columns: dict[Path, Columns] = {}
        self.splits: dict[str, array[int]] = {split: array("Q") for split in SPLITS}
        self.skipped: Mapping[str, int] = {}
        self.notes: list[str] = []
        self.fingerprint = ""
        self._data = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        """How many rows are kept, those included that no split uses."""
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problems) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Problems({len(self)} rows, fingerprint={self.fingerprint[:12]!r})"

    def add(self, problem: Stated) -> None:
        """Keep a problem."""
        kept = (problem.id, problem.messages, problem.answer, problem.info)
        self._data += json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        self._ends.append(len(self._data))

    def __getitem__(self, number: int) -> Stated:
        raw = self._data[self._ends[number] : self._ends[number + 1]]
        name, messages, answer, info = json.loads(raw)
        return Stated(name, tuple((role, content) for role, content in messages), answer, info, "")

    def seal(self) -> None:
        """Fix the fingerprint, once everything is in place."""
        columns = sorted({json.dumps(asdict(columns), sort_keys=True) for columns in self.columns.values()})
        found = sha256(json.dumps(columns).encode())
        for split in SPLITS:
            numbers = self.splits[split]
            found.update(f"{split} {len(numbers)} ".encode())
            for number in numbers:
                raw = self._data[self._ends[number] : self._ends[number + 1]]
                found.update(len(raw).to_bytes(8, "big") + raw)
        self.fingerprint = found.hexdigest()


def gather(sources: Sequence[Source], reading: Reading) -> Problems:
    """Read, check and divide the problems of some files. Raises ``DataError`` as ``FileTask.read`` says."""
    gathering = _Gathering(reading)
    for source in sources:
        gathering.read(source)
    return gathering.finished()


@dataclass(frozen=True, slots=True)
class _Seen:
    """The first row with a prompt: its number among the problems, what it answers, and where it stands."""

    number: int
    answer: str
    where: str


class _Gathering:
    """What is known while files are read and no longer needed afterwards."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._problems = Problems()
        self._bad = BadRows()
        self._duplicates = 0
        self._seen: dict[bytes, _Seen] = {}
        self._ids: dict[str, str] = {}
        self._contradicted: set[int] = set()
        self._given: list[str] = []  # the split that file or column say; empty where they say none
        self._hashed: list[str] = []  # the split by hash
        self._normal: list[bytes] = []

    def read(self, source: Source) -> None:
        """Take in the problems of one file."""
        rows = read_rows(source.path)
        first = list(islice(rows, _SAMPLE))
        if not first:
            raise DataError(f"{source.path} holds no rows")
        sample = [row.values for row in first if isinstance(row, Row)]
        if not sample:
            for row in first:
                assert isinstance(row, BadRow)
                self._bad.add(source.path, row)
            raise self._bad.refusal(_ADVICE)
        columns = columns_of(source.path, sample, self._reading.fields)
        self._problems.columns[source.path] = columns
        for row in chain(first, rows):
            problem = _stated(row, columns)
            if isinstance(problem, BadRow):
                self._bad.add(source.path, problem)
            else:
                self._take(source.path, row.place, replace(problem, split=source.split or problem.split))

    def _take(self, path: Path, place: int, problem: Stated) -> None:
        """Keep a problem unless it was there before."""
        where, identity = f"{path}:{place}", "/".join(filter(None, (problem.split, problem.id)))
        prompt = _digest(problem.split, json.dumps(problem.messages))
        before = self._seen.get(prompt)
        if before is not None and before.answer == problem.answer:
            self._duplicates += 1
        elif before is not None:
            detail = f"as in {before.where}: {problem.answer!r:.60}, not {before.answer!r:.60}"
            self._bad.add(path, BadRow(place, "the same prompt with another answer", detail))
            self._contradicted.add(before.number)
        elif problem.id and identity in self._ids:
            detail = f"{problem.id!r}, also in {self._ids[identity]}; {NO_ID}"
            self._bad.add(path, BadRow(place, "an id given twice", detail))
        else:
            if problem.id:
                self._ids[identity] = where
            self._seen[prompt] = _Seen(len(self._given), problem.answer, where)
            self._keep(problem)

    def _keep(self, problem: Stated) -> None:
        own = problem.id or _digest(json.dumps(problem.messages), problem.answer).hex()
        self._problems.add(replace(problem, id="/".join(filter(None, (problem.split, own)))))
        self._given.append(problem.split)
        self._hashed.append(self._reading.split_of(problem.messages))
        self._normal.append(_digest(normalized(problem.messages)))

    def finished(self) -> Problems:
        """The problems, divided. Raises ``DataError`` where bad rows are refused, or nothing is left."""
        bad, problems = self._bad, self._problems
        if bad.counts and self._reading.bad == "refuse":
            raise bad.refusal(_ADVICE)
        problems.skipped = dict(bad.counts)
        if bad.counts:
            more = f", and {len(self._contradicted):,} that they contradict" if self._contradicted else ""
            problems.notes.append(f"{bad.counts.total():,} bad rows skipped ({bad.summary}){more}")
        if self._duplicates:
            problems.notes.append(f"{self._duplicates:,} exact duplicates dropped")
        self._divide()
        if not any(problems.splits.values()):
            raise bad.refusal(_ADVICE)
        problems.seal()
        return problems

    def _divide(self) -> None:
        """Give every problem its split: the highest of those in which the prompt, normalised, stands."""
        numbers = [number for number in range(len(self._given)) if number not in self._contradicted]
        given = set(self._given) - {""}
        places = {number: self._place(number, given) for number in numbers}
        highest: dict[bytes, int] = {}
        for number in numbers:
            key = self._normal[number]
            highest[key] = max(highest.get(key, 0), SPLITS.index(places[number]))
        leaked: Counter[str] = Counter()
        for number in numbers:
            holder = SPLITS[highest[self._normal[number]]]
            if holder == places[number]:
                self._problems.splits[holder].append(number)
            else:
                leaked[f"of {places[number]} removed, which {holder} holds too"] += 1
        self._problems.notes += [f"{count:,} {what}" for what, count in leaked.items()]

    def _place(self, number: int, given: set[str]) -> str:
        """As given, else by hash; a split that is given anywhere takes nothing out of train."""
        split = self._given[number]
        if split in ("dev", "test"):
            return split
        hashed = self._hashed[number]
        return "train" if hashed in given else hashed


def _stated(row: Row | BadRow, columns: Columns) -> Stated | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return stated(row.values, columns)
    except UnfitRow as unfit:
        return BadRow(row.place, unfit.reason, unfit.detail)


def _digest(*texts: str) -> bytes:
    found = blake2b(digest_size=16)
    for text in texts:
        raw = text.encode()
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()
