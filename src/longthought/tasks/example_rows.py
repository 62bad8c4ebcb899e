"""One row of a file as a conversation to imitate, in the layouts that data sets have, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.cells import ROLES, UnfitRow, kind_of, refuse_messages_as_text, text_of
from longthought.tasks.fields import (
    NOTHING,
    Named,
    Values,
    ends_with_reply,
    existing,
    refuse_absent,
    refuse_difference,
    value_at,
)
from longthought.tasks.file_rows import MAX_ROW
from longthought.text.reasoning import CLOSE, OPEN, split

_CONVERSATIONS: Final = ("messages", "conversations", "conversation")
_PROMPTS: Final = (("prompt", "instruction", "question", "query", "problem"), ("input", *_CONVERSATIONS))
_REPLIES: Final = (("response", "completion", "output", "reply"), ("solution",), ("answer",))
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_SYSTEM: Final = ("system", "system_prompt")


@dataclass(frozen=True)
class ExampleFields(Named):
    """Names of columns; an empty one is found by itself, ``-`` stands for none. ``a.b`` is the key b inside column a.

    messages: a whole conversation, a list of {role, content} or {from, value}; a thought may stand in
    ``reasoning_content``, ``reasoning`` or ``thinking`` of a message.
    prompt: what is asked: text, or a list of messages.
    input: text that follows the prompt after a blank line; found by itself beside ``instruction`` alone.
    reply: what the assistant says: text, or a list of messages.
    reasoning: the thought before the reply; not found by itself beside a whole conversation.
    system: the system message.
    """

    messages: str = ""
    prompt: str = ""
    input: str = ""
    reply: str = ""
    reasoning: str = ""
    system: str = ""

    def __post_init__(self) -> None:
        parts = [name for name in ("prompt", "input", "reply") if getattr(self, name) not in ("", NOTHING)]
        if self.messages not in ("", NOTHING) and parts:
            raise SettingsError(
                f"fields: messages is a whole conversation: {parts[0]} changes nothing; name one of both"
            )


@dataclass(frozen=True)
class ExampleColumns(ExampleFields):
    """Where everything stands in the rows of one file: ``messages``, or ``prompt`` and ``reply``; empty: nowhere."""

    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Example: ``prompt ← question, reply ← solution, unread: id``."""
        return ", ".join([super().__str__(), *([f"unread: {' '.join(self.unread)}"] if self.unread else [])])


def example_columns(path: Path, sample: Sequence[Values], given: ExampleFields) -> ExampleColumns:
    """The columns of a file, told from some of its rows. A whole conversation goes before a prompt and a reply, a
    worked solution before a bare answer.

    Raises ``DataError`` where a named column does not exist, where none is recognised, and where two may be meant that
    do not hold the same.
    """
    search = _Search(path, sample)
    refuse_absent(path, sample, [getattr(given, field.name) for field in fields(given)])
    system = search.one("system", given.system, (_SYSTEM,))
    messages = given.messages
    if not (messages or given.prompt or given.reply):
        messages = search.agreed("messages", search.conversations())
    if messages not in ("", NOTHING):
        found = ExampleColumns(messages=messages, reasoning=_named(given.reasoning), system=system)
        return search.noted(found)
    prompt = search.needed("prompt", given.prompt, _PROMPTS)
    alpaca = (("input",),) if prompt.lower() == "instruction" else ()
    found = ExampleColumns(
        prompt=prompt,
        input=search.one("input", given.input, alpaca),
        reply=search.needed("reply", given.reply, _REPLIES),
        reasoning=search.one("reasoning", given.reasoning, (_REASONING,), text=True),
        system=system,
    )
    if found.prompt == found.reply:
        raise DataError(f"{path}: prompt and reply are the same column, {prompt}")
    return search.noted(found)


@dataclass(frozen=True)
class _Search:
    path: Path
    sample: Sequence[Values]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.sample for name in row))

    def known(self, candidates: Sequence[str], text: bool = False) -> list[str]:
        """Those of the candidates that exist; ``text``: and hold text somewhere."""
        found = [name for candidate in candidates for name in existing(self.sample, candidate)]
        return [n for n in found if not text or any(isinstance(value_at(row, n), str) for row in self.sample)]

    def conversations(self) -> list[str]:
        """Columns of whole conversations: lists of messages; beside a column of replies, those that end with one."""
        found = [
            name for name in self.known(_CONVERSATIONS) if any(isinstance(row.get(name), list) for row in self.sample)
        ]
        if not any(self.known(tier) for tier in _REPLIES):
            return found
        return [name for name in found if ends_with_reply(self.sample, name)]

    def agreed(self, what: str, found: Sequence[str]) -> str:
        """The first, where all hold the same; empty for none."""
        if not found:
            return ""
        choose = f"examples.fields={what}={found[0]} (in Python: ExampleFields({what}={found[0]!r}))"
        refuse_difference(self.path, self.sample, what, found, choose)
        return found[0]

    def one(self, what: str, named: str, tiers: Sequence[Sequence[str]], text: bool = False) -> str:
        """The named column, else what the first tier that has any has; empty for none."""
        if named:
            return _named(named)
        return next((column for tier in tiers if (column := self.agreed(what, self.known(tier, text)))), "")

    def needed(self, what: str, named: str, tiers: Sequence[Sequence[str]]) -> str:
        found = self.one(what, named, tiers)
        if not found:
            raise DataError(
                f"{self.path}: no column is known to hold the {what}; name it with examples.fields={what}=… "
                f"(in Python: ExampleFields({what}=…)), or a whole conversation with messages=…. "
                f"Columns: {', '.join(self.names)}"
            )
        return found

    def noted(self, columns: ExampleColumns) -> ExampleColumns:
        """With the names of what is not read."""
        read = {getattr(columns, field.name).partition(".")[0] for field in fields(columns) if field.name != "unread"}
        return replace(columns, unread=tuple(name for name in self.names if name not in read))


def _named(column: str) -> str:
    return "" if column == NOTHING else column


def conversation(row: Values, columns: ExampleColumns) -> tuple[Message, ...]:
    """The conversation of a row. Raises ``UnfitRow`` with the reason.

    A thought at the beginning of a reply, ``<think> … </think>`` or with the closing tag alone, is set apart as
    ``Message.reasoning``, without the white space around it; everything else is left as it is.
    """
    if columns.messages:
        messages = _messages(value_at(row, columns.messages), columns.messages, "messages")
    else:
        messages = [*_asked(row, columns), *_replied(value_at(row, columns.reply), columns.reply)]
    if columns.reasoning and messages[-1].role == "assistant":
        messages[-1] = _with_reasoning(messages[-1], value_at(row, columns.reasoning))
    if columns.system and value_at(row, columns.system) not in (None, ""):
        system = Message("system", text_of(value_at(row, columns.system), "system message"))
        if messages[0].role != "system":
            messages.insert(0, system)
        elif messages[0] != system:
            raise UnfitRow("two system messages that differ")
    return checked(messages)


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, where they are a conversation that ends with a reply. Raises ``UnfitRow`` with the reason."""
    spoken = [message for number, message in enumerate(messages) if number or message.role != "system"]
    if any(message.role == "system" for message in spoken):
        raise UnfitRow("a system message that is not the first")
    if not spoken or spoken[0].role != "user":
        raise UnfitRow("does not begin with the user")
    if spoken[-1].role != "assistant":
        raise UnfitRow("does not end with a reply of the assistant")
    size = sum(len(message.content) + len(message.reasoning) for message in messages)
    if size > MAX_ROW:
        raise UnfitRow("too long", f"{size:,} characters, more than {MAX_ROW:,}")
    return tuple(messages)


def _asked(row: Values, columns: ExampleColumns) -> list[Message]:
    value = value_at(row, columns.prompt)
    if isinstance(value, list):
        return _messages(value, columns.prompt, "prompt")
    prompt = text_of(value, "prompt")
    refuse_messages_as_text(prompt, columns.prompt)
    more = value_at(row, columns.input) if columns.input else None
    if more is None or (isinstance(more, str) and not more.strip()):
        return [Message("user", prompt)]
    return [Message("user", f"{prompt}\n\n{text_of(more, 'input')}")]


def _replied(value: Any, column: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, column, "reply")
    text = text_of(value, "reply")
    refuse_messages_as_text(text, column)
    return [_said(text)]


def _messages(value: Any, column: str, what: str) -> list[Message]:
    if not isinstance(value, list):
        text = text_of(value, what)
        refuse_messages_as_text(text, column)
        raise UnfitRow("wrong type", f"{column} is {kind_of(value)} where a list of messages is needed")
    if not value:
        raise UnfitRow(f"missing {what}", f"{column} is an empty list")
    return [_turn(turn, number) for number, turn in enumerate(value, 1)]


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise UnfitRow("wrong type", f"message {number} is {kind_of(turn)} where {{role, content}} is needed")
    names = ("from", "value") if "from" in turn else ("role", "content")
    empty: tuple[Any, ...] = (None, "", [], {})
    further = [key for key, value in turn.items() if key not in (*names, *_REASONING) and value not in empty]
    if further:
        raise UnfitRow("a message with further keys", f"message {number}: {', '.join(map(str, further))}")
    given = turn.get(names[0])
    if not isinstance(given, str) or given not in ROLES:
        raise UnfitRow("unknown role", f"message {number}: {given!r:.60}; known are {', '.join(ROLES)}")
    role, content = ROLES[given], text_of(turn.get(names[1]), f"content of message {number}")
    said = _said(content) if role == "assistant" else Message(role, content)  # type: ignore[arg-type]
    for key in _REASONING:
        said = _with_reasoning(said, turn.get(key))
    return said


def _said(text: str) -> Message:
    """What the assistant says, a thought at its beginning set apart."""
    opened = text.lstrip().startswith(OPEN)
    if opened and CLOSE not in text:
        raise UnfitRow("<think> without </think>")
    if not opened and (CLOSE not in text or OPEN in text[: text.index(CLOSE)]):
        return Message("assistant", text)
    reasoning, content = split(text)
    if not content.strip():
        raise UnfitRow("nothing after the reasoning")
    if not reasoning.strip():
        return Message("assistant", text)
    return Message("assistant", content.lstrip(), reasoning.strip())


def _with_reasoning(message: Message, value: Any) -> Message:
    """The message with a thought that was given beside it."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return message
    reasoning = text_of(value, "reasoning").strip()
    if message.role != "assistant":
        raise UnfitRow("reasoning of another role than the assistant", str(message.role))
    if message.reasoning not in ("", reasoning):
        raise UnfitRow("two thoughts before one reply that differ")
    return replace(message, reasoning=reasoning)
