"""One row of a file as pairs of replies of which one is better, or as a reply with a label; or why it is neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Final, TypeVar

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.cells import ROLES, UnfitRow, kind_of
from longthought.tasks.example_rows import ExampleColumns, conversation
from longthought.tasks.fields import NOTHING, Named, Values, existing, refuse_absent, value_at

_KNOWN: Final[Mapping[str, Sequence[str]]] = {
    "prompt": ("prompt", "instruction", "question", "query", "problem"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "margin": ("margin",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "replies": ("replies", "responses", "completions"),
    "scores": ("scores",),
    "reply": ("reply", "response", "completion", "output"),
    "safe": ("safe", "is_safe"),
}
_WORDS: Final[Mapping[str, bool]] = {"safe": True, "unsafe": False, "true": True, "false": False, "1": True, "0": False}
F = TypeVar("F", "PreferenceFields", "LabelFields")


@dataclass(frozen=True)
class PreferenceFields(Named):
    """Names of columns; an empty one is found by itself, ``-`` stands for none. ``a.b`` is the key b inside column a.

    prompt: text, or a list of messages; not read where the replies are whole conversations.
    chosen, rejected: text, a list of messages, or a whole conversation; the two share all but the last message.
    margin: by how much the chosen one is better; or the difference of chosen_score and rejected_score.
    replies, scores: instead, lists of replies and of their scores: every two of them with other scores are a pair.
    """

    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    margin: str = ""
    chosen_score: str = ""
    rejected_score: str = ""
    replies: str = ""
    scores: str = ""


@dataclass(frozen=True)
class LabelFields(Named):
    """Names of columns of labelled replies.

    prompt: text, or a list of messages.  reply: text, a list of messages, or a whole conversation.
    safe: true, 1 or "safe"; false, 0 or "unsafe". A column that says the contrary (``toxic``) must be turned first.
    """

    prompt: str = ""
    reply: str = ""
    safe: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, of which the first is better. margin: by how much; None where nobody said."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float | None = None

    @property
    def replies(self) -> tuple[Message, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class Label:
    """A reply that is safe, or is not."""

    prompt: tuple[Message, ...]
    reply: Message
    safe: bool

    @property
    def replies(self) -> tuple[Message, ...]:
        return (self.reply,)


def found_in(path: Path, sample: Sequence[Values], given: F) -> F:
    """The columns of a file, told from some of its rows. Raises ``DataError`` where they are absent or ambiguous."""
    names = [field.name for field in fields(given)]
    refuse_absent(path, sample, [getattr(given, name) for name in names])
    found = {name: getattr(given, name) or _known(path, sample, name) for name in names}
    columns = replace(given, **{name: "" if column == NOTHING else column for name, column in found.items()})
    _refuse_unclear(path, sample, columns)
    return columns


def _known(path: Path, sample: Sequence[Values], name: str) -> str:
    found = [column for candidate in _KNOWN[name] for column in existing(sample, candidate)]
    if len(found) > 1:
        raise DataError(f"{path}: both {found[0]!r} and {found[1]!r} may be the {name}; name one: {name}={found[0]}")
    return found[0] if found else ""


def _refuse_unclear(path: Path, sample: Sequence[Values], columns: PreferenceFields | LabelFields) -> None:
    if isinstance(columns, LabelFields):
        if columns.reply and columns.safe:
            return
        wanted = "reply and safe"
    else:
        pair, scored = columns.chosen and columns.rejected, columns.replies and columns.scores
        if pair and scored:
            raise DataError(
                f"{path}: it has both {columns.chosen} and {columns.rejected}, and {columns.replies} with "
                f"{columns.scores}; say which are not to be read: replies=-, or chosen=-"
            )
        if pair or scored:
            if pair and bool(columns.chosen_score) != bool(columns.rejected_score):
                raise DataError(f"{path}: chosen_score and rejected_score go together; it has one of them")
            if columns.margin and columns.chosen_score:
                raise DataError(f"{path}: both a margin and two scores; say which is not to be read: margin=-")
            return
        wanted = "chosen and rejected, or replies and scores"
    names = dict.fromkeys(name for row in sample for name in row)
    raise DataError(f"{path}: no columns are known to hold {wanted}; name them. Columns: {', '.join(names)}")


def pairs_in(row: Values, columns: PreferenceFields) -> list[Preference]:
    """The pairs of a row; none where the scores are equal. Raises ``UnfitRow`` with the reason."""
    if not columns.chosen:
        return _scored(row, columns)
    chosen, rejected = (_talk(row, columns.prompt, side) for side in (columns.chosen, columns.rejected))
    if chosen[:-1] != rejected[:-1]:
        raise UnfitRow("chosen and rejected follow different prompts")
    if chosen[-1] == rejected[-1]:
        raise UnfitRow("chosen and rejected are the same")
    margin = _margin(row, columns)
    tie = margin == 0 and columns.chosen_score
    return [] if tie else [Preference(chosen[:-1], chosen[-1], rejected[-1], margin)]


def label_in(row: Values, columns: LabelFields) -> Label:
    """The labelled reply of a row. Raises ``UnfitRow`` with the reason."""
    talk = _talk(row, columns.prompt, columns.reply)
    value = value_at(row, columns.safe)
    said = _WORDS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if said is None:
        raise UnfitRow("no label", f"{columns.safe} is {value!r:.40}; known are {', '.join(_WORDS)}")
    return Label(talk[:-1], talk[-1], said)


def _talk(row: Values, prompt: str, reply: str) -> tuple[Message, ...]:
    """The prompt and a reply to it."""
    value = value_at(row, reply)
    first = value[0] if isinstance(value, list) and value else None
    role = first.get("role", first.get("from")) if isinstance(first, Mapping) else None
    if isinstance(role, str) and ROLES.get(role) in ("user", "system"):
        return conversation(row, ExampleColumns(messages=reply))
    if not prompt:
        raise UnfitRow("no prompt", f"{reply} is a reply alone, and no column holds the prompt")
    return conversation(row, ExampleColumns(prompt=prompt, reply=reply))


def _margin(row: Values, columns: PreferenceFields) -> float | None:
    if columns.chosen_score:
        better, worse = (_number(row, column) for column in (columns.chosen_score, columns.rejected_score))
        if better < worse:
            raise UnfitRow("chosen is scored below rejected", f"{better:g} below {worse:g}")
        return better - worse
    if not columns.margin or value_at(row, columns.margin) in (None, ""):
        return None
    margin = _number(row, columns.margin)
    if margin < 0:
        raise UnfitRow("a negative margin", f"{margin:g}")
    return margin


def _scored(row: Values, columns: PreferenceFields) -> list[Preference]:
    replies, scores = value_at(row, columns.replies), value_at(row, columns.scores)
    for column, value in ((columns.replies, replies), (columns.scores, scores)):
        if not isinstance(value, list):
            raise UnfitRow("wrong type", f"{column} is {kind_of(value)} where a list is needed")
    if len(replies) != len(scores) or len(replies) < 2:
        raise UnfitRow("not one score for each of at least two replies", f"{len(replies)} and {len(scores)}")
    prompt = value_at(row, columns.prompt) if columns.prompt else None
    talks = [_talk({"prompt": prompt, "reply": reply}, "prompt", "reply") for reply in replies]
    if any(talk[:-1] != talks[0][:-1] for talk in talks):
        raise UnfitRow("the replies follow different prompts")
    rated = list(zip(talks, [_finite(score, columns.scores) for score in scores]))
    return [
        Preference(one[:-1], one[-1], other[-1], high - low)
        for (one, high), (other, low) in permutations(rated, 2)
        if high > low and one != other
    ]


def _number(row: Values, column: str) -> float:
    return _finite(value_at(row, column), column)


def _finite(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UnfitRow("no finite number", f"{column}: {value!r:.40}")
    return number


def check_choice(owner: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises SettingsError for anything else than the choices."""
    if value not in choices:
        raise SettingsError(f"{owner}: {name} is {value!r}; choose {' or '.join(choices)}")
