"""Prompts without answers: what is read, how it is divided, and that nothing but the form is graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem
from longthought.tasks.open_prompts import OpenPrompts, PromptReading
from longthought.tasks.preference_rows import Preference
from longthought.tasks.preferences import Preferences


def written(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_what_is_read(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Two?"}]
    files = [
        written(tmp_path, [{"conversations": talk}], "a.jsonl"),
        written(tmp_path, [{"messages": system}, {"messages": system}], "b.jsonl"),
        written(tmp_path, [{"instruction": f"Write {i}."} for i in range(50)], "c.jsonl"),
    ]
    task = OpenPrompts.read(*files)
    found = {task.problem(split, i).messages for split in ("train", "dev", "test") for i in range(task.size(split))}
    assert len(found) == 52
    assert (Message("user", "One?"),) in found  # its reply is left out
    assert (Message("system", "Be kind."), Message("user", "Two?")) in found
    assert "prompt ← conversations; prompt ← messages; prompt ← instruction; 52 prompts (train " in task.describe()
    assert task.describe().endswith("1 repeated")


def test_every_prompt_once_per_epoch_and_in_another_order(tmp_path: Path) -> None:
    task = OpenPrompts.read(written(tmp_path, [{"prompt": f"Say {i}"} for i in range(80)]), seed=3)
    size = task.size("train")
    first, second = ([task.problem("train", i).id for i in range(n * size, (n + 1) * size)] for n in (0, 1))
    assert len(set(first)) == size
    assert sorted(first) == sorted(second)
    assert first != second
    assert task.problem("train", 7) == task.problem("train", 7)
    assert all(one.startswith("prompts/") for one in first)


def test_held_out_prompts_are_those_that_judgements_hold_out(tmp_path: Path) -> None:
    task = OpenPrompts.read(written(tmp_path, [{"prompt": f"Say {i}"} for i in range(300)]), test_share=0.2)
    asked = {split: [task.problem(split, i) for i in range(task.size(split))] for split in ("train", "dev", "test")}
    reply, other = Message("assistant", "a"), Message("assistant", "b")
    pairs = Preferences.of(
        [Preference(one.messages, reply, other) for found in asked.values() for one in found], held_out=0.2
    )
    held = {pairs.item("held_out", i).prompt for i in range(pairs.size("held_out"))}
    assert held == {one.messages for one in asked["test"]}


TALE = "Once upon a time."


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (f"<think> hm </think> {TALE}", True),
        (f"<think> hm </think> <answer> {TALE} </answer>", True),
        (f"<think></think>{TALE}", True),
        (TALE, False),
        ("<think> hm </think> ", False),
        (f"<think> hm {TALE}", False),
        (f"Well, <think> hm </think> {TALE}", False),
        ("", False),
    ],
)
def test_the_form_is_all_that_is_graded(tmp_path: Path, reply: str, kept: bool) -> None:
    task = OpenPrompts.read(written(tmp_path, [{"prompt": f"Say {i}"} for i in range(20)]), format_weight=0.5)
    (score,) = task.grade(task.problem("train", 0), [reply])
    assert (score.value, score.correct, score.parts) == (0.5 * kept, kept, {"format": float(kept)})


@given(st.text())
def test_no_reply_is_without_a_score(reply: str) -> None:
    task = _small()
    (score,) = task.grade(task.problem("train", 0), [reply])
    assert score.value in (0.0, 0.1)


def _small() -> OpenPrompts:
    from longthought.tasks.examples import Conversations

    kept = Conversations()
    for number in range(10):
        kept.add([Message("user", f"Say {number}")], "here", number)
    return OpenPrompts(kept)


@pytest.mark.parametrize(
    ("rows", "reading", "says"),
    [
        ([], PromptReading(), "holds no rows"),
        ([{"text": "a"}], PromptReading(), "no column is known to hold prompts.*Columns: text"),
        ([{"prompt": "a"}], PromptReading(column="promt"), "'promt' is absent or empty; did you mean prompt"),
        ([{"prompt": "a"}, {"prompt": " "}], PromptReading(), "prompts.jsonl:2: missing prompt"),
        ([{"prompt": 3}], PromptReading(), "wrong type"),
        ([{"prompt": "a"}, 7], PromptReading(), "prompts.jsonl:2"),
        ([{"prompt": [{"role": "owl", "content": "a"}]}], PromptReading(), "unknown role"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], PromptReading(), "prompts.jsonl:1"),
        (
            [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}],
            PromptReading(single=True),
            "more than one message",
        ),
        ([{"prompt": ""}], PromptReading(bad="skip"), "no column"),
    ],
)
def test_bad_files_are_refused_with_the_place(
    tmp_path: Path, rows: list[Any], reading: PromptReading, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        OpenPrompts.read(written(tmp_path, rows), reading=reading)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    rows = [*({"prompt": f"Say {i}"} for i in range(30)), {"prompt": None}]
    task = OpenPrompts.read(written(tmp_path, rows), reading=PromptReading(bad="skip"))
    assert "1 bad rows skipped: missing prompt" in task.describe()


def test_places_and_settings_that_cannot_be() -> None:
    task = _small()
    for split, index, says in (("train", -1, "counted from 0"), ("exam", 0, "no split 'exam'")):
        with pytest.raises(DataError, match=says):
            task.problem(split, index)
    with pytest.raises(SettingsError, match="format_weight"):
        OpenPrompts(task.prompts, format_weight=-1.0)
    with pytest.raises(SettingsError, match="name a file"):
        OpenPrompts.read()
    assert isinstance(task.problem("train", 10**9), Problem)
