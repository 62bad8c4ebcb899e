"""Fill in the middle: some documents are turned, so that a model learns to write what stands between two parts."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from longthought.core.errors import SettingsError
from longthought.core.types import TokenIds
from longthought.text.tokenizer import Tokenizer

FIM_BEGIN, FIM_HOLE, FIM_END = "<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"
FIM_TOKENS: Final = (FIM_BEGIN, FIM_HOLE, FIM_END)


@dataclass(frozen=True)
class FillInTheMiddle:
    """Prefix, suffix, middle, for a share ``rate`` of the documents (DeepSeek-V3, arXiv:2412.19437, section 4.1).

    ``<|fim_begin|>prefix<|fim_hole|>suffix<|fim_end|>middle``. The two cuts are uniform: between characters, as in
    StarCoder (arXiv:2305.06161, section 5.1), so that a model can be asked anywhere in a word; in a closed vocabulary,
    whose tokens have no parts, between tokens. Whether a document is turned, and where it is cut, follows from the seed
    and its number.
    """

    rate: float
    seed: int | str = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise SettingsError(f"fill in the middle: rate={self.rate} must be above 0 and at most 1")

    def __call__(self, tokenizer: Tokenizer, text: str, number: int) -> TokenIds | None:
        """Tokens of document ``number``, turned; None where it stays as it is."""
        rng = Random(f"{self.seed}/fim/{number}")
        if rng.random() >= self.rate:
            return None
        if tokenizer.is_closed:
            ids = tokenizer.encode(text)
            a, b = _cuts(rng, len(ids))
            prefix, middle, suffix = ids[:a], ids[a:b], ids[b:]
        else:
            a, b = _cuts(rng, len(text))
            prefix, middle, suffix = map(tokenizer.encode, (text[:a], text[a:b], text[b:]))
        begin, hole, end = map(tokenizer.id_of, FIM_TOKENS)
        return (begin, *prefix, hole, *suffix, end, *middle)


def _cuts(rng: Random, length: int) -> tuple[int, int]:
    """Two places of 0 … length, each uniform, in order."""
    a, b = sorted((rng.randint(0, length), rng.randint(0, length)))
    return a, b
