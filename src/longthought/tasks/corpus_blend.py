"""Corpora of different kinds, blended page by page in shares that hold over every stretch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.corpus import Corpus, Document, epochs, held_out
from longthought.tasks.mixture import draws


@dataclass(frozen=True)
class Blend:
    """Corpora and their weights by documents, of any sum; documents keep their kinds.

    Every part gives its documents in order 0, 1, 2 … without a gap, and after any number of documents each part has
    given its share to less than one document. ``CorpusMix`` does the same for parts with names, which its kinds bear,
    and can weigh by characters.

    Raises ``SettingsError`` on no parts, and on weights that are not positive numbers.
    """

    parts: tuple[tuple[Corpus, float], ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parts:
            raise SettingsError("corpus: a blend needs parts, each a corpus and a weight")
        for number, (_, weight) in enumerate(self.parts, 1):
            if not (isfinite(weight) and weight > 0):
                raise SettingsError(f"corpus: the weight of part {number} is {weight}; it must be a positive number")

    @property
    def shares(self) -> dict[str, float]:
        """Share of the documents of each kind; what parts have in common adds up."""
        found: dict[str, float] = {}
        for (corpus, _), whole in zip(self.parts, self._whole):
            for kind, share in corpus.shares.items():
                found[kind] = found.get(kind, 0.0) + whole * share
        return found

    @property
    def description(self) -> str:
        """The shares of the parts, and what each says of itself."""
        told = (
            f"{whole:.1%} of the documents: {corpus.description}" for (corpus, _), whole in zip(self.parts, self._whole)
        )
        return " ".join(told)

    def document(self, index: int) -> Document:
        """Document ``index``. Raises ``DataError`` on a negative index, and what the part raises."""
        corpus, own = self._draw(index)
        return corpus.document(own)

    def held_out(self, index: int) -> Document:
        """A document that training never reads, the parts in the same shares."""
        corpus, own = self._draw(index)
        return held_out(corpus, own)

    def epochs(self, index: int) -> float:
        """How often the part that was read most often was read."""
        order, _, counts = draws(self._weights, self.seed)
        period, place = divmod(index, len(order))
        rest = order[:place]
        return max(
            epochs(corpus, period * counts[number] + rest.count(number))
            for number, (corpus, _) in enumerate(self.parts)
        )

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(weight for _, weight in self.parts)

    @property
    def _whole(self) -> list[float]:
        """Share of the documents of every part."""
        return [weight / sum(self._weights) for weight in self._weights]

    def _draw(self, index: int) -> tuple[Corpus, int]:
        """The part that gives a document, and how many it has given before."""
        if index < 0:
            raise DataError(f"corpus: document {index} does not exist; documents are counted from 0")
        order, before, counts = draws(self._weights, self.seed)
        period, place = divmod(index, len(order))
        part = order[place]
        return self.parts[part][0], period * counts[part] + before[place]
