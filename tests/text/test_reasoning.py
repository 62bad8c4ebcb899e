"""The <think> parser, whole and streamed."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.text.reasoning import Piece, Split, StreamSplitter, split

CASES = [
    ("", "", ""),
    ("33", "", "33"),
    ("<think>a</think>b", "a", "b"),
    ("a</think>b", "a", "b"),  # the opening tag is missing
    ("</think>b", "", "b"),
    ("<think>a", "a", ""),  # the closing tag is missing
    ("<think>", "", ""),
    ("<think></think>", "", ""),
    ("\n<think>a</think>b", "a", "b"),
    ("so <think>a</think> b", "a", "so  b"),
    ("<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d"),
    ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
    ("a</think>b</think>c", "a", "b</think>c"),
    ("a</think>b<think>c", "a", "b<think>c"),
    ("<thin>a</thin>b", "", "<thin>a</thin>b"),
    ("a < b <", "", "a < b <"),
    ("<think>a </thin k> <</think>b", "a </thin k> <", "b"),
    ("<think>a</think", "a</think", ""),
    ("<THINK>a</THINK>b", "", "<THINK>a</THINK>b"),
    ("<<think>a</</think>b", "a</", "<b"),
]

OPENED = [
    ("", "", ""),
    ("a", "a", ""),
    ("a</think>b", "a", "b"),
    ("</think>b", "", "b"),
    ("<think>a</think>b", "a", "b"),  # opened again
    (" \n<think>a</think>b", "a", "b"),
    ("<think><think>a</think>b", "<think>a", "b"),
    ("a<think>b</think>c", "a<think>b", "c"),
    (" \n", " \n", ""),
    (" <thi", " <thi", ""),
    (" <thin</think>b", " <thin", "b"),
    ("a</think>b</think>c", "a", "b</think>c"),
    ("a</thin", "a</thin", ""),
]

TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "<thi", "nk>", "</thin", ">", "a", " 9 ", "\n", "试"])
).map("".join)


def streamed(chunks: list[str], opened: bool) -> Split:
    splitter = StreamSplitter(opened)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()
    assert all(piece.text for piece in pieces)
    parts = {part: "".join(p.text for p in pieces if p.part == part) for part in ("reasoning", "content")}
    return Split(**parts)


@pytest.mark.parametrize(("text", "reasoning", "content"), CASES)
def test_split(text: str, reasoning: str, content: str) -> None:
    assert split(text) == (reasoning, content)
    assert streamed(list(text), opened=False) == (reasoning, content)


@pytest.mark.parametrize(("text", "reasoning", "content"), OPENED)
def test_split_when_the_prompt_opened(text: str, reasoning: str, content: str) -> None:
    assert split(text, opened=True) == (reasoning, content)
    assert streamed(list(text), opened=True) == (reasoning, content)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200)), st.booleans())
def test_every_chunking_gives_the_whole(text: str, cuts: list[int], opened: bool) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert streamed(chunks, opened) == split(text, opened)


@settings(deadline=None)
@given(TEXTS, st.booleans())
def test_nothing_is_lost(text: str, opened: bool) -> None:
    reasoning, content = split(text, opened)
    tags = len(text) - len(reasoning) - len(content)
    before = text[: text.find("<think>")] if "<think>" in text else ""
    space = len(before) if not before.strip() else 0  # belongs to the opening tag
    assert tags in {0, len("</think>"), *(space + len(tags) for tags in ("<think>", "<think></think>"))}


def test_streaming_does_not_wait_longer_than_it_must() -> None:
    splitter = StreamSplitter()
    assert splitter.feed("<thi") == []
    assert splitter.feed("nk>9 *") == [Piece("reasoning", "9 *")]
    assert splitter.feed(" 4 <") == [Piece("reasoning", " 4 ")]
    assert splitter.feed("5</") == [Piece("reasoning", "<5")]
    assert splitter.feed("think>3") == [Piece("content", "3")]
    assert splitter.feed("3</think>") == [Piece("content", "3</think>")]
    assert splitter.finish() == []


def test_without_a_tag_everything_waits() -> None:
    splitter = StreamSplitter()
    assert splitter.feed("9 ") == []
    assert splitter.feed("* 4") == []
    assert splitter.feed("</think>") == [Piece("reasoning", "9 * 4")]
    undecided = StreamSplitter()
    assert undecided.feed("36<") == []
    assert undecided.finish() == [Piece("content", "36<")]


def test_opened_streams_at_once() -> None:
    assert StreamSplitter(opened=True).feed("9 * 4") == [Piece("reasoning", "9 * 4")]
