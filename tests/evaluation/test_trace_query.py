"""Queries: the same rollouts as a plain loop over all of them finds; plain words for what does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import RunDamaged, RunError, SettingsError
from longthought.core.types import Finish, Outcome
from longthought.evaluation.trace_query import Bound, Id, Query, Steps, find, look, spans, whole
from longthought.runs import traces
from made_traces import rollout, write

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of two groups with every kind of reply."""
    made = tmp_path_factory.mktemp("traces")
    for step in (1, 2, 10):
        first = (
            rollout(f"try {step}", 1.0),
            rollout("wait\nwait 33", 0.0, tokens=(5,) * step, finish=Finish.LENGTH),
            rollout("试", None),
        )
        second = (rollout("(x", 0.5, problem="q/1.5"), rollout("", 0.0, problem="q/1.5", outcome=Outcome.UNPARSABLE))
        left = [traces.Trained(), traces.Trained(left_out="no reward"), None]
        write(made, step, [first, second], [left, [None, None]])
    return made


def ids(folder: Path, query: Query) -> list[str]:
    found = look(folder, query)
    return [str(name) for name, _ in found.ids(0, found.table.num_rows)]


QUERIES: list[tuple[dict[str, Any], Callable[[Row], Any]]] = [
    ({}, lambda r: True),
    ({"steps": Steps.parse("last")}, lambda r: r["step"] == 10),
    ({"steps": Steps.parse("2..10")}, lambda r: r["step"] >= 2),
    ({"steps": Steps.parse("..2")}, lambda r: r["step"] <= 2),
    ({"numbers": (("reward", Bound.parse(">0.4", "")),)}, lambda r: r["reward"] is not None and r["reward"] > 0.4),
    ({"numbers": (("reward", Bound.parse("none", "")),)}, lambda r: r["reward"] is None),
    ({"numbers": (("reward", Bound.parse("0.5..1", "")),)}, lambda r: (r["reward"] or 0) >= 0.5),
    ({"numbers": (("advantage", Bound.parse("<0", "")), ("length", Bound.parse(">2", "")))},
     lambda r: r["advantage"] is not None and r["advantage"] < 0 and r["length"] > 2),
    ({"outcomes": ("crashed", "unparsable")}, lambda r: r["outcome"] in ("crashed", "unparsable")),
    ({"finishes": ("length",)}, lambda r: r["finish"] == "length"),
    ({"correct": True}, lambda r: r["correct"]),
    ({"correct": False}, lambda r: not r["correct"]),
    ({"trained": True}, lambda r: r["left_out"] == ""),
    ({"trained": False}, lambda r: r["left_out"]),
    ({"problem": "q/1.5"}, lambda r: r["problem"] == "q/1.5"),
    ({"problem": "p/*"}, lambda r: r["problem"].startswith("p/")),
    ({"text": "wait.*33"}, lambda r: re.search("wait.*33", r["text"])),
    ({"text": r"(?s)wait.*33|试"}, lambda r: re.search(r"(?s)wait.*33|试", r["text"])),
    ({"text": r"\(x$"}, lambda r: r["text"] == "(x"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "holds"), QUERIES)
def test_a_query_finds_what_a_loop_finds(folder: Path, asked: dict[str, Any], holds: Callable[[Row], Any]) -> None:
    rows = [row for row in traces.rows(folder) if holds(row)]
    expected = [f"{r['step']}:{r['group']}:{r['sample']}" for r in sorted(rows, key=lambda r: -r["step"])]
    assert ids(folder, Query(**asked)) == expected


@pytest.mark.parametrize("by", ["step", "reward", "advantage", "length"])
@pytest.mark.parametrize("reverse", [False, True])
def test_order_has_the_highest_first_and_missing_values_last(folder: Path, by: str, reverse: bool) -> None:
    values = look(folder, Query(sort=by, reverse=reverse)).table[by].to_pylist()
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=not reverse)
    assert values == known + [None] * (len(values) - len(known))


def test_counts_and_means(folder: Path) -> None:
    found = look(folder, Query(steps=Steps.parse("1..2")))
    assert (found.looked_at, found.steps) == (10, (1, 2))
    assert found.facts["rollouts"] == 10
    assert found.facts["reward"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found.facts["correct"] == pytest.approx(0.2)
    assert found.facts["outcome"] == {"graded": 6, "crashed": 2, "unparsable": 2}
    assert found.facts["left_out"] == {"": 2, "no reward": 2}


@pytest.mark.parametrize("text", ["", "abc", ">", ">>1", "> nan", "<inf", "1..", "..", "1..x", "0.5.1", "=>1", "NONE"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(SettingsError, match="is no condition: write for example"):
        Bound.parse(text, "--reward")


@given(st.sampled_from([">", ">=", "<", "<=", "=", "==", "!=", ""]), st.floats(-9, 9), st.lists(st.floats(-9, 9)))
@settings(max_examples=60, deadline=None)
def test_conditions_hold_as_in_python(sign: str, bound: float, values: list[float]) -> None:
    values = [*values, bound]
    told = Bound.parse(f"{sign} {bound!r}", "x").holds(pa.chunked_array([pa.array([*values, None])])).to_pylist()
    python = {"=": "==", "": "=="}.get(sign, sign)
    assert told[:-1] == [eval(f"{value!r} {python} {bound!r}") for value in values]
    assert not told[-1]


@pytest.mark.parametrize("text", ["", "x", "1-2", "1..2..3", "-1", "1 2", "١", "last 2", "..", "9" * 30])
def test_what_is_no_step(text: str) -> None:
    with pytest.raises(SettingsError, match="is no step: write for example"):
        Steps.parse(text)


@pytest.mark.parametrize("text", ["", "1", "1:2", "1:2:3:4", "a:b:c", "1:2:-3", "1:2:3 ", "1:2:" + "9" * 40])
def test_what_names_no_rollout(text: str) -> None:
    with pytest.raises(SettingsError, match="write step:group:sample"):
        Id.parse(text)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"outcomes": ("crash",)}, "did you mean crashed"),
        ({"finishes": ("end",)}, "there are stop, length, budget, stop_string"),
        ({"sort": "size"}, "there are step, reward, advantage, length"),
        ({"text": "(a"}, "is no regular expression"),
        ({"text": r"(a)\1"}, "no references"),
        ({"text": "(?=a)"}, "no look-around"),
        ({"text": "a{1000}{1000}"}, "is no regular expression"),
        ({"text": "a" * 1001}, "at most 1,000"),
    ],
)
def test_what_does_not_exist_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Query(**asked)


def test_a_pattern_that_explodes_elsewhere_is_linear(tmp_path: Path) -> None:
    write(tmp_path, 1, [(rollout("a" * 200_000),)])
    assert ids(tmp_path, Query(text="(a+)+$")) == ["1:0:0"]
    assert ids(tmp_path, Query(text="(a+)+b")) == []


def test_what_is_not_there_is_told_with_what_is(folder: Path) -> None:
    for wanted, told in (
        ("3:0:0", "no trace of step 3; there are 3 steps: 1..2, 10"),
        ("2:7:0", "step 2 has no group 7; its groups: 0..1"),
        ("2:1:2", "group 1 of step 2 has no sample 2; it has 0..1"),
    ):
        with pytest.raises(RunError, match=re.escape(told)):
            find(folder, Id.parse(wanted))
    with pytest.raises(RunError, match=r"no trace of these steps; there are 3 steps: 1\.\.2, 10"):
        look(folder, Query(steps=Steps.parse("3..9")))
    with pytest.raises(RunError, match=r"of the problem 'q/1x5'; there are for example: q/1\.5"):
        look(folder, Query(problem="q/1x5"))
    assert ids(folder, Query(problem="q/1.5", correct=True)) == []


def test_one_rollout_comes_with_its_group(folder: Path) -> None:
    row, group = whole(folder, Id(10, 1, 0))
    assert (row["text"], row["tokens"]) == ("(x", [6, 7, 5])
    assert [(one["group"], one["sample"]) for one in group] == [(1, 0), (1, 1)]


def test_damaged_steps_are_named_and_the_others_shown(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step, [(rollout("x"),)])
    traces.file_of(tmp_path, 1).write_bytes(b"")
    found = look(tmp_path, Query())
    assert (found.facts["rollouts"], len(found.damaged)) == (1, 1)
    assert "step-000001.parquet is truncated or altered" in found.damaged[0]
    traces.file_of(tmp_path, 2).write_bytes(b"x")
    with pytest.raises(RunDamaged):
        look(tmp_path, Query())


def test_spans_by_hand() -> None:
    assert spans([1, 2, 3, 7]) == "1..3, 7"
    assert spans([]) == ""
    assert spans(range(0, 100, 2)) == "0, 2, 4, 6, …, 94, 96, 98"
