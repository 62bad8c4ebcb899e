"""Which samples hold an evaluation's questions, and which say what an earlier one says.

*Decontamination* is DeepSeek-R1's: a sample that shares 10 words in a row with a question or a reference solution is
left out (arXiv:2501.12948; paraphrases survive, as its authors say). Words are compared, whatever case, width,
punctuation or white space stands around them; Chinese and Japanese are compared by characters. A question of fewer
words counts where a sample asks exactly that; a short answer alone counts nowhere. What many questions of a set share
(instructions, templates) is no evidence and is cut out of both sides first.

*Duplicates* are texts whose 3-grams agree to 80 % (Jaccard), signs of arithmetic included. Candidates are found by
MinHash and compared exactly, so that a duplicate is always one, and one in some ten thousand at the bound is missed.

Time and memory are proportional to what is read: evaluations are kept as hashes, samples pass by one at a time.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longthought.core.errors import SettingsError

_HAN: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # and kana
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")
_SIGN = r"[+=<>^×÷√≤≥≠±]|[-/](?=\s?\d)|(?<=\d)[-/]|(?<=\d )[-/]|(?<!\*)\*(?!\*)"
_SIGNS = frozenset("+=<>^×÷√≤≥≠±-/*")
_UNIT = re.compile(rf"{_WORD.pattern}|{_SIGN}")
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+", re.MULTILINE)
_DASHES = str.maketrans("\u2010\u2011\u2012\u2013\u2212", "-----")
_TITLE = r"(?:problem|question|exercise|example|task|ex|no|q|问题|题目|例题?|习题|第)"
_LABEL = re.compile(
    rf"\s*[#*_]*(?:{_TITLE}\s*[.:#№]?\s*\d+(?:\.\d+)*(?!\w)\s*题?|{_TITLE}\s*:|\(?\d+[.):、](?=\s)|\(\d+\))[\s.:)、*_]*"
)
_JOINED = re.compile(r"(?<=\w)['\u2019](?=\w)|(?<=\d),(?=\d{3}(?!\d))")  # don't, 1,000

_COMMON, _SET = 0.5, 10  # what half of at least ten questions share is a template
_HASHES, _BANDS = 125, 25  # 5 a band: at Jaccard 0.8 a pair is missed once in 20,000, at 0.3 compared once in 17
_BUCKET = 64  # candidates of one band that are compared, the newest ones
_SEED = 20_250_122


def words(text: str) -> list[str]:
    """Words and numbers, without case, width, punctuation, or a number in front of all; Han signs and kana one by one.

    Example: ``words("12) What's 1,000 + x?") == ["whats", "1000", "x"]``
    """
    return _words(units(text))


def units(text: str) -> list[str]:
    """``words`` and signs of arithmetic, in order: 3 + 4 is not 3 - 4."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    text = "".join(sign for sign in text if sign.isascii() or unicodedata.category(sign) != "Cf")
    if label := _LABEL.match(text):
        text = text[label.end() :]
    return _UNIT.findall(_BULLET.sub("", _JOINED.sub("", text)))


def _words(found: Sequence[str]) -> list[str]:
    return [unit for unit in found if unit not in _SIGNS]


class Reference(NamedTuple):
    """A problem of an evaluation. ``solutions``: reference answers; those of fewer words than a gram count nowhere."""

    name: str
    question: str
    solutions: tuple[str, ...] = ()


class Overlap(NamedTuple):
    """What a sample shares with an evaluation: the problem's name, whether with its question, and the words."""

    problem: str
    part: str
    words: str


@dataclass
class Evaluations:
    """What no sample may hold: the n-grams of evaluations, and their short questions whole.

    n: words in a row.
    ignore: texts that questions may share, such as an instruction; what half of a set of ten or more share is found by
    itself.
    """

    n: int = 10
    ignore: Sequence[str] = ()
    problems: int = field(default=0, init=False)
    _grams: dict[bytes, int] = field(default_factory=dict, init=False, repr=False)
    _whole: dict[bytes, int] = field(default_factory=dict, init=False, repr=False)
    _common: set[bytes] = field(default_factory=set, init=False, repr=False)
    _names: list[tuple[str, str]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n < 2:
            raise SettingsError(f"decontamination: n={self.n}: at least 2 words in a row are needed")
        for text in self.ignore:
            self._common.update(key for _, key in self._keys(words(text)))

    def add(self, references: Iterable[Reference]) -> None:
        """The problems of one evaluation."""
        given = [(one, units(one.question)) for one in references]
        questions = {tuple(_words(asked)) for _, asked in given}
        if len(questions) >= _SET:
            shared = Counter(key for asked in questions for key in {key for _, key in self._keys(asked)})
            self._common.update(key for key, count in shared.items() if count >= _COMMON * len(questions))
        for one, asked in given:
            number = self._take(asked, one.name, "question")
            if (key := self._short(asked)) is not None:
                self._whole.setdefault(key, number)
            for solution in one.solutions:
                self._take(units(solution), one.name, "solution")
        self.problems += len(given)

    def overlap(self, question: str, *texts: str) -> Overlap | None:
        """The first words that a sample shares with an evaluation, in its question or another of its texts."""
        asked = units(question)
        key = self._short(asked) if self._whole else None
        if key is not None and (number := self._whole.get(key)) is not None:
            return Overlap(*self._names[number], " ".join(asked))
        for found in (_words(asked), *map(words, texts)):
            for start, key in self._keys(found):
                if (number := self._grams.get(key)) is not None:
                    return Overlap(*self._names[number], " ".join(found[start : start + self.n]))
        return None

    def _take(self, found: list[str], name: str, part: str) -> int:
        """Keep what stands in a text of an evaluation; its number among them."""
        self._names.append((name, part))
        for stretch in map(_words, self._cut(found)):
            for start, key in self._keys(stretch):
                if _is_telling(stretch[start : start + self.n]):
                    self._grams.setdefault(key, len(self._names) - 1)
        return len(self._names) - 1

    def _short(self, found: list[str]) -> bytes | None:
        """The key of a question that has no n-gram of its own; None: it has some, or says nothing."""
        stretches = self._cut(found)
        if not stretches or any(len(_words(stretch)) >= self.n for stretch in stretches):
            return None
        return _key([unit for stretch in stretches for unit in stretch])

    def _cut(self, found: list[str]) -> list[list[str]]:
        """What is left of a text without the words that a set of questions shares."""
        spots = [spot for spot, unit in enumerate(found) if unit not in _SIGNS]
        stretches, begin = [], 0
        if self._common:
            for start, key in self._keys([found[spot] for spot in spots]):
                if key in self._common:
                    stretches.append(found[begin : spots[start]])
                    begin = max(begin, spots[start + self.n - 1] + 1)
        return [stretch for stretch in (*stretches, found[begin:]) if stretch]

    def _keys(self, found: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Where every n-gram begins, and its key."""
        return ((start, _key(found[start : start + self.n])) for start in range(len(found) - self.n + 1))


@dataclass
class Duplicates:
    """Texts that have been seen. ``similarity``: from which share of common n-grams on two are the same."""

    similarity: float = 0.8
    n: int = 3
    _exact: dict[bytes, str] = field(default_factory=dict, init=False, repr=False)
    _names: list[str] = field(default_factory=list, init=False, repr=False)
    _kept: list[NDArray[np.uint64]] = field(default_factory=list, init=False, repr=False)
    _bands: dict[bytes, list[int]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.5 <= self.similarity <= 1 or self.n < 1:
            raise SettingsError(
                f"duplicates: similarity={self.similarity} must be from 0.5 (less is not found by hashing) to 1, and "
                f"n={self.n} at least 1"
            )

    def add(self, name: str, text: str, scope: str = "") -> str | None:
        """The name of an earlier text that says the same; None, and this one is kept, if there is none.

        ``scope``: only texts of one scope are compared, such as short replies to one question.
        """
        found, within = units(text), _key(units(scope))
        key = within + _key(found)
        if key in self._exact:
            return self._exact[key]
        self._exact[key] = name
        if self.similarity == 1 or not found:
            return None
        grams = _hashes(found, self.n)
        keys = [within + band for band in _band_keys(grams)]
        candidates = {number for band in keys for number in self._bands.get(band, ())[-_BUCKET:]}
        for number in sorted(candidates):
            if _jaccard(grams, self._kept[number]) >= self.similarity:
                self._exact[key] = self._names[number]
                return self._names[number]
        for band in keys:
            self._bands.setdefault(band, []).append(len(self._kept))
        self._kept.append(grams)
        self._names.append(name)
        return None


def _is_telling(gram: Sequence[str]) -> bool:
    """Whether so many words in a row mean anything: not ``0 0 0 0 0``."""
    return 2 * len(set(gram)) >= len(gram)


def _key(found: Sequence[str]) -> bytes:
    return blake2b(" ".join(found).encode("utf-8", "replace"), digest_size=8).digest()


def _hashes(found: list[str], n: int) -> NDArray[np.uint64]:
    """Hashes of the different n-grams, (grams,), sorted; a shorter text is one gram."""
    keys = b"".join(_key(found[start : start + n]) for start in range(max(1, len(found) - n + 1)))
    return np.unique(np.frombuffer(keys, "<u8").astype(np.uint64))


def _band_keys(grams: NDArray[np.uint64]) -> list[bytes]:
    """MinHash signature, cut into bands: texts that share one are compared."""
    least = np.full(_HASHES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams), 4096):
        mixed = grams[start : start + 4096, None] * _FACTORS + _SUMMANDS  # modulo 2⁶⁴
        mixed ^= mixed >> np.uint64(32)
        least = np.minimum(least, (mixed * _FACTORS).min(axis=0))
    rows = least.reshape(_BANDS, -1)
    return [bytes([number]) + row.tobytes() for number, row in enumerate(rows)]


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


_CHANCE = np.random.Generator(np.random.PCG64(_SEED))
_FACTORS = _CHANCE.integers(0, 1 << 63, _HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SUMMANDS = _CHANCE.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
