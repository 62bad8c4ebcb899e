"""What pretraining reads, and probes of what it has taught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Document(NamedTuple):
    """A page: an answer to ``user``, or plain text when ``user`` is None."""

    kind: str
    user: str | None
    text: str


class Corpus(Protocol):
    """An endless stream of documents, each a pure function of its index."""

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the documents of each kind."""
        ...

    @property
    def description(self) -> str:
        """In plain words: what a model that read it has seen, and what it has not."""
        ...

    def document(self, index: int) -> Document: ...


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
        seen.setdefault(kind, f"{user} → {text}" if user else text)
        if len(seen) == len(corpus.shares):
            break
    kinds = [{"name": k, "share": share, "example": seen.get(k, "")} for k, share in corpus.shares.items()]
    return {"description": corpus.description, "kinds": kinds}
