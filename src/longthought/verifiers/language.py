"""Does a reasoning keep to one language? Told by script, word by word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Final

from longthought.core.errors import SettingsError

SCRIPTS: Final[Mapping[str, frozenset[str]]] = {
    "en": frozenset({"LATIN"}),
    "zh": frozenset({"CJK"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    "ru": frozenset({"CYRILLIC"}),
}
"""Scripts, by the first word of Unicode's character names, in which the words of a language are written."""

_TAG = re.compile(r"</?(?:think|answer)>")


def consistency(text: str, language: str) -> float | None:
    """Share of the words of a reasoning that belong to a language, Num(words of it) / Num(words); None without words.

    Words are maximal runs of letters of one script, and every Han character is a word. Numbers, operators, punctuation
    and the tags of the format are no words. Languages of one script are not told apart. Raises ``SettingsError`` on a
    language that ``SCRIPTS`` lacks.

    Source: the language consistency reward of DeepSeek-R1 (arXiv:2501.12948, section 2.3.2).
    """
    if language not in SCRIPTS:
        raise SettingsError(f"no script is known for language {language!r}; choose from {', '.join(SCRIPTS)}")
    words = list(_words(text))
    return sum(word in SCRIPTS[language] for word in words) / len(words) if words else None


def is_mixed(text: str) -> bool:
    """Whether words of more than one script appear. (Japanese, written in three, is always mixed.)"""
    return len(set(_words(text))) > 1


def _words(text: str) -> Iterator[str]:
    """The script of every word, in order."""
    for script, run in groupby(_plain(text), key=_script):
        if script == "CJK":
            yield from (script for _ in run)
        elif script:
            yield script


def _plain(text: str) -> str:
    """Without tags; full-width letters become Latin ones, and accents join their letters."""
    return unicodedata.normalize("NFKC", _TAG.sub(" ", text))


@lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    """Script of a letter; empty for anything else."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    return re.split("[ -]", unicodedata.name(character, ""), maxsplit=1)[0]
