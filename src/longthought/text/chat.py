"""Chat templates of Hugging Face folders: a conversation becomes the tokens that ``apply_chat_template`` gives.

With one difference. What a person types is never read as markup: ``<|im_end|>`` in a question is the ten characters
that it is, and so is ``<think>``. (transformers reads both, unless told not to.) Without such strings in a conversation
the token ids are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.text.hidden import Hidden
from longthought.text.reasoning import CLOSE, OPEN, split
from longthought.text.sandbox import render
from longthought.text.tokenizer import Tokenizer

THOUGHT = f"{OPEN}\n{{reasoning}}\n{CLOSE}\n\n{{content}}"
"""How a thought is written into a reply for a template that drops it: as DeepSeek-R1 and Qwen3 write it."""

_ASKED = Message("user", "1 + 1")
_PROBES = ((_ASKED,), (Message("system", "2"), _ASKED))
"""Conversations on which a template is tried; some want a system message."""


@dataclass(frozen=True)
class ChatRenderer:
    """Conversations by a chat template, as transformers renders it.

    template: the text of the jinja2 template.
    stop_tokens: ids that end a reply.
    variables: what else the template is told, such as ``{"enable_thinking": False}``. A template that asks for today's
        date is told it; runs that must not depend on the day name one (Llama 3.1 reads ``date_string``).
    """

    tokenizer: Tokenizer
    template: str
    stop_tokens: tuple[int, ...]
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """Tokens of a conversation that ends where the assistant starts.

        Raises:
            DataError: the template refuses the conversation (some know no system message), in the template's words.
        """
        typed, messages = self._hidden(messages)
        return self.tokenizer.encode_markup(self._render(messages, ask=True), typed)

    def example(self, messages: Sequence[Message]) -> tuple[TokenIds, tuple[bool, ...]]:
        """Tokens of a finished conversation, and a mask that is True on what the assistant generates in its last
        message: what follows the prompt, the end token included, and not what the template writes after that.

        The tokens before are those of :meth:`prompt`. A thought that the template drops is written into the reply.

        Raises:
            DataError: the last message is not the assistant's; or the template goes on in another way than its own
                prompt, drops a part of the reply, or writes no end token: a model would learn what it cannot generate.
        """
        if not messages or messages[-1].role != "assistant":
            raise DataError("a training example must end with a message of the assistant")
        typed, messages = self._hidden(messages)
        start = self._render(messages[:-1], ask=True)
        whole = self._finished(messages, start, typed.spare)
        prompt, ids = self.tokenizer.encode_markup(start, typed), self.tokenizer.encode_markup(whole, typed)
        if ids[: len(prompt)] != prompt:  # a token reaches over the end of the prompt; no generated one can
            ids = self.tokenizer.encode_markup(whole, typed, cut=len(start))
        end = next((at for at in range(len(prompt), len(ids)) if ids[at] in self.stop_tokens), None)
        if end is None:
            raise DataError(
                "the chat template writes no end token after the assistant's message, so that a model trained on it "
                f"would not stop (its end tokens: {list(map(self.tokenizer.marks.get, self.stop_tokens))})"
            )
        return ids, tuple(len(prompt) <= at <= end for at in range(len(ids)))

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: the end token ends a reply."""
        return ()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of any tokens, special ones shown."""
        return self.tokenizer.decode(ids)

    def text(self, completion: TokenIds) -> str:
        """The reply, without its stop token, with what the prompt began of it (``<think>``)."""
        ended = bool(completion) and completion[-1] in self.stop_tokens
        return self.opening + self.tokenizer.decode(completion[:-1] if ended else completion)

    @cached_property
    def opening(self) -> str:
        """What the prompt puts into the assistant's mouth: its end, from ``<think>`` on, or nothing.

        Raises:
            DataError: the template renders no question.
        """
        _, _, header = self._tried(()).rpartition(_ASKED.content)
        return header[header.index(OPEN) :] if OPEN in header else ""

    @cached_property
    def end_of_turn(self) -> int | None:
        """Id of the token that the template writes after an assistant's message, if any."""
        sign = chr(0xE002)
        try:
            _, _, after = self._tried((Message("assistant", sign),)).rpartition(sign)
        except DataError:
            return None
        ids = self.tokenizer.encode_markup(after)
        marks = [i for i in ids if i in self.tokenizer.marks]
        return marks[0] if marks and after.lstrip().startswith(self.tokenizer.marks[marks[0]].strip()) else None

    def _tried(self, reply: Sequence[Message]) -> str:
        """What the template makes of a question, and of a reply to it if there is one."""
        for probe in _PROBES[:-1]:
            with suppress(DataError):
                return self._render((*probe, *reply), ask=not reply)
        return self._render((*_PROBES[-1], *reply), ask=not reply)

    def _hidden(self, messages: Sequence[Message]) -> tuple[Hidden, tuple[Message, ...]]:
        """The messages without what looks like markup in them, the assistant's own tags apart."""
        texts = [text for message in messages for text in (message.content, message.reasoning)]
        typed = Hidden((*texts, self.template), self.tokenizer.markup)
        tags = {"assistant": (OPEN, CLOSE)}
        return typed, tuple(
            replace(
                message,
                content=typed.hide(message.content, but=tags.get(message.role, ())),
                reasoning=typed.hide(message.reasoning),
            )
            for message in messages
        )

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        told = [_told(message) for message in messages]
        size = sum(len(part) for message in told for part in message.values())
        fixed = {"tools": None, "documents": None, **self.tokenizer.roles, **self.variables}
        return render(self.template, {**fixed, "messages": told, "add_generation_prompt": ask}, size)

    def _finished(self, messages: tuple[Message, ...], start: str, places: tuple[str, str]) -> str:
        """The rendered conversation, which begins as its prompt ``start`` does and holds the whole last message.

        places: two signs that occur nowhere, to see what the template does with a thought and with a content.
        """
        *history, last = messages
        thinking = _thinking(last)
        for reply in dict.fromkeys((last, thinking)):
            probe = Message("assistant", places[1], reply.reasoning and places[0])
            frame = self._render((*history, probe), ask=False)
            if all(frame.count(place) == 1 for place in (probe.content, probe.reasoning) if place):
                whole = self._render((*history, reply), ask=False)
                if whole.startswith(start) and reply.content.strip() in whole[len(start) :]:
                    return whole
        frame = self._render((*history, Message("assistant", places[1])), ask=False)
        head, _, tail = frame.partition(places[1])
        inlined = THOUGHT.format(reasoning=thinking.reasoning, content=thinking.content)
        forms = (last.content if not last.reasoning else "", inlined if thinking.reasoning else "")
        for said in filter(None, forms):
            if frame.count(places[1]) == 1 and OPEN not in head[len(start) :] and (head + said).startswith(start):
                return head + said + tail
        wanted = f"begin its reply with {self.opening!r}" if self.opening else "leave its reply as it is"
        raise DataError(
            f"the chat template makes no training example of this reply: it does not {wanted}; give the reply its "
            "reasoning, or train with another template"
        )


def _thinking(message: Message) -> Message:
    """The message with a thought that stands in its content set apart."""
    if message.reasoning or not message.content.lstrip().startswith(OPEN) or CLOSE not in message.content:
        return message
    reasoning, content = split(message.content)
    return replace(message, content=content.lstrip("\n"), reasoning=reasoning.strip("\n"))


def _told(message: Message) -> dict[str, str]:
    """A message as templates read it; a thought has two names, as transformers gives it."""
    told = {"role": str(message.role), "content": message.content}
    thought = {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    return {**told, **(thought if message.reasoning else {})}
