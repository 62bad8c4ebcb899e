"""Comparing: several replies of a model to every prompt, of which a rater says which are better.

Source: the helpfulness data of DeepSeek-R1 (arXiv:2501.12948v2, supplement): each pair is judged four times with the
order of the replies exchanged, and kept where the mean scores are more than 1 apart. Checkpoint in, preferences out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import json_bytes
from longthought.runs.place import Place
from longthought.stages.judged_replies import Entry, Judged, JudgedReplies, Usable, counted, told
from longthought.stages.judgement_set import JUDGEMENTS, PREFERENCES, PreferenceSet, heard, pair_row, pairs_of
from longthought.stages.sifting import lot
from longthought.tasks.preference_rows import Preference as Pair
from longthought.tasks.preferences import CLOSE, Preferences
from longthought.verifiers.judge import PairRater, Preference
from longthought.verifiers.rater_bias import Rated, rater_bias

TIE, MISSING = "tie", "fewer than half of the votes"
_WIDEST = 2.0  # largest margin


@dataclass(frozen=True)
class Comparing(JudgedReplies):
    """Pairs of replies to each prompt, judged by ``rater``; makes a ``PreferenceSet``.

    rater: shows each pair in both orders, as a ``PairJudge`` does. Its evidence is kept.
    pairs_per_prompt: at most so many, by lot, of replies whose summaries differ.
    votes: how often each pair is judged in both orders. The rater is given another ``seed`` for each.
    least_gap: a pair is kept whose mean margin (−2 … 2, over all votes) is more than this away from 0.
    Everything else: see ``JudgedReplies``.
    """

    rater: PairRater
    pairs_per_prompt: int = field(default=1, kw_only=True)
    votes: int = field(default=4, kw_only=True)
    least_gap: float = field(default=1.0, kw_only=True)

    called: ClassVar[str] = "comparing"
    folder: ClassVar[str] = "preferences"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.pairs_per_prompt < 1 or self.votes < 1:
            raise SettingsError(
                f"comparing: samples={self.samples} must be at least 2, pairs_per_prompt={self.pairs_per_prompt} and "
                f"votes={self.votes} at least 1"
            )
        most = self.samples * (self.samples - 1) // 2
        if self.pairs_per_prompt > most:
            raise SettingsError(
                f"comparing: pairs_per_prompt={self.pairs_per_prompt}, but {self.samples} replies make {most} pairs"
            )
        if not 0 <= self.least_gap < _WIDEST:
            raise SettingsError(f"comparing: least_gap={self.least_gap} must be at least 0 and below {_WIDEST:g}")
        if self.votes > 1 and not _has_seed(self.rater):
            raise SettingsError(
                f"comparing: votes={self.votes}, but {type(self.rater).__name__} has no field `seed` and might say "
                "the same each time; set votes=1, or make it a dataclass with a seed"
            )

    def run(self, given: Checkpoint, place: Place) -> PreferenceSet:
        return self.choose(self._sampled(given, place), given, place)

    def load(self, place: Place) -> PreferenceSet:
        return PreferenceSet(place.path / self.folder)

    def choose(self, problems: Sequence[Problem], given: Checkpoint, place: Place) -> PreferenceSet:
        """Choose among what was judged. Raises DataError where no pair is far enough apart."""
        self._made(problems, given, place)
        return self.load(place)

    def _judged_part(self, reply: Message) -> Hashable:
        return reply.content

    def _judge(self, asked: Sequence[tuple[Problem, Sequence[Usable]]]) -> list[Judged]:
        pairs = [self._pairs(problem, usable) for problem, usable in asked]
        triples = [
            (problem, first.message, second.message) for (problem, _), row in zip(asked, pairs) for first, second in row
        ]
        votes = [self._vote(number, triples) for number in range(self.votes)]
        together = zip(*votes)
        return [_judged([(pair, list(next(together))) for pair in row]) for row in pairs]

    def _pairs(self, problem: Problem, usable: Sequence[Usable]) -> list[tuple[Usable, Usable]]:
        """Pairs by lot, each in an order by lot."""

        def drawn(what: str, pair: tuple[Usable, Usable]) -> bytes:
            return lot(self.seed, what, problem.id, pair[0].sample, pair[1].sample)

        chosen = sorted(combinations(usable, 2), key=lambda pair: drawn("pair", pair))[: self.pairs_per_prompt]
        return [pair if drawn("order", pair)[0] % 2 else (pair[1], pair[0]) for pair in chosen]

    def _vote(self, number: int, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        if not triples:
            return []
        rater: Any = self.rater
        voter: PairRater = replace(rater, seed=rater.seed + number) if number else rater
        found = voter.many(triples)
        if len(found) != len(triples) or not all(isinstance(one, Preference) for one in found):
            raise DataError(
                f"comparing: {type(rater).__name__} was given {len(triples)} pairs and must return as many preferences"
            )
        return found

    def _metrics(self, entries: Sequence[Entry]) -> dict[str, float]:
        margins = [one["margin"] for entry in entries for one in entry["judged"]]
        far = sum(margin is not None and abs(margin) > self.least_gap for margin in margins)
        return {"pairs": len(margins), "kept": far}

    def _learned(self, made: Path) -> Preferences:
        return pairs_of(made, self.held_out)

    def _write(self, entries: Iterator[Entry], made: Path) -> tuple[Entry, str]:
        seen: list[Entry] = []
        tally = _Tally()
        with (made / PREFERENCES).open("wb") as kept_file, (made / JUDGEMENTS).open("wb") as all_file:
            for entry in entries:
                seen.append({name: entry[name] for name in ("part", "left_out")})
                for compared in _compared(entry):
                    why = self._why_not(compared.row)
                    tally.add(compared, why, entry["part"])
                    line = {"problem": entry["problem"], "prompt": entry["prompt"], **compared.told()}
                    all_file.write(json_bytes({**line, **compared.row, "left_out": why}) + b"\n")
                    if not why:
                        kept_file.write(compared.written(entry))
        report = {**counted(seen), **tally.report(self.votes)}
        text = _described(report)
        if not report["kept"]:
            raise DataError(
                f"comparing kept no pair:\n{text}\nRaise samples or pairs_per_prompt, lower least_gap, or loosen what "
                "drops most"
            )
        return report, text

    def _why_not(self, row: Entry) -> str:
        """Why a pair is left out; empty: it is kept."""
        given = sum(vote["margin"] is not None for vote in row["votes"])
        if not given or 2 * given < self.votes:
            return MISSING
        margin = abs(row["margin"])
        return "" if margin > self.least_gap else CLOSE if margin else TIE


class _Compared(NamedTuple):
    """A pair, and what was said of it."""

    first: Entry
    second: Entry
    row: Entry

    def told(self) -> Entry:
        return {"first": self.first["said"], "second": self.second["said"]}

    def sides(self) -> tuple[Entry, Entry]:
        """The better reply and the worse."""
        return (self.first, self.second) if self.row["margin"] > 0 else (self.second, self.first)

    def written(self, entry: Entry) -> bytes:
        """The pair as a line of the set."""
        better, worse = self.sides()
        (chosen,), (rejected,) = heard(better["said"]), heard(worse["said"])
        source = {
            "problem": entry["problem"],
            "chosen": better["sample"],
            "rejected": worse["sample"],
            "shown_first": "chosen" if better is self.first else "rejected",
            "votes": [vote["margin"] for vote in self.row["votes"]],
        }
        return pair_row(Pair(heard(entry["prompt"]), chosen, rejected, abs(self.row["margin"])), source)

    def rated(self) -> list[Rated]:
        """Every vote."""
        (first,), (second,) = heard(self.first["said"]), heard(self.second["said"])
        return [Rated(first, second, _vote_of(vote)) for vote in self.row["votes"]]


class _Tally:
    """What becomes the report."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.rated: list[Rated] = []
        self.pairs = self.ties = self.contradicted = self.alike = self.comparable = 0
        self.order_dependent = self.rule_apart = self.rule_agrees = self.longer = self.lengths_apart = 0

    def add(self, compared: _Compared, why: str, part: str) -> None:
        self.pairs += 1
        found = compared.rated()
        self.rated += found
        votes = [one.preference for one in found]
        self.missing.update(str(one.outcome) for one in votes if one.margin is None)
        given = [one for one in votes if one.margin is not None]
        self.order_dependent += sum(one.order_dependent for one in given)
        self.ties += sum(one.winner == "tie" and not one.order_dependent for one in given)
        winners = [one.winner for one in given]
        self.contradicted += {"first", "second"} <= set(winners)
        both = list(combinations(winners, 2))
        self.comparable += len(both)
        self.alike += sum(one == other for one, other in both)
        if why:
            self.dropped[why] += 1
        else:
            self._keep(compared, part)

    def _keep(self, compared: _Compared, part: str) -> None:
        self.kept[part] += 1
        better, worse = compared.sides()
        if better["correct"] != worse["correct"]:
            self.rule_apart += 1
            self.rule_agrees += better["correct"]
        lengths = [len(heard(side["said"])[0].content) for side in (better, worse)]
        self.lengths_apart += lengths[0] != lengths[1]
        self.longer += lengths[0] > lengths[1]

    def report(self, votes: int) -> Entry:
        return {
            "pairs": self.pairs,
            "kept": self.kept.total(),
            "kept_held_out": self.kept["held_out"],
            "left_out": dict(sorted(self.dropped.items(), key=lambda item: -item[1])),
            "votes": {
                "given": self.pairs * votes - self.missing.total(),
                "missing": dict(sorted(self.missing.items(), key=lambda item: -item[1])),
                "ties": self.ties,
                "order_dependent": self.order_dependent,
            },
            "agreement": self.alike / self.comparable if self.comparable else None,
            "contradicted": self.contradicted,
            "bias": asdict(rater_bias(self.rated)),
            "chosen_longer": {"of": self.lengths_apart, "pairs": self.longer},
            "rule_agrees": {"of": self.rule_apart, "pairs": self.rule_agrees},
        }


def _has_seed(rater: object) -> bool:
    return is_dataclass(rater) and any(one.name == "seed" and one.init for one in fields(rater))


def _judged(pairs: Sequence[tuple[tuple[Usable, Usable], list[Preference]]]) -> Judged:
    """The votes on the pairs of one prompt; of each reply the mean margin over its pairs."""
    rows: list[Entry] = []
    margins: dict[int, list[float]] = {}
    for (first, second), votes in pairs:
        given = [one.margin for one in votes if one.margin is not None]
        mean = sum(given) / len(given) if given else None
        told_of = [
            {name: getattr(one, name) for name in ("winner", "forward", "backward", "margin", "outcome", "evidence")}
            for one in votes
        ]
        rows.append({"samples": [first.sample, second.sample], "margin": mean, "votes": told_of})
        if mean is not None:
            margins.setdefault(first.sample, []).append(mean)
            margins.setdefault(second.sample, []).append(-mean)
    return Judged(rows, {sample: sum(found) / len(found) for sample, found in margins.items()})


def _vote_of(vote: Entry) -> Preference:
    margin = vote["margin"]
    return Preference(
        vote["winner"], vote["forward"], vote["backward"], Outcome(vote["outcome"]), vote["evidence"], margin
    )


def _compared(entry: Entry) -> Iterator[_Compared]:
    replies = {reply["sample"]: reply for reply in entry["replies"]}
    for row in entry["judged"]:
        first, second = row["samples"]
        yield _Compared(replies[first], replies[second], row)


def _described(report: Entry) -> str:
    """The report for a person."""
    votes, bias = report["votes"], report["bias"]
    lines = told(report)
    lines += [f"{report['pairs']:,} pairs were compared"]
    lines += [f"  {count:>9,}  {why}" for why, count in report["left_out"].items()]
    lines.append(f"  {report['kept']:>9,}  kept, {report['kept_held_out']:,} of them to be held out")
    lines.append(
        f"{votes['given']:,} votes: {votes['ties']:,} ties, {votes['order_dependent']:,} that depend on the order"
    )
    lines += [f"  {count:>9,}  missing: {why}" for why, count in votes["missing"].items()]
    lines.append(
        f"two votes on a pair agree: {_share(report['agreement'])}; {report['contradicted']:,} pairs were won by both "
        "replies"
    )
    lines.append(
        f"the reply shown first wins {_share(bias['shown_first'])}, the longer one {_share(bias['longer_wins'])}; "
        f"margin and length correlate by {_number(bias['length_pull'])}"
    )
    for name, what in (
        ("chosen_longer", "the better reply is the longer one"),
        ("rule_agrees", "the task's rule agrees"),
    ):
        if report[name]["of"]:
            lines.append(f"{what} in {report[name]['pairs']:,} of {report[name]['of']:,} kept pairs where it can tell")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
