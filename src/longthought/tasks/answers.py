"""A file of answers to be graded: every row holds one or more predictions and the gold answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem
from longthought.tasks.cells import UnfitRow
from longthought.tasks.fields import NOTHING, Columns, Fields, Values, columns_of, refuse_difference, same, value_at
from longthought.tasks.file_problem import number_text, stated
from longthought.tasks.file_rows import MAX_ROW, BadRow, Row, read_rows

_PREDICTIONS = (
    "prediction",
    "predictions",
    "predicted",
    "predicted_answer",
    "pred",
    "response",
    "responses",
    "completion",
    "completions",
    "reply",
    "replies",
    "generated",
    "generated_text",
    "generation",
    "generations",
    "model_answer",
    "model_output",
    "model_response",
)
_LOOSE_PREDICTIONS = ("output", "outputs", "text", "samples")  # looked at where no name above is there
_PROMPTS = ("prompt", "problem", "question", "query", "instruction", "messages")
_OPTIONS = "options"  # what ``verifiers.choice`` reads
_TEXTS = ("content", "text", "value")
_REPLIES = ("assistant", "gpt")

_SAMPLE = 100  # rows from which the columns are told
_SHOWN = 20  # bad rows that an error lists
_CHARACTERS = 16 << 20  # of a portion: what bounds the memory where rows are long
_STAND_IN: Final = "-"


@dataclass(frozen=True)
class AnswerFields(Fields):
    """As ``Fields``, for predictions and golds.

    prediction: text, a number, a message, a conversation that ends with a reply; or a list of these.
    prompt: what was asked, where a verifier wants to see it; it may be missing in a row, and in all of them.
    """

    prediction: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split:
            raise SettingsError("fields: split changes nothing where all answers of a file are graded: leave it out")
        if self.prediction == NOTHING:
            raise SettingsError("fields: every row needs a prediction; name its column")

    @classmethod
    def parse(cls, text: str) -> AnswerFields:
        """``"prediction=output,answer=target,info=level+type"``. Raises ``SettingsError`` on anything else."""
        found = super().parse(text)
        assert isinstance(found, AnswerFields)
        return found


@dataclass(frozen=True)
class AnswerColumns:
    """Where everything stands in the rows. ``same_prediction``: columns that hold the same in the sample."""

    prediction: str
    prompt: str
    rest: Columns
    same_prediction: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Example: ``prediction ← response, answer ← after #### in answer, prompt ← question``."""
        answer = str(self.rest).removeprefix(f"prompt ← {self.prediction}, ")
        asked = f", prompt ← {self.prompt}" if self.prompt else ""
        return f"prediction ← {self.prediction}, {answer}{asked}"


@dataclass(frozen=True, slots=True)
class Answered:
    """A row: its place in the file, the problem, and the predictions, each as a model would have written it.

    The problem has no messages where the row holds no prompt; its id is that of the row, or the row's place.
    """

    place: int
    problem: Problem
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """A file of answers, checked whole; its rows are read again, some at a time, when they are graded.

    rows, replies: how many can be graded.  skipped: how many rows cannot, by reason.  bad: the first of these, each
    with place and reason.
    """

    path: Path
    columns: AnswerColumns
    rows: int
    replies: int
    skipped: Mapping[str, int]
    bad: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, fields: AnswerFields, bad: Literal["refuse", "skip"] = "refuse") -> Answers:
        """Tell the columns, and check every row.

        Raises:
            DataError: the file cannot be read, its columns are ambiguous, no row is left, or rows are bad and ``bad``
                is ``refuse`` (all are counted by reason, the first 20 listed with file and line).
            SettingsError: ``bad`` is something else.
        """
        if bad not in ("refuse", "skip"):
            raise SettingsError(f"bad is {bad!r}; choose refuse or skip")
        rows = read_rows(path)
        first = list(islice(rows, _SAMPLE))
        if not first:
            raise DataError(f"{path} holds no rows")
        sample = [row.values for row in first if isinstance(row, Row)]
        faults = _Faults(path)
        if not sample:
            for row in first:
                assert isinstance(row, BadRow)
                faults.add(row)
            raise faults.refusal()
        columns = _columns(path, sample, fields)
        counted = replies = 0
        for row in chain(first, rows):
            answered = _answered(row, columns, path.stem)
            if isinstance(answered, BadRow):
                faults.add(answered)
            else:
                counted, replies = counted + 1, replies + len(answered.replies)
        if faults.counts and (bad == "refuse" or not counted):
            raise faults.refusal()
        return cls(path, columns, counted, replies, dict(faults.counts), tuple(faults.lines))

    def portions(self, size: int = 64) -> Iterator[list[Answered]]:
        """The rows that can be graded, in order, in portions of at least ``size`` predictions or much text."""
        portion, replies, characters = list[Answered](), 0, 0
        for row in read_rows(self.path):
            answered = _answered(row, self.columns, self.path.stem)
            if isinstance(answered, BadRow):
                continue
            portion.append(answered)
            replies += len(answered.replies)
            characters += sum(map(len, answered.replies))
            if replies >= size or characters >= _CHARACTERS:
                yield portion
                portion, replies, characters = [], 0, 0
        if portion:
            yield portion


@dataclass
class _Faults:
    """Rows that cannot be graded: all counted, the first ones in full."""

    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        self.counts[row.reason] += 1
        if len(self.lines) < _SHOWN:
            self.lines.append(f"{self.path}:{row.place}: {row.reason}" + (f": {row.detail}" if row.detail else ""))

    def refusal(self) -> DataError:
        total = self.counts.total()
        summary = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())
        rest = [f"… and {total - len(self.lines):,} more"] if total > len(self.lines) else []
        heading = f"{total:,} {'row' if total == 1 else 'rows'} cannot be graded ({summary}):"
        advice = "Mend them, or leave them out with bad=skip (--bad skip on the command line)."
        return DataError("\n".join([heading, *(f"  {line}" for line in [*self.lines, *rest]), advice]))


def _columns(path: Path, sample: Sequence[Values], fields: AnswerFields) -> AnswerColumns:
    prediction, *more = [fields.prediction] if fields.prediction else _predictions(path, sample)
    if fields.answer == prediction:
        raise DataError(f"{path}: prediction and answer are the same column, {prediction!r}")
    options = tuple(_existing(sample, _OPTIONS))
    known = Fields(prediction, fields.answer, fields.take, fields.id or NOTHING, NOTHING, (*fields.info, *options))
    rest = columns_of(path, sample, known)
    if fields.prompt and all(value_at(row, fields.prompt) in (None, "", []) for row in sample):
        raise DataError(f"{path}: column {fields.prompt!r} is absent or empty")
    if fields.prompt in (prediction, rest.answer):
        raise DataError(f"{path}: {fields.prompt!r} cannot be the prompt as well as the prediction or the answer")
    prompts = [name for candidate in _PROMPTS for name in _existing(sample, candidate)]
    unused = [name for name in prompts if name not in (prediction, rest.answer, *more)]
    return AnswerColumns(prediction, fields.prompt or next(iter(unused), ""), rest, tuple(more))


def _predictions(path: Path, sample: Sequence[Values]) -> list[str]:
    """The columns that may be the prediction, where they all hold the same."""
    for candidates in (_PREDICTIONS, _LOOSE_PREDICTIONS):
        if found := [name for candidate in candidates for name in _existing(sample, candidate)]:
            break
    else:
        found_names = dict.fromkeys(name for row in sample for name in row)
        names = ", ".join(name if name.isprintable() else ascii(name) for name in found_names)
        raise DataError(
            f"{path}: no filled column is known to hold the predictions; name it with fields prediction=…. Columns: "
            f"{names}"
        )
    refuse_difference(path, sample, "prediction", found, f"fields prediction={found[0]}")
    return found


def _existing(sample: Sequence[Values], candidate: str) -> list[str]:
    """Columns of this name, in any case, that are filled somewhere."""
    names = dict.fromkeys(name for row in sample for name in row if name.lower() == candidate)
    return [name for name in names if any(row.get(name) not in (None, "", []) for row in sample)]


def _answered(row: Row | BadRow, columns: AnswerColumns, stem: str) -> Answered | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        prediction = value_at(row.values, columns.prediction)
        for other in columns.same_prediction:
            if not same(prediction, value_at(row.values, other)):
                raise UnfitRow("two predictions that differ", f"{columns.prediction} and {other}")
        replies = _replies(prediction)
        # The rules for answers are those of problems; the prediction stands where a problem has its prompt.
        problem = stated({**row.values, columns.prediction: _STAND_IN}, columns.rest)
    except UnfitRow as fault:
        return BadRow(row.place, fault.reason, fault.detail)
    name = problem.id or f"{stem}/{row.place}"
    return Answered(row.place, Problem(name, _messages(row.values, columns), problem.answer, problem.info), replies)


def _messages(values: Values, columns: AnswerColumns) -> tuple[Message, ...]:
    """What was asked; nothing where the row does not say, for no grade of ours hangs on it."""
    asked = {columns.prompt: value_at(values, columns.prompt), _STAND_IN: _STAND_IN}
    try:
        found = stated(asked, Columns(columns.prompt, _STAND_IN, "whole", "", "", ()))
    except UnfitRow:
        return ()
    return tuple(Message(role, content) for role, content in found.messages)  # type: ignore[arg-type]


def _replies(value: Any) -> tuple[str, ...]:
    """The predictions of a row. Raises ``UnfitRow`` with the reason."""
    if isinstance(value, list) and not _is_conversation(value):
        if not value:
            raise UnfitRow("missing prediction", "an empty list")
        return tuple(map(_reply, value))
    return (_reply(value),)


def _reply(value: Any) -> str:
    if value is None:
        raise UnfitRow("missing prediction")
    if isinstance(value, bool):
        raise UnfitRow("prediction is true or false", "write it as the text that the model wrote")
    if isinstance(value, int | float | Decimal):
        return number_text(value)
    if _is_conversation(value):
        if value[-1].get("role", value[-1].get("from")) not in _REPLIES:
            raise UnfitRow("a conversation that does not end with a reply")
        return _reply(value[-1])
    if isinstance(value, Mapping):
        return _of_message(value)
    if not isinstance(value, str):
        raise UnfitRow("wrong type", f"a prediction of type {type(value).__name__} where text is needed")
    return _checked(value)


def _is_conversation(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns)


def _of_message(message: Mapping[str, Any]) -> str:
    """The text of a message, with the reasoning that some servers give apart in its tags."""
    text = next((found for name in _TEXTS if isinstance(found := message.get(name), str)), None)
    if text is None:
        raise UnfitRow("wrong type", f"a message without {' or '.join(_TEXTS)}: keys {', '.join(map(repr, message))}")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return _checked(f"<think>{reasoning}</think>{text}" if isinstance(reasoning, str) else text)


def _checked(text: str) -> str:
    if len(text) > MAX_ROW:
        raise UnfitRow("too long", f"{len(text):,} characters, more than {MAX_ROW:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfitRow("no valid Unicode", f"the prediction holds half a surrogate pair at {error.start + 1}") from None
    return text
