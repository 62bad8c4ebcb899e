"""Stop strings: seen as soon as a token completes one, by decoding a short tail of the reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longthought.core.types import Completion, Finish

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders show for the bytes of a character that has not ended; no stop string may contain it."""

Decode = Callable[[Sequence[int]], str]


class StopStrings:
    """Watches replies for any of several strings.

    A string that is completed by a token ends in text of that token, so a tail of as many tokens as the longest string
    has bytes holds all of it: a token that shows anything at all shows at least one byte. Tokens that show nothing do
    not count, and one more token takes what decoders do to the first one (SentencePiece drops its space).

    min_tokens: strings completed by an earlier token do not count.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, min_tokens: int = 0) -> None:
        self._strings, self._decode, self._min_tokens = tuple(strings), decode, min_tokens
        self._tail = 1 + max(len(string.encode()) for string in strings)
        self._silent: dict[int, bool] = {}

    def completed(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens``, a reply so far, completed a string."""
        if len(tokens) < self._min_tokens:
            return False
        tail = tokens[self._start(tokens) :]
        text = self._decode(tail)
        if not any(string in text for string in self._strings):
            return False
        return self._min_tokens == 0 or _found(text, self._decode(tail[:-1]), self._strings) is not None

    def _start(self, tokens: Sequence[int]) -> int:
        needed, place = self._tail, len(tokens)
        while needed and place:
            place -= 1
            needed -= not self._shows_nothing(tokens[place])
        return place

    def _shows_nothing(self, token: int) -> bool:
        if token not in self._silent:
            self._silent[token] = not self._decode([token])
        return self._silent[token]


def text_before_stop(completion: Completion, decode: Decode, strings: Sequence[str]) -> str:
    """The text of a completion, cut where the stop string begins that ended it (the first, if its last token
    completed several); whole where something else ended it."""
    text = decode(completion.token_ids)
    if completion.finish is not Finish.STOP_STRING:
        return text
    return text[: _found(text, decode(completion.token_ids[:-1]), strings)]


def _found(text: str, before: str, strings: Sequence[str]) -> int | None:
    """Where the first string begins that ``text`` holds and ``before``, the same without its last token, does not."""
    known = len(before.rstrip(REPLACEMENT))
    starts = (text.find(string, max(0, known - len(string) + 1)) for string in strings)
    return min((start for start in starts if start >= 0), default=None)
