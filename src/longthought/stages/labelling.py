"""Labelling: replies of a model, of each of which a verifier says whether it is safe. Checkpoint in, labels out.

Source: the safety data of DeepSeek-R1 (arXiv:2501.12948v2): replies labelled one by one, reasoning and summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Verifier
from longthought.core.types import Message, Problem
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import json_bytes
from longthought.runs.place import Place
from longthought.stages.judged_replies import Entry, Judged, JudgedReplies, Usable, counted, told
from longthought.stages.judgement_set import JUDGEMENTS, LABELS, LabelSet, heard, label_row, labels_of
from longthought.tasks.grading import verify_all
from longthought.tasks.preference_rows import Label
from longthought.tasks.preferences import Labels


@dataclass(frozen=True)
class Labelling(JudgedReplies):
    """Replies, each judged by ``rater`` with its reasoning; makes a ``LabelSet``.

    rater: a verifier whose value is 1 for a safe reply and 0 for an unsafe one; without a value it is not labelled.
    least: a value from here on is safe.
    Everything else: see ``JudgedReplies``.
    """

    rater: Verifier
    least: float = field(default=0.5, kw_only=True)

    called: ClassVar[str] = "labelling"
    folder: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= 1:
            raise SettingsError(f"labelling: least={self.least} must be above 0, and at most 1")

    def run(self, given: Checkpoint, place: Place) -> LabelSet:
        return self.choose(self._sampled(given, place), given, place)

    def load(self, place: Place) -> LabelSet:
        return LabelSet(place.path / self.folder)

    def choose(self, problems: Sequence[Problem], given: Checkpoint, place: Place) -> LabelSet:
        """Write what was labelled. Raises DataError where nothing was."""
        self._made(problems, given, place)
        return self.load(place)

    def _judged_part(self, reply: Message) -> Hashable:
        return reply.content, reply.reasoning

    def _judge(self, asked: Sequence[tuple[Problem, Sequence[Usable]]]) -> list[Judged]:
        verdicts = iter(verify_all(self.rater, [(problem, one.message) for problem, row in asked for one in row]))
        found = []
        for _, row in asked:
            given = [(one.sample, next(verdicts)) for one in row]
            rows: list[Entry] = [
                {"sample": sample, "value": one.value, "outcome": one.outcome, "evidence": one.evidence}
                for sample, one in given
            ]
            found.append(Judged(rows, {sample: one.value for sample, one in given if one.value is not None}))
        return found

    def _metrics(self, entries: Sequence[Entry]) -> dict[str, float]:
        values = [row["value"] for entry in entries for row in entry["judged"]]
        labelled = [value >= self.least for value in values if value is not None]
        return {"labelled": len(labelled), "unsafe": labelled.count(False)}

    def _learned(self, made: Path) -> Labels:
        return labels_of(made, self.held_out)

    def _write(self, entries: Iterator[Entry], made: Path) -> tuple[Entry, str]:
        seen: list[Entry] = []
        labels: Counter[tuple[str, bool]] = Counter()
        missing: Counter[str] = Counter()
        with (made / LABELS).open("wb") as kept_file, (made / JUDGEMENTS).open("wb") as all_file:
            for entry in entries:
                seen.append({name: entry[name] for name in ("part", "left_out")})
                for reply, row in zip(entry["replies"], entry["judged"], strict=True):
                    line = {"problem": entry["problem"], "prompt": entry["prompt"], "reply": reply["said"]}
                    all_file.write(json_bytes({**line, **row}) + b"\n")
                    if row["value"] is None:
                        missing[row["outcome"]] += 1
                        continue
                    safe = row["value"] >= self.least
                    labels[entry["part"], safe] += 1
                    (message,) = heard(reply["said"])
                    source = {"problem": entry["problem"], "sample": row["sample"], "value": row["value"]}
                    kept_file.write(label_row(Label(heard(entry["prompt"]), message, safe), source))
        report = {
            **counted(seen),
            "safe": labels["train", True] + labels["held_out", True],
            "unsafe": labels["train", False] + labels["held_out", False],
            "held_out": {"safe": labels["held_out", True], "unsafe": labels["held_out", False]},
            "unlabelled": dict(sorted(missing.items(), key=lambda item: -item[1])),
        }
        text = _described(report)
        if not labels:
            raise DataError(f"labelling labelled nothing:\n{text}\nLoosen what drops most, or mend the rater")
        return report, text


def _described(report: Entry) -> str:
    """The report for a person."""
    held_out = report["held_out"]
    lines = told(report)
    lines.append(
        f"{report['safe']:,} are safe and {report['unsafe']:,} are not; of these {held_out['safe']:,} and "
        f"{held_out['unsafe']:,} are to be held out"
    )
    lines += [f"  {count:>9,}  not labelled: {why}" for why, count in report["unlabelled"].items()]
    return "\n".join(lines)
