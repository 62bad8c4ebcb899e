"""A tokenizer of one's own: byte pairs of a corpus, with the special tokens of our chat format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from longthought.core.errors import SettingsError
from longthought.text.fim import FIM_TOKENS
from longthought.text.reasoning import CLOSE, OPEN
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER
from longthought.text.tokenizer import Tokenizer

CHAT_TOKENS = (BEGIN, USER, ASSISTANT, END)
_LEAST = 256 + 16  # the bytes, and room for what is special


@dataclass(frozen=True)
class BytePairs:
    """Byte-level BPE with single digits, trained on the beginning of a corpus: any text is encoded, and comes back.

    size: number of token ids; a corpus too small for so many merges gives fewer.
    documents: how many documents of the corpus are read for it, at most.
    characters: how many characters of them, at most.

    Special are the tokens of the chat format, and those of fill-in-the-middle where it is used. ``<think>`` and
    ``</think>`` are tokens, too, but not special: other people's decoders show them.
    """

    size: int = 4096
    documents: int = 10_000
    characters: int = 20_000_000

    def __post_init__(self) -> None:
        if self.size < _LEAST:
            raise SettingsError(f"tokenizer: size={self.size}: at least {_LEAST} tokens are needed, 256 are the bytes")
        if self.documents < 1 or self.characters < 1:
            raise SettingsError("tokenizer: documents and characters must be at least 1")

    def train(self, texts: Iterable[str], fim: bool = False) -> Tokenizer:
        """The tokenizer of these texts, of which no more are asked for than are read."""
        special = (*CHAT_TOKENS, *(FIM_TOKENS if fim else ()))
        return Tokenizer.train(self._first(texts), self.size, special, tags=(OPEN, CLOSE))

    def _first(self, texts: Iterable[str]) -> Iterator[str]:
        room = self.characters
        for text in islice(texts, self.documents):
            yield text[:room]
            room -= len(text)
            if room <= 0:
                return
