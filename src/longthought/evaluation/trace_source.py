"""The traces of one stage of a run, with what it takes to read them: the tokenizer, and the rule that clips a token."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longthought.core.errors import CheckpointError, RunError
from longthought.runs import traces
from longthought.runs.place import TRACES
from longthought.runs.record import Record, StageRecord
from longthought.runs.run import STAGE
from longthought.text.tokenizer import Tokenizer

_VOCABULARY = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Clipping:
    """When the objective of a stage bounds a token's probability ratio ρ = π / π_old, as its ``stage.json`` tells.

    low, high: the gradient stops where ρ < low and A < 0, or ρ > high and A > 0; None for no bound.
    cap: ρ counts as at most this, whatever the sign of A; the gradient stays.
    per_reply: ρ is the geometric mean over the tokens of a reply.
    """

    objective: str
    low: float | None = None
    high: float | None = None
    cap: float | None = None
    per_reply: bool = False

    def state(self, ratio: float, advantage: float) -> str:
        """What becomes of a token: empty where its gradient passes unchanged."""
        if self.cap is not None and ratio > self.cap and advantage:
            return f"capped at ρ = {self.cap:g}"
        if self.low is not None and ratio < self.low and advantage < 0:
            return f"clipped, ρ < {self.low:g}"
        if self.high is not None and ratio > self.high and advantage > 0:
            return f"clipped, ρ > {self.high:g}"
        return ""

    def bound(self, advantage: float) -> str:
        """Where a token of this advantage would clip; empty where it never does."""
        if self.cap is not None and advantage:
            return f"would be capped at ρ > {self.cap:g}"
        bound, sign = (self.high, ">") if advantage > 0 else (self.low, "<")
        return f"would clip at ρ {sign} {bound:g}" if bound is not None and advantage else ""

    def __str__(self) -> str:
        whose = "of a whole reply" if self.per_reply else "of a token"
        if self.cap is not None:
            return f"{self.objective}: ρ {whose} counts as at most {self.cap:g}"
        return f"{self.objective}: ρ {whose} is clipped above {self.high:g} where A > 0, below {self.low:g} where A < 0"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rollouts of a stage lie. ``notes``: what could not be found, in plain words."""

    run: str
    stage: str
    folder: Path
    tokenizer: Tokenizer | None = None
    clipping: Clipping | None = None
    notes: tuple[str, ...] = ()


def source(record: Record, stage: str | None = None) -> Source:
    """The traces of a stage; those of the last stage that trained on rollouts, else of the last that has any.

    Raises RunError when the run has no such stage, or no stage with traces.
    """
    folders = {one.name: folder for one in record.stages() if (folder := _folder(one)) is not None}
    if stage is not None:
        record.stage(stage)
    preferred = [name for name, folder in folders.items() if folder.name == TRACES] or [*folders]
    name = stage or (preferred[-1] if preferred else "")
    if name not in folders:
        which = f"the stage {stage} of {record.path} has no traces" if stage else f"{record.path} has no traces yet"
        raise RunError(f"{which}; stages with traces: {', '.join(folders) or 'none'}")
    chosen = record.stage(name)
    tokenizer, notes = _tokenizer(record, chosen)
    return Source(record.path.resolve().name, name, folders[name], tokenizer, clipping(chosen.path / STAGE), notes)


def clipping(file: Path) -> Clipping | None:
    """The rule in a ``stage.json``; None where there is none, or none that we know."""
    try:
        asked = json.loads(file.read_bytes())["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next(_clippings(asked), None)


def _clippings(asked: object) -> Iterator[Clipping]:
    if isinstance(asked, Mapping):
        name = asked.get("is")
        low, high, cap = (_number(asked.get(key)) for key in ("clip_low", "clip_high", "cap"))
        if low is not None and high is not None:
            yield Clipping(str(name), 1 - low, 1 + high, per_reply=name == "GSPO")
        elif name == "CISPO" and cap is not None:
            yield Clipping("CISPO", cap=cap)
        for value in asked.values():
            yield from _clippings(value)


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _folder(stage: StageRecord) -> Path | None:
    """The folder in a stage that holds steps: ``traces``, or that of an artifact."""
    inside = sorted(entry for entry in stage.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [folder for folder in inside if traces.steps(folder)]
    return next((folder for folder in found if folder.name == TRACES), found[0] if found else None)


def _tokenizer(record: Record, stage: StageRecord) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """That of the model which the stage made, or got from a stage before it; with what is to be said about it."""
    earlier = [one for one in reversed(record.stages()) if one.number <= stage.number]
    notes = []
    for folder in (file.parent for one in earlier for file in sorted(one.path.glob(f"*/{_VOCABULARY}"))):
        try:
            return Tokenizer.load(folder), ()
        except CheckpointError as error:
            notes.append(str(error))
    return None, (*notes, "no tokenizer was found in the run: tokens are shown as numbers")
