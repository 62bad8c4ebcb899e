"""How different the examples of a set are, and whether they have collapsed since the first round of a flywheel.

Every measure that would fall for no other reason than a larger set is taken in blocks of equal size: rounds that kept
more or fewer examples can be compared. Words are those of ``text.decontaminate.units``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Final, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.runs.files import new_folder
from longthought.runs.place import Place
from longthought.stages.example_set import ExampleSet
from longthought.stages.measure import Folder
from longthought.stages.sifting import DUPLICATE, asked, lot
from longthought.tasks.examples import Examples
from longthought.text.decontaminate import units

MEASURES, TOLD = "diversity.json", "diversity.txt"
GUARDED: Final = ("distinct_ngrams", "distinctness", "answer_entropy", "coverage", "unrepeated")
_ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
_TAGS = re.compile(r"</?answer>")
_REPLIES = 16  # of one prompt that are compared with each other

_WORDS: Final = {
    "distinct_ngrams": "share of different n-grams in a block of them",
    "distinctness": "1 − common share of n-grams of two replies to one prompt",
    "answer_entropy": "entropy of the answers of a block, of what is possible",
    "coverage": "share of the prompts with an example",
    "unrepeated": "share of good replies that say nothing a second time",
    "length": "words of a reply",
    "length_spread": "standard deviation of that",
    "known": "share of the n-grams that the round before had, too",
}


class Reply(NamedTuple):
    """A reply in words, its answer, and the question."""

    question: str
    words: list[str]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class CheckDiversity:
    """Measure a set, and compare it with the first. Given ``{"examples": …, "first": …, "before": …}``, the last two
    if there are any, makes ``diversity.json``.

    least: a measure of ``GUARDED`` below this share of the first round's is a collapse; 0 guards nothing.
    ngram: n of the n-grams.  block: n-grams of a block.  answers: answers of a block. A set without one whole block has
    no such measure, and is not judged by it.
    """

    least: float = 0.5
    ngram: int = 3
    block: int = 1000
    answers: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise SettingsError(f"diversity: least={self.least}: must be from 0 to 1")
        if min(self.ngram, self.block) < 1 or self.answers < 2:
            raise SettingsError(
                f"diversity: ngram={self.ngram} and block={self.block} must be at least 1, answers={self.answers} at "
                "least 2"
            )

    def run(self, given: Mapping[str, ExampleSet], place: Place) -> Folder:
        if "examples" not in given:
            raise DataError('diversity: give the set to look at as {"examples": …}')
        found = {name: self.measure(made) for name, made in given.items() if name in ("examples", "first")}
        now = found["examples"] | {"known": self._known(given["examples"], given.get("before"))}
        faults = self.collapses(now, found["first"]) if "first" in found else []
        content = {"measures": now, "first": found.get("first"), "least": self.least, "collapsed": faults}
        with new_folder(place.path / "diversity") as made:
            text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
            (made / MEASURES).write_text(text + "\n", encoding="utf-8")
            (made / TOLD).write_text(described(content) + "\n", encoding="utf-8")
        return Folder(place.path / "diversity")

    def load(self, place: Place) -> Folder:
        return Folder(place.path / "diversity")

    def measure(self, made: ExampleSet) -> dict[str, float | None]:
        """The measures by name; None where a set is too small for one."""
        report = made.report()
        sampled = "prompts_kept" in report  # by RejectionSampling
        kept, doubled = report["kept"], report.get("dropped", {}).get(DUPLICATE, 0)
        reasoning = kept["reasoning"] if sampled else kept
        return self.of(_replies(made)) | {
            "coverage": report["prompts_kept"] / report["prompts"] if sampled else None,
            "unrepeated": reasoning / (reasoning + doubled) if reasoning + doubled else None,
        }

    def of(self, replies: Sequence[Reply]) -> dict[str, float | None]:
        """The measures of replies alone."""
        mixed = sorted(enumerate(replies), key=lambda one: lot(self.seed, one[0]))
        grams = (gram for _, one in mixed for gram in self._grams(one.words))
        answers = (one.answer for _, one in mixed)
        lengths = [len(one.words) for one in replies]
        mean = sum(lengths) / len(lengths)
        return {
            "distinct_ngrams": _mean(len(set(block)) / self.block for block in _blocks(grams, self.block)),
            "distinctness": _mean(self._distinctness(replies)),
            "answer_entropy": _mean(
                _entropy(block) / math.log2(self.answers) for block in _blocks(answers, self.answers)
            ),
            "length": mean,
            "length_spread": math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths)),
        }

    def collapses(self, now: Mapping[str, float | None], first: Mapping[str, float | None]) -> list[str]:
        """What has fallen below its bound, in words."""
        found = []
        for name in GUARDED:
            value, then = now.get(name), first.get(name)
            if value is not None and then is not None and value < self.least * then:
                found.append(
                    f"{name} ({_WORDS[name]}) is {value:.3f}, in the first round it was {then:.3f}; "
                    f"{self.least * then:.3f} is the least"
                )
        return found

    def _grams(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(words[start : start + self.ngram]) for start in range(len(words) - self.ngram + 1)]

    def _distinctness(self, replies: Sequence[Reply]) -> Iterator[float]:
        """Of every prompt with several replies, the mean over pairs."""
        for _, group in groupby(sorted(replies, key=lambda one: one.question), key=lambda one: one.question):
            sets = [set(self._grams(one.words)) or {tuple(one.words)} for one in group][:_REPLIES]
            pairs = [1 - len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
            if pairs:
                yield sum(pairs) / len(pairs)

    def _known(self, made: ExampleSet, before: ExampleSet | None) -> float | None:
        """Share of the n-grams that an earlier set holds, too."""
        if before is None:
            return None
        old = {gram for one in _replies(before) for gram in self._grams(one.words)}
        found = [gram in old for one in _replies(made) for gram in self._grams(one.words)]
        return sum(found) / len(found) if found else None


def described(content: Mapping[str, Any]) -> str:
    """The measures for a person, beside those of the first round."""
    first = content["first"]
    lines = [f"{'':>16} {'now':>8}" + (f" {'first':>8}" if first else "")]
    for name, words in _WORDS.items():
        values = [content["measures"].get(name)] + ([first.get(name)] if first else [])
        lines.append(f"{name:>16} {' '.join(_number(value) for value in values)}  {words}")
    return "\n".join([*lines, *(f"collapsed: {fault}" for fault in content["collapsed"])])


def _number(value: float | None) -> str:
    return f"{'–' if value is None else f'{value:.3f}':>8}"


def _replies(made: ExampleSet) -> list[Reply]:
    examples: Examples = made.examples(held_out=0.0)
    return [_reply(examples.messages("train", number)) for number in range(examples.size("train"))]


def _reply(messages: Sequence[Message]) -> Reply:
    said = messages[-1]
    marked = _ANSWER.search(said.content)
    answer = tuple(units(marked[1] if marked else said.content))
    return Reply(asked(messages), units(f"{said.reasoning}\n{_TAGS.sub(' ', said.content)}"), answer)


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Whole blocks; the rest is left out."""
    block = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []


def _entropy(items: Sequence[Hashable]) -> float:
    """Of the frequencies, in bits."""
    return -sum(count / len(items) * math.log2(count / len(items)) for count in Counter(items).values()) + 0.0


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
