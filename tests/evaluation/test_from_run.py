"""What a report is told by a run folder: written here by hand, then spoiled."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoiled import misfits, remove_files, write_run

from longthought.evaluation.from_run import report_data
from longthought.evaluation.headline import rows, sentence
from longthought.evaluation.report import terminal_summary, write_report
from longthought.evaluation.report_data import DocumentKind, Estimate, GateCheck, ReportData, TimePart
from longthought.runs.record import Launch, Record

CORPUS = {
    "description": "Sums.",
    "kinds": [{"name": "facts", "share": 0.25, "example": "1 + 1 = 2"}],
    "tokens": 2000,
    "parameters": 1234,
}
GATE = {"checks": [{"check": "knows sums", "measured": 0.5, "needed": "≥ 0.8", "passed": False}]}
METRICS = [
    {"step": 1, "accuracy": 0.25, "accuracy_low": 0.1, "accuracy_high": 0.4, "length": 10.0, "clip_low_share": 0.01}
    | {"clip_high_share": 0.02, "word/wait": 1.0, "entropy": None},
    {"step": 2, "accuracy": 0.5, "accuracy_low": 0.3, "accuracy_high": 0.7, "length": 20.0, "clip_low_share": 0.03}
    | {"clip_high_share": 0.05, "grad_norm": 1.5, "entropy": 0.7},
]
TIMINGS = {
    "01-base": [{"step": 1, "training": 1.0}, {"step": 2, "training": 3.0}],
    "03-before": [{"step": 0, "evaluation": 2.0, "tokens": 100}],
    "04-rl": [{"step": 1, "sampling": 2.0, "training": 1.0}, {"step": 2, "sampling": 4.0, "training": 2.0}],
}
ASKED = {"stage": {"is": "RL", "prompts": 3, "samples": 4, "task": {"is": "Sums", "largest": 9, "signs": ["+", "-"]}}}


def _evaluation(accuracies: list[float], problems: list[str]) -> dict[str, Any]:
    mean = sum(accuracies) / len(accuracies)
    estimate = {"value": mean, "low": mean - 0.1, "high": mean + 0.1}
    names = ("accuracy", "length", "rejections", "reflections", "format_rate", "mixing", "cut")
    return {
        "summary": {"problems": len(problems), "samples": 8, "step": None, "pass_at_k": [[1, estimate], [2, estimate]]}
        | dict.fromkeys(names, estimate),
        "accuracy_by_problem": {str(i): value for i, value in enumerate(accuracies)},
        "problems": problems,
        "transcripts": [
            {"problem": name, "prompt": f"add {name}", "text": "low </think> 3", "tokens": 4, "finish": "stop"}
            | {"correct": None if i else True, "evidence": "seen"}
            for i, name in enumerate(problems)
        ],
    }


FILES: dict[str, Any] = {
    "01-base/corpus.json": CORPUS,
    "01-base/metrics.jsonl": [{"step": 1, "tokens": 1000}, {"step": 2, "tokens": 2000}, {"step": 3, "tokens": 2500}],
    "02-readiness/readiness/checks.json": GATE,
    "03-before/evaluation/summary.json": _evaluation([0.0, 0.25, 0.5], ["a", "b", "c"]),
    "04-rl/stage.json": ASKED,
    "04-rl/metrics.jsonl": METRICS,
    "05-after/evaluation/summary.json": _evaluation([0.5, 0.75, 0.7], ["a", "b", "c"]),
    **{f"{stage}/timings.jsonl": lines for stage, lines in TIMINGS.items()},
}


def _write(folder: Path, files: dict[str, Any]) -> Record:
    facts: dict[str, Any] = {"cpu": "fast", "memory": 3 << 30}
    launch = Launch("longthought run tiny seed=7", 2, "2026", {"torch": "2", "longthought": "0"}, facts)
    return write_run(Record(folder, "tiny", {"seed": 7, "rl": {"lr": 0.1}}, (launch,)), files)


def test_a_whole_run(tmp_path: Path) -> None:
    data = report_data(_write(tmp_path / "mine", FILES))
    assert (data.title, data.seed, data.steps) == ("tiny · mine", 7, 2)
    assert data.task == "Sums: largest 9, signs +, -"
    assert data.base is not None
    assert data.trained is not None
    assert (data.base.step, data.trained.step) == (0, 2)
    assert data.base.accuracy == Estimate(0.25, 0.15, 0.35)
    assert [k for k, _ in data.trained.pass_at_k] == [1, 2]
    assert data.gate == (GateCheck("knows sums", 0.5, "≥ 0.8", False),)
    assert data.document_kinds == (DocumentKind("facts", 0.25, "1 + 1 = 2"),)
    assert data.seen == "Sums.\n\nThe base has 1,234 parameters and read 2,000 tokens."
    assert data.command == "longthought run tiny seed=7"
    assert data.settings == {"seed": 7, "rl": {"lr": 0.1}}
    assert data.machine == {"cpu": "fast", "memory": "3.0 GiB", "threads": "2"}
    assert data.versions == {"torch": "2", "longthought": "0"}
    write_report(data, tmp_path / "report.html")


def test_curves_have_bands_gaps_and_the_sum_of_both_clips(tmp_path: Path) -> None:
    curves = report_data(_write(tmp_path, FILES)).curves
    assert curves["accuracy"].steps == (1, 2)
    assert (curves["accuracy"].low, curves["accuracy"].high) == ((0.1, 0.3), (0.4, 0.7))
    assert curves["clip_share"].values == pytest.approx((0.03, 0.08))
    assert curves["entropy"].values == (None, 0.7)
    assert curves["grad_norm"].values == (None, 1.5)
    assert set(curves) == {"accuracy", "length", "entropy", "clip_share", "grad_norm"}


def test_the_difference_is_paired_by_problem(tmp_path: Path) -> None:
    difference = report_data(_write(tmp_path, FILES)).difference
    assert difference is not None
    assert difference.value == pytest.approx((0.5 + 0.5 + 0.2) / 3)
    # 1.96 × the standard error of 0.5, 0.5, 0.2: far below what unpaired evaluations would give
    assert difference.low == pytest.approx(0.4 - 1.96 * 0.1, abs=1e-3)
    assert difference.high == pytest.approx(0.4 + 1.96 * 0.1, abs=1e-3)


def test_other_problems_have_no_difference(tmp_path: Path) -> None:
    other = FILES | {"05-after/evaluation/summary.json": _evaluation([0.5, 0.75, 0.7], ["a", "b", "x"])}
    data = report_data(_write(tmp_path, other))
    assert data.difference is None
    assert [t.problem for t in data.transcripts] == ["a", "b"]


def test_transcripts_stand_side_by_side(tmp_path: Path) -> None:
    first, second, _ = report_data(_write(tmp_path, FILES)).transcripts
    assert (first.problem, first.prompt) == ("a", "add a")
    assert first.before is not None
    assert (first.before.correct, first.before.tokens, first.before.evidence) == (True, 4, "seen")
    assert second.after is not None
    assert second.after.correct is None


def test_time_and_speed(tmp_path: Path) -> None:
    data = report_data(_write(tmp_path, FILES))
    assert data.time_parts == (
        TimePart("base", "training", 4.0),
        TimePart("before", "evaluation", 2.0),
        TimePart("rl", "sampling", 6.0),
        TimePart("rl", "training", 3.0),
    )
    assert dict(data.speeds) == {
        "pretraining": 2000 / 4,  # up to the last step that was timed
        "sampling in RL": 3 * 4 * (10 + 20) / 6,
        "training in RL (on what was sampled)": 3 * 4 * (10 + 20) / 3,
        "evaluation of the base": 100 / 2,
    }


def test_a_row_that_holds_a_look_alone_spoils_no_speed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looked = {
        "01-base/metrics.jsonl": [*FILES["01-base/metrics.jsonl"][:1], {"step": 1, "held_out_loss": 3.0}],
        "04-rl/metrics.jsonl": [{"step": 0, "look/score": 0.5}, *METRICS],
        "04-rl/timings.jsonl": [{"looks": 9.0, **TIMINGS["04-rl"][0]}, TIMINGS["04-rl"][1]],
    }
    speeds = dict(report_data(_write(tmp_path, FILES | looked)).speeds)
    assert speeds["pretraining"] == 1000 / 1
    assert speeds["sampling in RL"] == 3 * 4 * (10 + 20) / 6
    assert speeds["training in RL (on what was sampled)"] == 3 * 4 * (10 + 20) / 3
    assert caplog.text == ""


def test_a_gate_that_refused_the_base_is_shown(tmp_path: Path) -> None:
    files = {"01-base/corpus.json": CORPUS, "02-readiness/checks.json": GATE}
    data = report_data(_write(tmp_path, files))
    assert [check.passed for check in data.gate] == [False]
    assert data.base is None


@pytest.mark.parametrize("there", range(len(FILES)))
def test_a_run_that_stopped_anywhere_has_a_report(tmp_path: Path, there: int, caplog: pytest.LogCaptureFixture) -> None:
    data = report_data(_write(tmp_path, dict(list(FILES.items())[:there])))
    assert sentence(data)
    assert rows(data)
    assert caplog.text == ""  # what is not there yet is no reason to warn


def test_a_note_when_conditions_changed(tmp_path: Path) -> None:
    record = _write(tmp_path, FILES)
    first = record.launches[0]
    second = Launch("again", 1, "2027", first.versions, first.machine)
    data = report_data(Record(tmp_path, "tiny", record.settings, (first, second)))
    assert data.command.startswith("again\n# parts of this run were computed with other")


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("spoiled", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\n{}\n", b'{"step": 1}\n{"st\n{}\n'])
def test_a_damaged_file_costs_its_own_part_only(
    tmp_path: Path, name: str, spoiled: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    record = _write(tmp_path, FILES)
    whole = report_data(record)
    (tmp_path / name).write_bytes(spoiled)
    with caplog.at_level(logging.WARNING):
        data = report_data(record)
    assert sentence(data)
    lost = {f for f in ReportData.__dataclass_fields__ if getattr(data, f) != getattr(whole, f)}
    assert len(lost) <= 5
    if not name.endswith("jsonl") and spoiled in (b"{", b"[]", b"3"):
        assert "cannot be read and counts as not measured" in caplog.text
    if "after" not in name:
        assert data.trained is None or data.trained.accuracy == Estimate(0.65, 0.55, 0.75)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_of_the_wrong_kind_is_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    remove_files(tmp_path)
    report = report_data(_write(tmp_path, misfits(FILES, data, most=3)))
    sentence(report)
    rows(report)
    terminal_summary(report)


def test_launch_facts_of_the_wrong_kind(tmp_path: Path) -> None:
    _write(tmp_path, FILES)
    launch: Any = Launch(command=["x"], threads=None, started=3, versions=[], machine=None)  # type: ignore[arg-type]
    data = report_data(Record(tmp_path, "tiny", {"seed": "x"}, (launch,)))
    assert (data.seed, data.machine, data.versions) == (None, {}, {})
    write_report(data, tmp_path / "report.html")
