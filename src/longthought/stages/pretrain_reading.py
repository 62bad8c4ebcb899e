"""What an optimizer step of pretraining reads: documents as tokens, cut into windows and laid into steps.

A window is a row of its own, so that attention never goes from one document into another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.runs.state import JSON
from longthought.tasks.corpus import Corpus, Document, epochs
from longthought.text.chat import ChatRenderer
from longthought.text.fim import FillInTheMiddle
from longthought.text.folder import Renderer
from longthought.text.renderer import BEGIN, END, PlainRenderer, TemplateRenderer, TokensOnly
from longthought.training.team import Team

Packing: TypeAlias = Literal["by_length", "in_order"]
Windows: TypeAlias = list[TokenIds]

_POOL = 2048  # documents sorted by length together, so that a batch pads little
_OPEN = 32  # documents that are read side by side
_AHEAD = 64  # documents that are turned into tokens together


class Read(NamedTuple):
    """One step's windows; the share of the corpus that was read by then, in epochs; and the place to go on from."""

    windows: Windows
    epochs: float
    cursor: JSON


def cut(tokens: TokenIds, context: int) -> Windows:
    """Windows of at most ``context`` tokens. Neighbours share one token: each but the first is predicted just once."""
    if len(tokens) <= context:
        return [tokens]
    return [tokens[start : start + context] for start in range(0, len(tokens) - 1, context - 1)]


@dataclass(frozen=True)
class Pages:
    """The documents of a corpus as tokens.

    context: tokens of a window, at most.  fim: plain documents, never conversations, are turned by it.
    """

    corpus: Corpus
    renderer: Renderer
    context: int
    fim: FillInTheMiddle | None = None

    def windows(self, member: int, numbers: Sequence[int]) -> list[Windows]:
        """For the members of a team: those documents, cut."""
        del member
        return [cut(self.tokens(self.corpus.document(number), number), self.context) for number in numbers]

    def tokens(self, page: Document, number: int) -> TokenIds:
        """The tokens of one document, whole."""
        if self.fim is not None and page.user is None:
            turned = self.fim(_speaking(self.renderer).tokenizer, page.text, number)
            if turned is not None:
                return self._framed(turned)
        return self.plain(page)

    def plain(self, page: Document) -> TokenIds:
        """The tokens of one document as it stands."""
        renderer = _speaking(self.renderer)
        if isinstance(renderer, PlainRenderer) and (page.user is None or renderer.tokenizer.is_closed):
            return renderer.document(page.user, page.text)
        if page.user is None:
            return self._framed(renderer.tokenizer.encode(page.text))
        return renderer.example((Message("user", page.user), Message("assistant", page.text)))[0]

    def _framed(self, ids: TokenIds) -> TokenIds:
        """With what stands before and behind every document."""
        renderer = _speaking(self.renderer)
        tokenizer = renderer.tokenizer
        if tokenizer.knows(BEGIN) and tokenizer.knows(END):
            return (tokenizer.id_of(BEGIN), *ids, tokenizer.id_of(END))
        return (*tokenizer.prefix, *ids, *renderer.stop_tokens[:1])


def _speaking(renderer: Renderer) -> PlainRenderer | ChatRenderer | TemplateRenderer:
    if isinstance(renderer, TokensOnly):
        raise DataError("the model has no tokenizer, so that no text can be read: put tokenizer.json into its folder")
    return renderer


def by_length(team: Team, handler: str, corpus: Corpus, tokens: int, seed: int | str, steps: range) -> Iterator[Read]:
    """Steps of at most ``tokens`` tokens, of windows of similar lengths: pools of 2,048 documents are sorted by length,
    cut into steps, and these come in random order.

    A step is a function of its number, ``seed`` and the corpus: to go on with step n everything before is read again.
    """
    seen = pool = 0
    while seen < steps.stop:
        cuts = _pool(team, handler, tokens, seed, pool)
        read = epochs(corpus, (pool + 1) * _POOL)
        for number, windows in enumerate(cuts[: steps.stop - seen]):
            if seen + number >= steps.start:
                yield Read(windows, read, None)
        seen, pool = seen + len(cuts), pool + 1


def _pool(team: Team, handler: str, tokens: int, seed: int | str, pool: int) -> list[Windows]:
    """One pool of documents, cut into batches of similar lengths, in random order."""
    documents = _shared(team, handler, range(pool * _POOL, (pool + 1) * _POOL))
    sequences = sorted((window for windows in documents for window in windows), key=len)
    cuts: list[Windows] = []
    room = 0
    for sequence in sequences:
        if not cuts or room < len(sequence):
            cuts.append([])
            room = tokens
        cuts[-1].append(sequence)
        room -= len(sequence)
    Random(f"{seed}/{pool}").shuffle(cuts)
    return cuts


def in_order(
    team: Team, handler: str, corpus: Corpus, tokens: Callable[[int], int], steps: range, cursor: JSON
) -> Iterator[Read]:
    """Steps filled with windows in the order of the corpus, as many as fit into ``tokens(step)``, and at least one.

    32 documents are read side by side, each giving a window in turn, so that a long one does not fill a step alone.
    To go on from a cursor no more than these are read again.
    """
    stream = _Stream(team, handler, cursor)
    for step in steps:
        windows = stream.take(tokens(step))
        yield Read(windows, epochs(corpus, stream.read), stream.cursor)


class _Opened(NamedTuple):
    """A document that is being read, and its next window."""

    number: int
    windows: Windows
    place: int


class _Stream:
    """Windows one after another, and how far they were given."""

    def __init__(self, team: Team, handler: str, cursor: Any) -> None:
        self._team, self._handler = team, handler
        self._ready: deque[Windows] = deque()
        self.opened: int = cursor["opened"] if cursor else 0
        self._turn: int = cursor["turn"] if cursor else 0
        numbers, places = zip(*cursor["open"]) if cursor else ((), ())
        self._open = [_Opened(*one) for one in zip(numbers, _shared(team, handler, numbers), places)]
        while len(self._open) < _OPEN:
            self._open.append(self._next())

    @property
    def read(self) -> int:
        """How many documents were read, the parts of open ones added up."""
        return round(self.opened - sum(1 - document.place / len(document.windows) for document in self._open))

    @property
    def cursor(self) -> JSON:
        """The next document to be opened, whose turn it is, and the open documents with their places."""
        return {
            "opened": self.opened,
            "turn": self._turn,
            "open": [[document.number, document.place] for document in self._open],
        }

    def take(self, room: int) -> Windows:
        """The next windows, as many as fit into ``room`` tokens, and at least one."""
        taken: Windows = []
        while True:
            document = self._open[self._turn]
            window = document.windows[document.place]
            if taken and len(window) > room:
                return taken
            taken.append(window)
            room -= len(window)
            left = document.place + 1 < len(document.windows)
            self._open[self._turn] = document._replace(place=document.place + 1) if left else self._next()
            self._turn = (self._turn + 1) % _OPEN

    def _next(self) -> _Opened:
        if not self._ready:
            self._ready.extend(_shared(self._team, self._handler, range(self.opened, self.opened + _AHEAD)))
        self.opened += 1
        return _Opened(self.opened - 1, self._ready.popleft(), 0)


def _shared(team: Team, handler: str, numbers: Sequence[int]) -> list[Windows]:
    """The windows of documents, made by all members of the team."""
    bounds = [member * len(numbers) // team.size for member in range(team.size + 1)]
    parts = team.call(handler, [(numbers[a:b],) for a, b in pairwise(bounds)])
    return [windows for part in parts for windows in part]
