"""Tokenizer and chat format: what a person types never becomes structure, and masks say who spoke."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import CheckpointError, DataError
from longthought.core.types import Message
from longthought.text.renderer import ASSISTANT, BEGIN, CHAT_TEMPLATE, END, USER, PlainRenderer
from longthought.text.tokenizer import PADDING, UNKNOWN, Tokenizer

SPECIAL = (BEGIN, USER, ASSISTANT, END)
WORDS = (*map(str, range(41)), *"+-*/()=", "<think>", "</think>", "<answer>", "</answer>", "use", "make", "用", "得")
TOKENIZER = Tokenizer.of_words(WORDS, SPECIAL)
RENDERER = PlainRenderer(TOKENIZER)
QUESTION = Message("user", "use 9 4 3 make 33")
REPLY = Message("assistant", "<think> 9 * 4 = 36 - 3 = 33 </think> <answer> ( 9 * 4 ) - 3 </answer>")


def ids(*tokens: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.id_of(token) for token in tokens)


@pytest.mark.parametrize("typed", [*SPECIAL, PADDING, UNKNOWN])
def test_special_tokens_cannot_be_typed(typed: str) -> None:
    """Neither where their signs are unknown words, nor where the vocabulary knows every sign of them."""
    open_minded = Tokenizer.of_words((*WORDS, *"<|>", "begin", "user", "assistant", "end", "pad", "unk"), SPECIAL)
    for tokenizer in (TOKENIZER, open_minded):
        structure = {tokenizer.id_of(token) for token in (*SPECIAL, PADDING, UNKNOWN)}
        for text in (typed, f"9{typed}4", f"use {typed} make 3"):
            try:
                found = tokenizer.encode(text)
            except DataError:
                continue
            assert not structure & set(found)
    if typed in SPECIAL:
        assert open_minded.decode(open_minded.encode(typed)).replace(" ", "") == typed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("use 9 41 make 100 41", ["'41'", "'100'"]),
        ("用 猫 得 3", ["'猫'"]),
        ("Use 9", ["'Use'"]),
        ("007", ["'007'"]),
        ("9 ４", ["'４'"]),
        ("3<|end|>", ["'<'", "'|'", "'end'", "'>'"]),
        ("<pad>", ["'<pad>'"]),
        ("<unk>", ["'<unk>'"]),
        ("<think>😀</think>", ["'😀'"]),
    ],
)
def test_unknown_words_are_named(text: str, named: list[str]) -> None:
    with pytest.raises(DataError) as refusal:
        TOKENIZER.encode(text)
    assert f"no token for {', '.join(named)}:" in str(refusal.value)


def test_spaces_do_not_matter() -> None:
    expected = ids("(", "9", "*", "4", ")", "-", "3")
    for text in ("(9*4)-3", "( 9 * 4 ) - 3", " (9\t*\n4 )-  3 "):
        assert TOKENIZER.encode(text) == expected
    assert TOKENIZER.encode("用9得3<think>4</think>") == ids("用", "9", "得", "3", "<think>", "4", "</think>")
    assert TOKENIZER.encode("") == ()


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.sampled_from([" ", "  ", "\n", " \t "]))
def test_decoding_leaves_single_spaces(words: list[str], space: str) -> None:
    tokens = TOKENIZER.encode(space.join(words))
    assert tokens == ids(*words)
    assert TOKENIZER.decode(tokens) == " ".join(words)


@given(st.text(max_size=40))
def test_any_text_is_encoded_or_refused(text: str) -> None:
    try:
        tokens = TOKENIZER.encode(text)
    except DataError:
        return
    assert TOKENIZER.encode(TOKENIZER.decode(tokens)) == tokens
    assert min(tokens, default=6) >= 6  # after <pad>, <unk> and the four special tokens


def test_a_reply_is_shown_without_its_end_and_with_everything_else() -> None:
    """What the model said in special tokens must not be invisible to whoever grades it."""
    assert RENDERER.text(ids("9", "*", "4", END)) == "9 * 4"
    assert RENDERER.text(ids("9", "*", "4")) == "9 * 4"
    assert RENDERER.text(ids("9", END, USER, "4", PADDING, END)) == "9 <|end|> <|user|> 4 <pad>"
    assert RENDERER.text(()) == RENDERER.text(ids(END)) == ""


def test_vocabulary_has_no_doubles() -> None:
    assert Tokenizer.of_words(("a", "b", "a", END), SPECIAL).size == 2 + len(SPECIAL) + 2
    with pytest.raises(DataError, match="'c'"):
        TOKENIZER.id_of("c")


def test_save_and_load(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path, CHAT_TEMPLATE, end=END, begin=BEGIN)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.size == TOKENIZER.size
    assert sorted(loaded.special) == sorted(SPECIAL)
    assert [loaded.id_of(word) for word in (*WORDS, *SPECIAL)] == [TOKENIZER.id_of(word) for word in (*WORDS, *SPECIAL)]
    assert PlainRenderer(loaded).example((QUESTION, REPLY)) == RENDERER.example((QUESTION, REPLY))
    with pytest.raises(DataError, match="'end'"):
        loaded.encode("9 <|end|>")
    with pytest.raises(DataError, match="'<'"):
        TOKENIZER.encode("9 <|end|>")  # saving has changed nothing
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again, CHAT_TEMPLATE, end=END, begin=BEGIN)
    assert (again / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def damaged_json(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8")[:500], encoding="utf-8")


def missing_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def foreign_special(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "eos_token": "</s>"}), encoding="utf-8")


def wrong_kind(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize("damage", [damaged_json, missing_settings, foreign_special, wrong_kind])
def test_a_damaged_folder_is_refused_by_name(damage, tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path, CHAT_TEMPLATE, end=END)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


def test_a_prompt_by_hand() -> None:
    question = ids("use", "9", "4", "3", "make", "33")
    assert RENDERER.prompt((QUESTION,)) == ids(BEGIN, USER) + question + ids(ASSISTANT)
    assert RENDERER.stop_tokens == ids(END)
    second = RENDERER.prompt((QUESTION, Message("assistant", "( 9 )"), Message("user", "4")))
    expected = ids(BEGIN, USER) + question + ids(ASSISTANT, "(", "9", ")", END, USER, "4", ASSISTANT)
    assert second == expected


def test_a_system_message_is_refused() -> None:
    messages = (Message("system", "use 9"), QUESTION)
    for render in (RENDERER.prompt, lambda m: RENDERER.example((*m, REPLY))):
        with pytest.raises(DataError, match="system message"):
            render(messages)


def test_an_example_masks_what_the_assistant_says() -> None:
    tokens, mask = RENDERER.example((QUESTION, REPLY))
    prompt = RENDERER.prompt((QUESTION,))
    assert tokens[: len(prompt)] == prompt
    assert mask == (False,) * len(prompt) + (True,) * (len(tokens) - len(prompt))
    said = tuple(token for token, flag in zip(tokens, mask) if flag)
    assert said == TOKENIZER.encode(REPLY.content) + ids(END)
    assert RENDERER.text(said) == REPLY.content
    assert RENDERER.document(QUESTION.content, REPLY.content) == tokens


@pytest.mark.parametrize("messages", [(), (QUESTION,), (REPLY, QUESTION)])
def test_an_example_ends_with_the_assistant(messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="assistant"):
        RENDERER.example(messages)


def test_plain_text_is_a_document_without_a_question() -> None:
    assert RENDERER.document(None, "9 + 4") == ids(BEGIN, "9", "+", "4", END)


def test_an_example_keeps_the_reasoning() -> None:
    tokenizer = Tokenizer.of_words(["1", "2", "<think>", "</think>"], (BEGIN, USER, ASSISTANT, END))
    renderer = PlainRenderer(tokenizer)
    ids, mask = renderer.example((Message("user", "1"), Message("assistant", "2", reasoning="1 1")))
    assert renderer.text(tuple(i for i, trained in zip(ids, mask) if trained)) == "<think> 1 1 </think> 2"
