"""Which replies are good enough to learn from: the filters of R1's cold start and rejection sampling.

DeepSeek-R1 (arXiv:2501.12948, sections 2.3.1 and 2.3.3) keeps replies that are right and can be read, and drops those
that mix languages, run on in long paragraphs or hold code blocks in their chain of thought. A filter looks at one
rollout and says what is wrong with it; it needs no model, and its bounds are its fields.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

from longthought.algorithms.shaping import repetition_penalty
from longthought.core.errors import SettingsError
from longthought.core.types import CUT, Problem, Rollout
from longthought.text.reasoning import CLOSE, OPEN, split
from longthought.verifiers.language import SCRIPTS, consistency

_HAN: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # and kana
_WORD = re.compile(rf"[{_HAN}]|[^\W\d_{_HAN}]+")
_UNIT = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+|[^\w\s]+")
_FENCE = re.compile(r"```|^[ \t>]*~~~|<(?:code|pre)\b|\\begin\{(?:verbatim|lstlisting|minted)\}", re.MULTILINE | re.I)
_OPENING = re.compile(r"(?P<fence>```|~~~)|(?P<line>`|\$(?!\$))|\$\$|\\\(|\\\[|\\begin\{(?P<name>\w{1,20}\*?)\}")
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}
_INLINE = 400  # characters of maths or code within a line
_NO_PROSE = re.compile(r"\\[A-Za-z]+|</?(?:think|answer)>|https?://\S+")
_MARKUP = re.compile(
    r"<[|｜][^|｜<>\n]{1,60}[|｜]>|</?s>|<(?:pad|unk|bos|eos|mask|start_of_turn|end_of_turn)>|\[/?INST\]"
)
_FUNCTIONS = ("sin", "cos", "tan", "cot", "log", "ln", "lg", "exp", "lim", "max", "min", "mod", "gcd", "lcm", "det")
_SYMBOLS = frozenset((*_FUNCTIONS, "km", "cm", "mm", "kg", "mg", "ml"))
_POINTS = 4  # letters of a figure's name, such as ABCD
_TAGS = re.compile(r"</?answer>")
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Filter(Protocol):
    """What is wrong with a rollout, in a few words; None if nothing is. ``name`` is what is counted."""

    @property
    def name(self) -> str: ...

    def __call__(self, rollout: Rollout, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Correct:
    """The answer is right, by the score of the task."""

    name: str = field(default="not right", init=False)

    def __call__(self, rollout: Rollout, /) -> str | None:
        score = rollout.score
        if score.correct:
            return None
        return f"not graded: {score.verdict.outcome}" if score.value is None else "wrong"


@dataclass(frozen=True, slots=True)
class Uncut:
    """The reply ended by itself, not at a limit."""

    name: str = field(default="cut", init=False)

    def __call__(self, rollout: Rollout, /) -> str | None:
        finish = rollout.completion.finish
        return f"cut by its {finish} limit" if finish in CUT else None


@dataclass(frozen=True, slots=True)
class Readable:
    """One reasoning that is closed, then a summary; no characters that nobody can read.

    reasoning: an empty reasoning will not do.
    answer: the summary states the problem's answer, as it is written there, case and space aside. (A reply that a
    ``Grading`` calls right has a right answer in its summary, in whatever notation.)
    """

    reasoning: bool = True
    answer: bool = False
    name: str = field(default="unreadable", init=False)

    def __call__(self, rollout: Rollout, /) -> str | None:
        text = rollout.text
        if text.count(CLOSE) != 1 or text.count(OPEN) > 1:
            return f"{OPEN} stands {text.count(OPEN)} times, {CLOSE} {text.count(CLOSE)} times"
        before, opening, _ = text.partition(OPEN)
        if opening and (before.strip() or CLOSE in before):
            return f"text before {OPEN}"
        if any(_is_unreadable(sign) for sign in text):
            return "characters that cannot be read"
        reasoning, summary = split(text)
        if self.reasoning and not reasoning.strip():
            return "no reasoning"
        if not _TAGS.sub("", summary).strip():
            return "no summary"
        if self.answer and not _states(summary, rollout.problem.answer):
            return "the summary does not state the answer"
        return None


@dataclass(frozen=True, slots=True)
class NoMarkup:
    """No special tokens of a chat format, such as ``<|user|>``: a reply that goes on as somebody else, or is broken."""

    name: str = field(default="markup", init=False)

    def __call__(self, rollout: Rollout, /) -> str | None:
        found = _MARKUP.search(rollout.text)
        return f"holds {found[0]}" if found else None


@dataclass(frozen=True, slots=True)
class OneLanguage:
    """At least this share of the words is in the language of the prompt, of the reasoning and of the summary alike.

    Words are those of ``verifiers.language``. Code, maths, LaTeX and addresses are none; nor are, in other scripts than
    the prompt's, names of quantities, points, functions and units (n, ABC, sin, km), and what the prompt says itself.
    The language is ``problem.info["language"]``, else that
    in which the prompt has most words.
    """

    least: float = 0.95
    name: str = field(default="mixed language", init=False)

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise SettingsError(f"filters: OneLanguage(least={self.least}): a share above 0, and at most 1")

    def __call__(self, rollout: Rollout, /) -> str | None:
        language = language_of(rollout.problem)
        asked = frozenset(_foreign(_question(rollout.problem), language))
        for part, text in zip(("reasoning", "summary"), split(rollout.text)):
            words = [word for word in _words(text, language) if word.casefold() not in asked]
            share = consistency(" ".join(words), language)
            if share is not None and share < self.least:
                return f"{share:.0%} of the {part} is in the prompt's language, {language}"
        return None


@dataclass(frozen=True, slots=True)
class ShortParagraphs:
    """No paragraph, which a line break ends, of more than ``most`` characters."""

    most: int = 2_000
    name: str = field(default="long paragraph", init=False)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise SettingsError(f"filters: ShortParagraphs(most={self.most}): must be at least 1")

    def __call__(self, rollout: Rollout, /) -> str | None:
        longest = max((len(line.strip()) for line in rollout.text.splitlines()), default=0)
        return f"a paragraph of {longest:,} characters" if longest > self.most else None


@dataclass(frozen=True, slots=True)
class NoCode:
    """No block of code in the reasoning (fenced, ``<code>``, ``<pre>``, verbatim). The summary may have some."""

    name: str = field(default="code block", init=False)

    def __call__(self, rollout: Rollout, /) -> str | None:
        found = _FENCE.search(split(rollout.text).reasoning)
        return f"{found[0].strip()} in the reasoning" if found else None


@dataclass(frozen=True, slots=True)
class Unrepeated:
    """At most this share of the ``n``-grams has come before, and none comes more than ``times`` times.

    Units are words, numbers, runs of signs, and Chinese and Japanese characters, so that no tokenizer matters. The
    second bound finds a loop in a long text: AM-DeepSeek-R1-Distilled drops what says 20 units more than 20 times.
    """

    n: int = 10
    most: float = 0.3
    times: int = 20
    name: str = field(default="repetition", init=False)

    def __post_init__(self) -> None:
        if self.n < 1 or self.times < 1 or not 0 <= self.most <= 1:
            raise SettingsError(f"filters: {self}: n and times at least 1, and most a share")

    def __call__(self, rollout: Rollout, /) -> str | None:
        units = _UNIT.findall(rollout.text.casefold())
        share = -repetition_penalty(units, self.n, -1.0)
        if share > self.most:
            return f"{share:.0%} of the {self.n}-grams have come before"
        grams = Counter(tuple(units[start : start + self.n]) for start in range(len(units) - self.n + 1))
        gram, count = max(grams.items(), key=lambda item: item[1], default=((), 0))
        return f"{count} times {' '.join(gram)!r}" if count > self.times else None


@dataclass(frozen=True, slots=True)
class Length:
    """From ``least`` to ``most`` tokens, the end token included."""

    least: int = 1
    most: int | None = None
    name: str = field(default="length", init=False)

    def __post_init__(self) -> None:
        if self.least < 0 or (self.most is not None and self.most < max(1, self.least)):
            raise SettingsError(f"filters: Length(least={self.least}, most={self.most}): no reply has such a length")

    def __call__(self, rollout: Rollout, /) -> str | None:
        tokens = len(rollout.completion.token_ids)
        if tokens < self.least:
            return f"{tokens:,} tokens, fewer than {self.least:,}"
        return f"{tokens:,} tokens, more than {self.most:,}" if self.most is not None and tokens > self.most else None


class Dropped(NamedTuple):
    """A rollout with the name of the first filter that refused it, and what it said."""

    rollout: Rollout
    name: str
    reason: str


class Screened(NamedTuple):
    """What filters made of some rollouts, in their order."""

    kept: list[Rollout]
    dropped: list[Dropped]

    @property
    def counts(self) -> dict[str, int]:
        """How many each filter dropped; with what was kept they add up to all."""
        return dict(Counter(one.name for one in self.dropped))


READABLE: Final[tuple[Filter, ...]] = (
    Uncut(),
    NoMarkup(),
    Readable(),
    OneLanguage(),
    ShortParagraphs(),
    NoCode(),
    Unrepeated(),
)
"""R1's filters beside that for right answers."""


@dataclass(frozen=True)
class Screen:
    """Filters, asked in order; the first that refuses a rollout is the reason why it is dropped."""

    filters: tuple[Filter, ...] = READABLE

    def __post_init__(self) -> None:
        names = sorted(one.name for one in self.filters)
        if twice := [name for name, following in pairwise(names) if name == following]:
            raise SettingsError(f"filters: two are named {twice[0]!r}, and would be counted as one; leave one out")

    def __call__(self, rollouts: Sequence[Rollout]) -> Screened:
        """What is kept, and what is dropped and why."""
        found = Screened([], [])
        for rollout in rollouts:
            refusal = self.refusal(rollout)
            if refusal is None:
                found.kept.append(rollout)
            else:
                found.dropped.append(Dropped(rollout, *refusal))
        return found

    def refusal(self, rollout: Rollout) -> tuple[str, str] | None:
        """Name and reason of the first filter that refuses; None: all let it pass."""
        for one in self.filters:
            if (reason := one(rollout)) is not None:
                return one.name, reason
        return None


def language_of(problem: Problem) -> str:
    """The language that a reply should keep to, one of ``SCRIPTS``: as the problem states it, or as it is written."""
    stated = problem.info.get("language", "")
    return stated if stated in SCRIPTS else _written_in(_question(problem))


def prose(text: str) -> str:
    """Text without code, maths, LaTeX commands, tags and addresses, in one width (NFKC)."""
    return unicodedata.normalize("NFKC", _NO_PROSE.sub(" ", " ".join(_outside(text))))


def _outside(text: str) -> Iterator[str]:
    """What stands outside of code and maths. Linear in the text: a closing that is missing is looked for once."""
    position, missing = 0, set[str]()
    while opening := _OPENING.search(text, position):
        yield text[position : opening.start()]
        position = opening.end()
        closing = f"\\end{{{opening['name']}}}" if opening["name"] else _CLOSING.get(opening[0], opening[0])
        if opening["line"]:
            last = min(position + _INLINE, len(text))
            line_end = text.find("\n", position, last)
            end = text.find(closing, position, last if line_end < 0 else line_end)
            if closing == "$" and not _is_formula(text, position, end):
                continue
        else:
            end = -1 if closing in missing else text.find(closing, position)
        if end >= 0:
            position = end + len(closing)
        elif opening["fence"]:
            return
        elif not opening["line"]:
            missing.add(closing)
    yield text[position:]


def _is_formula(text: str, start: int, end: int) -> bool:
    """Whether dollars are no money, by the rule of pandoc: no space inside of them, no digit after the second."""
    return end > start and not (text[start].isspace() or text[end - 1].isspace() or text[end + 1 : end + 2].isdigit())


@lru_cache(maxsize=1024)
def _written_in(text: str) -> str:
    plain = prose(text)
    return max(SCRIPTS, key=lambda language: consistency(plain, language) or 0.0)


def _question(problem: Problem) -> str:
    return "\n".join(message.content for message in problem.messages)


def _words(text: str, language: str) -> list[str]:
    """The words of the prose, without symbols in a script that is not the language's."""
    found = _WORD.findall(prose(text))
    return [word for word in found if not _is_symbol(word) or consistency(word, language)]


@lru_cache(maxsize=1024)
def _foreign(text: str, language: str) -> tuple[str, ...]:
    words = set(_WORD.findall(unicodedata.normalize("NFKC", text)))
    return tuple(word.casefold() for word in words if consistency(word, language) == 0.0)


@lru_cache(maxsize=65_536)
def _is_symbol(word: str) -> bool:
    """Whether a word in Latin or Greek letters may name a quantity, points, a function or a unit."""
    short = len(word) == 1 or (len(word) <= _POINTS and word.isupper()) or word.casefold() in _SYMBOLS
    return short and unicodedata.name(word[0], "").startswith(("LATIN", "GREEK"))


def _is_unreadable(sign: str) -> bool:
    return sign == "\ufffd" or (sign not in "\n\r\t" and unicodedata.category(sign) in ("Cc", "Cs", "Cn"))


def _states(summary: str, answer: str) -> bool:
    """Whether the answer stands there as a whole: 33 is not in 133, 33.5 or -33."""
    tokens = [re.escape(token) for token in _TOKEN.findall(answer.casefold())]
    edges = r"(?<![^\W{0}])(?<!\d[.,])(?<![-\u2212])", r"(?![^\W{0}])(?![.,]\d)"
    begin, end = (edge.replace("{0}", _HAN) for edge in edges)
    return bool(tokens) and re.search(begin + r"\s*".join(tokens) + end, summary.casefold()) is not None
