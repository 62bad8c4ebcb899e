"""From the tokens of a prompt back to the conversation that they render."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.text.folder import Renderer
from longthought.text.reasoning import CLOSE, OPEN, split
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer, TokensOnly

_SIGNS: Final = (chr(0xE010), chr(0xE011))  # private characters, which no frame holds
_TRIED = 20  # places at which a system message may end


class Asked:
    """Reads prompts of one renderer. A conversation is only told if it renders to the very same tokens.

    Found are a user's question, alone or after a system message; in the format of our own small models, every turn.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._frames = [] if isinstance(renderer, PlainRenderer | TokensOnly) else _frames(renderer)
        self._last: tuple[TokenIds, tuple[Message, ...] | None] = ((), None)

    def messages(self, prompt: Sequence[int]) -> tuple[Message, ...] | None:
        """The conversation; None where none is found."""
        ids = tuple(prompt)
        if self._last[0] != ids:
            self._last = (ids, next((one for one in self._candidates(ids) if self._renders(one, ids)), None))
        return self._last[1]

    def text(self, prompt: Sequence[int]) -> str:
        """The text of a prompt, special tokens shown."""
        return self._renderer.decode(prompt)

    def _candidates(self, ids: TokenIds) -> Iterator[tuple[Message, ...]]:
        if isinstance(self._renderer, PlainRenderer):
            yield from _turns(self._renderer, ids)
        elif self._frames:
            text = self._renderer.decode(ids)
            for frame in self._frames:
                yield from _filled(text, frame)

    def _renders(self, messages: tuple[Message, ...], ids: TokenIds) -> bool:
        try:
            return self._renderer.prompt(messages) == ids
        except DataError:
            return False


def _frames(renderer: Renderer) -> list[tuple[str, ...]]:
    """What the renderer writes around a question, and around a system message and a question."""
    question, system = Message("user", _SIGNS[-1]), Message("system", _SIGNS[0])
    found = []
    for messages in ((question,), (system, question)):
        try:
            text = renderer.decode(renderer.prompt(messages))
        except DataError:
            continue
        signs = [message.content for message in messages]
        if all(text.count(sign) == 1 for sign in signs):
            found.append(tuple(text.replace(_SIGNS[0], _SIGNS[-1]).split(_SIGNS[-1])))
    return found


def _filled(text: str, frame: tuple[str, ...]) -> Iterator[tuple[Message, ...]]:
    """The conversations that stand in the frame if the prompt is ``text``."""
    head, *middle, tail = frame
    if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
        return
    inside = text[len(head) : len(text) - len(tail)]
    if not middle:
        yield (Message("user", inside),)
        return
    at = inside.find(middle[0])
    for _ in range(_TRIED):
        if at < 0:
            return
        yield Message("system", inside[:at]), Message("user", inside[at + len(middle[0]) :])
        at = inside.find(middle[0], at + 1)


def _turns(renderer: PlainRenderer, ids: TokenIds) -> Iterator[tuple[Message, ...]]:
    """The turns of ``<|begin|><|user|>question<|assistant|>reply<|end|> … <|assistant|>``, if it is one."""
    begin, user, assistant, end = (renderer.tokenizer.id_of(mark) for mark in (BEGIN, USER, ASSISTANT, END))
    if len(ids) < 2 or ids[0] != begin or ids[-1] != assistant:
        return
    messages: list[Message] = []
    starts = [at for at, token in enumerate(ids) if token in (user, assistant)]
    for start, stop in pairwise(starts):
        said = ids[start + 1 : stop]
        if ids[start] == user:
            messages.append(Message("user", renderer.decode(said)))
        elif said and said[-1] == end:
            messages.append(_said(renderer.decode(said[:-1])))
        else:
            return
    yield tuple(messages)


def _said(text: str) -> Message:
    if OPEN not in text or CLOSE not in text:
        return Message("assistant", text)
    reasoning, content = split(text)
    return Message("assistant", content.strip(), reasoning.strip())
