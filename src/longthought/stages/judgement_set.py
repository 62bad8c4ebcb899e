"""Judgements as an artifact: pairs of replies, or replies with labels, with what made them, ready for a reward model.

::

    preferences/
    ├── preferences.jsonl   {"prompt": […], "chosen": […], "rejected": […], "margin": 1.5, "source": {…}}, one a line
    ├── judgements.jsonl    every pair that was judged, in an order that says nothing, with every vote
    ├── report.json         counts, agreement and biases
    ├── report.txt          the same for a person
    └── provenance.json     what made them, and the SHA-256 of every other file

    labels/
    ├── labels.jsonl        {"prompt": […], "reply": […], "safe": true, "source": {…}}, one a line
    └── …                   as above
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from longthought.core.errors import DataError
from longthought.core.types import Message
from longthought.runs.files import json_bytes
from longthought.stages.example_set import PROVENANCE, SetFolder
from longthought.tasks.cells import UnfitRow
from longthought.tasks.preference_rows import Label, LabelFields, Preference, PreferenceFields, label_in
from longthought.tasks.preferences import Labels, Preferences

PREFERENCES, LABELS, JUDGEMENTS = "preferences.jsonl", "labels.jsonl", "judgements.jsonl"
_PAIR: Final = PreferenceFields(prompt="prompt", chosen="chosen", rejected="rejected", margin="margin")
_LABEL: Final = LabelFields(prompt="prompt", reply="reply", safe="safe")


@dataclass(frozen=True)
class _JudgementSet(SetFolder):
    """The folder of such a set."""

    holds: ClassVar[str]

    @property
    def file(self) -> Path:
        """The judgements, which are read as any file of judgements is."""
        return self.path / self.holds

    def verify(self) -> None:
        """Compare the files with their digests. Raises DataError."""
        stated = self.provenance().get("files")
        if not isinstance(stated, dict) or self.holds not in stated:
            raise DataError(f"{self.path / PROVENANCE} does not state the digest of {self.holds}; make the set again")
        super().verify()

    def _held_out(self, given: float | None) -> float:
        """The share that is held out: as given, or as the prompts were drawn."""
        stated = self.provenance().get("held_out") if given is None else given
        if not isinstance(stated, int | float):
            raise DataError(f"{self.path / PROVENANCE} does not state what share is held out; give held_out=")
        return float(stated)


@dataclass(frozen=True)
class PreferenceSet(_JudgementSet):
    """The folder of compared replies. ``Preferences.read(made.file)`` reads it, too."""

    holds: ClassVar[str] = PREFERENCES

    def preferences(self, held_out: float | None = None) -> Preferences:
        """What ``RewardModel`` learns from. held_out: None: the share for which prompts were drawn.

        Raises DataError where a file was altered since it was written, or too few pairs are on one side.
        """
        self.verify()
        return pairs_of(self.path, self._held_out(held_out))


@dataclass(frozen=True)
class LabelSet(_JudgementSet):
    """The folder of labelled replies. ``Labels.read(made.file)`` reads it, too."""

    holds: ClassVar[str] = LABELS

    def labels(self, held_out: float | None = None) -> Labels:
        """What ``SafetyModel`` learns from; otherwise as ``PreferenceSet.preferences``."""
        self.verify()
        return labels_of(self.path, self._held_out(held_out))


def pairs_of(folder: Path, held_out: float) -> Preferences:
    """The pairs that a folder holds, unverified."""
    return Preferences.read(folder / PREFERENCES, columns=_PAIR, held_out=held_out)


def labels_of(folder: Path, held_out: float) -> Labels:
    """The labels that a folder holds, unverified."""
    return Labels.read(folder / LABELS, columns=_LABEL, held_out=held_out)


def said(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as a file holds them."""
    return [
        {"role": one.role, "content": one.content} | ({"reasoning": one.reasoning} if one.reasoning else {})
        for one in messages
    ]


def heard(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """What ``said`` wrote."""
    return tuple(Message(one["role"], one["content"], one.get("reasoning", "")) for one in messages)  # type: ignore[arg-type]


def pair_row(pair: Preference, source: Mapping[str, Any]) -> bytes:
    """A pair as a line."""
    sides = {"prompt": said(pair.prompt), "chosen": said([pair.chosen]), "rejected": said([pair.rejected])}
    return json_bytes({**sides, "margin": pair.margin, "source": dict(source)}) + b"\n"


def label_row(label: Label, source: Mapping[str, Any]) -> bytes:
    """A labelled reply as a line."""
    told = {"prompt": said(label.prompt), "reply": said([label.reply]), "safe": label.safe}
    return json_bytes({**told, "source": dict(source)}) + b"\n"


def is_writable(prompt: Sequence[Message], reply: Message) -> bool:
    """Whether a reply is read back as the same; one with tags of reasoning in its content is not."""
    label = Label(tuple(prompt), reply, True)
    try:
        return label_in(json.loads(label_row(label, {})), _LABEL) == label
    except (UnfitRow, ValueError):
        return False
