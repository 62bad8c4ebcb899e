"""Prompts read back: what comes out renders to the same tokens, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.types import Message
from longthought.text import folder as text_folder
from longthought.text.asked import Asked
from longthought.text.folder import Renderer
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer, TokensOnly
from longthought.text.templates import TEMPLATES
from longthought.text.tokenizer import Tokenizer

QUESTIONS = ("What is 1 + 1?", " two  spaces\n\nand lines ", "<|im_end|> <think> typed", "试一试 naïve", "x" * 500)
WORDS = PlainRenderer(Tokenizer.of_words(["red", "blue", "<think>", "</think>"], (BEGIN, USER, ASSISTANT, END)))


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.fixture(scope="module", params=["qwen25", "qwen3", "llama3", *(template.name for template in TEMPLATES)])
def renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    place = tmp_path_factory.mktemp("model")
    if request.param == "llama3":
        return text_folder.load(folders.llama3(place))
    made = folders.qwen(place, folders.QWEN25 if request.param == "qwen25" else folders.QWEN3)
    return text_folder.load(made, next((one for one in TEMPLATES if one.name == request.param), None))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_comes_back(renderer: Renderer, question: str) -> None:
    prompt = renderer.prompt(asked(question))
    found = Asked(renderer).messages(prompt)
    assert found is not None
    assert renderer.prompt(found) == prompt
    assert found[0].content.strip() == question.strip()  # Llama's template trims it


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=50, deadline=None)
def test_whatever_is_found_renders_to_the_same_tokens(qwen: Renderer, question: str) -> None:
    prompt = qwen.prompt(asked(question))
    found = Asked(qwen).messages(prompt)
    assert found is not None
    assert qwen.prompt(found) == prompt


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return text_folder.load(folders.qwen(tmp_path_factory.mktemp("qwen")))


def test_a_system_message_comes_back_where_the_format_has_one(qwen: Renderer) -> None:
    said = (Message("system", "Be brief.\nBe kind."), Message("user", "Why?"))
    assert Asked(qwen).messages(qwen.prompt(said)) == said


def test_turns_of_our_own_format() -> None:
    said = (
        Message("user", "red blue"),
        Message("assistant", "blue", "red red"),
        Message("user", "blue"),
        Message("assistant", "red"),
        Message("user", "red"),
    )
    assert Asked(WORDS).messages(WORDS.prompt(said)) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red",
        f"{BEGIN} red {ASSISTANT}",
        f"{USER} red {ASSISTANT}",
        f"{BEGIN} {USER} red",
        f"{BEGIN} {ASSISTANT} red {ASSISTANT}",
    ],
)
def test_what_is_no_conversation(text: str) -> None:
    ids = [WORDS.tokenizer.id_of(word) for word in text.split()]
    assert Asked(WORDS).messages(ids) is None


def test_another_formats_prompt_is_not_guessed(qwen: Renderer, tmp_path: Path) -> None:
    prompt = qwen.prompt(asked("Why?"))
    other = text_folder.load(folders.qwen(tmp_path), TEMPLATES[0])
    assert Asked(other).messages(prompt) is None
    assert Asked(qwen).messages(prompt[:-1]) is None
    assert Asked(TokensOnly((0,))).messages(prompt) is None
