"""Judgements of replies: what reward models learn from, out of files or made by code."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Self, TypeVar

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.cells import UnfitRow
from longthought.tasks.example_rows import checked
from longthought.tasks.examples import PARTS, Part
from longthought.tasks.fields import Values
from longthought.tasks.file_problems import Reading
from longthought.tasks.file_rows import BadRow, BadRows, Row, check_files, read_rows
from longthought.tasks.preference_rows import (
    F,
    Label,
    LabelFields,
    Preference,
    PreferenceFields,
    check_choice,
    found_in,
    label_in,
    pairs_in,
)

Item = TypeVar("Item", Preference, Label)
Bad = Literal["refuse", "skip"]

CLOSE = "scores too close"
"""Why a pair is left out that is no bad row."""

_SAMPLE = 100  # rows from which the columns are told
_ADVICE = 'Mend them, or leave them out with bad="skip".'


class Shown(NamedTuple):
    """Two replies in the order in which a judge sees them, and whether the first is the chosen one."""

    first: Message
    second: Message
    chosen_first: bool


def shown(pair: Preference, seed: int = 0) -> Shown:
    """A pair in an order that says nothing: by a hash of the two replies, whichever was chosen, and of the seed.

    Judges prefer a place; with the other of two seeds, or both orders asked, that can be measured.
    """
    replies = sorted(pair.replies, key=_text)
    digest = blake2b(f"{seed}\n{_digest(pair.prompt, replies)}".encode(), digest_size=1).digest()
    first, second = replies if digest[0] % 2 else reversed(replies)
    return Shown(first, second, first == pair.chosen)


@dataclass(frozen=True)
class _Judged(Generic[Item]):
    """Judgements, and which are held out.

    held_out: share of the prompts that is not trained on but measured, by a hash of the first question's letters and
    digits: everything about one question falls on one side, and on the side of ``Examples`` and ``FileTask``.
    columns: of every file what was read as what.  skipped: bad rows and pairs left out, by reason.  repeated: exact
    copies that were dropped.
    """

    items: tuple[Item, ...]
    held_out: float = 0.1
    columns: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    places: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise SettingsError(
                f"judgements: held_out={self.held_out}: the share must lie between 0 and 1: accuracy and the scale of "
                "the rewards are measured on what is held out"
            )
        for part in PARTS:
            if len(self._parts[part]) < 2:
                raise DataError(
                    f"of {len(self.items):,} judgements only {len(self._parts[part])} are in the part {part!r}, by a "
                    f"hash of their prompts; at least 2 are needed: give more of them, or another share than "
                    f"held_out={self.held_out}"
                )

    @classmethod
    def of(cls, items: Iterable[Item], held_out: float = 0.1) -> Self:
        """From judgements in memory. Raises ``DataError`` where one is none."""
        kept = _Kept[Item]()
        for number, item in enumerate(items, 1):
            try:
                _check(item)
            except UnfitRow as unfit:
                raise DataError(f"judgement {number} cannot be used: {unfit.reason}") from unfit
            kept.add(item, "judgement", number)
        return cls._made(kept, held_out)

    @classmethod
    def _made(cls, kept: _Kept[Item], held_out: float) -> Self:
        return cls(tuple(kept.items), held_out, kept.columns, +kept.skipped, kept.repeated, tuple(kept.places))

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all judgements, in order, and of the share that is held out."""
        found = sha256(repr(self.held_out).encode())
        for item in self.items:
            found.update(f"{_verdict(item)} {_digest(item.prompt, item.replies)}\n".encode())
        return found.hexdigest()

    def size(self, part: Part) -> int:
        """How many judgements there are to train on, or to measure."""
        return len(self._parts[part])

    def item(self, part: Part, index: int) -> Item:
        """One of them."""
        return self.items[self._parts[part][index]]

    def where(self, part: Part, index: int) -> tuple[str, int]:
        """The file and the line that it comes from."""
        return self.places[self._parts[part][index]]

    @cached_property
    def _parts(self) -> dict[Part, list[int]]:
        found: dict[Part, list[int]] = {"train": [], "held_out": []}
        reading = Reading(dev_share=0.0, test_share=self.held_out)
        for number, item in enumerate(self.items):
            question = next(message.content for message in item.prompt if message.role == "user")
            found["held_out" if reading.split_of([("user", question)]) == "test" else "train"].append(number)
        return found


@dataclass(frozen=True)
class Preferences(_Judged[Preference]):
    """Pairs of replies of which one is better. Made by ``Preferences.read`` or ``Preferences.of``."""

    @classmethod
    def read(
        cls,
        *paths: Path | str,
        columns: PreferenceFields | None = None,
        bad: Bad = "refuse",
        least_gap: float = 0.0,
        held_out: float = 0.1,
    ) -> Preferences:
        """Read and check files whole: .jsonl, .json, .parquet, .csv or .tsv.

        least_gap: a pair with scores (or a margin) that are not further apart is left out and counted; DeepSeek-R1: 1.
        bad: rows that cannot be used are listed and refused, or skipped and counted.

        Raises:
            DataError: a file cannot be read, its columns are ambiguous, rows are bad and are to be refused, or too few
                pairs are left.
            SettingsError: no file is named, or one twice.
        """
        if not 0 <= least_gap < math.inf:
            raise SettingsError(f"preferences: least_gap={least_gap} must be at least 0 and finite")

        def take(row: Values, known: PreferenceFields) -> list[Preference]:
            pairs = pairs_in(row, known)
            apart = [pair for pair in pairs if not least_gap or pair.margin is None or pair.margin > least_gap]
            kept.skipped[CLOSE] += len(pairs) - len(apart) + (not pairs)
            return apart

        kept = _Kept[Preference]()
        _read(paths, columns or PreferenceFields(), take, kept, bad)
        return cls._made(kept, held_out)

    @property
    def has_margins(self) -> bool:
        """Whether any pair says by how much one is better."""
        return any(pair.margin is not None for pair in self.items)

    @cached_property
    def contradictions(self) -> int:
        """Pairs that also stand there the other way round."""
        seen = {_digest(pair.prompt, pair.replies) for pair in self.items}
        return sum(_digest(pair.prompt, pair.replies[::-1]) in seen for pair in self.items)


@dataclass(frozen=True)
class Labels(_Judged[Label]):
    """Replies that are safe or not. Made by ``Labels.read`` or ``Labels.of``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in PARTS:
            if len({self.items[number].safe for number in self._parts[part]}) < 2:
                raise DataError(f"all labels of the part {part!r} are the same: there is nothing to tell apart")

    @classmethod
    def read(
        cls,
        *paths: Path | str,
        columns: LabelFields | None = None,
        bad: Bad = "refuse",
        held_out: float = 0.1,
    ) -> Labels:
        """As ``Preferences.read``."""
        kept = _Kept[Label]()
        _read(paths, columns or LabelFields(), lambda row, known: [label_in(row, known)], kept, bad)
        return cls._made(kept, held_out)


class _Kept(Generic[Item]):
    """What was read, each once."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.places: list[tuple[str, int]] = []
        self.columns: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()
        self.repeated = 0
        self._seen: set[str] = set()

    def add(self, item: Item, file: str, place: int) -> None:
        """Keep it, unless it is there already."""
        digest = f"{_verdict(item)} {_digest(item.prompt, item.replies)}"
        if digest in self._seen:
            self.repeated += 1
            return
        self._seen.add(digest)
        self.items.append(item)
        self.places.append((file, place))


def _read(
    paths: Sequence[Path | str], given: F, take: Callable[[Values, F], list[Item]], kept: _Kept[Item], bad: Bad
) -> None:
    check_choice("judgements", "bad", bad, ("refuse", "skip"))
    check_files(paths, "judgements")
    found = BadRows()
    for path in map(Path, paths):
        rows = read_rows(path, "judgements")
        first = list(islice(rows, _SAMPLE))
        if not first:
            raise DataError(f"{path} holds no rows")
        sample = [row.values for row in first if isinstance(row, Row)]
        known = found_in(path, sample, given) if sample else given
        kept.columns[str(path)] = str(known)
        for row in chain(first, rows):
            unfit = row if isinstance(row, BadRow) else _take(row, path, known, take, kept)
            if unfit is not None:
                found.add(path, unfit)
    if found.counts and (bad == "refuse" or not kept.items):
        raise found.refusal(_ADVICE)
    kept.skipped += found.counts


def _take(row: Row, path: Path, known: F, take: Callable[[Values, F], list[Item]], kept: _Kept[Item]) -> BadRow | None:
    """Keep what a row holds; why it cannot be used, if it cannot."""
    try:
        items = take(row.values, known)
    except UnfitRow as unfit:
        return BadRow(row.place, unfit.reason, unfit.detail)
    for item in items:
        kept.add(item, str(path), row.place)
    return None


def _check(item: Preference | Label) -> None:
    for reply in item.replies:
        checked((*item.prompt, reply))
    if isinstance(item, Preference):
        if item.chosen == item.rejected:
            raise UnfitRow("chosen and rejected are the same")
        if item.margin is not None and not 0 <= item.margin < math.inf:
            raise UnfitRow(f"the margin {item.margin} is negative or not finite")


def _verdict(item: Preference | Label) -> str:
    return repr(item.margin if isinstance(item, Preference) else item.safe)


def _digest(prompt: Sequence[Message], replies: Sequence[Message]) -> str:
    told = [list(map(_text, part)) for part in (prompt, replies)]
    return sha256(json.dumps(told).encode()).hexdigest()


def _text(message: Message) -> str:
    return json.dumps([message.role, message.content, message.reasoning])
