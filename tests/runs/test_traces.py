"""Traces: everything about a rollout comes back, equal input gives equal bytes, damage is named."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
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
        "shaping": {"length": 0.25}, "reward": 1.25, "advantage": 0.5,
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
