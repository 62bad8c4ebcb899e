"""Multiple choice: which letter does a reply end with?"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict

MAX_CHARS = 100_000

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_WRAPPER = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|boldsymbol|textit|mbox|rm|bf|left|right)(?![a-zA-Z])|[{}$*_`]|\\[()\[\]]"
)
_MARK = re.compile(
    r"(?i)(?:\b(?:answer|option|choice)s?(?:\s+is|\s+are|\s*[:=])+(?:\s+(?:option|choice|letter))?|####"
    r"|\b(?:choose|pick|select)(?:\s+(?:option|choice))?)\s*[:=]?\s*"
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


@dataclass(frozen=True)
class Choice:
    """The letter that a reply settles on against the problem's answer.

    Read are the last ``\\boxed{}``; else what follows the last "answer is", "Answer:", "option is"; else a reply that
    is nothing but a choice: ``C``, ``(C)``, ``C.``, ``C) the text``, ``\\text{(C)}``. Two different letters there are
    wrong. An article ("A dog") is no answer.

    The problem's answer is a letter, or the text of an option, or its number counted from 0, where
    ``problem.info["options"]`` holds the options: a JSON list, or one option per line. A reply may then give the text.
    """

    letters: str = "ABCDEFGHIJ"

    def __post_init__(self) -> None:
        if not (self.letters.isascii() and self.letters.isalpha() and self.letters.isupper()):
            raise SettingsError(f"letters={self.letters!r}: capital letters, A to Z")
        if len(set(self.letters)) != len(self.letters):
            raise SettingsError(f"letters={self.letters!r}: a letter stands twice")

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        options = _options(problem)
        letters = self.letters[: len(options)] if options else self.letters
        gold = _gold(problem.answer, letters, options)
        if gold is None:
            return Verdict(None, Outcome.NO_GOLD, f"the problem's answer {problem.answer[:80]!r} is none of {letters}")
        if len(reply.content) > MAX_CHARS:
            return Verdict(0.0, Outcome.UNPARSABLE, f"longer than {MAX_CHARS} characters")
        said = _said(reply.content, letters, options)
        if not said:
            return Verdict(0.0, Outcome.UNPARSABLE, "names no choice")
        if len(said) > 1:
            return Verdict(0.0, Outcome.GRADED, f"names {', '.join(said)}")
        return Verdict(float(said == [gold]), Outcome.GRADED, f"names {said[0]}, gold is {gold}")


def _options(problem: Problem) -> list[str]:
    text = problem.info.get("options", "")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        found = text.splitlines()
    return [str(option) for option in found if str(option).strip()]


def _gold(answer: str, letters: str, options: Sequence[str]) -> str | None:
    if letter := _letters(_unwrapped(answer), letters):
        return letter[0] if len(letter) == 1 else None
    texts = [_plain(option) for option in options]
    if texts.count(_plain(answer)) == 1:
        return letters[texts.index(_plain(answer))]
    number = answer.strip()
    if options and number.isascii() and number.isdigit() and int(number[:9]) < len(letters):
        return letters[int(number[:9])]
    return None


def _said(text: str, letters: str, options: Sequence[str]) -> list[str]:
    """The different letters of the place where the answer stands."""
    if boxes := _BOXED.findall(text):
        return _chosen(boxes[-1], letters, options)
    marks = list(_MARK.finditer(_unwrapped(text)))
    if marks:
        rest = _unwrapped(text)[marks[-1].end() :].strip()
        end = _SENTENCE_END.search(rest, 2)
        return _chosen(rest[: end.start()] if end else rest, letters, options)
    return _chosen(text, letters, options)


def _chosen(place: str, letters: str, options: Sequence[str]) -> list[str]:
    place = _unwrapped(place)
    if found := _letters(place, letters):
        return found
    texts = [_plain(option) for option in options]
    plain = _plain(place)
    return [letters[texts.index(plain)]] if texts.count(plain) == 1 else []


def _letters(place: str, letters: str) -> list[str]:
    """Letters that stand as choices: alone, in parentheses, or before ``.``, ``)`` or ``:`` at the start."""
    one = f"[{letters}]"
    place = place.strip()
    alone = rf"\(?({one}|{one.lower()})\)?[.:,;]?"
    if whole := re.fullmatch(alone, place):
        return [whole[1].upper()]
    if not re.sub(rf"\(?\b{one}\b\)?|\b(?:and|or)\b|[,;/&.\s]", "", place):  # nothing but letters
        found = re.findall(rf"(?<![a-zA-Z]){one}(?![a-zA-Z])", place)
    elif start := re.match(rf"\(({one})\)|({one})(?:[.):]|\s*[-–—]\s|$)", place):
        found = [start[1] or start[2], *re.findall(rf"\(({one})\)|\b(?:or|and)\s+({one})\b", place[start.end() :])]
        found = [letter if isinstance(letter, str) else letter[0] or letter[1] for letter in found]
    elif start := re.match(rf"({one})(?=\s+(?:or|and|because|since|as|is)\b|,)", place):
        if start[1] == "A" and not re.match(r"A(?:\s+(?:or|and|because|since)\b|,)", place):
            return []
        found = [start[1], *re.findall(rf"\b(?:or|and)\s+\(?({one})\b", place)]
    else:
        found = re.findall(rf"\(({one})\)", place)
    return list(dict.fromkeys(found))


def _unwrapped(text: str) -> str:
    return _WRAPPER.sub("", text)


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", _unwrapped(text)).strip().removesuffix(".")
    return " ".join(text.casefold().split())
