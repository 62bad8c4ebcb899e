"""Chat formats: messages to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.text.reasoning import CLOSE, OPEN
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
        return (*self.tokenizer.encode(thought + message.content), self.tokenizer.id_of(END))
