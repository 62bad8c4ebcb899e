"""``longthought doctor`` on shipped and own recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longthought.cli.doctor import UNWELL
from longthought.cli.main import main
from stages.parrot import checkpoint

SMALL = ("workers=1", "base.width=32", "rl.prompts=4", "rl.samples=4", "rl.max_tokens=24", "evaluation.problems=3")
MINE = '''
from dataclasses import dataclass
from pathlib import Path
from longthought.recipes.methods import Knobs, method
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.rl import RL
from stages.parrot import Parrot

@dataclass(frozen=True)
class Settings:
    samples: int = 4
    forgotten: int = 3

def recipe(settings: Settings, run: Run) -> None:
    """Learn to repeat."""
    base = Checkpoint(Path("{base}"))
    rl = RL(Parrot(), method("grpo", Knobs(), 4), prompts=3, samples=settings.samples, max_tokens=4)
    first = run.do("first", rl, base)
    run.do("second", rl, first)
'''

Capture = pytest.CaptureFixture[str]


def test_the_laptop_run_is_well(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTHOUGHT_NATIVE", "off")  # not every machine has a compiler
    assert main(["doctor", "tiny", *SMALL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "ok"
    statuses = {finding["name"]: finding["status"] for finding in told["stages"]["rl"]}
    assert len(statuses) > 18
    assert {name for name, status in statuses.items() if status != "ok"} == {"signal", "model", "native core"}


def test_a_table_for_people_and_an_exit_code_for_scripts(tmp_path: Path, capsys: Capture) -> None:
    checkpoint(tmp_path / "base", noise=0.4)
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(base=tmp_path / "base"))
    assert main(["doctor", str(file)]) == UNWELL
    out = capsys.readouterr().out
    first, second = out.splitlines()[:2]
    assert first.startswith("first: 1 failed: settings are live (")
    assert second.split()[0] == "fail"
    assert "forgotten=3" in out
    assert "the model is made by an earlier stage" in " ".join(out.split())
    assert "second: well" in out


def test_a_recipe_without_reinforcement_is_refused(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.py"
    text = MINE.format(base=tmp_path / "base")
    file.write_text(text.replace('run.do("first", rl, base)', "None").replace('run.do("second", rl, first)', "None"))
    assert main(["doctor", str(file)]) == 2
    assert "no RL stage" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(base=tmp_path / "base"))
    assert main(["doctor", str(file)]) == 2
    assert "base" in capsys.readouterr().err


@pytest.mark.parametrize(("verifier", "code"), [("number", 0), ("{here}/lenient.py:verify", UNWELL)])
def test_problems_of_a_file(verifier: str, code: int, tmp_path: Path, capsys: Capture) -> None:
    checkpoint(tmp_path / "base", noise=0.4)
    words = ("red", "blue", "green")
    rows = [{"question": f"{a} {b} {c} {d}", "answer": str(40 + i)} for i, (a, b, c, d) in enumerate(_all(words))]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lenient.py").write_text("def verify(content, answer):\n    return 1.0\n")
    named = verifier.format(here=tmp_path)
    lines = ["doctor", "r1_zero", f"model={tmp_path / 'base'}", f"problems.file={tmp_path / 'problems.jsonl'}"]
    assert main([*lines, f"problems.verifier={named}", "rl.max_tokens=8", "rl.samples=4", "--json"]) == code
    statuses = {f["name"]: f["status"] for f in json.loads(capsys.readouterr().out)["stages"]["rl"]}
    failed = {name for name, status in statuses.items() if status == "fail"}
    assert failed == (set() if not code else {"gold passes", "garbage fails", "verifier conforms", "tricks do not pay"})


def _all(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    from itertools import product

    return list(product(words, repeat=4))
