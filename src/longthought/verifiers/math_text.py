"""What of a reply is its answer, and what must never reach a parser. Text only: nothing here knows mathematics."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARS = 1500
MAX_PROSE = 3000
MAX_NESTING = 24
MAX_DIGITS = 1000
MAX_EXPONENT_DIGITS = 5
MAX_SYMBOLS = 600


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: ``latex``, or, with ``prose``, a text in which math-verify is to look for it."""

    text: str
    prose: bool = False


_SYMBOLS = {
    "−": "-", "–": "-", "∗": "*", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "±": r"\pm ", "°": r"^{\circ}", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "θ": r"\theta ", "∅": r"\emptyset ", "，": ",", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SYMBOLS)
_PERCENT = re.compile(r"\$?\s{0,3}\\?%")
_CURRENCY = re.compile(r"[€£¥₹₽₩₺]\s*(?=[0-9])|(?<=[0-9])\s*[€£¥₹₽₩₺]")
_IMAGINARY = re.compile(r"(?<=[0-9})])i(?![a-zA-Z])")
_LETTER = re.compile(r"(?<![a-zA-Z])\\(?:mathrm|text|operatorname)\s*\{\s*([ei])\s*\}")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9.]+|[a-zA-Z]))")

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_LIST_BETWEEN = re.compile(r"\b(?:and|or)\b|,|;")
_MARKER = re.compile(r"(?i)\banswers?\b\s*(?:(?:is|are)\b\s*:?|:|=)\**\s*|####\s*")
_FINAL = re.compile(r"(?i)final answer is:?\s*(?=\S{0,3}[0-9$\\])")
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_MATH = re.compile(r"(?s)(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_WHOLE = re.compile(r"(?s)\s*(?:\$\$?|\\\(|\\\[)\s*(.*?)\s*(?:(?<!\\)\$\$?|\\\)|\\\])\s*\.?\s*")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf|textit|operatorname|begin|end)\s*\*?\{[^{}]*\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_HEDGE = re.compile(r"(?i)[0-9})]\W{0,3}(?:\bor\b|\bmaybe\b|\bperhaps\b)")

_MACROS = re.compile(
    r"\\(?:def|edef|gdef|xdef|let|newcommand|renewcommand|providecommand|input|include|write|openout|csname|expandafter"
    r"|loop|repeat|catcode|immediate|read|usepackage|documentclass|special|directlua|label|ref|url|href)(?![a-zA-Z])"
)
_CODE = re.compile(r"__|\b(?:import|lambda|exec|eval|globals|getattr|subclasses|subprocess)\b|\bos\s*\.\s*\w+\s*\(")
_LONG_NUMBER = re.compile(rf"[0-9](?:[0-9]|\\?[,!_ ]){{{MAX_DIGITS},}}")
_BIG_EXPONENT = re.compile(rf"(?:\^|\*\*)\s*[{{(\s+-]*[0-9]{{{MAX_EXPONENT_DIGITS},}}")
_BIG_POWER = re.compile(r"[0-9.]{7,}[)}\s]*(?:\^|\*\*)\s*[{(\s+-]*[0-9]{4,}")
_FACTORIALS = re.compile(
    r"(?:\^|\*\*)\s*\{?\s*[0-9]+\s*\}?\s*[)}]?\s*!|!\s*[)}\]\s]*!|[0-9]{5,}\s*[)}]*\s*!|!\s*[)}]*\s*(?:\^|\*\*)|(?:\^|\*\*)\s*[{(]?[^{}()]{0,40}!"
)
_EXPONENTIALS = re.compile(r"\\exp.{0,12}\\exp.{0,12}\\exp", re.DOTALL)
_TOKENS = re.compile(r"\*\*|\\?[a-zA-Z]+|[0-9][0-9.]*|\S")
_POWERS = ("^", "**")
_OPENING, _CLOSING = "({[", ")}]"
_BRACKETS = tuple(_OPENING)


def plain_symbols(text: str) -> str:
    """Mathematical characters of Unicode as LaTeX, percent signs and upright constants as the grammar knows them."""
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    text = _LETTER.sub(r"\1", _CURRENCY.sub("", text.translate(_TRANSLATION)))
    text = _IMAGINARY.sub(" i", text)
    return _PERCENT.sub(lambda match: ("$" if match[0][0] == "$" else "") + r"\%", text)


def find(text: str) -> Found | None:
    """The answer in a reply or in a gold answer; None when there is none.

    The last ``\\boxed{}`` counts, with those that stand close before it (they are one list, as for math-verify: several
    different answers are not one of them). Without a box: what follows the last "answer is", "Answer:" or ``####``,
    else the whole text.
    """
    boxes = list(_boxes(text))
    final = _FINAL.search(text, boxes[-1][1]) if boxes else None
    if final:
        boxes, text = [], text[final.start() :]
    if boxes:
        joined = ", ".join(_last_list(text, boxes))
        return Found(joined) if joined.strip(" ,") else None
    tail = _after_marker(text)
    return _short(tail) if tail is not None else _short(text)


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of every box, those inside a box left out."""
    position = 0
    while match := _BOX.search(text, position):
        position = match.end()
        if text[position : position + 1] == "{":
            end = _closing(text, position)
            if end is None:  # cut off, or a closing brace was forgotten
                yield match.start(), len(text), text[position + 1 :].partition("\n")[0].rstrip(" $")
                return
            yield match.start(), end + 1, text[position + 1 : end].strip()
            position = end + 1
        elif found := re.compile(r"[^\s$\\{}]+").match(text, position):
            yield match.start(), found.end(), found[0].rstrip(".")


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0 and match[0] == "}":
            return match.start()
    return None


def _last_list(text: str, boxes: list[tuple[int, int, str]]) -> list[str]:
    """The last box with its neighbours: fewer than 10 characters apart, or fewer than 70 with a comma, and, or."""
    chosen = [boxes[-1]]
    for before in reversed(boxes[:-1]):
        between = text[before[1] : chosen[0][0]]
        if not (len(between) < 10 or (len(between) < 70 and _LIST_BETWEEN.search(between))):
            break
        chosen.insert(0, before)
    contents = [content for _, _, content in chosen]
    return [content for number, content in enumerate(contents) if content not in contents[:number]]


def _after_marker(text: str) -> str | None:
    """The rest of the sentence after the last marker of an answer."""
    ends = [match.end() for match in _MARKER.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] :].lstrip(" *:\n")
    if rest.startswith(("$$", r"\[")):
        return rest
    end = _SENTENCE_END.search(rest)
    return (rest[: end.start()] if end else rest).strip() or None


def _short(text: str) -> Found | None:
    """An answer that stands alone, or prose that holds one."""
    text = text.replace(r"\"", "").replace('"', "").strip().strip("*").strip()
    if not text:
        return None
    if len(text) > MAX_PROSE:
        return Found(text[-MAX_PROSE:], prose=True) if len(text.split()) > 20 else Found(text)
    whole = _WHOLE.fullmatch(text)
    if whole and not re.search(r"(?<!\\)\$|\\\(|\\\[", whole[1]):
        return Found(whole[1])
    bare = _MATH.sub(" ", text)
    if bare != text and not _WORD.search(re.sub(r"\b(?:and|or)\b", " ", bare)):
        return Found(_MATH.sub(lambda match: next(group for group in match.groups() if group), text))
    prose = _WORD.search(
        re.sub(r"\b(?:and|or|sqrt|infinity|inf|cup|pi)\b", " ", _COMMAND.sub(" ", _TEXT_COMMAND.sub(" ", text)))
    )
    if prose and len(text.split()) > 1 and re.search(r"[0-9$\\]", text) and not _HEDGE.search(text):
        return Found(text[-MAX_PROSE:], prose=True)
    return Found(text.rstrip(".") if not text.endswith("...") else text)


def refusal(text: str) -> str | None:
    """Why a text must not reach a parser: it would cost too much, or is no mathematics; None when it may."""
    reasons = (_unreadable, _too_long, _too_deep, _too_big)
    return next((reason for check in reasons if (reason := check(text))), None)


def _unreadable(text: str) -> str | None:
    for character in text:
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cf", "Co", "Cs", "Cn") and character not in "\n\t\r":
            return f"holds the character U+{ord(character):04X}"
        if kind == "Nd" and not character.isascii():
            return "holds digits that are not 0-9"
    if found := _MACROS.search(text):
        return f"holds the macro {found[0]}"
    if found := _CODE.search(text):
        return f"holds program code ({found[0]!a})"
    return None


def _too_long(text: str) -> str | None:
    if len(text) > MAX_PROSE:
        return f"longer than {MAX_PROSE} characters"
    if _LONG_NUMBER.search(text):
        return f"holds a number of more than {MAX_DIGITS} digits"
    symbols = len(re.findall(r"[-+*/^_=<>|!&]|\\[a-zA-Z]+", text))
    return f"holds more than {MAX_SYMBOLS} operators" if symbols > MAX_SYMBOLS else None


def _too_deep(text: str) -> str | None:
    depth = deepest = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"brackets nested deeper than {MAX_NESTING}"
    return "a tower of exponents" if _tower(text) or _EXPONENTIALS.search(text) else None


def _tower(text: str) -> bool:
    """Whether exponents stand on exponents three deep, in a chain, or two deep with numbers that make a giant."""
    tokens = _TOKENS.findall(text)
    spans = [(place, *_exponent(tokens, place)) for place, token in enumerate(tokens) if token in _POWERS]
    for _, start, end in spans:
        if end < len(tokens) and tokens[end] in _POWERS:
            return True
        inside = [span for span in spans if start <= span[0] < end]
        if any(other[1] <= span[0] < other[2] for span in inside for other in inside):
            return True
        if any(_digits(tokens, *span) > MAX_EXPONENT_DIGITS - 1 for span in inside):
            return True
    return False


def _exponent(tokens: list[str], place: int) -> tuple[int, int]:
    """Where the exponent after ``^`` starts and ends."""
    start = place + 1
    if start >= len(tokens) or tokens[start] not in _BRACKETS:
        signed = start < len(tokens) and tokens[start] in "+-"
        return start, min(start + 1 + signed, len(tokens))
    depth = 0
    for end in range(start, len(tokens)):
        depth += (tokens[end] in "({[") - (tokens[end] in ")}]")
        if depth == 0:
            return start, end + 1
    return start, len(tokens)


def _digits(tokens: list[str], place: int, start: int, end: int) -> float:
    """How many digits the power at ``place`` has, if it is one of numbers; a base in brackets counts as ten."""
    exponent = next((token for token in tokens[start:end] if token[0].isdigit()), "0")
    base = tokens[place - 1] if place else "0"
    if base[0].isdigit() or base == "e":
        value = max(float(base), 1.0) if base != "e" and base.count(".") < 2 else math.e
        return float(exponent.partition(".")[0]) * math.log10(value)
    return float(exponent.partition(".")[0]) if base in ")}]" else 0.0


def _too_big(text: str) -> str | None:
    if _BIG_EXPONENT.search(text) or _BIG_POWER.search(text):
        return "an exponent that is too large"
    return "a factorial that is too large" if _FACTORIALS.search(text) else None
