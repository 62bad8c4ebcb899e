"""Diversity by hand, the same for small and large sets, and the guard on planted collapse."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from planted import Said, example_set

from longthought.core.errors import DataError, SettingsError
from longthought.runs.place import Place
from longthought.stages.diversity import CheckDiversity
from longthought.stages.example_set import ExampleSet

WORDS = [f"{a}{b}" for a in "bcdfghjklm" for b in "aeiou"]


def various(count: int, seed: int = 0, words: int = len(WORDS)) -> list[Said]:
    """Two replies of twenty random words to every prompt."""
    chance = random.Random(seed)

    def say(number: int) -> str:
        return " ".join(chance.choices(WORDS[:words], k=number))

    return [(f"prompt {number // 2}", say(20), say(3)) for number in range(count)]


def check(stage: CheckDiversity, path: Path, **given: ExampleSet) -> dict[str, Any]:
    with Place(path) as place:
        content: dict[str, Any] = stage.run(given, place).read("diversity.json")
    return content


def test_measures_by_hand(tmp_path: Path) -> None:
    made = example_set(
        tmp_path / "set",
        [
            ("one", "a b c", "d"),  # 3-grams abc bcd
            ("one", "a b c", "e"),  # abc bce: one of three in common
            ("two", "f f f f", "<answer> d </answer> done"),
        ],
        prompts=4,
        duplicates=1,
    )
    now = check(CheckDiversity(block=2, answers=2), tmp_path / "run", examples=made)["measures"]
    assert now["distinctness"] == pytest.approx(2 / 3)
    assert now["coverage"] == 0.5
    assert now["unrepeated"] == 0.75
    lengths = [4, 4, 6]  # without the tags
    mean = sum(lengths) / 3
    assert now["length"] == pytest.approx(mean)
    assert now["length_spread"] == pytest.approx(math.sqrt(sum((n - mean) ** 2 for n in lengths) / 3))
    assert now["known"] is None


def test_answers_are_what_stands_in_the_tags(tmp_path: Path) -> None:
    stage = CheckDiversity(answers=2)
    same = example_set(tmp_path / "same", [("one", "a", "<answer> 5 </answer> so"), ("two", "b", "<answer>5</answer>")])
    other = example_set(
        tmp_path / "other", [("one", "a", "<answer> 5 </answer>"), ("two", "b", "<answer> 6 </answer>")]
    )
    assert stage.measure(same)["answer_entropy"] == 0.0
    assert stage.measure(other)["answer_entropy"] == 1.0


def test_size_does_not_change_the_measures(tmp_path: Path) -> None:
    """The plain share of different n-grams would fall by more than a tenth."""
    stage = CheckDiversity(block=500)
    small = stage.measure(example_set(tmp_path / "small", various(100, words=12)))
    large = stage.measure(example_set(tmp_path / "large", various(2000, words=12)))
    for name in ("distinct_ngrams", "distinctness", "answer_entropy"):
        assert small[name] == pytest.approx(large[name], abs=0.03)


def test_a_set_that_is_too_small_is_not_judged(tmp_path: Path) -> None:
    made = example_set(tmp_path / "set", [("one", "a b c", "d")])
    measures = CheckDiversity().measure(made)
    assert (measures["distinct_ngrams"], measures["answer_entropy"], measures["distinctness"]) == (None, None, None)
    first = example_set(tmp_path / "first", various(200))
    content = check(CheckDiversity(least=1.0), tmp_path / "run", examples=made, first=first)
    assert content["collapsed"] == []


PLANTED = {
    "distinct_ngrams": [
        (f"prompt {n // 2}", "the same thought again and again as ever before", f"{n}") for n in range(200)
    ],
    "distinctness": [
        (question, f"{WORDS[number // 2 % 50]} {' '.join(WORDS[number // 2 % 20 :][:18])}", str(number))
        for number, (question, _, _) in enumerate(various(200))
    ],
    "answer_entropy": [(question, thought, "always this") for question, thought, _ in various(200)],
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_collapse_is_found(tmp_path: Path, fault: str) -> None:
    first = example_set(tmp_path / "first", various(200))
    fallen = example_set(tmp_path / "fallen", PLANTED[fault])
    content = check(CheckDiversity(), tmp_path / "run", examples=fallen, first=first, before=first)
    assert any(words.startswith(f"{fault} (") for words in content["collapsed"])
    told = (tmp_path / "run/diversity/diversity.txt").read_text(encoding="utf-8")
    assert f"collapsed: {fault}" in told
    assert check(CheckDiversity(least=0), tmp_path / "free", examples=fallen, first=first)["collapsed"] == []


def test_fewer_prompts_and_more_duplicates_are_a_collapse(tmp_path: Path) -> None:
    first = example_set(tmp_path / "first", various(200), prompts=100, duplicates=10)
    fallen = example_set(tmp_path / "fallen", various(200, seed=1), prompts=300, duplicates=400)
    faults = check(CheckDiversity(), tmp_path / "run", examples=fallen, first=first)["collapsed"]
    assert [words.split()[0] for words in faults] == ["coverage", "unrepeated"]


def test_as_various_as_before_is_no_collapse(tmp_path: Path) -> None:
    first, second = (example_set(tmp_path / str(seed), various(200 + 60 * seed, seed)) for seed in (0, 1))
    content = check(CheckDiversity(least=0.9), tmp_path / "run", examples=second, first=first, before=first)
    assert content["collapsed"] == []
    assert 0 <= content["measures"]["known"] < 0.2


def test_what_the_round_before_said_is_known(tmp_path: Path) -> None:
    made = example_set(tmp_path / "set", various(20))
    assert check(CheckDiversity(), tmp_path / "run", examples=made, before=made)["measures"]["known"] == 1.0


def test_an_altered_or_missing_set_is_refused(tmp_path: Path) -> None:
    made = example_set(tmp_path / "set", various(4))
    with made.file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({}) + "\n")
    with pytest.raises(DataError, match="altered"):
        check(CheckDiversity(), tmp_path / "run", examples=made)
    with pytest.raises(DataError, match="give the set"):
        check(CheckDiversity(), tmp_path / "run", first=made)


@pytest.mark.parametrize("wrong", [{"least": -0.1}, {"least": 1.1}, {"ngram": 0}, {"block": 0}, {"answers": 1}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="diversity"):
        CheckDiversity(**wrong)
