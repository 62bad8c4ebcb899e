"""Every command on a finished, a stopped and a damaged run."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longthought.cli.eval import _table
from longthought.cli.main import main
from longthought.evaluation.report_data import Estimate, EvaluationSummary
from longthought.runs.record import Record

Capture = pytest.CaptureFixture[str]
Quickstart = tuple[Path, subprocess.CompletedProcess[str]]
PROMPT = "use 3 4 5 make 17"

ASKING = """
from longthought.core.types import Message, Problem
from longthought.recipes.tiny import LEXICON, TinySettings
from longthought.runs.run import Run
from longthought.stages.measure import Evaluate
from longthought.tasks.countdown import Countdown


class Asked(Countdown):
    def parse(self, prompt):
        if not prompt.startswith("use "):
            return None
        info = {"numbers": "3 4 5", "target": "17", "language": "en"}
        return Problem("asked", (Message("user", prompt),), "17", info)


def recipe(settings: TinySettings, run: Run) -> None:
    run.do("look", Evaluate(Asked(), LEXICON, settings.evaluation), None)
"""


SMALL = (
    "base.width=32",
    "base.steps=40",
    "base.tokens_per_step=256",
    "rl.steps=2",
    "rl.prompts=2",
    "rl.samples=2",
    "rl.max_tokens=12",
    "evaluation.problems=3",
    "evaluation.samples=2",
    "evaluation.max_tokens=12",
    "gate.fact=0",
    "gate.hit=0",
    "gate.miss=1",
    "gate.pass_at_1=[0,1]",
    "gate.pass_at_8=0",
)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder made by ``longthought quickstart``, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = [sys.executable, "-m", "longthought", "quickstart", "--threads", "1", *SMALL]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    return folder / "runs" / "quickstart", done


@pytest.fixture
def run(quickstart: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    return Path(shutil.copytree(quickstart[0], tmp_path / "run"))


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_quickstart_ends_with_a_report_and_says_what_to_do_next(quickstart: Quickstart) -> None:
    folder, done = quickstart
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "countdown/" in page
    assert "Report: runs/quickstart/report.html" in done.stdout
    assert "sample runs/quickstart --prompt" in done.stdout
    assert "eval runs/quickstart" in done.stdout
    assert "Traceback" not in done.stderr
    assert [stage.finished for stage in Record.read(folder).stages()] == [True] * 5


def test_the_recorded_command_is_the_one_that_reproduces_the_run(quickstart: Quickstart) -> None:
    from longthought.recipes.tiny import TinySettings
    from longthought.runs.settings import override, to_dict

    record = Record.read(quickstart[0])
    words = shlex.split(record.launches[0].command)
    assert words[:5] == ["longthought", "run", "tiny", "--threads", "1"]
    assert to_dict(override(TinySettings(), words[5:])) == record.settings
    assert "rl.updates=2" not in words  # a default needs no mention
    assert shlex.join(words[:5]) in (quickstart[0] / "report.html").read_text(encoding="utf-8")


def test_the_same_command_on_a_finished_run_computes_nothing(run: Path, capsys: Capture) -> None:
    before = _digests(run)
    words = shlex.split(Record.read(run).launches[0].command)[1:]
    assert main([*words, "--out", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out
    after = _digests(run)
    assert {k: v for k, v in after.items() if k != "report.html"} == {
        k: v for k, v in before.items() if k != "report.html"
    }


def test_a_stopped_run_goes_on_with_its_own_threads_and_ends_with_the_same_weights(run: Path, capsys: Capture) -> None:
    weights = (run / "04-rl/model/model.safetensors").read_bytes()
    words = shlex.split(Record.read(run).launches[0].command)[5:]
    shutil.rmtree(run / "05-after")
    shutil.rmtree(run / "04-rl/model")
    (run / "04-rl/done.json").unlink()
    assert main(["run", "tiny", "--quiet", "--out", str(run), *words]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.strip().splitlines()[-1] == f"Report: {run}/report.html"
    assert (run / "04-rl/model/model.safetensors").read_bytes() == weights
    assert [launch.threads for launch in Record.read(run).launches] == [1, 1]
    assert torch.get_num_threads() == 1


def test_other_settings_are_refused(run: Path, capsys: Capture) -> None:
    assert main(["run", "tiny", "--out", str(run), "rl.steps=3"]) == 2
    assert "rl.steps: 2 in the run, 3 now" in capsys.readouterr().err


def test_a_damaged_finished_run_is_repaired_not_called_finished(run: Path, capsys: Capture) -> None:
    file = run / "04-rl/model/model.safetensors"
    weights = file.read_bytes()
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    words = shlex.split(Record.read(run).launches[0].command)[1:]
    assert main([*words, "--quiet", "--out", str(run)]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert file.read_bytes() == weights


def test_eval_prints_json_and_touches_nothing(run: Path, capsys: Capture) -> None:
    before = _digests(run)
    assert main(["eval", str(run), "--json", "--problems", "4", "--samples", "2", "--seed", "5", "--split", "dev"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["summary"]["problems"], found["summary"]["samples"]) == (4, 2)
    assert found["evaluation"] == {
        "problems": 4,
        "samples": 2,
        "max_tokens": 12,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "split": "dev",
        "seed": 5,
    }
    assert [k for k, _ in found["summary"]["pass_at_k"]] == [1, 2]
    assert found["model"].endswith("04-rl/model")
    assert _digests(run) == before


def test_eval_repeats_what_the_run_measured(run: Path, capsys: Capture) -> None:
    recorded = json.loads((run / "03-before/evaluation/summary.json").read_text(encoding="utf-8"))["summary"]
    assert main(["eval", str(run), "--stage", "base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == recorded
    assert main(["eval", str(run / "01-base/model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"] == recorded


def test_eval_prints_a_table(run: Path, capsys: Capture) -> None:
    assert main(["eval", str(run), "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert "3 problems of the test split × 1 samples at temperature 0" in out
    for label in ("pass@1", "response length", "rejected attempts", "right format", "mix languages", "cut by"):
        assert label in out


def test_eval_prints_what_else_the_score_has() -> None:
    parts = {"accuracy": Estimate(0.5), "format": Estimate(0.5), "preference\x1b": Estimate(-0.25, -0.5, 0.125)}
    told = _table(EvaluationSummary(4, 2, Estimate(0.5), parts=parts)).splitlines()
    assert told[-1].split() == ["preference\ufffd", "-0.25", "[-0.5,", "0.125]"]
    assert [line for line in told if line.startswith(("accuracy", "format"))] == []


@pytest.mark.parametrize("command", ["doctor", "plan", "run"])
def test_a_run_is_no_recipe(run: Path, command: str, capsys: Capture) -> None:
    assert main([command, str(run)]) == 2
    told = capsys.readouterr().err
    assert "is the folder of a run" in told
    assert "give its recipe, tiny, and" in told
    assert "rl.steps=2" in told
    assert f"report {run}" in told


def test_a_model_folder_outside_a_run_gets_the_task_of_a_recipe(run: Path, tmp_path: Path, capsys: Capture) -> None:
    model = shutil.copytree(run / "04-rl/model", tmp_path / "elsewhere" / "of" / "its" / "own")
    words = ["--json", "--problems", "2", "--samples", "1", "--max-tokens", "3", "--threads", "1"]
    assert main(["eval", str(model), *words, "problems.largest=9"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "tiny"
    assert main(["eval", str(run), *words, "problems.largest=9"]) == 2
    assert "belongs to a run" in capsys.readouterr().err
    assert main(["eval", str(model), "--stage", "rl"]) == 2
    assert "is a model folder" in capsys.readouterr().err


def test_sample_shows_the_verdict_where_the_task_can_read_the_prompt(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = shutil.copytree(run / "01-base/model", tmp_path / "elsewhere" / "of" / "its" / "own")
    recipe = tmp_path / "asking.py"
    recipe.write_text(ASKING, encoding="utf-8")
    words = ["sample", str(model), "--recipe", str(recipe), "--count", "2", "--threads", "1", "--prompt"]
    assert main([*words, PROMPT]) == 0
    facts = [line for line in capsys.readouterr().out.splitlines() if "tokens · ended by" in line]
    assert len(facts) == 2
    assert all("wrong" in line or "correct" in line for line in facts)
    assert main([*words, "用 3 4 5 得 17"]) == 0
    facts = [line for line in capsys.readouterr().out.splitlines() if "tokens · ended by" in line]
    assert not any("wrong" in line or "correct" in line for line in facts)


def test_sample_is_repeatable(run: Path, capsys: Capture) -> None:
    shown = []
    for seed in ("1", "1", "2"):
        assert main(["sample", str(run), "--prompt", PROMPT, "--seed", seed]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


def test_sample_reads_prompts_from_standard_input(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n\nuse 3 bananas\n用 3 4 5 得 17"))
    assert main(["sample", str(run)]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("tokens · ended by") == 2
    assert "no token for 'bananas'" in shown.err
    assert "A prompt of this model's task: use " in shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["sample", str(run)]) == 0


@pytest.mark.parametrize("prompt", ["", "  ", "use \udcff 3"])
def test_sample_refuses_what_is_no_prompt(run: Path, capsys: Capture, prompt: str) -> None:
    assert main(["sample", str(run), "--prompt", prompt]) == 2
    assert "A prompt of this model's task: use " in capsys.readouterr().err


def test_sample_refuses_a_prompt_that_fills_the_context(run: Path, capsys: Capture) -> None:
    assert main(["sample", str(run), "--prompt", "3 " * 600]) == 2
    assert "leaves no room" in capsys.readouterr().err


def test_a_run_without_its_recipe_can_still_be_sampled(run: Path, capsys: Capture, tmp_path: Path) -> None:
    record = Record.read(run)
    Record(run, str(tmp_path / "gone.py"), record.settings, record.launches).write()
    assert main(["sample", str(run), "--prompt", PROMPT]) == 0
    assert "ended by" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert main(["eval", str(run)]) == 2
    assert "gone.py does not exist" in capsys.readouterr().err


def test_report_of_a_stopped_run_says_what_is_missing(run: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.rmtree(run / "05-after")
    (run / "04-rl/done.json").unlink()
    with (run / "04-rl/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "rew')  # a line that is being written
    file = tmp_path / "deep" / "er" / "report.html"
    before = _digests(run)
    assert main(["report", str(run), "--out", str(file)]) == 0
    assert "the trained model is not measured yet" in capsys.readouterr().out
    assert "not measured yet" in file.read_text(encoding="utf-8")
    assert _digests(run) == before


def test_report_that_cannot_be_written_is_told_plainly(run: Path, capsys: Capture, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["report", str(run), "--out", str(blocked / "report.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_of_a_stopped_run_the_last_finished_model_is_taken(
    run: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(run / "05-after")
    (run / "04-rl/done.json").unlink()
    assert main(["sample", str(run), "--prompt", PROMPT]) == 0
    assert "this is the model of the stage base" in caplog.text
    assert main(["sample", str(run), "--stage", "rl", "--prompt", PROMPT]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert main(["sample", str(run), "--stage", "readiness", "--prompt", PROMPT]) == 2
    assert "makes no model" in capsys.readouterr().err
    assert main(["sample", str(run), "--stage", "rll", "--prompt", PROMPT]) == 2
    assert "no stage rll" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "sample", "report"])
def test_damaged_run_json(run: Path, capsys: Capture, command: str) -> None:
    (run / "run.json").write_bytes((run / "run.json").read_bytes()[:100])
    assert main([command, str(run)]) == 2
    assert "run.json is truncated or altered" in capsys.readouterr().err


def test_one_flipped_byte_of_a_model(run: Path, capsys: Capture) -> None:
    file = run / "04-rl/model/model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["sample", str(run), "--prompt", PROMPT]) == 2
    assert "model.safetensors is truncated or altered" in capsys.readouterr().err
    assert main(["eval", str(file.parent)]) == 2
    assert "model.safetensors was altered" in capsys.readouterr().err


def test_plan_states_the_arithmetic(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longthought.cli.probe.SECONDS", 0.01)
    words = ["rl.steps=7", "rl.prompts=3", "rl.samples=5", "rl.updates=2", "rl.max_tokens=10", "base.width=32"]
    words += ["base.steps=9", "base.tokens_per_step=1024", "rl.beta=0.1"]
    words += ["evaluation.problems=200", "evaluation.samples=64"]
    assert main(["plan", "tiny", "--threads", "1", *words]) == 0
    out = capsys.readouterr().out
    assert "3 groups a step × 5 samples = 15 answers a step" in out
    assert "7, with 105 answers in all" in out
    assert "14 (2 on each step's answers)" in out
    assert "at most 1,050 sampled" in out
    assert f"at most {9 * 1024:,} (1,024 a step)" in out
    assert "200 problems × 64 samples = 12,800" in out
    for label in ("parameters", "optimizer", "head chunk", "key/value cache", "traces at most", "in all:"):
        assert label in out


def test_run_lists_and_shows(capsys: Capture) -> None:
    assert main(["run", "--list"]) == 0
    assert capsys.readouterr().out.startswith("tiny  Pretrain a base")
    assert main(["run", "tiny", "--show", "rl.lr=1e-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("* rl.lr=0.0001 ") for line in lines)
    assert any(line.startswith("  base.corpus=web ") and "web | pure" in line for line in lines)
    assert any(line.startswith("  reward.language=0.0 ") and "weight of the share" in line for line in lines)
