"""Formats of our own: messages to tokens and back. (Chat templates of other people's models: ``chat``.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.text.hidden import Hidden
from longthought.text.reasoning import CLOSE, OPEN
from longthought.text.templates import Template
from longthought.text.tokenizer import Tokenizer

BEGIN, USER, ASSISTANT, END = "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% else %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class PlainRenderer:
    """``<|begin|><|user|>question<|assistant|>reply<|end|>``: the format of the small models that are trained here."""

    tokenizer: Tokenizer

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return (self.tokenizer.id_of(END),)

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: the end token ends a reply."""
        return ()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of any tokens, special ones shown."""
        return self.tokenizer.decode(ids)

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """Tokens of a conversation that ends where the assistant starts."""
        return (*self._turns(messages), self.tokenizer.id_of(ASSISTANT))

    def example(self, messages: Sequence[Message]) -> tuple[TokenIds, tuple[bool, ...]]:
        """Tokens of a finished conversation and a mask that is True on the last message, end token included."""
        if not messages or messages[-1].role != "assistant":
            raise DataError("a training example must end with a message of the assistant")
        prompt = self.prompt(messages[:-1])
        reply = self._said(messages[-1])
        return prompt + reply, (False,) * len(prompt) + (True,) * len(reply)

    def document(self, user: str | None, text: str) -> TokenIds:
        """Tokens of a pretraining document: a question with its reply, or plain text (``user`` None)."""
        start: TokenIds = (self.tokenizer.id_of(BEGIN),)
        if user is not None:
            start = self.prompt((Message("user", user),))
        return (*start, *self.tokenizer.encode(text), self.tokenizer.id_of(END))

    def text(self, completion: TokenIds) -> str:
        """What the model wrote, without the end token. Any other special token that it emitted is shown."""
        ended = bool(completion) and completion[-1] in self.stop_tokens
        return self.tokenizer.decode(completion[:-1] if ended else completion)

    def _turns(self, messages: Sequence[Message]) -> TokenIds:
        ids = [self.tokenizer.id_of(BEGIN)]
        for message in messages:
            if message.role == "system":
                raise DataError("this chat format has no system message; put the text into the user's message")
            if message.role == "user":
                ids += [self.tokenizer.id_of(USER), *self.tokenizer.encode(message.content)]
            else:
                ids += [self.tokenizer.id_of(ASSISTANT), *self._said(message)]
        return tuple(ids)

    def _said(self, message: Message) -> TokenIds:
        """What the assistant writes: its reasoning, if any, between the tags, then the content and the end."""
        thought = f"{OPEN} {message.reasoning} {CLOSE} " if message.reasoning else ""
        return (*self.tokenizer.encode(thought + message.content, tags=(OPEN, CLOSE)), self.tokenizer.id_of(END))


@dataclass(frozen=True)
class TemplateRenderer:
    """One question in a prompt template, for base models that know no conversation.

    stop_tokens: ids that end a reply.
    """

    tokenizer: Tokenizer
    template: Template
    stop_tokens: tuple[int, ...]

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a reply, for the sampler."""
        return self.template.stop

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """Tokens of the filled template, after the beginning-of-text token if the model has one.

        Raises:
            DataError: the messages are not one question of a user.
        """
        if len(messages) != 1 or messages[0].role != "user":
            raise DataError(
                f"the prompt template {self.template.name!r} asks one question: it takes one message of the user, not "
                f"{[str(message.role) for message in messages]}"
            )
        typed, question = self._hidden(messages[0].content)
        return (*self.tokenizer.prefix, *self.tokenizer.encode_markup(self.template.fill(question), typed))

    def example(self, messages: Sequence[Message]) -> tuple[TokenIds, tuple[bool, ...]]:
        """Tokens of the prompt and its reply, and a mask that is True on the reply, the end token included.

        Raises:
            DataError: the messages are not a question and its reply; the template begins the reply with ``<think>``
                and the reply does not; or the model has no end token.
        """
        if len(messages) != 2 or messages[1].role != "assistant":
            raise DataError("a training example of a prompt template is a message of the user and one of the assistant")
        if not self.stop_tokens:
            raise DataError(
                "the model has no end token, so that it would not learn to stop; see generation_config.json"
            )
        prompt, said = self.prompt(messages[:1]), messages[1]
        reply = f"{OPEN} {said.reasoning} {CLOSE}\n{said.content}" if said.reasoning else said.content
        opening = self.template.opening
        if not reply.startswith(opening.rstrip()):
            raise DataError(f"the prompt begins the reply with {opening!r}; give the reply its reasoning")
        reply = reply.removeprefix(opening.rstrip())
        if not opening and not self.template.text[-1:].isspace():
            reply = f" {reply}"
        ids = (*self.tokenizer.encode(reply, tags=(OPEN, CLOSE)), self.stop_tokens[0])
        return prompt + ids, (False,) * len(prompt) + (True,) * len(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of any tokens, special ones shown."""
        return self.tokenizer.decode(ids)

    def text(self, completion: TokenIds) -> str:
        """The reply, without its stop token, up to the first stop string, with ``<think>`` if the prompt began it."""
        ended = bool(completion) and completion[-1] in self.stop_tokens
        said = self.tokenizer.decode(completion[:-1] if ended else completion)
        ends = [at for string in self.stop if (at := said.find(string)) >= 0]
        return self.template.opening + said[: min(ends, default=len(said))]

    def _hidden(self, question: str) -> tuple[Hidden, str]:
        typed = Hidden((question, self.template.text), self.tokenizer.markup)
        return typed, typed.hide(question)


@dataclass(frozen=True)
class TokensOnly:
    """A model without a tokenizer: it can be looked at and sampled from with token ids, and knows no text.

    stop_tokens: ids that end a reply.
    """

    stop_tokens: tuple[int, ...]

    @property
    def stop(self) -> tuple[str, ...]:
        """No strings: there is no text."""
        return ()

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """Raises DataError."""
        raise DataError(_NO_TOKENIZER)

    def example(self, messages: Sequence[Message]) -> tuple[TokenIds, tuple[bool, ...]]:
        """Raises DataError."""
        raise DataError(_NO_TOKENIZER)

    def decode(self, ids: Sequence[int]) -> str:
        """Raises DataError."""
        raise DataError(_NO_TOKENIZER)

    def text(self, completion: TokenIds) -> str:
        """Raises DataError."""
        raise DataError(_NO_TOKENIZER)


_NO_TOKENIZER = "the model's folder has no tokenizer (tokenizer.json), so that only token ids can be given and got"
