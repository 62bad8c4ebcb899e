"""Which of two models goes on: the better one on the same held-out problems, and when a flywheel stops."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from longthought.algorithms.statistics import mean_interval
from longthought.core.errors import DataError, SettingsError
from longthought.core.files import read_json
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import json_bytes, new_folder
from longthought.runs.place import Place
from longthought.runs.settings import fingerprint_of
from longthought.stages.diversity import MEASURES
from longthought.stages.measure import SUMMARY, Folder

DECISION, TOLD = "decision.json", "decision.txt"
BEST, NEW = "best", "new"
BEST_SCORE, NEW_SCORE, DIVERSITY, BEFORE = "best_score", "new_score", "diversity", "before"
_GIVEN: Final = (BEST, NEW, BEST_SCORE, NEW_SCORE, DIVERSITY, BEFORE)


@dataclass(frozen=True)
class Selection:
    """What was decided: which model goes on, whether to stop, and why."""

    path: Path

    def read(self) -> dict[str, Any]:
        """``decision.json``."""
        return read_json(self.path, DECISION)

    @property
    def kept(self) -> str:
        """``best`` or ``new``."""
        return str(self.read()["kept"])

    @property
    def stops(self) -> bool:
        """Whether no further round is worth its cost."""
        return bool(self.read()["stop"])

    def model(self, given: Mapping[str, Checkpoint]) -> Checkpoint:
        """The one of the models that was kept. Raises DataError where it is another than the decision was about."""
        told = self.read()
        found = given[told["kept"]]
        if fingerprint_of(found.fingerprints()) != told["model"]:
            raise DataError(f"{found.path} is not the model that {self.path / DECISION} chose")
        return found


@dataclass(frozen=True)
class Select:
    """Compare a new model with the best one so far, problem by problem.

    Given ``{"best", "best_score", "new", "new_score"}`` (models and their evaluations), makes a ``Selection``. With
    ``"before"``, the last decision, it counts rounds without a rise; with ``"diversity"``, a collapse stops; then there
    need be no new model.

    margin: the new model is kept if its share of right replies is more than this above the best one's.
    patience: rounds in a row without a rise, after which to stop.
    level: of the intervals. The wheel stops at once where all of the interval of new − best lies below 0.
    """

    margin: float = 0.0
    patience: int = 2
    level: float = 0.95
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise SettingsError(f"selection: margin={self.margin}: must be at least 0 and below 1")
        if self.patience < 1:
            raise SettingsError(f"selection: patience={self.patience} must be at least 1")
        if not 0 < self.level < 1:
            raise SettingsError(f"selection: level={self.level} must be between 0 and 1")

    def run(self, given: Mapping[str, Any], place: Place) -> Selection:
        """Raises DataError where something is missing, or the evaluations are not of the same problems."""
        if unknown := sorted(set(given) - set(_GIVEN)):
            raise DataError(f"selection: {unknown[0]!r} means nothing; give {', '.join(_GIVEN)}")
        last: dict[str, Any] = given[BEFORE].read() if BEFORE in given else {"stale": 0, "history": []}
        faults = given[DIVERSITY].read(MEASURES)["collapsed"] if DIVERSITY in given else []
        decided = _collapsed(faults, last["stale"]) if faults else self._compared(given, last["stale"])
        chosen: Checkpoint = given[decided["kept"]]
        row = {"round": len(last["history"]) + 1, **decided, "model": fingerprint_of(chosen.fingerprints())}
        content = row | {"history": [*last["history"], row]}
        with new_folder(place.path / "decision") as made:
            (made / DECISION).write_bytes(json_bytes(content, indent=1) + b"\n")
            (made / TOLD).write_text(described(content["history"]) + "\n", encoding="utf-8")
        if not self.quiet:
            print(described([row]), file=sys.stderr)
        return Selection(place.path / "decision")

    def load(self, place: Place) -> Selection:
        return Selection(place.path / "decision")

    def _compared(self, given: Mapping[str, Any], stale: int) -> dict[str, Any]:
        for name in (BEST, BEST_SCORE, NEW, NEW_SCORE):
            if name not in given:
                raise DataError(f"selection: {name!r} is missing")
        asked, old = _by_problem(given[BEST_SCORE])
        again, new = _by_problem(given[NEW_SCORE])
        if asked != again:
            raise DataError("selection: the two models were not asked the same problems in the same order")
        gaps = [after - before for before, after in zip(old, new, strict=True)]
        gap = self._estimate(gaps)
        rises, falls = gap["value"] > self.margin, gap["high"] < 0
        stale = 0 if rises else stale + 1
        stop = falls or stale >= self.patience
        return {
            "kept": NEW if rises else BEST,
            "stop": stop,
            "stale": stale,
            "reason": _reason(gap, rises, falls, stale if stop else 0),
            "problems": len(gaps),
            "best": self._estimate(old),
            "new": self._estimate(new),
            "difference": gap,
        }

    def _estimate(self, values: Sequence[float]) -> dict[str, float]:
        low, high = mean_interval([[value] for value in values], self.level)
        return {"value": sum(values) / len(values), "low": low, "high": high}


def described(history: Sequence[Mapping[str, Any]]) -> str:
    """The decisions for a person, one a line."""
    lines = []
    for row in history:
        scores = ""
        if "difference" in row:
            gap = row["difference"]
            scores = (
                f" best {row['best']['value']:.1%}, new {row['new']['value']:.1%} "
                f"({100 * gap['value']:+.1f}, from {100 * gap['low']:+.1f} to {100 * gap['high']:+.1f} points);"
            )
        lines.append(f"round {row['round']}:{scores} {row['reason']}")
    return "\n".join(lines)


def _collapsed(faults: Sequence[str], stale: int) -> dict[str, Any]:
    reason = f"stop: the examples have collapsed, and nothing is trained on them: {'; '.join(faults)}"
    return {"kept": BEST, "stop": True, "stale": stale + 1, "reason": reason}


def _reason(gap: Mapping[str, float], rises: bool, falls: bool, stale: int) -> str:
    if rises:
        sure = "" if gap["low"] > 0 else ", though chance alone could be the cause"
        return f"the new model is better{sure}: it goes on"
    if falls:
        return "stop: the new model is worse, by more than chance; the best one stays"
    stays = "the new model is not better: the best one stays"
    return f"stop: {stays}, for {stale} rounds now" if stale else stays


def _by_problem(score: Folder) -> tuple[list[str], list[float]]:
    """The problems of an evaluation, and the share of right replies to each."""
    try:
        content = score.read(SUMMARY)
        asked = [str(name) for name in content["problems"]]
        shares = [float(content["accuracy_by_problem"][str(number)]) for number in range(len(asked))]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{score.path / SUMMARY} holds no evaluation: {error}") from error
    if len(asked) < 2:
        raise DataError(f"{score.path / SUMMARY}: at least 2 problems are needed to tell a difference from chance")
    return asked, shares
