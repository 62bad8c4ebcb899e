"""A tokenizer of one's own, and what transformers makes of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from longthought.core.errors import SettingsError
from longthought.core.types import Message
from longthought.text import folder
from longthought.text.fim import FIM_TOKENS
from longthought.text.renderer import PlainRenderer
from longthought.text.tokenizer_training import BytePairs

TEXTS = ["Think: 3 + 4 = 7.\n", "def f(x):\n    return x\n", "日本語 und Äpfel\n"] * 30


def test_saved_it_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = BytePairs(size=300).train(TEXTS, fim=True)
    renderer = PlainRenderer(tokenizer)
    assert tokenizer.size == 300
    folder.save(renderer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("1234 apples", "<think>\n 日本", "  two  spaces\n\n\n"):
        assert theirs.encode(text) == list(tokenizer.encode_markup(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(theirs.encode("20260")) == 5  # digit by digit
    chat = [Message("user", "hi"), Message("assistant", "4", reasoning="3 + 1")]
    ids, _ = renderer.example(chat)
    shown = theirs.decode(ids, skip_special_tokens=True)
    assert "<think> 3 + 1 </think>" in shown  # the thoughts are no special tokens
    assert "<|end|>" not in shown
    assert folder.load(tmp_path).example(chat)[0] == ids


def test_fim_tokens_are_there_only_if_they_are_used() -> None:
    assert not any(map(BytePairs(size=300).train(TEXTS).knows, FIM_TOKENS))


def test_no_more_is_read_than_was_asked_for() -> None:
    read = []

    def texts() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield f"text {number}"

    BytePairs(size=300, documents=7).train(texts())
    assert read == list(range(7))
    read.clear()
    BytePairs(size=300, characters=20).train(texts())
    assert read == [0, 1, 2, 3]


def test_refusals() -> None:
    for make in (lambda: BytePairs(size=256), lambda: BytePairs(documents=0), lambda: BytePairs(characters=0)):
        with pytest.raises(SettingsError):
            make()
