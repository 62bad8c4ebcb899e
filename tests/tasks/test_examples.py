"""Conversations from files: every layout to the same messages, every bad row told, nothing lost in silence."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.runs.describe import describe
from longthought.tasks.example_rows import ExampleFields
from longthought.tasks.examples import ExampleReading, Examples
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading
from longthought.text.reasoning import CLOSE, OPEN
from longthought.verifiers.exact import Exact

SKIP = ExampleReading(bad="skip")
ASKED, SAID = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
WANTED = (Message("user", "2 + 2?"), Message("assistant", "4", "2 and 2"))


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*paths: Path, held_out: float = 0.0, **more: Any) -> Examples:
    return Examples.read(*paths, held_out=held_out, **more)


def only(path: Path, row: Mapping[str, Any], fields: str = "") -> tuple[Message, ...]:
    reading = ExampleReading(ExampleFields.parse(fields))
    return read(lines(path / "one.jsonl", [row]), reading=reading).messages("train", 0)


LAYOUTS: list[tuple[Mapping[str, Any], str]] = [
    ({"messages": [ASKED, {"role": "assistant", "content": "<think>\n2 and 2\n</think>\n\n4"}]}, ""),
    ({"messages": [ASKED, {**SAID, "reasoning_content": "2 and 2"}]}, ""),
    ({"messages": [ASKED, {**SAID, "reasoning": "2 and 2", "thinking": "2 and 2", "tool_calls": []}], "id": 7}, ""),
    ({"messages": [ASKED, SAID], "why": "2 and 2"}, "reasoning=why"),
    (
        {
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "gpt", "value": "<think> 2 and 2 </think> 4"},
            ],
            "system": "",
        },
        "",
    ),
    ({"instruction": "2 + 2?", "input": "", "output": "<think>2 and 2</think>4"}, ""),
    ({"prompt": "2 + 2?", "response": "4", "reasoning": "2 and 2"}, ""),
    ({"prompt": [ASKED], "completion": [{**SAID, "thinking": " 2 and 2\n"}], "answer": "four"}, ""),
    ({"Question": "2 + 2?", "answer": "2 and 2</think>4"}, ""),
    ({"problem": "2 + 2?", "solution": "4", "thinking": "2 and 2", "answer": "IV"}, ""),
    ({"messages": [ASKED], "response": "<think>2 and 2</think> 4"}, ""),
    (
        {"data": {"frage": "2 + 2?", "antwort": "4"}, "warum": "2 and 2"},
        "prompt=data.frage,reply=data.antwort,reasoning=warum",
    ),
    ({"prompt": "2 + 2?", "chosen": [ASKED, {**SAID, "reasoning": "2 and 2"}], "rejected": "5"}, "messages=chosen"),
]


@pytest.mark.parametrize(
    ("row", "fields"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_layout_says_the_same(row: Mapping[str, Any], fields: str, tmp_path: Path) -> None:
    assert only(tmp_path, row, fields) == WANTED


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, [("user", "Add.\n\n2 2"), ("assistant", "4")]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        ({"prompt": "a", "response": "b\n "}, [("user", "a"), ("assistant", "b\n ")]),
        (  # a tag that is talked about is no thought
            {"prompt": "a", "response": "The <think> tag opens a thought, </think> ends it."},
            [("user", "a"), ("assistant", "The <think> tag opens a thought, </think> ends it.")],
        ),
        (  # an empty thought is a way to answer at once, and is left where it is
            {"prompt": "a", "response": "<think>\n\n</think>\n\nb"},
            [("user", "a"), ("assistant", "<think>\n\n</think>\n\nb")],
        ),
        ({"prompt": "<think>a</think>", "response": "b"}, [("user", "<think>a</think>"), ("assistant", "b")]),
    ],
)
def test_what_is_said_is_kept(row: Mapping[str, Any], wanted: list[tuple[str, str]], tmp_path: Path) -> None:
    assert [(m.role, m.content) for m in only(tmp_path, row)] == wanted
    assert not any(m.reasoning for m in only(tmp_path, row))


BAD: list[tuple[Any, str]] = [
    ({"messages": []}, "missing messages"),
    ({"messages": "hello"}, "wrong type: messages is text where a list"),
    ({"messages": json.dumps([ASKED, SAID])}, "messages written as text"),
    ({"messages": [SAID]}, "does not begin with the user"),
    ({"messages": [ASKED]}, "does not end with a reply"),
    ({"messages": [ASKED, SAID, ASKED]}, "does not end with a reply"),
    ({"messages": [ASKED, {"role": "system", "content": "s"}, SAID]}, "a system message that is not the first"),
    ({"messages": [ASKED, {"role": "tool", "content": "x"}, SAID]}, "unknown role: message 2: 'tool'"),
    ({"messages": [ASKED, {"role": ["assistant"], "content": "x"}]}, "unknown role"),
    ({"messages": [ASKED, {"role": "assistant", "content": " \n"}]}, "missing content of message 2"),
    ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "missing content of message 2"),
    ({"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "4"}]}]}, "wrong type: content"),
    (
        {"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f"}]}]},
        "a message with further keys: message 2: tool_calls",
    ),
    ({"messages": [ASKED, {**SAID, "weight": 0}]}, "a message with further keys: message 2: weight"),
    ({"messages": [{**ASKED, "reasoning": "hm"}, SAID]}, "reasoning of another role"),
    ({"messages": [ASKED, {**SAID, "reasoning": "a", "thinking": "b"}]}, "two thoughts before one reply that differ"),
    ({"messages": [ASKED, {**SAID, "content": "<think>a</think>4", "reasoning": "b"}]}, "two thoughts"),
    ({"messages": [ASKED, {**SAID, "reasoning": 3}]}, "wrong type: reasoning"),
    ({"messages": [ASKED, {**SAID, "content": "<think> and so on"}]}, "<think> without </think>"),
    ({"messages": [ASKED, {**SAID, "content": "<think>4</think>\n"}]}, "nothing after the reasoning"),
    ({"messages": [ASKED, {**SAID, "content": "\ud800"}]}, "no valid Unicode"),
    ({"messages": [ASKED, 4]}, "wrong type: message 2"),
    ([ASKED, SAID], "not an object"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_rows_are_told_with_their_line(bad: Any, reason: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID]}, bad])
    with pytest.raises(DataError) as told:
        read(path)
    assert f"{path}:2: {reason}" in str(told.value)
    assert "examples.bad=skip" in str(told.value)
    kept = read(path, reading=SKIP)
    assert kept.size("train") == 1
    assert sum(kept.conversations.skipped.values()) == 1
    assert "1 bad rows skipped" in kept.describe()


def test_all_bad_rows_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    path = lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID]}] + [{"messages": [ASKED]}] * 50)
    with pytest.raises(DataError, match="50 rows cannot be used") as told:
        read(path)
    assert "… and 30 more" in str(told.value)
    with pytest.raises(DataError, match="1 row cannot be used"):
        read(lines(path, [{"messages": [SAID]}]), reading=SKIP)  # nothing is left


@pytest.mark.parametrize(
    ("row", "fields", "words"),
    [
        ({"text": "hello"}, "", r"no column is known to hold the prompt; name it with examples\.fields=prompt="),
        ({"prompt": "a", "text": "b"}, "", r"no column is known to hold the reply.*Columns: prompt, text"),
        ({"prompt": "a", "response": "b", "completion": "c"}, "", "both 'response' and 'completion' may be the reply"),
        ({"messages": [ASKED, SAID], "conversation": [ASKED, {**SAID, "content": "5"}]}, "", "may be the messages"),
        (
            {"prompt": "a", "response": "b"},
            "reply=respons",
            "column 'respons' is absent or empty; did you mean response",
        ),
        ({"prompt": "a", "response": "b"}, "reply=prompt", "prompt and reply are the same column"),
    ],
)
def test_columns_that_are_not_known_are_refused(row: Any, fields: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        only(tmp_path, row, fields)


@pytest.mark.parametrize("fields", ["rply=a", "reply", "reply=", "messages=a,reply=b", "reply=a,reply=b"])
def test_fields_that_cannot_be_are_refused(fields: str) -> None:
    with pytest.raises(SettingsError, match="fields"):
        ExampleFields.parse(fields)


def test_files_of_every_kind_hold_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "response": f"<think>hm {i}</think>{i}"} for i in range(5)]
    lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "response"])
        table.writeheader()
        table.writerows(rows)
    prints = {read(tmp_path / f"a.{kind}").conversations.fingerprint for kind in ("jsonl", "json", "parquet", "csv")}
    assert len(prints) == 1


def test_a_parquet_file_of_messages_fills_missing_keys_with_nothing(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, {**SAID, "reasoning_content": "2 and 2"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")  # the user's message has the key, too: null
    assert read(tmp_path / "a.parquet").messages("train", 0) == WANTED


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of conversations .*absent\.jsonl"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="files of conversations end in"):
        read(lines(tmp_path / "a.xml", []))
    with pytest.raises(DataError, match="holds no rows"):
        read(lines(tmp_path / "a.jsonl", []))
    with pytest.raises(SettingsError, match="is named twice"):
        read(tmp_path / "a.jsonl", tmp_path / "." / "a.jsonl")
    with pytest.raises(SettingsError, match="name a file of conversations"):
        read()


def test_copies_are_dropped_and_counted(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "c"}])
    second = lines(
        tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}]
    )
    examples = read(first, second)
    assert examples.size("train") == 2  # another reply to the same question is another example
    assert examples.conversations.repeated == 1
    assert "1 exact duplicates dropped" in examples.describe()
    assert examples.where("train", 1) == (str(first), 2)


def test_every_reply_is_an_example_that_ends_with_it(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path = lines(tmp_path / "a.jsonl", [row])
    last, every = read(path), read(path, turns="all")
    assert [[m.content for m in last.messages("train", i)] for i in range(last.size("train"))] == [["a", "b", "c", "d"]]
    assert [[m.content for m in every.messages("train", i)] for i in range(2)] == [["a", "b"], ["a", "b", "c", "d"]]
    assert every.size("train") == 2
    assert last != every


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)] * 3),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_is_said_comes_back(parts: list[tuple[str, str, str]], tmp_path: Path) -> None:
    wanted = [
        (Message("user", asked), Message("assistant", said.strip(), thought.strip()))
        for asked, said, thought in parts
        if asked.strip()
        and said.strip()
        and thought.strip()
        and OPEN not in said + thought
        and CLOSE not in said + thought
    ]
    if not wanted:
        return
    rows = [
        {"messages": [{"role": m.role, "content": m.content, "reasoning": m.reasoning} for m in pair]}
        for pair in wanted
    ]
    examples = read(lines(tmp_path / "a.jsonl", rows))
    found = [examples.messages("train", i) for i in range(examples.size("train"))]
    assert found == list(dict.fromkeys(wanted))
    inline = [{"prompt": u.content, "reply": f"{OPEN}\n{a.reasoning}\n{CLOSE}\n\n{a.content}"} for u, a in wanted]
    assert read(lines(tmp_path / "b.jsonl", inline)).conversations == examples.conversations


def many(count: int = 400) -> list[dict[str, str]]:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]


def test_a_larger_share_holds_out_what_a_smaller_one_did_and_a_task_the_same(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", many())
    held: dict[float, set[str]] = {}
    for share in (0.05, 0.1, 0.3):
        examples = read(path, held_out=share)
        held[share] = {examples.messages("held_out", i)[0].content for i in range(examples.size("held_out"))}
        trained = {examples.messages("train", i)[0].content for i in range(examples.size("train"))}
        assert trained | held[share] == {row["question"] for row in many()}
        assert not trained & held[share]
    assert held[0.05] < held[0.1] < held[0.3]
    task = FileTask.read(path, grading=Grading(Exact()))
    assert held[0.1] == {task.problem("test", i).messages[0].content for i in range(task.size("test"))}


def test_conversations_about_one_question_fall_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": form.format(i), "reply": f"{i} {form}"} for i in range(60) for form in ("Is {} odd?", " is {}  ODD")
    ]
    examples = read(lines(tmp_path / "a.jsonl", rows), held_out=0.3)
    sides = [
        {examples.messages(part, i)[0].content.split()[1] for i in range(examples.size(part))}
        for part in ("train", "held_out")
    ]  # type: ignore[arg-type]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) > 5


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", many(3))
    with pytest.raises(DataError, match="all are held out"):
        read(path, held_out=0.9999999)
    for wrong in ({"held_out": 1.0}, {"held_out": -0.1}, {"turns": "first"}):
        with pytest.raises(SettingsError, match="examples: "):
            read(path, **wrong)


def test_a_run_knows_the_examples_by_what_they_say(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", many(20))
    before = describe(read(path))
    assert describe(read(path.rename(tmp_path / "b.jsonl"))) == before  # wherever they lie
    assert describe(read(lines(path, many(21)))) != before
    assert describe(read(lines(path, list(reversed(many(20)))))) != before  # the order is part of it
    told = describe(read(tmp_path / "b.jsonl", turns="all"))
    assert {key for key in told if told[key] != before[key]} == {"turns"}


def test_conversations_of_code(tmp_path: Path) -> None:
    examples = Examples.of([WANTED, (WANTED[0], Message("assistant", "5"))])
    assert [examples.messages("train", i)[-1].content for i in range(2)] == ["4", "5"]
    assert only(tmp_path, LAYOUTS[0][0]) == examples.messages("train", 0)
    with pytest.raises(DataError, match="conversation 2 cannot be used: does not end with a reply"):
        Examples.of([WANTED, WANTED[:1]])
    with pytest.raises(DataError, match="there is no conversation"):
        Examples.of([])


def test_the_description_says_what_was_not_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"problem": "a", "solution": "b", "answer": "c", "source": "d"}])
    assert read(path).describe() == (
        "prompt ← problem, reply ← solution, unread: answer source; 1 conversations, replies: train 1, held out 0"
    )
