"""Which model goes on, by hand-computed scores; when the wheel stops; what is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parrot import checkpoint
from planted import evaluation

from longthought.core.errors import DataError, SettingsError
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.stages.measure import Folder
from longthought.stages.selection import Select, Selection

STAGE = Select(quiet=True)
EQUAL = [0.5, 0.25, 0.75, 0.5]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    return {"best": checkpoint(folder / "best"), "new": checkpoint(folder / "new", seed=1)}


def decide(
    path: Path,
    models: dict[str, Checkpoint],
    old: Sequence[float],
    new: Sequence[float],
    stage: Select = STAGE,
    **more: object,
) -> Selection:
    scores = {"best_score": evaluation(path / "old", old), "new_score": evaluation(path / "new", new)}
    with Place(path / "place") as place:
        return stage.run({**models, **scores, **more}, place)


def test_the_interval_is_that_of_the_differences(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    told = decide(tmp_path, models, [0, 0.5, 0, 0.5], [0.5, 0.5, 0.5, 0.5]).read()
    gap = told["difference"]
    half = 1.959964 * (0.25 / 3) ** 0.5 / 2  # of 0.5, 0, 0.5, 0: variance 0.25 / 3, four problems
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-6)
    assert (told["best"]["value"], told["new"]["value"], told["problems"]) == (0.25, 0.5, 4)
    assert (told["new"]["low"], told["new"]["high"]) == (0.5, 0.5)
    assert "chance alone could be the cause" in told["reason"]


def test_the_better_one_goes_on(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    made = decide(tmp_path, models, EQUAL, [share + 0.1 for share in EQUAL])
    assert (made.kept, made.stops, made.read()["stale"]) == ("new", False, 0)
    assert made.read()["reason"] == "the new model is better: it goes on"
    assert made.model(models) == models["new"]
    with pytest.raises(DataError, match="not the model"):
        made.model({"new": models["best"]})


def test_a_fall_beyond_chance_stops_at_once(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    made = decide(tmp_path, models, EQUAL, [0.4, 0.1, 0.7, 0.4])
    assert (made.kept, made.stops) == ("best", True)
    assert made.read()["reason"].startswith("stop: the new model is worse, by more than chance")
    assert made.model(models) == models["best"]


def test_a_fall_within_chance_does_not(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    made = decide(tmp_path, models, EQUAL, [0.0, 0.5, 0.9, 0.4])
    assert (made.kept, made.stops, made.read()["stale"]) == ("best", False, 1)


def test_patience_ends_after_rounds_in_a_row(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    better, made = [share + 0.1 for share in EQUAL], None
    stops = []
    for number, new in enumerate((EQUAL, better, EQUAL, EQUAL, EQUAL)):
        more: dict[str, Any] = {} if made is None else {"before": made}
        made = decide(tmp_path / str(number), models, EQUAL, new, replace(STAGE, patience=3), **more)
        stops.append(made.stops)
    assert stops == [False, False, False, False, True]
    assert made is not None
    history = made.read()["history"]
    assert [(row["round"], row["kept"], row["stale"]) for row in history] == [
        (1, "best", 1), (2, "new", 0), (3, "best", 1), (4, "best", 2), (5, "best", 3)
    ]  # fmt: skip
    told = (made.path / "decision.txt").read_text(encoding="utf-8").splitlines()
    assert len(told) == 5
    assert told[-1].endswith("stop: the new model is not better: the best one stays, for 3 rounds now")


def test_a_rise_must_be_above_the_margin(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    better = [share + 0.125 for share in EQUAL]
    assert decide(tmp_path / "a", models, EQUAL, better, replace(STAGE, margin=0.125)).kept == "best"
    assert decide(tmp_path / "b", models, EQUAL, better, replace(STAGE, margin=0.12)).kept == "new"


def diversity(path: Path, *faults: str) -> Folder:
    path.mkdir(parents=True)
    (path / "diversity.json").write_text(json.dumps({"collapsed": faults}), encoding="utf-8")
    return Folder(path)


def test_a_collapse_stops_without_a_new_model(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    fallen = diversity(tmp_path / "fallen", "distinct_ngrams is 0.1, it was 0.5")
    with Place(tmp_path / "place") as place:
        made = STAGE.run({"best": models["best"], "diversity": fallen}, place)
    assert (made.kept, made.stops) == ("best", True)
    assert "nothing is trained on them: distinct_ngrams is 0.1" in made.read()["reason"]
    whole = diversity(tmp_path / "whole")
    assert decide(tmp_path / "go", models, EQUAL, [1, 1, 1, 1], diversity=whole).kept == "new"


def test_other_problems_cannot_be_compared(tmp_path: Path, models: dict[str, Checkpoint]) -> None:
    scores = {
        "best_score": evaluation(tmp_path / "old", [0.5, 0.5], ["a", "b"]),
        "new_score": evaluation(tmp_path / "new", [0.5, 0.5], ["b", "a"]),
    }
    with Place(tmp_path / "place") as place, pytest.raises(DataError, match="same problems in the same order"):
        STAGE.run({**models, **scores}, place)


@pytest.mark.parametrize("missing", ["best_score", "new", "new_score"])
def test_what_is_missing_is_named(tmp_path: Path, models: dict[str, Checkpoint], missing: str) -> None:
    given: dict[str, Any] = {
        **models,
        "best_score": evaluation(tmp_path / "old", EQUAL),
        "new_score": evaluation(tmp_path / "new", EQUAL),
    }
    del given[missing]
    with Place(tmp_path / "place") as place, pytest.raises(DataError, match=f"'{missing}' is missing"):
        STAGE.run(given, place)
    with Place(tmp_path / "place") as place, pytest.raises(DataError, match="'newest' means nothing"):
        STAGE.run({**given, "newest": 1}, place)


@pytest.mark.parametrize("content", ["{}", "[]", "no", '{"problems": ["a"], "accuracy_by_problem": {"0": 1}}'])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, models: dict[str, Checkpoint], content: str) -> None:
    good = evaluation(tmp_path / "good", EQUAL)
    bad = evaluation(tmp_path / "bad", EQUAL)
    (bad.path / "summary.json").write_text(content, encoding="utf-8")
    with Place(tmp_path / "place") as place, pytest.raises(DataError, match=r"summary\.json"):
        STAGE.run({**models, "best_score": good, "new_score": bad}, place)


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": 1.0}, {"patience": 0}, {"level": 0.0}, {"level": 1.0}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="selection"):
        Select(**wrong)
