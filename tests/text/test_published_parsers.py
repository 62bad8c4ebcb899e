# ruff: noqa: E501  the cases are a table
"""The cases by which vLLM and SGLang test their parsers, as data, whole and cut in every place.

Sources: vLLM ``tests/reasoning/test_deepseekr1_reasoning_parser.py``, ``test_base_thinking_reasoning_parser.py`` (its
tags renamed) and ``test_qwen3_reasoning_parser.py``; SGLang ``test/srt/test_reasoning_parser.py``. None is "". A parser
that takes text without tags for reasoning is ``opened``.
"""

from __future__ import annotations

import pytest

from longthought.text.reasoning import StreamSplitter, split

SECTION, REST = "This is a reasoning section", "This is the rest"

AGREED = [
    # vLLM, deepseek_r1 and base
    (True, f"{SECTION}</think>{REST}", SECTION, REST),
    (True, f"{SECTION}</think>", SECTION, ""),
    (True, "This is content", "This is content", ""),
    (True, SECTION, SECTION, ""),
    (True, f"This\nThat</think>{REST}\nThat", "This\nThat", f"{REST}\nThat"),
    (True, f"</think>{REST}", "", REST),
    (True, f"<think>{SECTION}</think>{REST}", SECTION, REST),
    (True, f"<think>{SECTION}</think>", SECTION, ""),
    (True, f"<think>This\nThat</think>{REST}\nThat", "This\nThat", f"{REST}\nThat"),
    (True, f"<think>{SECTION}", SECTION, ""),
    (True, "", "", ""),
    (True, f"\n<think>{SECTION}</think>\n{REST}", SECTION, f"\n{REST}"),
    (True, "<think></think>", "", ""),
    (True, "First</think>Middle</think>Last", "First", "Middle</think>Last"),
    (True, "<think>Outer<think>Inner</think>Content", "Outer<think>Inner", "Content"),
    (True, "<thinking>Not a tag</thinking>Content", "<thinking>Not a tag</thinking>Content", ""),
    # vLLM, qwen3, thinking on and off
    (True, "<think>This is a reasoning\nsection</think>This is the rest\nThat", "This is a reasoning\nsection", "This is the rest\nThat"),
    (False, "This is plain content", "", "This is plain content"),
    # SGLang, base and Qwen3
    (False, "This is normal text", "", "This is normal text"),
    (False, "<think>This is reasoning", "This is reasoning", ""),
    (False, "<think>This is reasoning</think>This is normal", "This is reasoning", "This is normal"),
    (False, "<think></think>Just the answer.", "", "Just the answer."),
    (False, "<think>Let me think about this problem</think>The answer is 42.", "Let me think about this problem", "The answer is 42."),
    (False, "</answer", "", "</answer"),
    (False, "<this is text", "", "<this is text"),
    (False, "</random>", "", "</random>"),
    # SGLang, DeepSeek-R1 and Qwen3 that must reason
    (True, "I need to think about this. The answer is 42.", "I need to think about this. The answer is 42.", ""),
    (True, "I think this is the answer</think>The final answer is 42.", "I think this is the answer", "The final answer is 42."),
    (True, "<think>I need to think about this.</think>The answer is 42.", "I need to think about this.", "The answer is 42."),
]  # fmt: skip


@pytest.mark.parametrize(("opened", "text", "reasoning", "content"), AGREED)
def test_published_cases(opened: bool, text: str, reasoning: str, content: str) -> None:
    assert split(text, opened) == (reasoning, content)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            splitter = StreamSplitter(opened)
            pieces = [p for chunk in (text[:first], text[first:second], text[second:]) for p in splitter.feed(chunk)]
            pieces += splitter.finish()
            parts = {part: "".join(p.text for p in pieces if p.part == part) for part in ("reasoning", "content")}
            assert (parts["reasoning"], parts["content"]) == (reasoning, content)


@pytest.mark.parametrize(("opened", "text", "reasoning", "content"), [case for case in AGREED if "</think>" in case[1]])
def test_a_closing_tag_says_as_much_as_being_told(opened: bool, text: str, reasoning: str, content: str) -> None:
    assert split(text, not opened) == (reasoning, content)
