"""Traces: everything about a rollout comes back, equal input gives equal bytes, damage is named."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import RunDamaged, RunError
from longthought.core.types import Completion, Finish, Group, Message, Outcome, Problem, Rollout, Score, Verdict
from longthought.runs import traces


def rollout(problem: str, text: str, value: float | None, tokens: tuple[int, ...] = (5, 6)) -> Rollout:
    outcome = Outcome.TIMED_OUT if value is None else Outcome.GRADED
    score = Score(value, bool(value), {"accuracy": value or 0.0, "format": 0.1}, Verdict(value, outcome, f"saw {text}"))
    completion = Completion(tokens, tuple(-0.1 * (i + 1) for i in range(len(tokens))), Finish.LENGTH, 7)
    return Rollout(Problem(problem, (Message("user", "?"),), "33"), (1, 2, 3), completion, text, score)


GROUPS: list[Group] = [
    (rollout("p/1", "yes", 1.0), rollout("p/1", "试 \ud800!", None, ())),
    (rollout("p/1", "no", 0.0),),  # the same problem once more is a group of its own
]
VALUES = {
    "rewards": [[1.25, None], [0.5]],
    "advantages": [torch.tensor([0.5, math.nan], dtype=torch.float64), np.array([-0.5])],
    "shaping": {"length": [[0.25, -0.25], [0.5]]},
}


def test_rows_come_back(tmp_path: Path) -> None:
    file = traces.write(tmp_path, 123, GROUPS, **VALUES)  # type: ignore[arg-type]
    assert file == tmp_path / "step-000123.parquet"
    first, second, third = traces.rows(file)
    logprobs = [float(np.float32(-0.1)), float(np.float32(-0.2))]
    assert first == {
        "step": 123, "problem": "p/1", "group": 0, "sample": 0, "prompt": [1, 2, 3], "tokens": [5, 6],
        "logprobs": logprobs, "text": "yes", "finish": "length", "version": 7, "value": 1.0, "correct": True,
        "parts": {"accuracy": 1.0, "format": 0.1}, "outcome": "graded", "evidence": "saw yes",
        "shaping": {"length": 0.25}, "reward": 1.25, "advantage": 0.5, "length": 2, "update": None, "weight": None,
        "left_out": None, "logprobs_new": None, "advantages": None, "entropies": None,
    }  # fmt: skip
    assert (second["group"], second["sample"], second["tokens"], second["text"]) == (0, 1, [], "试 ?!")
    assert second["value"] is second["reward"] is second["advantage"] is None
    assert second["outcome"] == "timed_out"
    assert (third["group"], third["sample"], third["advantage"]) == (1, 0, -0.5)


def test_a_folder_is_read_in_order_of_steps(tmp_path: Path) -> None:
    for step in (1000000, 2, 10):
        traces.write(tmp_path, step, GROUPS, **VALUES)  # type: ignore[arg-type]
    (tmp_path / ".step-000011.parquet.77.partial").write_text("x")
    table = traces.read(tmp_path)
    assert table.schema.equals(traces.SCHEMA)
    assert table["step"].to_pylist() == [2] * 3 + [10] * 3 + [1000000] * 3
    traces.drop_after(tmp_path, 10)
    assert traces.read(tmp_path).num_rows == 6
    assert table["logprobs"].type.value_type == pa.float32()


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.floats(-2, 2),
            st.lists(st.integers(0, 2**31 - 1), max_size=9),
        ),
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_equal_input_gives_equal_bytes(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    folder = tmp_path_factory.mktemp("traces")
    written = []
    for _ in range(2):
        group = tuple(rollout("p", text, value, tuple(tokens)) for text, value, tokens in rows)
        nested = [[value for _, value, _ in rows]]
        file = traces.write(folder, 1, [group], rewards=nested, advantages=nested, shaping={"s": nested})
        written.append(file.read_bytes())
    assert written[0] == written[1]
    assert [(row["text"], row["reward"], row["tokens"]) for row in traces.rows(folder)] == rows


def test_values_must_match_the_groups(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length must hold one value per rollout"):
        traces.write(tmp_path, 1, GROUPS, **VALUES | {"shaping": {"length": [[1.0], [1.0]]}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rewards must hold"):
        traces.write(tmp_path, 1, GROUPS, **VALUES | {"rewards": [[1.0, 1.0]]})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_traces_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no traces in"):
        traces.read(tmp_path / "traces")
    file = traces.write(tmp_path, 1, GROUPS, **VALUES)  # type: ignore[arg-type]
    data = file.read_bytes()
    for length in range(0, len(data), 97):
        file.write_bytes(data[:length])
        with pytest.raises(RunDamaged, match=r"step-000001\.parquet is truncated or altered"):
            traces.read(tmp_path)


TRAINED = traces.Trained([-0.25, math.nan], [0.5, -0.5], None, 1, 0.125)


def test_what_the_learner_made_of_them_comes_back(tmp_path: Path) -> None:
    trained = [[TRAINED, traces.Trained(left_out="no reward")], [None]]
    file = traces.write(tmp_path, 1, GROUPS, **VALUES, trained=trained)  # type: ignore[arg-type]
    first, second, third = traces.rows(file)
    names = ("logprobs_new", "advantages", "entropies", "update", "weight", "left_out")
    assert [first[name] for name in names] == [[-0.25, None], [0.5, -0.5], None, 1, 0.125, ""]
    assert [second[name] for name in names] == [None, None, None, None, None, "no reward"]
    assert [third[name] for name in names] == [None] * 6


@pytest.mark.parametrize(
    ("trained", "told"),
    [
        ([[TRAINED], [None]], "trained must hold one value per rollout"),
        ([[TRAINED, TRAINED], [None]], "logprobs_new must hold one value per token: 0, not 2"),
        ([[None, None], [traces.Trained(entropies=[0.1])]], "entropies must hold one value per token: 2, not 1"),
    ],
)
def test_what_the_learner_made_must_match(tmp_path: Path, trained: traces.PerTrained, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        traces.write(tmp_path, 1, GROUPS, **VALUES, trained=trained)  # type: ignore[arg-type]


def older(file: Path) -> None:
    """The file as the first version wrote it."""
    new = ("length", "update", "weight", "left_out", "logprobs_new", "advantages", "entropies")
    without(file, *new)


def without(file: Path, *columns: str) -> None:
    """The file without some columns."""
    pq.write_table(pq.read_table(pa.BufferReader(file.read_bytes())).drop_columns(list(columns)), file)


def test_older_files_are_read(tmp_path: Path) -> None:
    file = traces.write(tmp_path, 1, GROUPS, **VALUES)  # type: ignore[arg-type]
    rows = list(traces.rows(file))
    older(file)
    assert list(traces.rows(file)) == rows
    assert traces.read(tmp_path).schema.equals(traces.SCHEMA)
    (lengths,) = traces.scan(tmp_path, [1], ("length",), lambda table: table, pytest.fail)
    assert lengths.to_pydict() == {"length": [2, 0, 2], "row": [0, 1, 2]}


def test_single_rows_come_back_in_the_order_asked(tmp_path: Path) -> None:
    group = tuple(rollout(f"p/{i}", str(i), float(i)) for i in range(150))
    values = [[float(i) for i in range(150)]]
    file = traces.write(tmp_path, 4, [group], rewards=values, advantages=values, shaping={})
    assert pq.ParquetFile(file).num_row_groups > 1
    rows = traces.fetch(tmp_path, 4, [140, 3, 77, 3], ("text", "parts"))
    assert rows == [{"text": str(i), "parts": {"accuracy": float(i), "format": 0.1}} for i in (140, 3, 77, 3)]
    assert traces.fetch(tmp_path, 4, [64]) == [list(traces.rows(file))[64]]
    with pytest.raises(RunError, match="holds 150 rollouts"):
        traces.fetch(tmp_path, 4, [150])
    with pytest.raises(RunError, match="no trace of step 5"):
        traces.fetch(tmp_path, 5, [0])


def test_a_scan_passes_over_what_is_damaged_or_gone(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        traces.write(tmp_path, step, GROUPS, **VALUES)  # type: ignore[arg-type]
    assert traces.steps(tmp_path) == [1, 2, 3]
    traces.file_of(tmp_path, 2).write_bytes(b"PAR1")
    traces.file_of(tmp_path, 1).unlink()
    told: list[RunDamaged] = []
    tables = list(traces.scan(tmp_path, [1, 2, 3], ("step",), lambda table: table.slice(1), told.append))
    assert [table.to_pydict() for table in tables] == [{"step": [3, 3], "row": [1, 2]}]
    assert [str(traces.file_of(tmp_path, 2)) in str(error) for error in told] == [True]


@pytest.mark.parametrize("missing", [("tokens",), ("tokens", "length"), ("text",)])
def test_a_file_without_a_column_is_no_trace(tmp_path: Path, missing: tuple[str, ...]) -> None:
    file = traces.write(tmp_path, 1, GROUPS, **VALUES)  # type: ignore[arg-type]
    without(file, *missing)
    with pytest.raises(RunDamaged, match=f"is truncated or altered: it has no column {missing[0]}"):
        traces.fetch(tmp_path, 1, [0])


def test_one_altered_byte_of_the_text_is_noticed(tmp_path: Path) -> None:
    file = traces.write(tmp_path, 1, GROUPS, **VALUES)  # type: ignore[arg-type]
    place = pq.ParquetFile(file).metadata.row_group(0).column(traces.SCHEMA.names.index("tokens"))
    start = place.dictionary_page_offset or place.data_page_offset
    data = bytearray(file.read_bytes())
    data[start + place.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunDamaged, match="is truncated or altered"):
        traces.read(tmp_path)
