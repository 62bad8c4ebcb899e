"""Several corpora as one, in shares that hold over every stretch of documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Literal, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.tasks.corpus import Corpus, Document, epochs, held_out
from longthought.tasks.mixture import draws

_MEASURED = 256  # documents that tell how long those of a part are
_SHARES = 1000  # weights by characters are rounded to such a part of the whole


class Part(NamedTuple):
    """A corpus of a mixture, its name, and its weight."""

    name: str
    corpus: Corpus
    weight: float


@dataclass(frozen=True)
class CorpusMix:
    """Corpora and their weights, of any sum.

    Every part gives its documents in order 0, 1, 2 … without a gap, and after any number of documents each part has
    given its share to less than one document. With ``by="characters"`` the weights are shares of the text, not of the
    number of documents: they are divided by the mean length of the first 256 documents of each part, to a thousandth.

    Raises SettingsError on no parts, a name given twice, and weights that are not positive numbers.
    """

    parts: tuple[Part, ...]
    by: Literal["documents", "characters"] = "documents"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parts:
            raise SettingsError("corpus: a mixture needs parts, each a name, a corpus and a weight")
        if self.by not in ("documents", "characters"):
            raise SettingsError(f"corpus: by={self.by!r}; weights are shares of documents or of characters")
        names = [name for name, _, _ in self.parts]
        for name, _, weight in self.parts:
            if not (isfinite(weight) and weight > 0):
                raise SettingsError(f"corpus: the weight of {name} is {weight}; it must be a positive number")
            if names.count(name) > 1:
                raise SettingsError(f"corpus: two parts are named {name}; give them different names")

    @property
    def shares(self) -> dict[str, float]:
        """Share of the documents of each kind, by ``part/kind``; the kind is left out where a part has only one."""
        weights = _weights(self)
        parts = [(part, weight / sum(weights)) for part, weight in zip(self.parts, weights)]
        return {
            _kind(name, kind, corpus): whole * share
            for (name, corpus, _), whole in parts
            for kind, share in corpus.shares.items()
        }

    @property
    def description(self) -> str:
        """The shares of the parts, and what each says of itself."""
        weights = _weights(self)
        return " ".join(
            f"{name} ({weight / sum(weights):.1%} of the documents): {corpus.description}"
            for (name, corpus, _), weight in zip(self.parts, weights)
        )

    def document(self, index: int) -> Document:
        """Document ``index``. Raises DataError on a negative index, and what the part raises."""
        part, own = self._draw(index)
        return self._named(part, part.corpus.document(own))

    def held_out(self, index: int) -> Document:
        """A document that training never reads, the parts in the same shares."""
        part, own = self._draw(index)
        return self._named(part, held_out(part.corpus, own))

    def epochs(self, index: int) -> float:
        """How often the part that was read most often was read."""
        order, before, counts = draws(_weights(self), self.seed)
        period, place = divmod(index, len(order))
        given: dict[int, int] = {}
        for number in range(place - 1, -1, -1):  # the last draw of every part tells how many there were
            given.setdefault(order[number], before[number] + 1)
            if len(given) == len(counts):
                break
        return max(
            epochs(part.corpus, period * counts[number] + given.get(number, 0))
            for number, part in enumerate(self.parts)
        )

    def _draw(self, index: int) -> tuple[Part, int]:
        """The part that gives a document, and how many it has given before."""
        if index < 0:
            raise DataError(f"corpus: document {index} does not exist; documents are counted from 0")
        order, before, counts = draws(_weights(self), self.seed)
        period, place = divmod(index, len(order))
        return self.parts[order[place]], period * counts[order[place]] + before[place]

    def _named(self, part: Part, document: Document) -> Document:
        return document._replace(kind=_kind(part.name, document.kind, part.corpus))


def _kind(part: str, kind: str, corpus: Corpus) -> str:
    return f"{part}/{kind}" if len(corpus.shares) > 1 else part


@lru_cache(maxsize=64)
def _weights(mix: CorpusMix) -> tuple[float, ...]:
    """Weights by documents."""
    if mix.by == "documents":
        return tuple(weight for _, _, weight in mix.parts)
    found = [weight / _length(corpus) for _, corpus, weight in mix.parts]
    return tuple(float(max(1, round(_SHARES * weight / sum(found)))) for weight in found)


def _length(corpus: Corpus) -> float:
    """Mean length of the first documents, in characters."""
    pages = (corpus.document(index) for index in range(_MEASURED))
    return sum(len(page.text) + len(page.user or "") for page in pages) / _MEASURED
