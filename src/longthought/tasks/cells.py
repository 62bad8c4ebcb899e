"""Single cells of a row: text that can be used, or the reason why it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
"""What data sets call the three roles."""

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]""")


class UnfitRow(Exception):
    """A row that cannot be used: ``reason`` is one of few, ``detail`` says what it was."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def text_of(value: Any, what: str) -> str:
    """A cell that holds text, more than white space. Raises ``UnfitRow`` otherwise."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnfitRow(f"missing {what}")
    if not isinstance(value, str):
        raise UnfitRow("wrong type", f"{what} is {kind_of(value)} where text is needed")
    check_unicode(value, what)
    return value


def check_unicode(text: str, what: str) -> None:
    """Raises ``UnfitRow`` where the text is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfitRow("no valid Unicode", f"{what} holds half a surrogate pair at {error.start + 1}") from None


def refuse_messages_as_text(text: str, column: str) -> None:
    """Raises ``UnfitRow`` where a list of messages was written as text, as CSV files do."""
    if _MESSAGES_AS_TEXT.match(text):
        raise UnfitRow("messages written as text", f"{column} must be a list; store it in .jsonl or .parquet")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {"list": "a list", "dict": "an object", "NoneType": "absent", "bool": "true or false", "str": "text"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")
