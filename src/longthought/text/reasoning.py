"""Tell a reply's reasoning from its content: ``<think> reasoning </think> content``, whole or as it arrives.

One rule for both. Let the *first tag* be whichever of ``<think>`` and ``</think>`` comes first.

- ``opened=True`` (the prompt ends with ``<think>``): reasoning starts at once and ends at the first ``</think>``. A
  model that opens the tag once more at its start, as R1-0528 does, has opened it once.
- The first tag is ``<think>``: reasoning runs from there to the next ``</think>``; text before it is content.
- The first tag is ``</think>``: the opening tag is missing, and everything before is reasoning.
- No tag: everything is content.

The ``</think>`` that ends the reasoning is the only one that is read: there is one reasoning, a ``<think>`` inside it
is part of it, and every tag after it is plain content. Without a closing tag the reasoning runs to the end. White space
that alone stands before an opening tag belongs to the tag. Nothing else is trimmed: the tags apart, every character of
the reply stands in ``reasoning`` or ``content``, in order.

Where the parsers of vLLM (deepseek_r1, qwen3 and the class that both come from) and SGLang (DeepSeek-R1, Qwen3) agree,
white space at the edges apart, this one agrees: a parser that is told to reason, as theirs for R1 are, is
``opened=True`` here. Where they differ:

- Edges: vLLM keeps white space, SGLang strips it from whole replies and keeps it in streams. It is kept here; a caller
  who wants none strips both parts. An empty part is ``""``, as in SGLang; vLLM says None of some.
- Words before ``<think>``: vLLM drops them, SGLang counts them as reasoning. They are content here: they were said.
- ``</think>`` alone: the end of reasoning in vLLM, content in SGLang's Qwen3. The end of reasoning here.
- ``<think>`` within the reasoning: kept by vLLM, cut out by SGLang. Kept here.
- Qwen3 without a tag: reasoning in vLLM while thinking is on, content in SGLang. It is what ``opened`` says here.
- A ``<tool_call>`` that ends the reasoning without ``</think>``: vLLM's Qwen3 alone. There are no tool calls here.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

OPEN: Final = "<think>"
CLOSE: Final = "</think>"


class Split(NamedTuple):
    """A reply in its two parts, verbatim."""

    reasoning: str
    content: str


class Piece(NamedTuple):
    """A stretch of a streamed reply and the part it belongs to; its text is never empty."""

    part: Literal["reasoning", "content"]
    text: str


def split(text: str, opened: bool = False) -> Split:
    """Split a whole reply by the rule of this module. ``opened``: the prompt already ends with ``<think>``.

    Example: ``split("<think>9 * 4</think>36") == ("9 * 4", "36")``, and so is ``split("9 * 4</think>36")``.
    """
    tag, position = _first_tag(text, (OPEN, CLOSE))
    before = text[:position] if tag == OPEN else ""
    if opened and (before.strip() or tag != OPEN):
        reasoning, _, content = text.partition(CLOSE)
        return Split(reasoning, content)
    if not tag:
        return Split("", text)
    rest = text[position + len(OPEN) :] if tag == OPEN else text
    reasoning, _, content = rest.partition(CLOSE)
    return Split(reasoning, (before if before.strip() else "") + content)


class StreamSplitter:
    """Split a reply that arrives in chunks: the pieces, joined part by part, are what ``split`` gives for the whole.

    Text is handed on as soon as its part is certain. What looks like the start of a tag waits for the next chunk. With
    ``opened=False`` everything waits until the first tag or ``finish``, since a reply whose opening tag is missing
    cannot be told from one without reasoning before that; a caller that knows that its prompt opens the tag says
    ``opened=True`` and has no delay but for a tag that may be opened again. One splitter serves one reply.
    """

    def __init__(self, opened: bool = False) -> None:
        self._state: Literal["undecided", "opened", "reasoning", "content"] = "opened" if opened else "undecided"
        self._undecided: list[str] = []
        self._tail = ""  # the possible start of a tag

    def feed(self, chunk: str) -> list[Piece]:
        """The pieces that this chunk makes certain, in order."""
        text = self._tail + chunk
        self._tail = ""
        pieces: list[Piece] = []
        if self._state == "undecided":
            text = self._decide(text, pieces)
        if self._state == "opened":
            text = self._open(text)
        if self._state == "reasoning":
            text = self._reason(text, pieces)
        if self._state == "content":
            _append(pieces, "content", text)
        return pieces

    def finish(self) -> list[Piece]:
        """The pieces that waited, now that the reply has ended."""
        part: Literal["reasoning", "content"] = "content" if self._state in ("undecided", "content") else "reasoning"
        pieces: list[Piece] = []
        _append(pieces, part, "".join((*self._undecided, self._tail)))
        self._undecided, self._tail = [], ""
        return pieces

    def _decide(self, text: str, pieces: list[Piece]) -> str:
        """Look for the first tag; the text after it."""
        tag, position = _first_tag(text, (OPEN, CLOSE))
        if not tag:
            self._undecided.append(self._kept(text, (OPEN, CLOSE)))
            return ""
        held = "".join((*self._undecided, text[:position]))
        self._undecided = []
        if tag == CLOSE or held.strip():
            _append(pieces, "content" if tag == OPEN else "reasoning", held)
        self._state = "reasoning" if tag == OPEN else "content"
        return text[position + len(tag) :]

    def _open(self, text: str) -> str:
        """Pass over an opening tag that repeats the prompt's; the text after it."""
        start = text.lstrip()
        if OPEN.startswith(start) and start != OPEN:
            self._tail = text
            return ""
        self._state = "reasoning"
        return start.removeprefix(OPEN) if start.startswith(OPEN) else text

    def _reason(self, text: str, pieces: list[Piece]) -> str:
        """Hand reasoning on up to the closing tag; the text after it."""
        reasoning, tag, rest = text.partition(CLOSE)
        if tag:
            self._state = "content"
        else:
            reasoning = self._kept(text, (CLOSE,))
        _append(pieces, "reasoning", reasoning)
        return rest

    def _kept(self, text: str, tags: tuple[str, ...]) -> str:
        """The text without the longest ending that may be the start of a tag, which waits."""
        start = text.rfind("<", -len(CLOSE) + 1) if text else -1
        if start >= 0 and any(tag.startswith(text[start:]) for tag in tags):
            self._tail = text[start:]
            return text[:start]
        return text


def _first_tag(text: str, tags: tuple[str, ...]) -> tuple[str, int]:
    """The tag that comes first, and where; empty and -1 if none comes."""
    places = [(position, tag) for tag in tags if (position := text.find(tag)) >= 0]
    position, tag = min(places, default=(-1, ""))
    return tag, position


def _append(pieces: list[Piece], part: Literal["reasoning", "content"], text: str) -> None:
    if text:
        pieces.append(Piece(part, text))
