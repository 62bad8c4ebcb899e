"""Sets as one: the floor of original data holds exactly, nothing comes twice, every line knows where it is from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from planted import Said, example_set

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.runs.place import Place
from longthought.stages.example_set import ExampleSet
from longthought.stages.merging import ABOVE, Merge
from longthought.stages.sifting import Against
from longthought.tasks.examples import Examples
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading
from longthought.verifiers.exact import Exact


def said(count: int, name: str) -> list[Said]:
    return [(f"{name} asks {number}", f"{name} thinks {number}", f"{number}") for number in range(count)]


def merged(stage: Merge, path: Path, **sets: ExampleSet) -> ExampleSet:
    with Place(path) as place:
        return stage.run(sets, place)


def sources(made: ExampleSet) -> list[dict[str, Any]]:
    return [json.loads(line)["source"] for line in made.file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("floor", "kept"), [(0.25, 30), (0.5, 10), (1.0, 0), (0.0, 100), (0.1, 90), (0.09, 100), (1 / 3, 20)]
)
def test_the_floor_holds_to_the_last_example(tmp_path: Path, floor: float, kept: int) -> None:
    first, later = example_set(tmp_path / "a", said(10, "first")), example_set(tmp_path / "b", said(100, "later"))
    made = merged(Merge(("first",), floor=floor), tmp_path / "run", later=later, first=first)
    assert Counter(one["set"] for one in sources(made)) == Counter(first=10, later=kept)
    report = made.report()
    assert report["original_share"] == 10 / (10 + kept) >= floor
    assert report["dropped"].get(ABOVE, 0) == 100 - kept
    assert report["offered"] == report["kept"] + sum(report["dropped"].values())
    assert made.examples(held_out=0.0).size("train") == 10 + kept


def test_who_is_left_out_goes_by_lot_among_all_rounds(tmp_path: Path) -> None:
    sets = {name: example_set(tmp_path / name, said(200, name)) for name in ("first", "second", "third")}
    kept = [merged(Merge(("first",), floor=0.5, seed=seed), tmp_path / f"run-{seed}", **sets) for seed in (0, 0, 1)]
    files = [made.file.read_bytes() for made in kept]
    assert files[0] == files[1] != files[2]
    counts = Counter(one["set"] for one in sources(kept[0]))
    assert counts["first"] == counts["second"] + counts["third"] == 200
    assert min(counts["second"], counts["third"]) > 60


def test_duplicates_over_sets_are_dropped_and_the_original_stays(tmp_path: Path) -> None:
    first = example_set(tmp_path / "a", said(5, "same"))
    later = example_set(tmp_path / "b", [*said(5, "same"), *said(3, "later")])
    made = merged(Merge(("first",), floor=0.1), tmp_path / "run", later=later, first=first)
    assert Counter(one["set"] for one in sources(made)) == Counter(first=5, later=3)
    assert made.report()["dropped"] == {"duplicate": 5}


def test_what_is_known_of_an_example_is_kept(tmp_path: Path) -> None:
    first = example_set(tmp_path / "a", said(3, "first"))
    made = merged(Merge(("first",)), tmp_path / "run", first=first)
    assert sources(made) == [{"number": number, "set": "first"} for number in range(3)]
    assert made.provenance()["from"]["first"]["stage"] == "planted"


def test_conversations_of_people_are_original_data(tmp_path: Path) -> None:
    people = tmp_path / "people.jsonl"
    people.write_text(json.dumps({"prompt": "Hello?", "reply": "Hello to you."}) + "\n", encoding="utf-8")
    later = example_set(tmp_path / "b", said(9, "later"))
    stage = Merge(given=Examples.read(people, held_out=0.0), floor=0.25)
    made = merged(stage, tmp_path / "run", later=later)
    assert Counter(one["set"] for one in sources(made)) == Counter({"people.jsonl": 1, "later": 3})
    assert sources(made)[0] == {"kind": "original", "file": "people.jsonl", "line": 1, "set": "people.jsonl"}
    assert made.examples(held_out=0.0).messages("train", 0)[-1] == Message("assistant", "Hello to you.")


def test_original_data_are_decontaminated_too(tmp_path: Path) -> None:
    file = tmp_path / "eval.jsonl"
    file.write_text(json.dumps({"prompt": "FIRST  asks 1", "answer": "1"}) + "\n", encoding="utf-8")
    task = FileTask.read(test=(file,), grading=Grading(Exact()))
    first = example_set(tmp_path / "a", said(3, "first"))
    made = merged(Merge(("first",), against=(Against(task),)), tmp_path / "run", first=first)
    assert made.report()["dropped"] == {"contaminated": 1}


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    first = example_set(tmp_path / "a", said(3, "first"))
    with pytest.raises(DataError, match="original set second is not among first"):
        merged(Merge(("second",)), tmp_path / "run", first=first)
    with pytest.raises(DataError, match="no example is left"):
        merged(Merge(floor=0.0), tmp_path / "none")
    first.file.write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="altered"):
        merged(Merge(("first",)), tmp_path / "run", first=first)
    (first.path / "provenance.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"examples\.jsonl, line 1 is no example"):
        merged(Merge(("first",)), tmp_path / "run", first=first)


@pytest.mark.parametrize("wrong", [{"floor": 0.5}, {"floor": -0.1}, {"floor": 1.1}, {"floor": 0, "similarity": 0.1}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Merge(**wrong)
