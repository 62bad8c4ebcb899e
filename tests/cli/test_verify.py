"""``longthought verify``: counts, evidence and comparisons of files made by hand."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from longthought.algorithms.statistics import mean_interval, wilson
from longthought.cli.main import main
from longthought.core.types import Outcome, Problem, Score, Verdict
from longthought.evaluation.verify_view import Comparison, Findings, Tally, described
from longthought.tasks.answers import Answered
from longthought.tasks.grading import Grading

Capture = pytest.CaptureFixture[str]

MINE = """
import os, time

def verify(content, answer):
    if content == "hang":
        time.sleep(60)
    if content == "crash":
        raise ValueError("\\x1b[31mbang")
    if content == "exit":
        os._exit(3)
    if content == "half":
        return 0.5, "half right"
    return None if content == "none" else content == answer

def length(content, info):
    return len(content) == int(info["level"])
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def write(*rows: dict[str, Any]) -> None:
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers(*said: Any, gold: str = "4") -> None:
    write(*({"response": reply, "gold": gold} for reply in said))


def told(line: str, capsys: Capture, code: int = 0) -> str:
    assert main(["verify", "a.jsonl", *shlex.split(line)]) == code
    shown = capsys.readouterr()
    return shown.err if code == 2 else shown.out


def facts(line: str, capsys: Capture, code: int = 0) -> dict[str, Any]:
    found = json.loads(told(f"{line} --json", capsys, code))
    assert isinstance(found, dict)
    return found


def test_counts_accuracy_and_the_first_wrong_ones(here: Path, capsys: Capture) -> None:
    answers("4", "4.0", "five", "5", "6", "")
    lines = told("--verifier number --show 2", capsys).splitlines()
    assert lines[0] == "a.jsonl: 6 predictions in 6 rows; prediction ← response, answer ← gold"
    assert lines[2] == "number: right 2, wrong 2, unparsable 2"
    low, high = wilson(2, 6)
    assert lines[3] == f"  accuracy 33.3 % [{100 * low:.1f}, {100 * high:.1f}] (6 graded answers)"
    start = lines.index("wrong: 4, the first 2")
    assert [line.split() for line in lines[start + 2 :]] == [
        ["row", "3"],
        ["prediction", "five"],
        ["gold", "4"],
        ["number", "unparsable:", "no", "number"],
        [],
        ["row", "4"],
        ["prediction", "5"],
        ["gold", "4"],
        ["number", "wrong:", "5", "is", "not", "4"],
    ]


def test_what_could_not_be_graded_stands_apart_and_in_the_exit_code(here: Path, capsys: Capture) -> None:
    answers("4", "5", "hang", "crash", "exit", "none", "half")
    shown = told("--verifier mine.py:verify --deadline 1", capsys, 5)
    assert "mine.py:verify: right 1, wrong 2\n  not graded: timed_out 1, crashed 2, invalid 1\n" in shown
    assert "mean value 0.500" in shown  # (1 + 0 + 0.5) / 3
    wrong, ungraded = shown.split("\nwrong: 2\n")[1].split("\nnot graded: 4\n")
    assert "wrong (0.5): half right" in wrong
    for evidence in ("timed_out: no answer within 1 s", "crashed: its process ended", "invalid: returned None"):
        assert evidence in ungraded
    assert "\x1b" not in shown


def test_a_gold_that_cannot_be_read_is_not_the_replys_fault(here: Path, capsys: Capture) -> None:
    write({"response": "4", "gold": "no number"}, {"response": "4", "gold": "4"})
    found = facts("--verifier number", capsys, 5)
    assert found["verifiers"][0]["outcomes"] == dict.fromkeys(
        ("wrong", "unparsable", "timed_out", "crashed", "invalid"), 0
    ) | {"right": 1, "no_gold": 1}
    assert found["verifiers"][0]["accuracy"]["value"] == 1.0


def test_two_verifiers(here: Path, capsys: Capture) -> None:
    answers("4", "is 4", "answer: 4", "5", "none", "hang")
    shown = told("--verifier number --against mine.py:verify --deadline 1", capsys, 5)
    table = [line.split() for line in shown.splitlines() if line.startswith(("number: right", "         "))]
    assert [
        "mine.py:verify:",
        "right",
        "wrong",
        "not",
        "graded",
    ] in table
    rows = [
        line for line in shown.splitlines() if line.lstrip().startswith(("number: right  ", "wrong  ", "not graded  "))
    ]
    assert [line.split()[-3:] for line in rows] == [["1", "2", "0"], ["0", "1", "2"], ["0", "0", "0"]]
    low, high = wilson(2, 4)
    assert f"agreement 50.0 % [{100 * low:.1f}, {100 * high:.1f}] of 4 graded by both, Cohen's κ 0.200" in shown
    differ = shown.split("\nthe verifiers differ: 4\n")[1]
    assert [line.strip() for line in differ.splitlines() if "row" in line] == ["row 2", "row 3", "row 5", "row 6"]
    assert "number      right: 4 is 4" in differ
    assert "mine.py:verify  wrong" in differ


def test_verdicts_are_written_line_by_line(here: Path, capsys: Capture) -> None:
    answers(["4", "none"], "5")
    told("--verifier mine.py:verify --against number --out v.jsonl", capsys, 5)
    records = [json.loads(line) for line in Path("v.jsonl").read_text().splitlines()]
    assert [(r["row"], r["prediction"], r["value"], r["outcome"]) for r in records] == [
        (1, 1, 1.0, "graded"),
        (1, 2, None, "invalid"),
        (2, 1, 0.0, "graded"),
    ]
    assert [r["against"]["outcome"] for r in records] == ["graded", "unparsable", "graded"]
    assert all(r["seconds"] >= 0 for r in records)
    assert not Path("v.jsonl.part").exists()


def test_what_was_graded_before_a_stop_is_kept(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(*["4"] * 100)
    Path("v.jsonl").write_text("older\n")
    grade = Grading.together

    def stop_at_the_second(self: Grading, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        if len(groups) < 64:
            raise KeyboardInterrupt
        return grade(self, groups)

    monkeypatch.setattr(Grading, "together", stop_at_the_second)
    assert main(["verify", "a.jsonl", "--verifier", "number", "--out", "v.jsonl"]) == 130
    assert "v.jsonl.part" in capsys.readouterr().err
    assert Path("v.jsonl").read_text() == "older\n"
    assert [json.loads(line)["row"] for line in Path("v.jsonl.part").read_text().splitlines()] == list(range(1, 65))


def test_only_the_kinds_asked_for_are_shown(here: Path, capsys: Capture) -> None:
    answers("4", "5", "none", "crash")
    assert list(facts("--verifier mine.py --outcome crashed", capsys, 5)["examples"]) == ["not graded"]
    found = facts("--verifier mine.py --against number --outcome right,no_gold", capsys, 5)["examples"]
    assert {name: section["answers"] for name, section in found.items()} == {"right": 1}
    assert "row" not in told("--verifier exact --show 0", capsys).split("\n", 1)[1]


@pytest.mark.parametrize(
    ("form", "kinds"),
    [
        ("free", ["right", "wrong", "right", "wrong"]),
        ("think", ["right", "wrong", "unparsable", "unparsable"]),
        ("think_answer", ["unparsable", "right", "unparsable", "unparsable"]),
        ("summary", ["unparsable", "right", "unparsable", "unparsable"]),
    ],
)
def test_the_answer_is_cut_out_of_a_reply(here: Path, capsys: Capture, form: str, kinds: list[str]) -> None:
    answers("<think>5</think>4", "<think>5</think> <answer>4</answer>", "4", "<answer>4")
    found = facts(f"--verifier exact --form {form} --outcome right,wrong,unparsable", capsys)
    told_by_row = {
        one["row"]: "right" if one["verdicts"]["exact"]["value"] else one["verdicts"]["exact"]["outcome"]
        for section in found["examples"].values()
        for one in section["first"]
    }
    assert [told_by_row[row].replace("graded", "wrong") for row in (1, 2, 3, 4)] == kinds


def test_math_and_columns_named_by_hand(here: Path, capsys: Capture) -> None:
    write({"a": r"so \boxed{\frac{2}{4}}", "b": "0.5", "level": 22}, {"a": "x+1", "b": "1+x", "level": 0})
    found = facts("--against mine.py:length --fields prediction=a,answer=b --workers 1", capsys)
    assert [one["outcomes"]["right"] for one in found["verifiers"]] == [2, 1]
    assert found["comparison"]["differing"] == 1
    assert found["columns"] == "prediction ← a, answer ← b, info ← level"


def test_bad_rows(here: Path, capsys: Capture) -> None:
    write({"response": "4", "gold": "4"}, {"response": None, "gold": "4"})
    assert "a.jsonl:2: missing prediction" in told("--verifier exact", capsys, 2)
    shown = told("--verifier exact --bad skip", capsys)
    assert "1 bad row skipped:\n  a.jsonl:2: missing prediction\n" in shown


def test_hostile_text_neither_acts_nor_floods(here: Path, capsys: Capture) -> None:
    answers("\x1b]0;title\x07\u202e" + "x" * 2_000_000 + "\r\n\x9b31mend", "[bold]4[/bold]", gold="\x1b[2J4")
    shown = told("--verifier exact --against number", capsys, 5)
    assert not set(shown) & set("\x1b\x07\u202e\r\x9b")
    assert len(shown) < 10_000
    assert "characters left out" in shown
    assert "[bold]4[/bold]" in shown
    assert not set(told("--verifier exact --json", capsys)) & set("\x1b\x07\u202e\r\x9b")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--verifier mth", "there is no verifier 'mth'"),
        ("--against math", "compared with itself"),
        ("--outcome sad", "--outcome 'sad': choose from right, wrong"),
        ("--outcome ,", "choose from"),
        ("--verifier exact --deadline 3", "--deadline changes nothing for exact"),
        ("--deadline 0", "more than 0"),
        ("--deadline nan", "more than 0"),
        ("--form thnk", "choose one of"),
        ("--fields split=x", "split changes nothing"),
        ("--fields prediction=nope", "'nope' is absent"),
        ("--verifier exact --out a.jsonl", "write over the file to grade"),
        ("--verifier exact --out .", "is a folder"),
        ("--verifier exact --out none/v.jsonl", "there is no folder none"),
        ("--verifer exact", "did you mean --verifier"),
    ],
)
def test_refusals(here: Path, capsys: Capture, line: str, why: str) -> None:
    answers("4")
    before = Path("a.jsonl").read_bytes()
    assert why in told(line, capsys, 2)
    assert Path("a.jsonl").read_bytes() == before
    assert main(["verify", "."]) == main(["verify", "none.jsonl"]) == 2


def score(value: float | None, outcome: Outcome = Outcome.GRADED) -> Score:
    return Score(value, value is not None and value >= 1, {}, Verdict(value, outcome))


def test_accuracy_is_the_mean_over_problems() -> None:
    tally = Tally("t")
    rng = random.Random(0)
    table = [[float(rng.random() < 0.6) for _ in range(4)] for _ in range(30)]
    for problem, row in enumerate(table):
        for value in row:
            tally.add(problem, score(value))
        tally.add(problem, score(None, Outcome.TIMED_OUT))
    found = tally.accuracy()
    assert found is not None
    assert (found.low, found.high) == pytest.approx(mean_interval(table))
    assert found.value == pytest.approx(sum(map(sum, table)) / 120)
    assert (tally.graded, tally.ungraded, tally.problems) == (120, 30, 30)


def test_accuracy_of_equal_or_no_shares() -> None:
    tally = Tally("t")
    assert tally.accuracy() is None
    for problem in range(5):
        for _ in range(3):
            tally.add(problem, score(1.0))
    found = tally.accuracy()
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, *wilson(5, 5))


@pytest.mark.parametrize("seed", range(5))
def test_kappa_against_its_definition(seed: int) -> None:
    """The observed agreement, and that of two verifiers with the same habits that see different answers."""
    rng = random.Random(seed)
    said = [(rng.random() < 0.7, rng.random() < 0.4) for _ in range(40)]
    comparison = Comparison(("a", "b"))
    for a, b in said:
        comparison.add(score(float(a)), score(float(b)))
    comparison.add(score(None, Outcome.CRASHED), score(1.0))
    observed = sum(a == b for a, b in said) / 40
    chance = sum(a == b for a, _ in said for _, b in said) / 1600
    assert comparison.kappa() == pytest.approx((observed - chance) / (1 - chance))
    assert comparison.agreement().value == pytest.approx(observed)  # type: ignore[union-attr]


def test_kappa_where_it_is_not_defined() -> None:
    comparison = Comparison(("a", "b"))
    assert (comparison.kappa(), comparison.agreement()) == (None, None)
    assert "no answer was graded by both" in list(comparison.lines())
    comparison.add(score(1.0), score(1.0))
    assert comparison.kappa() is None


def test_partial_values_may_differ_where_both_are_wrong() -> None:
    findings = Findings.of(["a", "b"], 5)
    portion = [Answered(7, Problem("p", (), "4"), ("x",))]
    [graded] = findings.add(portion, [[[score(0.5)]], [[score(0.0)]]], [0.1, 0.2])
    assert findings.comparison is not None
    assert findings.comparison.differing == 1
    assert findings.examples.found == {"wrong": 1, "the verifiers differ": 1}
    assert [line.split() for line in described(graded, ["a", "b"])][-2:] == [["a", "wrong", "(0.5)"], ["b", "wrong"]]
