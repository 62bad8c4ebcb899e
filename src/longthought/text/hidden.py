"""What people type that looks like markup, out of sight while a conversation is rendered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from longthought.core.errors import DataError


class Hidden:
    """Strings of a conversation that look like markup, each hidden behind one sign that occurs nowhere in it.

    A sign of a private area is neither white space nor a letter, so that a chat template may trim and split a text as
    if nothing were hidden.

    spare: two more signs that occur nowhere.
    """

    def __init__(self, texts: Sequence[str], markup: Sequence[str]) -> None:
        present = [mark for mark in markup if any(mark in text for text in texts)]
        taken = set().union(*texts)
        free = (chr(code) for code in (*range(0xE002, 0xF900), *range(0xF0000, 0xFFFFE)) if chr(code) not in taken)
        signs = list(islice(free, len(present) + 2))
        if len(signs) < len(present) + 2:
            raise DataError("the conversation holds every private sign of Unicode; leave some of them out")
        self._signs = dict(zip(present, signs))  # string → sign
        self._strings = str.maketrans({sign: string for string, sign in self._signs.items()})
        longest_first = sorted(present, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.spare = (signs[-2], signs[-1])

    def hide(self, text: str, but: Sequence[str] = ()) -> str:
        """The text with signs in the place of markup, that of ``but`` left as it is."""
        return self._pattern.sub(lambda found: found[0] if found[0] in but else self._signs[found[0]], text)

    def show(self, text: str) -> str:
        """The text with the strings in the place of their signs."""
        return text.translate(self._strings)

    def occurs_in(self, text: str) -> bool:
        """Whether the text holds one of the signs."""
        return any(sign in text for sign in self._signs.values())
