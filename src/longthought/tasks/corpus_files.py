"""Files as a corpus: text, JSON Lines and Parquet, of any size.

``corpus_paths`` says which files are meant, ``corpus_scan`` what they hold; this module, in which order it is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.corpus import Document
from longthought.tasks.corpus_paths import counted, named, title
from longthought.tasks.corpus_scan import DECK, LISTED, CorpusReading, Places, Scanned, scanned
from longthought.tasks.permutation import permuted

_PLAIN: Final = CorpusReading()


class Block(NamedTuple):
    """Documents that are read at about one cost wherever they lie: a file of text, or a row group of a Parquet file.

    first, size: of the documents for training, in the order of the files.
    """

    first: int
    size: int
    is_group: bool


@dataclass(frozen=True, eq=False)
class FileCorpus:
    """Documents of files, every one once in an epoch, in an order that the seed and the epoch choose.

    Made by ``FileCorpus.read``. ``document`` has no end: after the last one the next epoch begins. A text that stands
    in the files more than once is one document. A run knows the corpus by its ``fingerprint``.

    train, held: the documents for training and those held back, as numbers over all files.
    repeated: documents that were left out because their text has come before.
    """

    name: str
    files: tuple[Scanned, ...]
    reading: CorpusReading
    train: Places
    held: Places
    repeated: int
    passed_over: str = ""

    @classmethod
    def read(cls, *paths: Path | str, reading: CorpusReading = _PLAIN) -> FileCorpus:
        """Scan files, folders and patterns such as ``src/**/*.py``.

        Files end in .jsonl, .ndjson or .parquet, or are text. Of a folder everything below it is read that ends so or
        in .txt, .text, .md, .rst; hidden files are not.

        Raises:
            DataError: a file cannot be read, no document is left, or documents are damaged (all are counted by reason,
                the first 20 listed with file and line) and ``reading.bad`` is ``refuse``.
        """
        files, passed_over = named(paths)
        found = tuple(scanned(path, reading) for path in files)
        _refuse_bad(found, reading)
        prints = np.concatenate([file.prints for file in found])
        _, first = np.unique(prints, return_index=True)
        kept = np.sort(first).astype(np.int64)
        away = prints[kept] < np.uint64(round(reading.held_out * 2**64))
        train, held = kept[~away], kept[away]
        if not len(train):
            held_back = f"; all of its {len(held):,} documents are held back" if len(held) else ""
            raise DataError(f"corpus {', '.join(map(str, paths))}: there is no document to train on{held_back}")
        return cls(title(paths[0]) or files[0].stem, found, reading, train, held, len(prints) - len(kept), passed_over)

    @property
    def size(self) -> int:
        """How many documents there are to train on."""
        return len(self.train)

    @property
    def has_rows(self) -> bool:
        """Whether there are JSON Lines or Parquet files, whose text stands in a field."""
        return any(file.has_rows for file in self.files)

    @property
    def has_text(self) -> bool:
        """Whether there are files of text, which can be divided."""
        return not all(file.has_rows for file in self.files)

    @property
    def shares(self) -> dict[str, float]:
        """All documents are of one kind."""
        return {self.name: 1.0}

    @property
    def description(self) -> str:
        """For a person: what was read and what was left out."""
        count = "one file" if len(self.files) == 1 else f"{len(self.files):,} files"
        size = sum(int(file.sizes.sum()) for file in self.files)
        empty = sum(file.empty for file in self.files)
        left = sum((file.reasons for file in self.files), Counter[str]())
        notes = [
            f"{self.size:,} documents of {count}, {size / 1e6:,.1f} MB of text in all",
            f"{len(self.held):,} held back" if self.reading.held_out else "",
            f"{self.repeated:,} left out, whose text has come before" if self.repeated else "",
            f"{empty:,} without text left out" if empty else "",
            f"{left.total():,} damaged ones skipped ({counted(left)})" if left else "",
            self.passed_over,
        ]
        return "; ".join(note for note in notes if note) + "."

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all texts, their order, and how they are read."""
        asked = f"{self.reading.seed} {self.reading.held_out}".encode()
        prints = np.concatenate([file.prints for file in self.files])
        groups = repr([block.size for block in self._blocks if block.is_group]).encode()
        return blake2b(asked + groups + prints.tobytes(), digest_size=32).hexdigest()

    def epochs(self, index: int) -> float:
        """How often the documents were read before ``document(index)``."""
        return index / self.size

    def document(self, index: int) -> Document:
        """Document ``index``, without limit. Raises DataError where the file has changed since it was scanned."""
        epoch, place = divmod(index, self.size)
        return self._document(int(self.train[self._place(epoch, place)]))

    def held_out(self, index: int) -> Document:
        """Document ``index`` of those held back, in the order of the files, without limit."""
        if not len(self.held):
            raise SettingsError(
                f"corpus {self.name}: of {self.size:,} documents held_out={self.reading.held_out:g} holds none back: "
                "raise the share, divide files of text into more documents (documents=paragraph or line), or measure "
                "nothing (corpus.held_out=0 in the recipe)"
            )
        return self._document(int(self.held[index % len(self.held)]))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(file.prints) for file in self.files))

    def _document(self, number: int) -> Document:
        file = bisect_right(self._ends, number)
        own = number - (self._ends[file - 1] if file else 0)
        return Document(self.name, None, self.files[file].text(own, self.reading.field))

    @cached_property
    def _blocks(self) -> list[Block]:
        """What is there to train on, in the order of the files."""
        bounds, parquet = [0], []
        for file, end in zip(self.files, self._ends):
            first = end - len(file.prints)
            groups: list[int] = np.searchsorted(file.starts, file.groups[1:]).tolist() if file.is_parquet else []
            bounds += [first + group for group in groups] + [end]
            parquet += [file.is_parquet] * (len(groups) + 1)
        places = np.searchsorted(self.train, bounds)
        blocks = [Block(int(a), int(b - a), kind) for a, b, kind in zip(places, places[1:], parquet)]
        return [block for block in blocks if block.size]

    def _place(self, epoch: int, place: int) -> int:
        """Where in ``train`` the document stands that comes ``place``-th in an epoch.

        All documents are shuffled together, unless there are Parquet files: then the row groups come in random order,
        and the documents of a few of them are shuffled together.
        """
        decks, ends = _decks(self, epoch)
        number = bisect_right(ends, place)
        deck, before = decks[number], ends[number - 1] if number else 0
        key = blake2b(f"{self.reading.seed}/{epoch}/{number}".encode(), digest_size=32).digest()
        drawn = permuted(place - before, ends[number] - before, key)
        for block in deck:
            if drawn < block.size:
                return block.first + drawn
            drawn -= block.size
        raise AssertionError("a deck holds all of its documents")


@lru_cache(maxsize=8)
def _decks(corpus: FileCorpus, epoch: int) -> tuple[list[list[Block]], list[int]]:
    """Blocks that are shuffled together, and how many documents there are up to the end of each deck."""
    blocks = corpus._blocks
    if not any(block.is_group for block in blocks):
        return [[Block(0, corpus.size, False)]], [corpus.size]
    key = blake2b(f"{corpus.reading.seed}/{epoch}/decks".encode(), digest_size=32).digest()
    decks: list[list[Block]] = [[]]
    for number in range(len(blocks)):
        block = blocks[permuted(number, len(blocks), key)]
        if block.is_group and sum(other.is_group for other in decks[-1]) == DECK:
            decks.append([])
        decks[-1].append(block)
    return decks, list(accumulate(sum(block.size for block in deck) for deck in decks))


def _refuse_bad(files: Sequence[Scanned], reading: CorpusReading) -> None:
    reasons = sum((file.reasons for file in files), Counter[str]())
    if not reasons or reading.bad == "skip":
        return
    listed = [f"{file.path}:{row.place}: {row.reason}: {row.detail}" for file in files for row in file.bad]
    more = f"\n  … and {reasons.total() - LISTED:,} more" if reasons.total() > LISTED else ""
    raise DataError(
        f"{reasons.total():,} documents cannot be read ({counted(reasons)}):\n  "
        + "\n  ".join(listed[:LISTED])
        + f'{more}\nMend them, or leave them out with corpus.bad=skip (in Python: CorpusReading(bad="skip")).'
    )
