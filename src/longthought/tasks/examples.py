"""Conversations to imitate: what supervised fine-tuning learns from, out of files or made by code."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.cells import UnfitRow
from longthought.tasks.example_rows import ExampleFields, checked, conversation, example_columns
from longthought.tasks.file_problems import Reading
from longthought.tasks.file_rows import BadRow, BadRows, Row, check_files, read_rows

Turns: TypeAlias = Literal["last", "all"]
Part: TypeAlias = Literal["train", "held_out"]

_SAMPLE = 100  # rows from which the columns are told
_ADVICE = 'Mend them, or leave them out with examples.bad=skip (in Python: ExampleReading(bad="skip")).'
PARTS: Final[tuple[Part, ...]] = ("train", "held_out")


@dataclass(frozen=True)
class ExampleReading:
    """How files are read.

    fields: which columns hold what.
    bad: what happens when rows cannot be used: ``refuse`` lists them and stops, ``skip`` counts them and goes on.
    """

    fields: ExampleFields = ExampleFields()
    bad: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        if self.bad not in ("refuse", "skip"):
            raise SettingsError(f"examples: bad is {self.bad!r}; choose refuse or skip")


class Conversations:
    """Conversations in the order of their files, each once, as JSON bytes: about as large as their text.

    ``fingerprint`` is a SHA-256 over all of them, so that a run that goes on notices a changed file; ``columns`` says
    of every file what was read as what; ``skipped`` counts bad rows by reason, ``repeated`` exact copies.
    """

    def __init__(self) -> None:
        self.columns: dict[str, str] = {}
        self.skipped: Mapping[str, int] = {}
        self.repeated = 0
        self._data = bytearray()
        self._ends = array("Q", [0])
        self._files: list[str] = []
        self._places = array("Q")  # number of the file · 2³² + line
        self._seen: set[bytes] = set()
        self._print = sha256()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is said, in order."""
        return self._print.hexdigest()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversations) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Conversations({len(self)}, fingerprint={self.fingerprint[:12]!r})"

    def add(self, messages: Sequence[Message], file: str, place: int) -> None:
        """Keep a conversation, unless it is there already."""
        kept = [(message.role, message.content, message.reasoning) for message in messages]
        raw = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        digest = blake2b(raw, digest_size=16).digest()
        if digest in self._seen:
            self.repeated += 1
            return
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._seen.add(digest)
        self._print.update(len(raw).to_bytes(8, "big") + raw)
        self._data += raw
        self._ends.append(len(self._data))
        self._places.append((len(self._files) - 1 << 32) + place)

    def __getitem__(self, number: int) -> tuple[Message, ...]:
        raw = self._data[self._ends[number] : self._ends[number + 1]]
        return tuple(Message(role, content, reasoning) for role, content, reasoning in json.loads(raw))

    def where(self, number: int) -> tuple[str, int]:
        """The file and the line that a conversation comes from."""
        file, place = divmod(self._places[number], 1 << 32)
        return self._files[file], place


class _Rows(NamedTuple):
    """Trained replies: numbers of their conversations, and how many messages end with each."""

    numbers: array[int]
    ends: array[int]


@dataclass(frozen=True)
class Examples:
    """Conversations, and which replies of them are learned. Made by ``Examples.read`` or ``Examples.of``.

    turns: ``last``: the reply that ends a conversation. ``all``: every reply, each as an example of its own that ends
    with it. (A chat template may write a conversation otherwise when it goes on, without earlier thoughts for one; what
    is learned is then still what the model sees and says in its place.)
    held_out: share of the conversations that is not trained on but watched, by a hash of the first question's letters
    and digits: all conversations about one question fall on one side. A ``FileTask`` holds out the same questions for
    its test, if its share is as large.
    """

    conversations: Conversations
    turns: Turns = "last"
    held_out: float = 0.05

    def __post_init__(self) -> None:
        if self.turns not in ("last", "all"):
            raise SettingsError(f"examples: turns is {self.turns!r}; choose last or all")
        if not 0 <= self.held_out < 1:
            raise SettingsError(f"examples: held_out={self.held_out}: the share must be at least 0 and below 1")
        if not self.size("train"):
            raise DataError(
                f"of {len(self.conversations):,} conversations none is left to train on: all are held out by their "
                f"hash; choose a smaller share than held_out={self.held_out}"
                if len(self.conversations)
                else "there is no conversation to train on"
            )

    @classmethod
    def read(
        cls,
        *paths: Path | str,
        reading: ExampleReading = ExampleReading(),
        turns: Turns = "last",
        held_out: float = 0.05,
    ) -> Examples:
        """Read and check files whole: .jsonl, .json, .parquet, .csv or .tsv.

        A conversation that comes again, in any of the files, is dropped and counted.

        Raises:
            DataError: a file cannot be read, its columns are ambiguous, no conversation is left, or rows are bad (all
                are counted by reason, the first 20 listed with file and line) and ``reading.bad`` is ``refuse``.
            SettingsError: no file is named, or one twice.
        """
        check_files(paths, "conversations")
        kept, bad = Conversations(), BadRows()
        for path in paths:
            _read(Path(path), reading.fields, kept, bad)
        if bad.counts and (reading.bad == "refuse" or not len(kept)):
            raise bad.refusal(_ADVICE)
        kept.skipped = dict(bad.counts)
        return cls(kept, turns, held_out)

    @classmethod
    def of(cls, conversations: Iterable[Sequence[Message]], turns: Turns = "last", held_out: float = 0.0) -> Examples:
        """From conversations in memory, each ending with a reply. Raises ``DataError`` where one does not."""
        kept = Conversations()
        for number, messages in enumerate(conversations, 1):
            try:
                kept.add(checked(messages), "conversation", number)
            except UnfitRow as unfit:
                raise DataError(f"conversation {number} cannot be used: {unfit.reason}") from unfit
        return cls(kept, turns, held_out)

    def size(self, part: Part) -> int:
        """How many replies there are to train on, or to watch."""
        return len(self._rows[part].numbers)

    def messages(self, part: Part, index: int) -> tuple[Message, ...]:
        """A conversation up to the reply that is learned, which is its last message."""
        rows = self._rows[part]
        return self.conversations[rows.numbers[index]][: rows.ends[index]]

    def where(self, part: Part, index: int) -> tuple[str, int]:
        """The file and the line that a reply comes from."""
        return self.conversations.where(self._rows[part].numbers[index])

    def describe(self) -> str:
        """For a person: which columns were taken for what, how many examples there are, and what was left out."""
        kept = self.conversations
        columns = dict.fromkeys(kept.columns.values())
        counts = f"train {self.size('train'):,}, held out {self.size('held_out'):,}"
        lines = [*columns, f"{len(kept):,} conversations, replies: {counts}"]
        if kept.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in kept.skipped.items())
            lines.append(f"{sum(kept.skipped.values()):,} bad rows skipped ({reasons})")
        if kept.repeated:
            lines.append(f"{kept.repeated:,} exact duplicates dropped")
        return "; ".join(lines)

    @cached_property
    def _rows(self) -> dict[Part, _Rows]:
        rows: dict[Part, _Rows] = {part: _Rows(array("Q"), array("Q")) for part in PARTS}
        reading = Reading(dev_share=0.0, test_share=self.held_out)
        for number in range(len(self.conversations)):
            messages = self.conversations[number]
            question = next(message.content for message in messages if message.role == "user")
            held = reading.split_of([("user", question)]) == "test"
            found = rows["held_out" if held else "train"]
            for end in _ends(messages, self.turns):
                found.numbers.append(number)
                found.ends.append(end)
        return rows


def _ends(messages: Sequence[Message], turns: Turns) -> Iterator[int]:
    """How many messages there are up to every trained reply."""
    if turns == "last":
        yield len(messages)
        return
    yield from (end for end, message in enumerate(messages, 1) if message.role == "assistant")


def _read(path: Path, fields: ExampleFields, kept: Conversations, bad: BadRows) -> None:
    """Take in the conversations of one file."""
    rows = read_rows(path, "conversations")
    first = list(islice(rows, _SAMPLE))
    if not first:
        raise DataError(f"{path} holds no rows")
    sample = [row.values for row in first if isinstance(row, Row)]
    if not sample:
        for row in first:
            assert isinstance(row, BadRow)
            bad.add(path, row)
        raise bad.refusal(_ADVICE)
    columns = example_columns(path, sample, fields)
    kept.columns[str(path)] = str(columns)
    for row in chain(first, rows):
        if isinstance(row, BadRow):
            bad.add(path, row)
            continue
        try:
            kept.add(conversation(row.values, columns), str(path), row.place)
        except UnfitRow as unfit:
            bad.add(path, BadRow(row.place, unfit.reason, unfit.detail))
