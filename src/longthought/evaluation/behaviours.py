"""What a reply does while it thinks: attempts it rejects, words of reflection, languages it mixes.

DeepSeek-R1 (arXiv:2501.12948, section 2.2.4) reports that R1-Zero learns by itself to reconsider its steps, and that it
mixes languages. Which words count is the recipe's business: they depend on the task and on the language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from longthought.core.errors import SettingsError
from longthought.verifiers.language import consistency, is_mixed

CLOSE = "</think>"
_TAG = re.compile(r"</?(?:think|answer)>")
# Scripts written without spaces: kana, Han (with its extensions), Hangul.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_LETTER = rf"[^\W{_UNSPACED}]"  # a letter, digit or underscore of a script written with spaces


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words to count.

    rejections: verdicts by which a reply discards its own attempt.  reflections: words of a second thought.
    Words of scripts with spaces match whole and in any case (``low`` is not in ``slow``); Chinese and Japanese ones
    match anywhere, as there are no word borders to find. Where several words fit, the longest counts, once.

    Example: ``Lexicon(frozenset({"low", "high", "小", "大"}), frozenset({"wait", "check", "等", "查"}))``

    Raises SettingsError for an empty word, or two words that differ only in case.
    """

    rejections: frozenset[str]
    reflections: frozenset[str]

    def __post_init__(self) -> None:
        if blank := [word for word in self.words if not word.strip()]:
            raise SettingsError(f"A lexicon cannot count the empty word {blank[0]!r}: remove it.")
        folded = Counter(_fold(word) for word in self.words)
        if twins := [word for word, times in folded.items() if times > 1]:
            raise SettingsError(f"The lexicon names {twins[0]!r} twice, differing only in case or spaces: keep one.")

    @property
    def words(self) -> frozenset[str]:
        """All words that are counted."""
        return self.rejections | self.reflections


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What was counted in the reasoning of one reply.

    words: every word of the lexicon with how often it occurs (0 included).  mixed: more than one language.
    consistency: share of the reasoning in the language of the prompt, None where there is nothing to judge.
    """

    rejected: int
    reflections: int
    words: Mapping[str, int]
    mixed: bool
    consistency: float | None


def reasoning_of(text: str) -> str:
    """The raw text before ``</think>``; all of it where the tag never comes, so that a cut reply still counts."""
    return text.partition(CLOSE)[0]


def occurrences(text: str, words: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """(start, end, word) of the words found in ``text``, left to right, without overlap."""
    if not words:
        return
    names = {_fold(word): word for word in words}
    for match in _pattern(words).finditer(text):
        yield match.start(), match.end(), names[_fold(match.group())]


def count(text: str, lexicon: Lexicon, language: str) -> Behaviour:
    """Count in the reasoning part of ``text`` (raw reply); ``language`` is that of the prompt ("en", "zh").

    Raises SettingsError for a language whose script is not known.
    """
    # Tags are markup: a lexicon may hold the words "think" or "answer".
    reasoning = _TAG.sub(" ", reasoning_of(text))
    found = Counter(word for _, _, word in occurrences(reasoning, lexicon.words))
    return Behaviour(
        rejected=sum(found[word] for word in lexicon.rejections),
        reflections=sum(found[word] for word in lexicon.reflections),
        words={word: found[word] for word in sorted(lexicon.words)},
        mixed=is_mixed(reasoning),
        consistency=consistency(reasoning, language),
    )


def _fold(word: str) -> str:
    return " ".join(word.lower().split())


@lru_cache(maxsize=32)
def _pattern(words: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(_word_pattern(word) for word in longest_first), re.IGNORECASE)


def _word_pattern(word: str) -> str:
    body = r"\s+".join(re.escape(part) for part in word.split())
    if _HAS_UNSPACED.search(word):
        return body
    return rf"(?<!{_LETTER}){body}(?!{_LETTER})"


ENGLISH = Lexicon(
    rejections=frozenset({"wrong", "incorrect", "not right", "doesn't work", "does not work", "that's not"}),
    reflections=frozenset({"wait", "mistake", "however", "but", "retry", "error", "verify", "evaluate", "check"}),
)
"""For free English text. The reflections are those that DeepSeek-R1 counts (Nature 645, 2025, supplementary); words
such as "but" have other uses too, so look at the growth of the counts and not at their level."""
