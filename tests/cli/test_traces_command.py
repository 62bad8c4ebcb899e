"""``longthought traces``: tables, one rollout, tokens, JSON and pages of a run made by hand."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from longthought.cli.main import main
from longthought.runs import traces
from made_traces import rollout, run_of, write

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("traces") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def told(run: Path, line: str, capsys: Capture, code: int = 0) -> str:
    """What the command prints, on both streams."""
    assert main(["traces", str(run), *shlex.split(line)]) == code
    shown = capsys.readouterr()
    return shown.out + shown.err


def test_the_table_counts_and_lists(made: Path, capsys: Capture) -> None:
    lines = told(made, "--limit 4", capsys).splitlines()
    assert lines[0] == "16 of 16 rollouts match · rl, steps 1..2"
    assert lines[1].startswith("mean: reward 0.143 · advantage -0.714 · 12.5 % right · 3.5 tokens")
    assert lines[2] == "outcome: graded 14, crashed 2"
    assert "trained on: yes 2, advantage 0 2, cut by the token limit and filtered 2, no reward 2" in lines
    first = next(line.split() for line in lines if "2:0:0" in line)
    assert first == ["1", "2:0:0", "1.00", "1.00", "3", "stop", "right", "<think>try", "33</think>yes"]
    assert lines[-1].startswith("12 more match")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("--step last", 8),
        ("--reward '>0.5'", 2),
        ("--reward none", 2),
        ("--advantage '<0' --step 1", 6),
        ("--length '>3'", 2),
        ("--outcome crashed,unparsable", 2),
        ("--finish length --trained no", 2),
        ("--correct yes", 2),
        ("--problem 'p/2*'", 8),
        ("--text '<script>|onerror'", 4),
        ("--correct yes --finish length", 0),
    ],
)
def test_conditions(made: Path, capsys: Capture, line: str, count: int) -> None:
    assert told(made, line, capsys).startswith(f"{count} of ")


def test_model_output_cannot_act_on_the_terminal(made: Path, capsys: Capture) -> None:
    shown = told(made, "", capsys) + told(made, "--id 1:1:2", capsys) + told(made, "--id 1:1:1 --tokens", capsys)
    assert not any(sign in shown for sign in "\x1b\x07\x00\u202e\u2028")
    assert "<U+202E>gnp.exe" in shown
    assert "[bold]no markup[/bold]" in shown


def test_one_rollout_in_full(made: Path, capsys: Capture) -> None:
    shown = told(made, "--id 2:0:0", capsys)
    for part in (
        "rollout   2:0:0 of p/1",
        "prompt    <|begin|> <|user|> 33 <|assistant|>",
        "thinking  try 33",
        "answer    yes",
        "verdict   right: saw <think>tr",
        "reward    1.00 (accuracy 1.00) · advantage 1.00",
        "training  in update 1 of the step, weight 0.25 in its loss",
        "group of 4",
    ):
        assert part in shown
    assert told(made, "--show 1", capsys) == shown
    assert "left out: no reward" in told(made, "--id 2:0:3", capsys)
    long = told(made, "--id 2:1:3", capsys)
    assert "979,999 more characters; --json prints them all" in long
    assert len(long) < 50_000


def test_tokens_of_a_rollout(made: Path, capsys: Capture) -> None:
    lines = told(made, "--id 2:0:0 --tokens", capsys).splitlines()
    assert "GRPO: ρ of a token is clipped above 1.28 where A > 0, below 0.8 where A < 0" in lines
    cells = [line.split() for line in lines[-3:]]
    assert cells[0] == ["0", "60.7", "%", "60.7", "%", "1.000", "1.00", "0.10", "try"]
    assert cells[1] == ["1", "60.7", "%", "90.5", "%", "1.492", "1.00", "0.20", "wait", "clipped,", "ρ", ">", "1.28"]
    assert cells[2] == ["2", "60.7", "%", "40.7", "%", "0.670", "1.00", "0.30", "<|end|>"]
    assert max(map(len, lines)) <= 100
    unknown = told(made, "--id 2:1:0 --tokens", capsys)
    assert "the learner's probabilities were not recorded" in " ".join(unknown.split())
    assert unknown.count("would clip at ρ < 0.8") == 3


def test_without_a_tokenizer_ids_are_shown(run: Path, capsys: Capture) -> None:
    (run / "01-base/model/tokenizer.json").unlink()
    shown = told(run, "--id 2:0:0 --tokens", capsys)
    assert "warning: no tokenizer was found in the run: tokens are shown as numbers" in shown
    assert "[2] [3] [8] [4]" in shown


def test_json_holds_the_same(made: Path, capsys: Capture) -> None:
    found = json.loads(told(made, "--json --reward '>0.5' --limit 1", capsys))
    assert (found["stage"], found["looked_at"], found["matching"]["rollouts"]) == ("rl", 16, 2)
    (only,) = found["rollouts"]
    assert (only["step"], only["problem"], only["reward"], only["left_out"]) == (2, "p/1", 1.0, "")
    whole = json.loads(told(made, "--json --id 2:0:0", capsys))
    assert (whole["tokens"], whole["update"], whole["parts"]) == ([6, 7, 5], 1, {"accuracy": 1.0})


def test_numbers_that_json_has_not_are_null(run: Path, capsys: Capture) -> None:
    write(run / "02-rl/traces", 3, [(rollout("x", float("inf")),)])
    assert json.loads(told(run, "--json --step last", capsys))["rollouts"][0]["reward"] is None


def test_a_page(made: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "page.html"
    shown = told(made, f"--correct yes --html {file}", capsys)
    assert shown == f"the page holds 2 of the 2 that match\nPage: {file}\n"
    assert '"id":"2:0:0"' in file.read_text(encoding="utf-8")


def test_damaged_files_are_named_and_the_others_shown(run: Path, capsys: Capture) -> None:
    traces.file_of(run / "02-rl/traces", 1).write_bytes(b"PAR1")
    shown = told(run, "", capsys)
    assert shown.startswith("8 of 8 rollouts match")
    assert "step-000001.parquet is truncated or altered" in shown
    assert "is truncated or altered" in told(run, "--id 1:0:0", capsys, code=2)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--stage rll", "no stage rll; its stages: base, rl"),
        ("--stage base", "has no traces; stages with traces: rl"),
        ("--step 9", "there are 2 steps: 1..2"),
        ("--step soon", "--step 'soon' is no step"),
        ("--id 9:0:0", "there are 2 steps: 1..2"),
        ("--id 1:0:9", "has no sample 9; it has 0..3"),
        ("--id 40", "write step:group:sample"),
        ("--show 17", "only 16 rollouts match"),
        ("--reward high", "--reward 'high' is no condition"),
        ("--outcome crash", "did you mean crashed?"),
        ("--text '('", "is no regular expression"),
        ("--problem p/9", "there are for example: p/"),
        ("--correct maybe", "invalid choice: 'maybe'"),
        ("--limit 0", "at least 1"),
        ("--text ''", "--text is empty"),
        ("--outcome ,", "--outcome is empty"),
        ("--id ''", "--id is empty"),
        ("--tokens", "say which with --show N or --id"),
        ("--id 1:0:0 --reward '>0'", "--reward changes nothing beside --id"),
        ("--show 1 --limit 2", "--limit changes nothing beside --show"),
        ("--json --html x.html", "--json changes nothing beside --html"),
        ("--tokens --json --id 1:0:0", "--tokens changes nothing beside --json"),
        ("--lenght '>1'", "did you mean --length?"),
    ],
)
def test_wrong_lines_are_told_in_one_message(made: Path, capsys: Capture, line: str, part: str) -> None:
    shown = told(made, line, capsys, code=2)
    assert part in shown
    assert shown.startswith("longthought: ")
    assert len(shown.splitlines()) == 1


def test_what_is_no_run(tmp_path: Path, capsys: Capture) -> None:
    assert "no run.json" in told(tmp_path, "", capsys, code=2)
    assert "is no folder" in told(tmp_path / "gone", "", capsys, code=2)
