"""Judgements out of files: pairs in the layouts of data sets, scored replies, labels; rows that cannot be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.preference_rows import Label, LabelFields, Preference, PreferenceFields
from longthought.tasks.preferences import CLOSE, Labels, Preferences, shown

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B"))
)
ASKED = (Message("user", "Q"),)
PAIR = Preference(ASKED, Message("assistant", "A"), Message("assistant", "B"))
MANY = [
    Preference((Message("user", f"question {n}"),), Message("assistant", "a"), Message("assistant", "b"))
    for n in range(60)
]


def filler() -> list[dict[str, Any]]:
    """Rows enough for both parts, in the plainest layout."""
    return [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(60)]


def talks() -> list[dict[str, Any]]:
    """The same as whole conversations."""
    asked = [{"role": "user", "content": f"question {n}"} for n in range(60)]
    return [{"prompt": one["content"], "chosen": [one, GOOD], "rejected": [one, BAD]} for one in asked]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, rows: list[dict[str, Any]], **how: Any) -> Preferences:
    return Preferences.read(written(path / "pairs.jsonl", rows), **how)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Q", "chosen": [USER, GOOD], "rejected": "B"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "rejected": [USER, BAD]},
    ],
)
def test_layouts_of_pairs(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, [row, *talks()]).items[0] == PAIR


def test_a_prompt_may_be_called_a_question(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "chosen": "a", "rejected": "b", "id": 3} for row in filler()]
    assert read(tmp_path, rows).items == read(tmp_path, filler()).items


def test_a_thought_is_set_apart_and_a_talk_of_many_turns_is_judged_by_its_last(tmp_path: Path) -> None:
    thought = {"prompt": "Q", "chosen": "<think>x</think>A", "rejected": "B"}
    first = read(tmp_path, [thought, *filler()]).items[0]
    assert first.chosen == Message("assistant", "A", "x")
    talk = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}
    last = read(tmp_path, [talk, *talks()]).items[0]
    assert (len(last.prompt), last.chosen.content, last.rejected.content) == (3, "A", "B")


def scored(scores: list[Any], replies: list[Any] | None = None) -> dict[str, Any]:
    return {"prompt": "Q", "replies": replies or [f"r{n}" for n in range(len(scores))], "scores": scores}


def test_scored_replies_are_all_pairs_that_are_far_enough_apart(tmp_path: Path) -> None:
    rows = [scored([1, 4, 2.5, 1]), *({**scored([0, 2]), "prompt": f"question {n}"} for n in range(60))]
    every = read(tmp_path, rows)
    told = [(p.chosen.content, p.rejected.content, p.margin) for p in every.items if p.prompt == ASKED]
    assert sorted(told) == [
        ("r1", "r0", 3.0),
        ("r1", "r2", 1.5),
        ("r1", "r3", 3.0),
        ("r2", "r0", 1.5),
        ("r2", "r3", 1.5),
    ]
    apart = read(tmp_path, rows, least_gap=1.5)
    assert [p.chosen.content for p in apart.items if p.prompt == ASKED] == ["r1", "r1"]
    assert apart.skipped == {CLOSE: 3}


def test_margins_come_from_a_column_or_from_two_scores(tmp_path: Path) -> None:
    given = read(tmp_path, [{**row, "margin": 0.5} for row in filler()])
    assert {pair.margin for pair in given.items} == {0.5}
    assert given.has_margins
    two = [{**row, "score_chosen": 4, "score_rejected": n % 5} for n, row in enumerate(filler())]
    far = read(tmp_path, two, least_gap=1.0)
    assert {pair.margin for pair in far.items} == {2.0, 3.0, 4.0}
    assert far.skipped == {CLOSE: 24}
    assert not read(tmp_path, filler()).has_margins


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen and rejected are the same"),
        ({"prompt": "Q", "chosen": "A"}, "missing reply"),
        ({"prompt": "", "chosen": "A", "rejected": "B"}, "missing prompt"),
        ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "missing prompt"),
        ({"prompt": "Q", "chosen": 3, "rejected": "B"}, "wrong type"),
        ({"prompt": "Q", "chosen": {"a": 1}, "rejected": "B"}, "wrong type"),
        ({"prompt": "Q", "chosen": [], "rejected": "B"}, "missing reply"),
        ({"prompt": "Q", "chosen": [USER], "rejected": [USER]}, "does not end with a reply"),
        (
            {"prompt": "Q", "chosen": [{"role": "user", "content": "P"}, GOOD], "rejected": "B"},
            "chosen and rejected follow different prompts",
        ),
        ({"prompt": "Q", "chosen": "<think>x", "rejected": "B"}, "<think> without </think>"),
        ({"prompt": "Q", "chosen": "\ud800", "rejected": "B"}, "no valid Unicode"),
        ({"prompt": "Q", "chosen": '[{"role": "user", "content": "Q"}]', "rejected": "B"}, "messages written as text"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "much"}, "no finite number"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": True}, "no finite number"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": -1}, "a negative margin"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "1e999"}, "no finite number"),
    ],
)
def test_bad_rows_are_listed_and_can_be_skipped(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = [*({**one, "margin": 1} for one in filler()), row]
    with pytest.raises(DataError, match="1 row cannot be used") as told:
        read(tmp_path, rows)
    assert f"pairs.jsonl:61: {reason}" in str(told.value)
    left = read(tmp_path, rows, bad="skip")
    assert (len(left), sum(left.skipped.values())) == (60, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (scored([1]), "not one score for each of at least two replies"),
        (scored([1, 2], ["a", "b", "c"]), "not one score for each"),
        (scored([1, None]), "no finite number"),
        (scored([1, float("inf")]), "not a finite number"),
        (scored([1, 2], ["a", 3]), "wrong type"),
        ({**scored([1, 2]), "scores": "1 2"}, "wrong type"),
    ],
)
def test_bad_scores_are_listed(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = [*({**scored([0, 2]), "prompt": f"question {n}"} for n in range(60)), row]
    with pytest.raises(DataError) as told:
        read(tmp_path, rows)
    assert f"pairs.jsonl:61: {reason}" in str(told.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "Q", "text": "A"}], "no columns are known to hold chosen and rejected, or replies and scores"),
        (
            [{"prompt": "Q", "query": "P", "chosen": "A", "rejected": "B"}],
            "both 'prompt' and 'query' may be the prompt",
        ),
        ([{**scored([1, 2]), "chosen": "A", "rejected": "B"}], "say which are not to be read"),
        ([{"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 1}], "go together"),
        ([], "holds no rows"),
    ],
)
def test_files_that_are_unclear_are_refused(rows: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, rows)


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"ask": f"question {n}", "best": "a", "worst": "b", "chosen": "x"} for n in range(60)]
    columns = PreferenceFields.parse("prompt=ask,chosen=best,rejected=worst")
    found = read(tmp_path, rows, columns=columns)
    assert found.items[0].chosen.content == "a"
    assert list(found.columns.values()) == ["prompt ← ask, chosen ← best, rejected ← worst"]
    with pytest.raises(DataError, match="column 'bset' is absent"):
        read(tmp_path, rows, columns=PreferenceFields(prompt="ask", chosen="bset", rejected="worst"))


def test_other_kinds_of_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = read(tmp_path, filler())
    pq.write_table(pa.Table.from_pylist(filler()), tmp_path / "pairs.parquet")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        table.writeheader()
        table.writerows(filler())
    for name in ("pairs.parquet", "pairs.csv"):
        assert Preferences.read(tmp_path / name).fingerprint == wanted.fingerprint


def test_copies_are_dropped_and_contradictions_counted(tmp_path: Path) -> None:
    turned = {"prompt": "question 3", "chosen": "b", "rejected": "a"}
    found = read(tmp_path, [*filler(), turned, *filler()[:5]])
    assert (len(found), found.repeated, found.contradictions) == (61, 5, 2)


def test_all_pairs_of_a_prompt_fall_on_one_side() -> None:
    spelled = [Preference((Message("user", p.prompt[0].content.upper() + "?"),), p.rejected, p.chosen) for p in MANY]
    found = Preferences.of([*MANY, *spelled], held_out=0.3)
    sides = {
        part: {found.item(part, n).prompt[0].content.lower().rstrip("?") for n in range(found.size(part))}
        for part in ("train", "held_out")
    }
    assert not sides["train"] & sides["held_out"]
    assert 20 <= found.size("held_out") <= 52
    assert found.size("train") + found.size("held_out") == 120


def test_the_fingerprint_tells_what_matters() -> None:
    one = Preferences.of(MANY, held_out=0.2)
    assert one.fingerprint == Preferences.of(MANY, held_out=0.2).fingerprint
    turned = [Preference(MANY[0].prompt, MANY[0].rejected, MANY[0].chosen), *MANY[1:]]
    rated = [Preference(MANY[0].prompt, MANY[0].chosen, MANY[0].rejected, 1.0), *MANY[1:]]
    others = [
        Preferences.of(turned, 0.2),
        Preferences.of(rated, 0.2),
        Preferences.of(MANY, 0.3),
        Preferences.of(MANY[::-1], 0.2),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_what_a_judge_sees_first_says_nothing() -> None:
    texts = [
        Preference(p.prompt, Message("assistant", f"a{n}"), Message("assistant", f"b{n}"))
        for n, p in enumerate(MANY * 5)
    ]
    seen = [shown(pair) for pair in texts]
    assert 0.4 < sum(one.chosen_first for one in seen) / len(seen) < 0.6
    for pair, one in zip(texts, seen):
        assert {one.first, one.second} == {pair.chosen, pair.rejected}
        assert (one.first == pair.chosen) == one.chosen_first
        turned = shown(Preference(pair.prompt, pair.rejected, pair.chosen))
        assert (turned.first, turned.second) == (one.first, one.second)  # whichever was chosen
    assert any(shown(pair, seed=1) != one for pair, one in zip(texts, seen))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_something_must_be_held_out(share: float) -> None:
    with pytest.raises(SettingsError, match="held_out"):
        Preferences.of(MANY, held_out=share)


def test_too_few_or_impossible_judgements_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        Preferences.of(MANY[:2])
    with pytest.raises(DataError, match="judgement 1 cannot be used: chosen and rejected are the same"):
        Preferences.of([Preference(ASKED, PAIR.chosen, PAIR.chosen)])
    with pytest.raises(DataError, match="negative or not finite"):
        Preferences.of([Preference(ASKED, PAIR.chosen, PAIR.rejected, float("nan"))])
    with pytest.raises(DataError, match="does not begin with the user"):
        Preferences.of([Preference((), PAIR.chosen, PAIR.rejected)])
    with pytest.raises(SettingsError, match="name a file"):
        Preferences.read()
    with pytest.raises(SettingsError, match="least_gap"):
        Preferences.read("pairs.jsonl", least_gap=-1.0)


@pytest.mark.parametrize(
    ("given", "wanted"), [(True, True), (0, False), ("unsafe", False), ("Safe", True), ("1", True)]
)
def test_labels(given: object, wanted: bool, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "response": f"r{n}", "is_safe": n % 2} for n in range(80)]
    path = written(tmp_path / "labels.jsonl", [{"prompt": "Q", "response": "A", "is_safe": given}, *rows])
    assert Labels.read(path).items[0] == Label(ASKED, Message("assistant", "A"), wanted)


@pytest.mark.parametrize("given", [None, 2, 0.5, "perhaps", [True]])
def test_what_is_no_label_is_listed(given: object, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "response": f"r{n}", "safe": n % 2} for n in range(80)]
    path = written(tmp_path / "labels.jsonl", [*rows, {"prompt": "Q", "response": "A", "safe": given}])
    with pytest.raises(DataError, match=r"labels\.jsonl:81: no label"):
        Labels.read(path)
    assert len(Labels.read(path, bad="skip")) == 80


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "response": "r", "label": "safe"} for n in range(80)]
    path = written(tmp_path / "labels.jsonl", rows)
    with pytest.raises(DataError, match="no columns are known to hold reply and safe"):
        Labels.read(path)  # a column called label may mean anything
    with pytest.raises(DataError, match="all labels of the part 'train' are the same"):
        Labels.read(path, columns=LabelFields.parse("safe=label"))
