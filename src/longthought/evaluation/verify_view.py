"""What verifiers said of many answers: counts, accuracy, where two of them differ, and examples to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from longthought.algorithms.statistics import mean_interval, wilson
from longthought.core.errors import SettingsError
from longthought.core.types import Outcome, Score
from longthought.evaluation.headline import percent, with_interval
from longthought.evaluation.report_data import Estimate
from longthought.evaluation.trace_query import count
from longthought.evaluation.trace_terminal import shown
from longthought.tasks.answers import Answered

RIGHT, WRONG, UNGRADED, DIFFERENT = "right", "wrong", "not graded", "the verifiers differ"
KINDS: Final = (RIGHT, WRONG, *(str(outcome) for outcome in Outcome if outcome is not Outcome.GRADED))
"""What became of an answer: ``Outcome`` with its ``graded`` told as right or wrong."""

SECTIONS: Final = (RIGHT, WRONG, UNGRADED, DIFFERENT)

_HEAD, _TAIL = 300, 1200  # characters of a long text that are shown: an answer stands at the end
_MARGIN = 12


def kind(score: Score) -> str:
    """One of ``KINDS``."""
    if score.verdict.outcome is not Outcome.GRADED:
        return str(score.verdict.outcome)
    return RIGHT if score.correct else WRONG


def state(score: Score) -> str:
    """Right, wrong (an answer that cannot be read included), or not graded."""
    if score.value is None:
        return UNGRADED
    return RIGHT if score.correct else WRONG


@dataclass(frozen=True, slots=True)
class Graded:
    """One prediction and what each verifier said of it. ``number`` of ``total`` predictions of its row, from 1."""

    place: int
    number: int
    total: int
    text: str
    gold: str
    scores: tuple[Score, ...]

    def verdicts(self, seconds: Sequence[float]) -> dict[str, Any]:
        """Where the prediction stands and what was said of it, the second verifier's word under ``against``."""
        first, *others = ({**_said(score), "seconds": round(took, 6)} for score, took in zip(self.scores, seconds))
        return {"row": self.place, "prediction": self.number, **first, **({"against": others[0]} if others else {})}

    def whole(self, names: Sequence[str]) -> dict[str, Any]:
        """The prediction with its text and what every verifier said of it."""
        said = {name: _said(score) for name, score in zip(names, self.scores)}
        return {"row": self.place, "prediction": self.number, "text": self.text, "gold": self.gold, "verdicts": said}


@dataclass
class Tally:
    """What one verifier said of all answers, and the seconds that it took. ``graded``: answers with a value."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    graded: int = 0
    _values: float = 0.0
    _partial: bool = False
    _shares: dict[Hashable, list[int]] = field(default_factory=dict)

    def add(self, problem: Hashable, score: Score) -> None:
        """Count a verdict. Answers to an equal ``problem`` are draws of one cluster."""
        self.kinds[kind(score)] += 1
        if score.value is None:
            return
        self.graded += 1
        self._values += score.value
        self._partial |= score.value not in (0.0, 1.0)
        share = self._shares.setdefault(problem, [0, 0])
        share[0] += score.correct
        share[1] += 1

    @property
    def ungraded(self) -> int:
        """Answers without a value."""
        return self.kinds.total() - self.graded

    @property
    def problems(self) -> int:
        """Different problems with a graded answer."""
        return len(self._shares)

    @property
    def mean_value(self) -> float | None:
        """Where some grade is neither 0 nor 1."""
        return self._values / self.graded if self._partial else None

    def accuracy(self) -> Estimate | None:
        """Share of right answers among the graded ones, the mean over problems, with its 95 % interval.

        Wilson's where there is one answer to each problem or all problems agree, else clustered by problem.
        """
        shares = [right / graded for right, graded in self._shares.values()]
        if not shares:
            return None
        mean = sum(shares) / len(shares)
        if len(shares) == self.graded or len(set(shares)) == 1:
            return Estimate(mean, *wilson(min(sum(shares), len(shares)), len(shares)))
        low, high = mean_interval([[share] for share in shares])
        return Estimate(mean, max(low, 0.0), min(high, 1.0))

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        accuracy = self.accuracy()
        return {
            "verifier": self.name,
            "answers": self.kinds.total(),
            "graded": self.graded,
            "problems": self.problems,
            "outcomes": {name: self.kinds[name] for name in KINDS},
            "accuracy": None if accuracy is None else asdict(accuracy),
            "mean_value": self.mean_value,
            "seconds_per_answer": self.seconds / max(1, self.kinds.total()),
        }

    def lines(self) -> Iterator[str]:
        """For a person."""
        read, unread = ([name for name in KINDS if self.kinds[name] and (name in _VALUED) == told] for told in (1, 0))
        yield f"{shown(self.name)}: {_counts(self.kinds, read) or 'nothing graded'}"
        if unread:
            yield f"  not graded: {_counts(self.kinds, unread)}"
        over = "" if self.problems == self.graded else f", the mean over {self.problems:,} problems"
        if self.graded:
            yield f"  accuracy {with_interval(self.accuracy(), percent)}{over} ({count(self.graded, 'graded answer')})"
        if self.mean_value is not None:
            yield f"  mean value {self.mean_value:.3f}; right is a value of 1 or more"
        yield f"  {_duration(self.seconds / max(1, self.kinds.total()))} per answer"


@dataclass
class Comparison:
    """Two verifiers on the same answers. ``table`` counts pairs of states."""

    names: tuple[str, str]
    table: Counter[tuple[str, str]] = field(default_factory=Counter)
    differing: int = 0

    def add(self, one: Score, other: Score) -> bool:
        """Count a pair of verdicts; whether their values differ, an absent one and 0 included."""
        self.table[state(one), state(other)] += 1
        self.differing += one.value != other.value
        return one.value != other.value

    @property
    def both(self) -> int:
        """Answers that both verifiers graded."""
        return sum(count for states, count in self.table.items() if UNGRADED not in states)

    def agreement(self) -> Estimate | None:
        """Share of the answers graded by both that are right for both or wrong for both; interval of Wilson."""
        same = self.table[RIGHT, RIGHT] + self.table[WRONG, WRONG]
        return Estimate(same / self.both, *wilson(same, self.both)) if self.both else None

    def kappa(self) -> float | None:
        """Agreement beyond chance, (p_o - p_e) / (1 - p_e); None where chance alone makes them agree.

        Source: Cohen, "A coefficient of agreement for nominal scales", 1960.
        """
        n, table = self.both, self.table
        if not n:
            return None
        observed = (table[RIGHT, RIGHT] + table[WRONG, WRONG]) * n
        first, second = ((table[RIGHT, RIGHT] + table[off]) for off in ((RIGHT, WRONG), (WRONG, RIGHT)))
        expected = first * second + (n - first) * (n - second)
        return None if expected == n * n else (observed - expected) / (n * n - expected)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        agreement = self.agreement()
        return {
            "table": [{self.names[0]: a, self.names[1]: b, "answers": n} for (a, b), n in sorted(self.table.items())],
            "agreement": None if agreement is None else asdict(agreement),
            "kappa": self.kappa(),
            "differing": self.differing,
        }

    def lines(self) -> Iterator[str]:
        """A table, one verifier down and one across, and the agreement."""
        one, other = map(shown, self.names)
        states = [s for s in (RIGHT, WRONG, UNGRADED) if s is not UNGRADED or any(UNGRADED in p for p in self.table)]
        heads = [f"{other}: {states[0]}", *states[1:]]
        labels = [f"{one}: {states[0]}", *states[1:]]
        left, widths = max(map(len, labels)), [max(len(head), 9) for head in heads]
        yield " " * left + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths))
        for label, a in zip(labels, states):
            cells = "".join(f"  {self.table[a, b]:>{width},}" for b, width in zip(states, widths))
            yield f"{label:>{left}}{cells}"
        if not self.both:
            yield "no answer was graded by both"
            return
        kappa = self.kappa()
        told = "not defined: one of them always says the same" if kappa is None else f"{kappa:.3f}"
        yield f"agreement {with_interval(self.agreement(), percent)} of {self.both:,} graded by both, Cohen's κ {told}"


@dataclass
class Examples:
    """The first ``most`` answers of every section, and how many there were."""

    most: int
    sections: dict[str, list[Graded]] = field(default_factory=dict)
    found: Counter[str] = field(default_factory=Counter)

    def add(self, section: str, answer: Graded) -> None:
        """Keep an answer where there is room."""
        self.found[section] += 1
        kept = self.sections.setdefault(section, [])
        if len(kept) < self.most:
            kept.append(answer)

    def lines(self, names: Sequence[str]) -> Iterator[str]:
        """Every section under its name and count."""
        for section in filter(self.found.get, SECTIONS):
            total, kept = self.found[section], self.sections[section]
            first = f", the first {len(kept):,}" if 0 < len(kept) < total else ""
            yield f"\n{section}: {total:,}{first}"
            for answer in kept:
                yield from described(answer, names)

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON."""
        return {
            section: {"answers": self.found[section], "first": [answer.whole(names) for answer in kept]}
            for section, kept in self.sections.items()
        }


@dataclass
class Findings:
    """Everything that is told of a file of answers. ``chosen``: kinds to show; None: all but right ones."""

    tallies: tuple[Tally, ...]
    comparison: Comparison | None
    examples: Examples
    chosen: frozenset[str] | None = None

    @classmethod
    def of(cls, names: Sequence[str], most: int, chosen: frozenset[str] | None = None) -> Findings:
        """Nothing yet, of one verifier or two; ``most`` answers of every section will be shown.

        Raises SettingsError where a verifier is to be compared with itself.
        """
        if len(set(names)) < len(names):
            raise SettingsError(f"{names[0]} cannot be compared with itself: name another verifier")
        comparison = Comparison((names[0], names[1])) if len(names) > 1 else None
        return cls(tuple(map(Tally, names)), comparison, Examples(most), chosen)

    @property
    def ungraded(self) -> int:
        """Answers that some verifier could not grade, those of both counted twice."""
        return sum(tally.ungraded for tally in self.tallies)

    def add(
        self, portion: Sequence[Answered], columns: Sequence[Sequence[Sequence[Score]]], seconds: Sequence[float]
    ) -> list[Graded]:
        """Count the scores of a portion: for each verifier, for each row, for each prediction."""
        for tally, took in zip(self.tallies, seconds):
            tally.seconds += took
        graded = []
        for answered, *rows in zip(portion, *columns):
            problem = hash(answered.problem.messages or answered.problem.id)
            for number, (text, *scores) in enumerate(zip(answered.replies, *rows), 1):
                place = (answered.place, number, len(answered.replies))
                graded.append(Graded(*place, text, answered.problem.answer, tuple(scores)))
                self._count(problem, graded[-1])
        return graded

    def _count(self, problem: int, answer: Graded) -> None:
        for tally, score in zip(self.tallies, answer.scores):
            tally.add(problem, score)
        first = answer.scores[0]
        if kind(first) in (set(KINDS) - {RIGHT} if self.chosen is None else self.chosen):
            self.examples.add(state(first), answer)
        differ = self.comparison is not None and self.comparison.add(*answer.scores)
        if differ and (self.chosen is None or not self.chosen.isdisjoint(map(kind, answer.scores))):
            self.examples.add(DIFFERENT, answer)

    def lines(self) -> Iterator[str]:
        """For a person."""
        for tally in self.tallies:
            yield from tally.lines()
        if self.comparison is not None:
            yield ""
            yield from self.comparison.lines()
        yield from self.examples.lines([tally.name for tally in self.tallies])

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "verifiers": [tally.facts() for tally in self.tallies],
            **({"comparison": self.comparison.facts()} if self.comparison is not None else {}),
            "examples": self.examples.facts([tally.name for tally in self.tallies]),
        }


def described(answer: Graded, names: Sequence[str]) -> Iterator[str]:
    """An answer in lines: where it stands, what it says, the gold, and the evidence of every verifier."""
    which = f", prediction {answer.number} of {answer.total}" if answer.total > 1 else ""
    yield f"\n  row {answer.place:,}{which}"
    yield from _paragraph("prediction", answer.text)
    yield from _paragraph("gold", answer.gold)
    for name, score in zip(names, answer.scores):
        value = "" if score.value in (None, 0.0, 1.0) else f" ({score.value:g})"
        yield from _paragraph(name, ": ".join(filter(None, (f"{kind(score)}{value}", score.verdict.evidence))))


_VALUED = frozenset({RIGHT, WRONG, str(Outcome.UNPARSABLE)})


def _said(score: Score) -> dict[str, Any]:
    return {"value": score.value, "outcome": str(score.verdict.outcome), "evidence": score.verdict.evidence}


def _paragraph(label: str, text: str) -> Iterator[str]:
    """A text under its label: no character of it acts on the terminal, and no length of it floods it."""
    left_out = len(text) - _HEAD - _TAIL
    if left_out > 0:
        text = f"{text[:_HEAD]}\n… ({left_out:,} characters left out) …\n{text[-_TAIL:]}"
    lines = shown(text).split("\n")
    width = max(_MARGIN, len(label) + 2)
    yield f"    {shown(label):<{width}}{lines[0] if text else '(empty)'}".rstrip()
    for line in lines[1:]:
        yield f"    {'':<{width}}{line}".rstrip()


def _counts(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {counts[name]:,}" for name in names)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms" if seconds >= 1e-3 else "less than 1 ms"
