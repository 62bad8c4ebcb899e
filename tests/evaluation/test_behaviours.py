from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.evaluation.behaviours import Lexicon, count, occurrences, reasoning_of

LEXICON = Lexicon(frozenset({"low", "high", "小", "大"}), frozenset({"wait", "check", "等", "查", "let me check"}))


def test_english_reply_counted_by_hand() -> None:
    text = (
        "<think> try 9 * 3 = 27 + 4 = 31 low wait 9 + 4 = 13 HIGH Wait 9 * 4 = 36 yes </think> <answer> low </answer>"
    )
    seen = count(text, LEXICON, "en")
    assert (seen.rejected, seen.reflections) == (2, 2)
    assert seen.words == {
        "low": 1, "high": 1, "小": 0, "大": 0, "wait": 2, "check": 0, "等": 0, "查": 0, "let me check": 0,
    }  # fmt: skip
    assert not seen.mixed
    assert seen.consistency == 1.0


def test_mixed_reply_counts_words_of_both_languages() -> None:
    # Han: 试 小 等 试 对 (5 words); Latin: low (1 word)
    seen = count("<think> 试 9 + 10 = 19 小 等 试 10 * 2 = 20 low + 9 = 29 对 </think> 大 wait", LEXICON, "zh")
    assert (seen.rejected, seen.reflections) == (2, 1)
    assert seen.mixed
    assert seen.consistency == pytest.approx(5 / 6)


def test_a_reply_without_closing_tag_counts_whole() -> None:
    seen = count("<think> 试 3 + 4 = 7 小 试 3 * 4 = 12 小 等 <answer> 3", LEXICON, "zh")
    assert (seen.rejected, seen.reflections) == (2, 1)
    assert not seen.mixed  # the tags are no English words
    assert seen.consistency == 1.0


@pytest.mark.parametrize("text", ["", "<think>", "<think></think>", "</think> low wait", "<think> 9 * 3 = 27 </think>"])
def test_empty_reasoning_counts_nothing_and_has_no_language(text: str) -> None:
    seen = count(text, LEXICON, "en")
    assert (seen.rejected, seen.reflections, seen.mixed, seen.consistency) == (0, 0, False, None)


def test_words_of_spaced_scripts_match_whole() -> None:
    seen = count("slow lower below low_x low2 checked await | low, (high). low-high 试low小", LEXICON, "en")
    assert seen.words["low"] == 3  # `low,` `low-` and the one between Chinese characters
    assert seen.words["high"] == 2
    assert seen.words["小"] == 1
    assert seen.reflections == 0


def test_the_longest_word_wins_and_counts_once() -> None:
    seen = count("Let me\n check , check", LEXICON, "en")
    assert seen.words["let me check"] == 1
    assert seen.words["check"] == 1
    assert seen.reflections == 2


def test_words_are_taken_literally() -> None:
    lexicon = Lexicon(frozenset({"no."}), frozenset({"hm?"}))
    seen = count("no. nox hm? h", lexicon, "en")
    assert (seen.rejected, seen.reflections) == (1, 1)


def test_a_word_may_be_both_a_rejection_and_a_reflection() -> None:
    seen = count("no no", Lexicon(frozenset({"no"}), frozenset({"no"})), "en")
    assert (seen.rejected, seen.reflections) == (2, 2)


@pytest.mark.parametrize("words", [{""}, {"  "}, {"Wait", "wait"}, {"let me", "let  me"}])
def test_a_lexicon_that_cannot_be_counted_is_refused(words: set[str]) -> None:
    with pytest.raises(SettingsError):
        Lexicon(frozenset(), frozenset(words))


def test_an_empty_lexicon_counts_nothing() -> None:
    seen = count("low wait", Lexicon(frozenset(), frozenset()), "en")
    assert (seen.rejected, seen.reflections, dict(seen.words)) == (0, 0, {})


@given(st.lists(st.sampled_from(["low", "小", "wait", "等", "9", "*", "yes", "试"]), max_size=30))
def test_count_equals_the_words_that_were_written(words: list[str]) -> None:
    seen = count(f"<think> {' '.join(words)} </think> low 小 wait", LEXICON, "en")
    assert seen.rejected == words.count("low") + words.count("小")
    assert seen.reflections == words.count("wait") + words.count("等")


@given(st.text())
def test_any_text_is_counted(text: str) -> None:
    seen = count(text, LEXICON, "en")
    assert seen.rejected + seen.reflections == sum(seen.words.values())
    spans = [(start, end) for start, end, _ in occurrences(text, LEXICON.words)]
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert text.startswith(reasoning_of(text))
