"""Several sets of examples as one, of which a share stays what people or the first model wrote.

A model that learns from its own replies alone, round after round, forgets what is rare (Shumailov et al., Nature 631,
2024); where the first data stay and all others are added, it does not (Gerstgrasser et al., arXiv:2404.01413).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.runs.describe import describe
from longthought.runs.place import Place
from longthought.stages.example_set import EXAMPLES, ExampleSet, said, write_report, writing
from longthought.stages.rejection_sampling import DROPPED
from longthought.stages.sifting import Against, Sieve, evaluations, lot
from longthought.tasks.cells import UnfitRow
from longthought.tasks.example_rows import ExampleColumns, conversation
from longthought.tasks.examples import Examples
from longthought.text.decontaminate import Duplicates

ABOVE = "more than the floor of original data allows"
_COLUMNS = ExampleColumns(messages="messages")


class _Line(NamedTuple):
    name: str
    messages: tuple[Message, ...]
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Merge:
    """Sets of examples by name → one set. Every line keeps its ``source``, and tells in ``set`` which one it is from.

    original: the sets that are original data; all of them is taken, first.
    given: further original data, such as conversations that people wrote (all but what they hold out).
    floor: at least this share of the result is original: other examples are left out, by lot, until it is. 0: none.
    similarity, against, ngram: as ``RejectionSampling`` has them, over all sets together.
    """

    original: tuple[str, ...] = ()
    given: Examples | None = None
    floor: float = 0.25
    similarity: float = 0.8
    against: tuple[Against, ...] = ()
    ngram: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise SettingsError(f"merge: floor={self.floor}: must be from 0 to 1")
        if self.floor and not self.original and self.given is None:
            raise SettingsError(f"merge: floor={self.floor} needs original data: name the sets that are original")
        Duplicates(self.similarity)
        evaluations((), self.ngram)

    def run(self, given: Mapping[str, ExampleSet], place: Place) -> ExampleSet:
        """Raises DataError where an original set is missing, a set was altered, or nothing is left."""
        if missing := [name for name in self.original if name not in given]:
            raise DataError(f"merge: the original set {missing[0]} is not among {', '.join(given) or 'no sets'}")
        for one in given.values():
            one.verify()
        provenance = {
            "stage": "merge",
            "from": {name: one.provenance() for name, one in given.items()},
            "settings": describe(self),
        }
        with writing(place.path / "examples", provenance, said) as made:
            with (made / EXAMPLES).open("wb") as kept_file, (made / DROPPED).open("wb") as dropped_file:
                evaluated = evaluations(self.against, self.ngram)
                sieve = Sieve(evaluated, Duplicates(self.similarity), kept_file, dropped_file)
                report = self._merged(given, sieve)
            if not report["kept"]:
                raise DataError(f"merge: no example is left:\n{described(report)}")
            write_report(made, report, described(report))
        return ExampleSet(place.path / "examples")

    def load(self, place: Place) -> ExampleSet:
        return ExampleSet(place.path / "examples")

    def _merged(self, given: Mapping[str, ExampleSet], sieve: Sieve) -> dict[str, Any]:
        """Original data first, then others until there are as many as the floor allows; what became of them."""
        kept: dict[str, int] = {}
        originals = [*_people(self.given), *(line for name in self.original for line in _lines(name, given[name]))]
        for one in originals:
            kept[one.source["set"]] = kept.get(one.source["set"], 0) + sieve.take(*one)
        original = sum(kept.values())
        allowed = math.floor(original * (1 - self.floor) / self.floor + 1e-9) if self.floor else math.inf
        others = [line for name in given if name not in self.original for line in _lines(name, given[name])]
        taken = 0
        for one in sorted(others, key=lambda line: lot(self.seed, line.name)):
            kept.setdefault(one.source["set"], 0)
            if taken >= allowed:
                sieve.drop(one.name, ABOVE, "")
            elif sieve.take(*one):
                kept[one.source["set"]] += 1
                taken += 1
        total = original + taken
        return {
            "offered": len(originals) + len(others),
            "kept": total,
            "sets": kept,
            "original": original,
            "original_share": original / total if total else 0.0,
            "dropped": dict(sorted(sieve.dropped.items(), key=lambda item: -item[1])),
        }


def described(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{report['offered']:,} examples of {len(report['sets'])} sets"]
    lines += [f"  {count:>9,}  {why}" for why, count in report["dropped"].items()]
    lines += [f"  {count:>9,}  kept of {name}" for name, count in report["sets"].items()]
    lines.append(f"{report['original_share']:.0%} of {report['kept']:,} are original")
    return "\n".join(lines)


def _people(given: Examples | None) -> Iterator[_Line]:
    for index in range(given.size("train") if given is not None else 0):
        assert given is not None
        file, place = given.where("train", index)
        file = file.rpartition("/")[2]
        source = {"kind": "original", "file": file, "line": place, "set": file}
        yield _Line(f"{file}:{place}", given.messages("train", index), source)


def _lines(name: str, made: ExampleSet) -> Iterator[_Line]:
    """The conversations of a set with where they come from."""
    with made.file.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                messages, source = conversation(row, _COLUMNS), dict(row.get("source") or {})
            except (UnfitRow, ValueError, TypeError) as error:
                raise DataError(f"{made.file}, line {number} is no example: {error}") from error
            yield _Line(f"{name}/{number}", messages, source | {"set": name})
