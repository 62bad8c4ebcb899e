"""Predictions and golds in the layouts that evaluation tools write, and rows that are none."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message
from longthought.tasks.answers import AnswerFields, Answers

PLAIN = AnswerFields()


def written(folder: Path, *rows: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(answers: Answers) -> list[tuple[tuple[str, ...], str]]:
    return [(row.replies, row.problem.answer) for portion in answers.portions() for row in portion]


@pytest.mark.parametrize(
    ("row", "replies", "gold"),
    [
        ({"prediction": "4", "answer": "5"}, ("4",), "5"),
        ({"prediction": 4.0, "answer": 1200}, ("4",), "1200"),
        ({"Response": "a", "Gold": "b"}, ("a",), "b"),
        ({"question": "q", "completion": "a", "answer": "6 * 2\n#### 1,200"}, ("a",), "1200"),
        (
            {"problem": "q", "generations": ["a", "b", 3], "solution": r"so \boxed{\frac12}"},
            ("a", "b", "3"),
            r"\frac12",
        ),
        ({"output": "a", "target": "b"}, ("a",), "b"),
        ({"instruction": "q", "output": "gold", "response": "a"}, ("a",), "gold"),
        ({"text": "a", "reward_model": {"ground_truth": "7"}}, ("a",), "7"),
        ({"response": "a", "predicted": "a", "gold": "b"}, ("a",), "b"),
        ({"predictions": ["", "x"], "answer": "5"}, ("", "x"), "5"),
        ({"outputs": [{"text": "a"}, {"text": "b"}], "gold": "c"}, ("a", "b"), "c"),
        (
            {"completion": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "gold": "b"},
            ("a",),
            "b",
        ),
        (
            {"completions": [[{"role": "assistant", "content": "a"}], [{"from": "gpt", "value": "b"}]], "gold": "c"},
            ("a", "b"),
            "c",
        ),
        (
            {"response": {"role": "assistant", "content": "a", "reasoning_content": "hm"}, "gold": "b"},
            ("<think>hm</think>a",),
            "b",
        ),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, Any], replies: tuple[str, ...], gold: str) -> None:
    answers = Answers.read(written(tmp_path, row, row), PLAIN)
    assert pairs(answers) == [(replies, gold)] * 2
    assert (answers.rows, answers.replies) == (2, 2 * len(replies))


def test_named_columns_come_first(tmp_path: Path) -> None:
    row = {"answer": "said", "gold": "right", "id": "p1", "ask": "q", "options": ["x", "y"], "note": "n"}
    answers = Answers.read(
        written(tmp_path, row), AnswerFields.parse("prediction=answer,answer=gold,id=id,prompt=ask,info=note")
    )
    [[found]] = answers.portions()
    assert (found.place, found.replies, found.problem.answer, found.problem.id) == (1, ("said",), "right", "p1")
    assert found.problem.messages == (Message("user", "q"),)
    assert found.problem.info == {"note": "n", "options": '["x", "y"]'}
    assert str(answers.columns).startswith("prediction ← answer, answer ← gold, id ← id")
    assert str(answers.columns).endswith("prompt ← ask")


def test_keys_inside_a_column(tmp_path: Path) -> None:
    path = written(tmp_path, {"out": {"text": "a"}, "gold": "b"})
    assert pairs(Answers.read(path, AnswerFields(prediction="out.text"))) == [(("a",), "b")]


def test_a_prompt_is_used_where_there_is_one(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}]
    rows = [{"prompt": p, "response": "a", "gold": "b"} for p in ("q", chat, None, 5, [*chat, {"role": "x"}])]
    [found] = Answers.read(written(tmp_path, *rows), PLAIN).portions()
    assert [row.problem.messages for row in found] == [(Message("user", "q"),)] * 2 + [()] * 3
    assert [row.problem.id for row in found] == [f"a/{place}" for place in range(1, 6)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json"])
def test_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    rows = [{"response": "x", "answer": "1"}, {"response": "two\nlines", "answer": "2"}]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        sign = "," if suffix == ".csv" else "\t"
        path.write_text(f'response{sign}answer\nx{sign}1\n"two\nlines"{sign}2\n')
    assert pairs(Answers.read(path, PLAIN)) == [(("x",), "1"), (("two\nlines",), "2")]


def test_parquet_lists_and_decimals(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"responses": [["a", "b"]], "answer": [Decimal("1.50")]}), path)
    assert pairs(Answers.read(path, PLAIN)) == [(("a", "b"), "1.5")]


GOOD = {"response": "1", "gold": "1"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"response": None, "gold": "1"}, "missing prediction"),
        ({"gold": "1"}, "missing prediction"),
        ({"response": [], "gold": "1"}, "missing prediction: an empty list"),
        ({"response": ["1", None], "gold": "1"}, "missing prediction"),
        ({"response": True, "gold": "1"}, "prediction is true or false"),
        ({"response": "\ud800", "gold": "1"}, "no valid Unicode"),
        ({"response": {"x\x1b": 1}, "gold": "1"}, "wrong type: a message without content"),
        ({"response": [["a"]], "gold": "1"}, "wrong type"),
        (
            {"response": [{"role": "user", "content": "q"}], "gold": "1"},
            "a conversation that does not end with a reply",
        ),
        ({"response": "1"}, "missing answer"),
        ({"response": "1", "gold": "  "}, "missing answer"),
        ({"response": "1", "gold": False}, "answer is true or false"),
        ({"response": "1", "gold": "1", "Response": "2"}, "two predictions that differ"),
        ([1], "not an object"),
    ],
)
def test_bad_rows_are_told_with_their_place(tmp_path: Path, row: Any, reason: str) -> None:
    path = written(tmp_path, *[GOOD | {"Response": "1"} if "Response" in row else GOOD] * 100, row)
    with pytest.raises(DataError, match="1 row cannot be graded") as caught:
        Answers.read(path, PLAIN)
    assert f"{path}:101: {reason}" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    answers = Answers.read(path, PLAIN, "skip")
    assert (answers.rows, sum(answers.skipped.values()), len(answers.bad)) == (100, 1, 1)
    assert len(pairs(answers)) == 100


@pytest.mark.parametrize(
    ("row", "fields", "told"),
    [
        ({"x": "1", "answer": "1"}, "", "no filled column is known to hold the predictions"),
        ({"response": "1", "prediction": "2", "answer": "1"}, "", "both 'prediction' and 'response' may be"),
        ({"response": "1", "answer": "1", "gold": "2"}, "", "both 'answer' and 'gold' may be the answer"),
        ({"response": "1", "x": "1"}, "", "no column is known to hold the answer"),
        ({"response": "1", "answer": "1"}, "prediction=answer,answer=answer", "the same column"),
        ({"response": "1", "answer": "1"}, "prediction=respons", "did you mean response"),
        ({"response": "1", "answer": "1"}, "prompt=ask", "'ask' is absent or empty"),
        ({"response": "1", "answer": "1"}, "prompt=answer", "cannot be the prompt as well"),
        ({"response": None, "answer": "1"}, "prediction=response", "absent or empty"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path: Path, row: dict[str, Any], fields: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Answers.read(written(tmp_path, row), AnswerFields.parse(fields))


@pytest.mark.parametrize("text", ["split=x", "prediction=-", "predicton=x", "prediction", "prediction=a,prediction=b"])
def test_fields_that_mean_nothing(text: str) -> None:
    with pytest.raises(SettingsError, match="fields"):
        AnswerFields.parse(text)


def test_a_file_without_a_row_that_can_be_graded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        Answers.read(written(tmp_path), PLAIN)
    for row in ([1], {"response": "a", "gold": "1", "prediction": "a"}):
        with pytest.raises(DataError, match="1 row cannot"):
            Answers.read(written(tmp_path, row if isinstance(row, list) else row | {"gold": True}), PLAIN, "skip")
    with pytest.raises(SettingsError, match="refuse or skip"):
        Answers.read(written(tmp_path, GOOD), PLAIN, "drop")  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 12))
def test_portions_are_the_file_in_order(tmp_path_factory: pytest.TempPathFactory, counts: list[int], size: int) -> None:
    rows = [{"responses": [f"{row}.{k}" for k in range(n)], "gold": "g"} for row, n in enumerate(counts)]
    answers = Answers.read(written(tmp_path_factory.mktemp("answers"), *rows), PLAIN)
    portions = list(answers.portions(size))
    assert [list(row.replies) for portion in portions for row in portion] == [row["responses"] for row in rows]
    for portion in portions:
        assert sum(len(row.replies) for row in portion[:-1]) < size


def test_long_rows_make_small_portions(tmp_path: Path) -> None:
    answers = Answers.read(written(tmp_path, *[{"response": "x" * 6_000_000, "gold": "1"}] * 4), PLAIN)
    assert [len(portion) for portion in answers.portions()] == [3, 1]
