"""Findings of planted runs: what is measured is computed by hand, and so are the verdicts."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.cli.main import main
from longthought.core.errors import RunError
from longthought.core.types import Group
from longthought.evaluation.findings import FINDINGS, judged
from longthought.evaluation.findings_measures import (
    early,
    forced_apart,
    forced_gap,
    growth,
    length_of,
    pass_gap,
    score_part,
    shaping,
    share_of_gain,
    stretch_gap,
    tokens_sampled,
    vote_gain,
)
from longthought.evaluation.findings_page import markdown, page, shown, write
from longthought.evaluation.findings_read import Seed, canonical, repeated_attempts, seeds_in
from longthought.evaluation.findings_rules import Result, Verdict, verdict_on, verdict_together
from longthought.evaluation.report_data import Estimate
from longthought.runs import traces
from longthought.runs.record import Launch, Record
from longthought.verifiers.countdown import grade
from made_traces import rollout

LEXICON = {"is": "Lexicon", "rejections": ["low"], "reflections": ["wait"]}
Z = 1.959963984540054


def run_of(out: Path, seed: int) -> Path:
    folder = out / f"seed_{seed}"
    folder.mkdir(parents=True)
    Record(folder, "findings", {"seed": seed}, (Launch.now("longthought findings", 1),)).write()
    return folder


def stage_of(run: Path, name: str, asked: dict[str, Any] | None = None) -> Path:
    stage = run / f"{len(list(run.glob('*-*'))) + 1:02d}-{name}"
    stage.mkdir()
    (stage / "stage.json").write_text(json.dumps({"stage": asked or {}, "given": {}}), encoding="utf-8")
    (stage / "done.json").write_text("{}", encoding="utf-8")
    return stage


def reply(correct: bool, text: str = "", length: int = 3, problem: str = "p/0/en") -> Any:
    return rollout(text, float(correct), problem=problem, tokens=tuple(range(length)))


def evaluated(run: Path, name: str, rows: list[list[Any]]) -> Path:
    """An evaluation; rows: of every problem its replies, or whether they are right."""
    groups = [
        tuple(reply(one, problem=f"p/{i}/en") if isinstance(one, int) else one for one in row)
        for i, row in enumerate(rows)
    ]
    stage = stage_of(run, name, {"is": "Evaluate", "lexicon": LEXICON})
    traced(stage / "evaluation", 0, groups)
    return stage


def traced(folder: Path, step: int, groups: list[Group], **shaped: list[list[float]]) -> None:
    blank = [[None] * len(group) for group in groups]
    traces.write(folder, step, groups, rewards=blank, advantages=blank, shaping=shaped)


def played(run: Path, name: str, steps: list[list[list[Any]]]) -> Path:
    """A stage of RL; steps: of every step its groups."""
    stage = stage_of(run, name, {"is": "RL"})
    lines = []
    for step, groups in enumerate(steps, 1):
        made = [tuple(one if not isinstance(one, int) else reply(bool(one)) for one in group) for group in groups]
        traced(stage / "traces", step, made)
        lines.append({"step": step, "accuracy": 0.1 * step, "mixing": None})
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return stage


def only(out: Path) -> Seed:
    (seed,) = seeds_in(out)
    return seed


def found(results: tuple[Result, ...], key: str) -> Result:
    return next(one for one in results if one.key == key)


@pytest.mark.parametrize(
    ("intervals", "threshold", "verdict"),
    [
        ([], 0.0, "not measured"),
        ([(1, 0.5, 1.5)], 0.0, "reproduced"),
        ([(1, 0.5, 1.5), (2, 0.1, 3)], 0.0, "reproduced"),
        ([(1, 0.5, 1.5), (2, -0.1, 3)], 0.0, "not decided"),
        ([(1, 0.5, 1.5), (-1, -2, -0.5)], 0.0, "not decided"),
        ([(1, -0.5, 2.5)], 0.0, "not decided"),
        ([(-1, -2, -0.5)], 0.0, "opposite"),
        ([(-1, -2, -0.5), (-0.2, -1, 0.6)], 0.0, "not reproduced"),
        ([(0, 0, 0)], 0.0, "not reproduced"),
        ([(-0.1, -2, 1.8)], 0.0, "not reproduced"),
        ([(1, 0.0, 2)], 0.0, "not decided"),
        ([(0.6, 0.4, 0.8)], 0.5, "not decided"),
        ([(0.6, 0.51, 0.8)], 0.5, "reproduced"),
        ([(-0.02, -0.04, 0.0)], -0.05, "reproduced"),
        ([(-0.08, -0.1, -0.06)], -0.05, "opposite"),
        ([(1, None, None)], 0.0, "not decided"),
        ([(-1, None, None)], 0.0, "not reproduced"),
    ],
)
def test_verdict_on_a_claim(intervals: list[tuple[Any, ...]], threshold: float, verdict: Verdict) -> None:
    assert verdict_on([Estimate(*one) for one in intervals], threshold) == verdict


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 5)), min_size=1, max_size=4))
def test_the_opposite_of_what_is_reproduced_is_opposite(centres: list[tuple[float, float]]) -> None:
    claims = [Estimate(value, value - reach, value + reach) for value, reach in centres]
    mirrored = [Estimate(-value, -value - reach, -value + reach) for value, reach in centres]
    assert (verdict_on(claims) == "reproduced") == (verdict_on(mirrored) == "opposite")


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        ([], "not measured"),
        (["not measured", "not measured"], "not measured"),
        (["reproduced", "not measured"], "reproduced"),
        (["reproduced", "opposite"], "reproduced in part"),
        (["reproduced", "not decided"], "reproduced in part"),
        (["opposite", "opposite"], "opposite"),
        (["opposite", "not decided"], "not decided"),
        (["opposite", "not reproduced"], "not reproduced"),
    ],
)
def test_verdict_on_a_finding(verdicts: list[Verdict], together: Verdict) -> None:
    assert verdict_together(verdicts) == together


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 + 4 * 2", "( 2 * 4 ) + 3", True),
        ("1 + 2 + 3", "3 + ( 2 + 1 )", True),
        ("( 9 * 4 ) - 3", "(4*9)-3", True),
        ("9 - 4 - 3", "9 - 3 - 4", False),  # worth the same, and another answer
        ("8 - 2", "2 - 8", False),
        ("2 * ( 3 + 4 )", "2 * 3 + 4", False),
        ("8 / 2 * 3", "3 * ( 8 / 2 )", True),
        ("8 / ( 2 * 3 )", "8 / 2 * 3", False),
    ],
)
def test_equal_answers_have_one_form(one: str, other: str, same: bool) -> None:
    assert (canonical(one) == canonical(other)) is same


@pytest.mark.parametrize("text", ["", "  ", None])
def test_no_answer_is_none(text: str | None) -> None:
    assert canonical(text) is None


@given(st.text(st.sampled_from("0123456789+-*/() x"), max_size=40))
def test_the_form_of_an_answer_is_its_own_form_and_worth_as_much(text: str) -> None:
    form = canonical(text)
    if form is not None:
        numbers = [int(digits) for digits in re.findall(r"\d+", text)]
        assert canonical(form) == form
        assert grade(form, numbers, 12).value == grade(text, numbers, 12).value


def test_hostile_answers_become_text() -> None:
    for text in ("2 ** 9 ** 9", "(" * 100, "1 +", "__import__('os')", "9" * 500, "1" * 190, "-5", "1 // 2"):
        assert canonical(text) is not None


def test_attempts_that_were_made_before() -> None:
    assert repeated_attempts("<think> try 9 * 4 = 36 - 3 = 33 low wait 9 * 4 = 36 - 3 = 33 low </think> 1 = 1") == 0.5
    assert repeated_attempts("<think> try 1 + 2 = 3 low check 3 make 4 low 等 2 + 1 = 3 小") == 0.0
    assert repeated_attempts("<think> </think> 3 = 3") == 0.0


def test_the_first_finding_by_hand(tmp_path: Path) -> None:
    run = run_of(tmp_path, 7)
    evaluated(run, "base_countdown", [[0, 0], [0, 1], [0, 0]])
    evaluated(run, "zero_countdown", [[1, 1], [1, 1], [0, 1]])
    results = judged(tmp_path)
    first = found(results, "a")
    gaps = [1.0, 0.5, 0.5]
    reach = Z * np.std(gaps, ddof=1) / math.sqrt(3)
    estimate = first.claims[0].by_seed[7]
    assert (estimate.value, estimate.low) == pytest.approx((2 / 3, 2 / 3 - reach))
    assert [claim.verdict for claim in first.claims] == [
        "reproduced",
        "not reproduced",
    ]  # all replies are of one length
    assert first.verdict == "reproduced in part"
    assert [(one.label, one.by_seed[7].value) for one in first.beside] == [
        ("pass@1 of base", pytest.approx(1 / 6)),
        ("pass@1 of zero", pytest.approx(5 / 6)),
    ]
    assert {one.key for one in results if one.verdict == "not measured"} >= set("defghijlmn")


def test_seeds_that_disagree_decide_nothing(tmp_path: Path) -> None:
    for seed, right in ((0, 1), (1, 0)):
        run = run_of(tmp_path, seed)
        evaluated(run, "distilled_countdown", [[right], [right], [right]])
        evaluated(run, "small_rl_1x_countdown", [[1 - right], [1 - right], [1 - right]])
    claim = found(judged(tmp_path), "g").claims[0]
    assert claim.verdict == "not decided"
    assert {seed: one.value for seed, one in claim.by_seed.items()} == {0: 1.0, 1: -1.0}


def test_behaviours_of_replies(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0)
    text = "<think> try 1 + 2 = 3 low wait 1 + 2 = 3 low 试 yes </think> <answer> 2 + 1 </answer>"
    evaluated(run, "zero_countdown", [[reply(True, text)], [reply(False, "<think> no", problem="p/1/en")]])
    table = only(tmp_path).table("zero_countdown")
    assert table is not None
    told = {name: values[:, 0].tolist() for name, values in table.values.items()}
    assert told["rejections"] == [2, 0]
    assert told["reflections"] == [1, 0]
    assert told["mixed"] == [1, 0]
    assert told["repeated"] == [0.5, 0]
    assert told["accuracy"] == [1, 0]
    assert table.answers == (("( 1 + 2 )",), (None,))


def test_tries_and_votes(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0)
    right, wrong, other = (f"<answer> {text} </answer>" for text in ("1 + 2", "1 * 2", "2 - 1"))
    same = [reply(True, right), reply(True, right.replace("1 + 2", "2 + 1")), reply(False, wrong), reply(False, other)]
    evaluated(run, "base_many", [[1, 0, 0, 0], [0, 0, 0, 0]])
    evaluated(run, "zero_many", [[1, 1, 1, 1], [0, 0, 0, 0]])
    evaluated(run, "r1_countdown", [same, [reply(False, wrong, problem="p/1/en")] * 4])
    seed = only(tmp_path)
    at_one, at_all = pass_gap(1, "base_many", "zero_many")(seed), pass_gap(256, "base_many", "zero_many")(seed)
    assert at_one is not None
    assert at_one.value == (0.25 - 1) / 2
    assert at_all == Estimate(0.0, 0.0, 0.0)  # of the four tries that there are
    gain = vote_gain("r1_countdown", 4)(seed)
    assert gain is not None
    assert gain.value == (1 - 0.5) / 2


def test_share_of_the_gain(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0)
    evaluated(run, "base", [[0, 0]] * 20)
    evaluated(run, "teacher", [[1, 1]] * 20)
    evaluated(run, "pupil", [[0, 1]] * 15 + [[1, 1]] * 5)
    seed = only(tmp_path)
    share = share_of_gain("pupil", "teacher", "base")(seed)
    assert share is not None
    assert share.value == (15 * 0.5 + 5) / 20
    assert share.low is not None
    assert share.high is not None
    assert 0.5 < share.low < share.value < share.high < 0.75
    assert share_of_gain("pupil", "base", "teacher")(seed) is None  # there is no gain to share
    assert share_of_gain("pupil", "teacher", "absent")(seed) is None


def test_stretches_of_rl(tmp_path: Path) -> None:
    run = run_of(tmp_path, 0)
    short, long = reply(False, length=2), reply(False, length=10)
    grows = [[[short, 1], [short, short]]] * 2 + [[[long, 1], [short, long]]] * 2
    played(run, "grpo", grows)
    played(run, "dr_grpo", [[[short, 1], [short, short]]] * 4)
    played(run, "late", [[[1, 1], [1, 0]]] * 2)
    seed = only(tmp_path)
    more = growth("grpo", length_of(False), (0.0, 0.5), (0.5, 1.0))(seed)
    reach = Z * np.std([10, 6, 10, 6], ddof=1) / 2
    assert more is not None
    assert more.low is not None
    assert (more.value, more.low) == pytest.approx((6.0, 6.0 - reach))
    assert stretch_gap(length_of(False), "grpo", "dr_grpo", 0.5, 1.0)(seed) == more
    sooner = early("late", "grpo")(seed)
    assert sooner is not None
    assert sooner.value == pytest.approx(0.75 - 0.25)
    assert tokens_sampled("late", "dr_grpo")(seed) == Estimate(8 * 3 + 4 * (3 * 2 + 3))
    assert tokens_sampled("late", "absent")(seed) is None


def test_what_is_paid_and_what_it_is_worth(tmp_path: Path) -> None:
    stage = stage_of(run_of(tmp_path, 0), "kept_on", {"is": "RL"})
    for step in range(1, 17):
        traced(stage / "traces", step, [(reply(True),), (reply(False),)] * 2, helpful=[[0.1 * step], [math.nan]] * 2)
    seed = only(tmp_path)
    paid = growth("kept_on", shaping("helpful"), (0.1875, 0.25), (0.9375, 1.0))(seed)
    assert paid is not None
    assert paid.value == pytest.approx(1.2)
    assert growth("kept_on", score_part("preference"), (0.0, 0.5), (0.5, 1.0))(seed) is None


def test_forced_thoughts(tmp_path: Path) -> None:
    stage = stage_of(run_of(tmp_path, 0), "zero_forcing")
    (stage / "forcing").mkdir()
    plain = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, "tokens": {"value": 9, "low": 8, "high": 10}}
    caps = [("cap", 0, [0, 0]), ("cap", 96, [0, 1]), ("cap", 383, [1, 1])]
    waits = [("wait", 0, [1, 1]), ("wait", 1, [0, 0]), ("wait_unsure", 1, [1, 0])]
    ways = [
        {"way": way, "amount": amount, **plain, "touched": 0.25, "accuracy_by_problem": means}
        for way, amount, means in (*caps, *waits)
    ]
    (stage / "forcing" / "forcing.json").write_text(json.dumps({"ways": ways}), encoding="utf-8")
    seed = only(tmp_path)
    assert forced_gap("zero_forcing", "cap", None, 0)(seed) == Estimate(1.0, 1.0, 1.0)
    half = forced_gap("zero_forcing", "cap", None, 96)(seed)
    assert half is not None
    assert half.value == 0.5
    assert forced_gap("zero_forcing", "wait", 2, 0)(seed) is None
    assert forced_gap("zero_forcing", "wait", 1, 0)(seed) == Estimate(-1.0, -1.0, -1.0)
    between = forced_apart("zero_forcing", "wait", "wait_unsure", 1)(seed)
    assert between is not None
    assert between.value == -0.5
    assert forced_apart("zero_forcing", "wait", "wait_unsure", 2)(seed) is None
    result = found(judged(tmp_path), "l")
    assert (result.verdict, bool(result.plot)) == ("reproduced in part", True)


def test_what_is_damaged_or_does_not_fit_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path, 0)
    evaluated(run, "base_countdown", [[0], [0]])
    evaluated(run, "zero_countdown", [[1], [1], [1]])
    spoiled = evaluated(run, "r1_countdown", [[1], [1]])
    (spoiled / "evaluation" / "step-000000.parquet").write_bytes(b"PAR1 no more")
    unfinished = evaluated(run, "reasoner_countdown", [[1], [1]])
    (unfinished / "done.json").unlink()
    (tmp_path / "seed_1").mkdir()
    (tmp_path / "seed_1" / "run.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        results = judged(tmp_path)
    assert found(results, "a").verdict == found(results, "o").verdict == "not measured"
    assert "same problems" in caplog.text
    assert "r1_countdown" in caplog.text
    assert "seed_1" in caplog.text
    assert "reasoner" not in caplog.text
    write(results, tmp_path)


def test_the_files_hold_every_finding_and_load_nothing(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = run_of(tmp_path, seed)
        evaluated(run, "base_countdown", [[0, 0], [0, 1], [0, 0]])
        evaluated(run, "zero_countdown", [[1, 1], [1, 1], [0, 1]])
        played(run, "zero", [[[1, 0], [0, 0]]] * 3)
    results = judged(tmp_path)
    write(results, tmp_path)
    told = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert [one["key"] for one in told["findings"]] == [finding.key for finding in FINDINGS] == list("abcdefghijklmno")
    assert told["findings"][0]["claims"][0]["by_seed"]["1"]["value"] == pytest.approx(2 / 3)
    assert "+66.7 [+34.0, +99.3] points" in markdown(results)
    html = page(results)
    assert "<svg" in html
    assert not re.search(r"<script|https?://|<link|<img|url\(http", html)
    assert html == page(judged(tmp_path))


@pytest.mark.parametrize(
    ("estimate", "unit", "text"),
    [
        (Estimate(0.1234, -0.01, 0.25), "points", "+12.3 [−1.0, +25.0] points"),
        (Estimate(12345.0), "tokens", "+12,345 tokens"),
        (Estimate(0.5, 0.4, 0.6), "ratio", "0.50 [0.40, 0.60]"),
        (Estimate(math.nan), "points", "not measured"),
        (None, "points", "not measured"),
    ],
)
def test_numbers_as_they_are_shown(estimate: Estimate | None, unit: Any, text: str) -> None:
    assert shown(estimate, unit) == text


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        judged(tmp_path / "absent")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "2", "--seed", "1"], "not both"),
        (["--seed", "one"], "whole number"),
        (["seed=3"], "--seed"),
        (["--read", "zero.steps=3"], "takes only --out"),
        (["--seed", "0", "zero.stepz=3"], "zero.steps"),
    ],
)
def test_command_lines_that_cannot_be(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["findings", *words]) == 2
    assert told in capsys.readouterr().err


def test_runs_to_reuse_must_fit_the_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run_of(tmp_path / "x", 4), run_of(tmp_path / "y", 4)
    assert main(["findings", "--out", str(tmp_path / "o"), "--seed", "0", "--reuse", str(one)]) == 2
    assert "seed 4, which is not asked for" in capsys.readouterr().err
    assert main(["findings", "--out", str(tmp_path / "o"), "--seed", "4", "--reuse", str(one), str(two)]) == 2
    assert "both have seed 4" in capsys.readouterr().err


def test_the_command_reads_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, 0)
    evaluated(run, "base_countdown", [[0], [0]])
    evaluated(run, "zero_countdown", [[1], [1]])
    assert main(["findings", "--read", "--out", str(tmp_path)]) == 0
    assert "reproduced" in capsys.readouterr().out
    assert (tmp_path / "findings.html").is_file()
