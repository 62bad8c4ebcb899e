"""What pretraining reads, and probes of what it has taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

_FAR: Final = 1 << 48
_SHOWN: Final = 2000  # characters of an example


class Document(NamedTuple):
    """A page: an answer to ``user``, or plain text when ``user`` is None."""

    kind: str
    user: str | None
    text: str


class Corpus(Protocol):
    """An endless stream of documents, each a pure function of its index; a key of what was made of it."""

    def __hash__(self) -> int: ...

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the documents of each kind."""
        ...

    @property
    def description(self) -> str:
        """In plain words: what a model that read it has seen, and what it has not."""
        ...

    def document(self, index: int) -> Document: ...


@runtime_checkable
class Finite(Protocol):
    """A corpus whose documents come again when all were read."""

    def epochs(self, index: int) -> float:
        """How often the documents were read when ``document(index)`` comes next, at the most."""
        ...


@runtime_checkable
class HoldsBack(Protocol):
    """A corpus that keeps documents from training."""

    def held_out(self, index: int) -> Document:
        """One of the documents that ``document`` never gives; after the last one the first comes again.

        Raises SettingsError when none is held back.
        """
        ...


def epochs(corpus: Corpus, index: int) -> float:
    """How often documents of a corpus were read before ``document(index)``; 0 where none comes twice."""
    return corpus.epochs(index) if isinstance(corpus, Finite) else 0.0


def held_out(corpus: Corpus, index: int) -> Document:
    """A document that is not for training: one held back, or else one far beyond all that training reads."""
    return corpus.held_out(index) if isinstance(corpus, HoldsBack) else corpus.document(_FAR + index)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question about the next word: how likely is ``word`` after ``text`` as the start of a reply to ``user``?"""

    check: str
    user: str
    text: str
    word: str


def describe(corpus: Corpus) -> dict[str, Any]:
    """Description, and share and first example (``question → text``) of every kind of document."""
    seen: dict[str, str] = {}
    for index in range(10_000):
        kind, user, text = corpus.document(index)
        seen.setdefault(kind, _cut(f"{user} → {text}" if user else text))
        if len(seen) == len(corpus.shares):
            break
    kinds = [{"name": k, "share": share, "example": seen.get(k, "")} for k, share in corpus.shares.items()]
    return {"description": corpus.description, "kinds": kinds}


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
