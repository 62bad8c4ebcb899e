"""Prompts without answers: what people ask for, where no rule says which reply is right.

Only the form of a reply earns something here; what else it is worth, rewards by preference say (DeepSeek-R1,
arXiv:2501.12948, section 2.3.4).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

from longthought.core.errors import DataError
from longthought.core.types import Message, Outcome, Problem, Score, Verdict
from longthought.tasks.cells import ROLES, UnfitRow
from longthought.tasks.example_rows import ExampleColumns, conversation
from longthought.tasks.examples import Conversations
from longthought.tasks.fields import existing, refuse_absent, value_at
from longthought.tasks.file_problems import Reading
from longthought.tasks.file_rows import BadRow, BadRows, Row, check_files, read_rows
from longthought.tasks.permutation import permuted
from longthought.tasks.settings import check_format_weight
from longthought.tasks.splits import SPLITS
from longthought.verifiers.format import think_first

_COLUMNS: Final = ("prompt", "messages", "conversations", "conversation", "question", "instruction", "query", "input")
_ASKED: Final = ExampleColumns(prompt="prompt", reply="reply")
_SAMPLE = 100  # rows from which the column is told
_ADVICE = 'Mend them, or leave them out with prompts.bad=skip (in Python: bad="skip").'


@dataclass(frozen=True)
class PromptReading:
    """How files are read.

    column: that holds the prompt, as text or a list of messages; empty: found by its name.
    bad: what happens when rows cannot be used: ``refuse`` lists them and stops, ``skip`` counts them and goes on.
    single: a prompt must be one message of the user, as prompt templates of base models ask for.
    """

    column: str = ""
    bad: Literal["refuse", "skip"] = "refuse"
    single: bool = False


@dataclass(frozen=True)
class OpenPrompts:
    """Prompts of files, each asked once per epoch, in an order that seed and epoch choose. Made by ``read``.

    The score of a reply is ``format_weight`` where it has the form ``<think> … </think>`` and a summary, and 0 where it
    has not. ``correct`` says the same: it is all that a rule can tell. (So a method that drops groups whose replies are
    all right or all wrong would drop them whatever a preference says: leave its refill off.)

    test_share: of the prompts, by a hash of the first question's letters and digits: the share that ``Preferences`` and
    ``Labels`` hold out, if theirs is as large. A twentieth more is for the split dev.
    """

    prompts: Conversations
    name: str = "prompts"
    format_weight: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    _splits: dict[str, array[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_format_weight(self.name, self.format_weight)
        reading = Reading(test_share=self.test_share)
        found: dict[str, array[int]] = {split: array("Q") for split in SPLITS}
        for number in range(len(self.prompts)):
            question = next(one.content for one in self.prompts[number] if one.role == "user")
            found[reading.split_of([("user", question)])].append(number)
        object.__setattr__(self, "_splits", found)
        if not self.size("train"):
            raise DataError(
                f"{self.name}: of {len(self.prompts):,} prompts none is left to train on; give more of them"
            )

    @classmethod
    def read(cls, *paths: Path | str, reading: PromptReading = PromptReading(), **settings: Any) -> OpenPrompts:
        """Read and check files whole: .jsonl, .json, .parquet, .csv or .tsv. settings: the fields of the class.

        A reply that ends a list of messages is left out. A prompt that comes again is dropped.

        Raises:
            DataError: a file cannot be read, no column holds prompts, none is left, or rows are bad and are refused.
            SettingsError: no file is named, or one twice.
        """
        check_files(paths, "prompts")
        kept, bad = Conversations(), BadRows()
        for path in paths:
            _read(Path(path), reading, kept, bad)
        if bad.counts and (reading.bad == "refuse" or not len(kept)):
            raise bad.refusal(_ADVICE)
        kept.skipped = dict(bad.counts)
        return cls(kept, **settings)

    def describe(self) -> str:
        """For a person: which column was taken, how many prompts there are, and what was left out."""
        counts = ", ".join(f"{split} {self.size(split):,}" for split in SPLITS)
        lines = [*dict.fromkeys(self.prompts.columns.values()), f"{len(self.prompts):,} prompts ({counts})"]
        lines += [f"{count:,} bad rows skipped: {reason}" for reason, count in self.prompts.skipped.items()]
        return "; ".join([*lines, *([f"{self.prompts.repeated:,} repeated"] if self.prompts.repeated else [])])

    def size(self, split: str) -> int:
        """How many prompts a split holds."""
        if split not in self._splits:
            raise DataError(f"{self.name}: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        return len(self._splits[split])

    def problem(self, split: str, index: int) -> Problem:
        """Prompt ``index`` of a split, without limit: after the last one the next epoch begins.

        Raises ``DataError`` on an unknown or empty split, or a negative index.
        """
        size = self.size(split)
        if index < 0 or not size:
            why = f"its {split} split is empty" if not size else "prompts are counted from 0"
            raise DataError(f"{self.name}: prompt {index} of {split!r} does not exist: {why}")
        epoch, place = divmod(index, size)
        seed = self.seed if split == "train" else 0
        key = blake2b(f"{seed}/{split}/{epoch}".encode(), digest_size=32).digest()
        number = self._splits[split][permuted(place, size, key)]
        messages = self.prompts[number]
        said = "\n".join(f"{one.role}: {one.content}" for one in messages)
        return Problem(f"{self.name}/{blake2b(said.encode(), digest_size=8).hexdigest()}", messages, "")

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score the form of every reply."""
        del problem
        return [self._score(think_first(text)) for text in replies]

    def _score(self, form: Verdict) -> Score:
        kept = form.value == 1.0
        said = Verdict(float(kept), Outcome.GRADED, "the form is kept; a rule can tell no more") if kept else form
        return Score(self.format_weight * kept, kept, {"format": float(kept)}, said)


def _read(path: Path, reading: PromptReading, kept: Conversations, bad: BadRows) -> None:
    """Take in the prompts of one file."""
    rows = read_rows(path, "prompts")
    first = list(islice(rows, _SAMPLE))
    if not first:
        raise DataError(f"{path} holds no rows")
    column = _column(path, [row.values for row in first if isinstance(row, Row)], reading.column)
    kept.columns[str(path)] = f"prompt ← {column}"
    for row in chain(first, rows):
        if isinstance(row, BadRow):
            bad.add(path, row)
            continue
        try:
            kept.add(_prompt(value_at(row.values, column), reading.single), str(path), row.place)
        except UnfitRow as unfit:
            bad.add(path, BadRow(row.place, unfit.reason, unfit.detail))


def _column(path: Path, sample: Sequence[Mapping[str, Any]], named: str) -> str:
    refuse_absent(path, sample, [named])
    found = [named] if named else [name for known in _COLUMNS for name in existing(sample, known)]
    if not found:
        names = ", ".join(dict.fromkeys(name for row in sample for name in row)) or "none"
        raise DataError(f"{path}: no column is known to hold prompts; name it, prompts.column=NAME. Columns: {names}")
    return found[0]


def _prompt(value: Any, single: bool) -> tuple[Message, ...]:
    """The messages of a cell. Raises ``UnfitRow`` with the reason."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        role = value[-1].get("role", value[-1].get("from"))
        if isinstance(role, str) and ROLES.get(role) == "assistant":
            value = value[:-1]
    messages = conversation({"prompt": value, "reply": "-"}, _ASKED)[:-1]
    if single and len(messages) != 1:
        raise UnfitRow("more than one message", f"{len(messages)}, and the prompt template asks one question")
    return messages
