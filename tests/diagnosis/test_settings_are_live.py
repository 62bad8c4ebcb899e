"""Settings that reach no stage are named; those that are refused by name, or need a result, are no fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from clinic import GRPO, findings, patient, stage

from longthought.core.errors import SettingsError
from longthought.diagnosis.patient import Patient, Recipe, Walk
from longthought.diagnosis.proposals import proposals
from longthought.runs.values import fit


@dataclass(frozen=True)
class Inner:
    steps: int = 8
    unread: float = 0.5
    name: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    inner: Inner = Inner()
    loud: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.loud and self.alpha != 1.0:
            raise SettingsError("alpha changes nothing without loud")


def walk(settings: Settings) -> Walk:
    """``inner.unread`` is not read."""
    inner = settings.inner
    rl = stage(GRPO, steps=inner.steps, seed=settings.seed, quiet=settings.loud)
    return Walk([(inner.name, rl, "base")])


def with_recipe(folder: Path, walk: Any = walk) -> Patient:
    made = patient(folder)
    made.recipe = Recipe(Settings(), walk)
    return made


def test_a_setting_that_nobody_reads(tmp_path: Path) -> None:
    found = findings(with_recipe(tmp_path), "settings are live")["settings are live"]
    assert found.status == "fail"
    assert found.what == "1 of 6 settings change no stage: inner.unread=0.5"


def test_what_comes_after_a_result_is_not_known(tmp_path: Path) -> None:
    sick = with_recipe(tmp_path, lambda settings: walk(settings)._replace(stopped="AttributeError: path"))
    assert findings(sick, "settings are live")["settings are live"].status == "warn"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (bool, True),
        (int, 0),
        (int, 16),
        (float, 0.0),
        (float, 3e-4),
        (float | None, None),
        (int | None, 3),
        (Literal["k2", "k3"], "k3"),
        (tuple[float, float], (0.1, 0.8)),
        (tuple[str, ...], ()),
        (str, ""),
        (Path, Path("here")),
        (Path | None, None),
    ],
)
def test_proposals_fit_their_type_and_differ(kind: Any, value: object) -> None:
    others = proposals(kind, value)
    assert others
    for other in others:
        assert fit(kind, other) == other
        assert other != value
