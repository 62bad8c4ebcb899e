"""One row of a file as a problem, or the reason why it is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any, Final

from longthought.tasks.cells import ROLES, UnfitRow, check_unicode, kind_of, refuse_messages_as_text, text_of
from longthought.tasks.fields import Columns, Values, same, value_at
from longthought.tasks.file_rows import MAX_ROW

_SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}
_MARKS = {"hashes": "####", "boxed": "a closed \\boxed"}
_MAX_ID = 200

NO_ID: Final = "do without ids by id=-, or name another column"


@dataclass(frozen=True, slots=True)
class Stated:
    """A problem as its row states it. ``id`` and ``split`` are empty where the row does not say."""

    id: str
    messages: tuple[tuple[str, str], ...]
    answer: str
    info: Mapping[str, str]
    split: str


def stated(row: Values, columns: Columns) -> Stated:
    """The problem of a row. Numbers are read as text, 42.0 as ``42``. Raises ``UnfitRow`` with the reason."""
    prompt, answer = value_at(row, columns.prompt), value_at(row, columns.answer)
    for what, first, others in (
        ("prompts", columns.prompt, columns.same_prompt),
        ("answers", columns.answer, columns.same_answer),
    ):
        for other in others:
            if not same(value_at(row, first), value_at(row, other)):
                raise UnfitRow(f"two {what} that differ", f"{first} and {other}")
    info = {name.lower(): _info(value) for name in columns.info if (value := value_at(row, name)) not in (None, "")}
    problem = Stated(
        _id(value_at(row, columns.id)) if columns.id else "",
        _messages(prompt, columns.prompt, info),
        _gold(answer, columns, info),
        info,
        _split(value_at(row, columns.split)) if columns.split else "",
    )
    size = sum(len(content) for _, content in problem.messages) + sum(map(len, [problem.answer, *info.values()]))
    if size > MAX_ROW:
        raise UnfitRow("too long", f"{size:,} characters, more than {MAX_ROW:,}")
    return problem


def number_text(value: int | float | Decimal) -> str:
    """A number as text, without exponent, an integral one without point: ``42.0`` → ``42``, ``1e-3`` → ``0.001``."""
    if not isfinite(value):
        raise UnfitRow("not a finite number", str(value))
    if value == int(value):
        return str(int(value))
    return format(Decimal(str(value)), "f").rstrip("0")


def _gold(value: Any, columns: Columns, info: dict[str, str]) -> str:
    """The gold answer; the text that it was cut out of is put into ``info["solution"]``."""
    if isinstance(value, bool):
        raise UnfitRow("answer is true or false", 'write it as the text that a reply should hold, such as "yes"')
    if isinstance(value, int | float | Decimal):
        return number_text(value)
    text = text_of(value, "answer")
    gold = (columns.gold(text) or "").strip()
    if not gold:
        raise UnfitRow(f"answer without {_MARKS[columns.take]}", f"it ends with {text[-60:]!r}")
    if columns.take != "whole":
        info.setdefault("solution", text)
    return gold


def _messages(value: Any, column: str, info: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The turns of a prompt. A reply that ends a {from, value} conversation is put into ``info["demonstration"]``."""
    if not isinstance(value, list):
        text = text_of(value, "prompt")
        refuse_messages_as_text(text, column)
        return (("user", text),)
    if not value:
        raise UnfitRow("missing prompt", f"{column} is an empty list")
    turns = [_turn(turn, number) for number, turn in enumerate(value, 1)]
    if turns[-1][0] == "assistant" and "from" in value[-1]:
        info["demonstration"] = turns.pop()[1]
    if not turns or turns[-1][0] != "user":
        raise UnfitRow("messages do not end with the user", f"the last of {len(value)} is of {value[-1]!r:.60}")
    if any(role == "system" for role, _ in turns[1:]):
        raise UnfitRow("a system message that is not the first")
    return tuple(turns)


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise UnfitRow("wrong type", f"message {number} is {kind_of(turn)} where {{role, content}} is needed")
    names = ("from", "value") if "from" in turn else ("role", "content")
    further = [key for key, value in turn.items() if key not in names and value is not None]
    if further:
        raise UnfitRow("a message with further keys", f"message {number}: {', '.join(map(str, further))}")
    role = turn.get(names[0])
    if not isinstance(role, str) or role not in ROLES:
        raise UnfitRow("unknown role", f"message {number}: {role!r}; known are {', '.join(ROLES)}")
    return ROLES[role], text_of(turn.get(names[1]), f"content of message {number}")


def _info(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    check_unicode(text, "info")
    return text


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnfitRow("missing id" if value is None else "wrong type", f"id is {kind_of(value)}; {NO_ID}")
    text = str(value).strip()
    if not text or len(text) > _MAX_ID or not text.isprintable():
        raise UnfitRow("unusable id", f"{text[:60]!r}: 1 to {_MAX_ID} printable characters are needed")
    return text


def _split(value: Any) -> str:
    name = _SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if name is None:
        raise UnfitRow(
            "unknown split", f"{value!r:.60}; known are {', '.join(_SPLITS)}; ignore the column with split=-"
        )
    return name
