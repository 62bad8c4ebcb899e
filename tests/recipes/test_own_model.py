"""What a person with a model and a file of problems meets first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longthought.cli.launch import _describe
from longthought.cli.rehearsal import rehearse
from longthought.cli.settings_table import table
from longthought.cli.subject import subject
from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.evaluation.report import ReportData, write_report
from longthought.recipes.catalogue import find
from longthought.recipes.r1_zero import R1ZeroSettings
from longthought.runs.settings import override


@pytest.fixture
def settings(tmp_path: Path) -> R1ZeroSettings:
    (tmp_path / "model").mkdir()
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(120)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = [f"model={tmp_path}/model", f"problems.file={tmp_path}/problems.jsonl"]
    return override(find("r1_zero").settings, asked)  # type: ignore[no-any-return]


def test_a_small_file_is_measured_whole(settings: R1ZeroSettings) -> None:
    testing = rehearse(find("r1_zero"), settings).testing()
    assert testing.settings.problems == testing.task.size("test") < 100  # type: ignore[attr-defined]
    fewer = rehearse(find("r1_zero"), override(settings, ["evaluation.problems=3"])).testing()
    assert fewer.settings.problems == 3


def test_what_was_read_is_told_once(settings: R1ZeroSettings, capsys: pytest.CaptureFixture[str]) -> None:
    _describe(rehearse(find("r1_zero"), settings))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("problems: prompt ← question, answer ← answer; 120 problems (train ")


def test_missing_files_are_told_with_what_to_do(settings: R1ZeroSettings) -> None:
    with pytest.raises(CheckpointError, match=r"no model folder Qwen/Qwen3.*hf download"):
        rehearse(find("r1_zero"), override(settings, ["model=Qwen/Qwen3"]))
    with pytest.raises(DataError, match=r"there is no file of problems absent\.jsonl"):
        rehearse(find("r1_zero"), override(settings, ["problems.file=absent.jsonl"]))


def test_the_table_of_settings_tells_what_a_special_value_means(settings: R1ZeroSettings) -> None:
    shown = table(find("r1_zero"), settings).splitlines()
    (rate,) = [line for line in shown if line.startswith("  rl.lr=")]
    assert rate.endswith("learning rate; none: 1e-6 for all weights, 1e-5 for a LoRA")
    assert len(rate) < 140  # the long list of methods pushes no other line to the right


@pytest.mark.parametrize("wrong", ["rl.lr=-1", "rl.lr=0", "rl.warmup=-1", "rl.final=2"])
def test_a_rate_that_cannot_be_is_refused(settings: R1ZeroSettings, wrong: str) -> None:
    with pytest.raises(SettingsError, match=wrong.partition("=")[0]):
        override(settings, [wrong])


def test_a_base_model_is_spoken_to_with_a_template(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    asked = subject(tmp_path, None, None, "r1_zero").checkpoint.template
    assert asked is not None
    assert asked.name == "r1_zero"
    with pytest.raises(SettingsError, match="no prompt template 'r2'; choose one of r1_zero"):
        subject(tmp_path, None, None, "r2")


@pytest.mark.parametrize("own", [True, False])
def test_what_a_base_from_elsewhere_had_seen_is_no_part_of_the_report(tmp_path: Path, own: bool) -> None:
    write_report(ReportData("run", own_base=own), tmp_path / "report.html")
    assert ("What the base had seen" in (tmp_path / "report.html").read_text(encoding="utf-8")) is own


def test_a_model_of_somebody_else_has_no_task(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    found = subject(tmp_path, None, None, None)
    with pytest.raises(SettingsError, match="--recipe r1_zero"):
        found.testing()


def test_the_pull_of_mirror_descent_needs_a_second_update() -> None:
    default = find("r1_zero").settings
    with pytest.raises(SettingsError, match=r"knobs\.tau changes nothing"):
        override(default, ["rl.method=kimi", "knobs.tau=0.5"])
    assert override(default, ["rl.method=kimi", "knobs.tau=0.5", "rl.updates=2"]).knobs.tau == 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("reward.language=-1", "language=-1.0 must be at least 0"),
        ("reward.overlong=-3", "overlong=-3 must be at least 0"),
        ("rl.gap_limit=-1", "gap_limit=-1.0: must be positive"),
        ("knobs.critic_lr=-1", "lr=-1.0 must be at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong: str, words: str, settings: R1ZeroSettings) -> None:
    with pytest.raises(SettingsError, match=words):
        rehearse(find("r1_zero"), override(settings, ["rl.method=ppo", wrong]))
