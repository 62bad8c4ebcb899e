"""What a person with a model and a file of conversations meets first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from longthought.cli.launch import _describe
from longthought.cli.main import main
from longthought.cli.outlook import outlook
from longthought.cli.rehearsal import rehearse
from longthought.cli.settings_table import table
from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.types import Message
from longthought.models.lora import LoRA
from longthought.recipes.catalogue import find
from longthought.recipes.script import train
from longthought.recipes.sft import SFTSettings
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.settings import override
from longthought.stages.sft import SFT
from longthought.tasks.examples import Examples
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Words of the command line: a model of ten digits, and forty conversations that it could have."""
    chat = PlainRenderer(Tokenizer.of_words([*map(str, range(10)), "plus"], (BEGIN, USER, ASSISTANT, END)))
    Checkpoint.save(tmp_path / "model", Policy(tiny_model(vocab_size=chat.tokenizer.size), chat), {})
    rows = [{"question": f"{i % 10} plus {i // 10}", "answer": " ".join(str(i % 10 + i // 10))} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [f"model={tmp_path}/model", f"examples.file={tmp_path}/chats.jsonl", "precision=float32"]


def settings(asked: list[str], *more: str) -> SFTSettings:
    return override(find("sft").settings, [*asked, *more])  # type: ignore[no-any-return]


def stage(asked: list[str], *more: str) -> SFT:
    (step,) = rehearse(find("sft"), settings(asked, *more)).steps
    assert isinstance(step.stage, SFT)
    return step.stage


def test_a_folder_and_a_file_make_a_model(asked: list[str], tmp_path: Path, capsys: Capture) -> None:
    words = [
        "run",
        "sft",
        "--out",
        str(tmp_path / "run"),
        *asked,
        "sft.lr=1e-2",
        "sft.epochs=3",
        "examples.held_out=0.1",
    ]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "prompt ← question, reply ← answer; 40 conversations, replies: train " in told.err
    assert str(tmp_path / "run" / "01-sft" / "model") in told.out
    assert f"Report: {tmp_path}/run/report.html" in told.out
    assert "01-sft" not in told.err
    assert "supervised fine-tuning" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    lines = (tmp_path / "run" / "01-sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["held_out_loss"] < json.loads(lines[0])["held_out_loss"]
    assert main(words) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_settings_reach_the_stage(asked: list[str]) -> None:
    plain = stage(asked)
    assert (plain.lr, plain.epochs, plain.adapter, plain.learner.precision) == (5e-5, 2, None, "float32")
    low = stage(asked, "adapter.rank=4", "sft.tokens_per_step=100", "sft.weighting=sequence_mean", "examples.long=cut")
    assert (low.lr, low.adapter, low.tokens_per_step, low.long) == (5e-4, LoRA(4, 32.0), 100, "cut")
    assert low.weighting is not plain.weighting
    balanced = stage(asked, "sft.balance=0.01", "examples.turns=all").learner.balancing
    assert balanced is not None
    assert balanced.rate == 0.01


def test_what_was_read_is_told_once(asked: list[str], capsys: Capture) -> None:
    _describe(rehearse(find("sft"), settings(asked)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("examples: prompt ← question, reply ← answer; 40 conversations")


def test_the_outlook_counts_steps_and_tokens(asked: list[str]) -> None:
    told = outlook(rehearse(find("sft"), settings(asked, "examples.held_out=0", "sft.examples_per_step=7")))
    assert "40, 2 times each; 0 held out" in told
    assert "about 12, shared by one process" in told  # 6 steps an epoch
    assert "nothing is known" not in told


def test_the_table_explains_every_setting(asked: list[str]) -> None:
    shown = table(find("sft"), settings(asked)).splitlines()[2:]
    assert [line for line in shown if len(line.split("  ")) < 3] == []
    (rate,) = [line for line in shown if line.startswith("  sft.lr=")]
    assert rate.endswith("learning rate; none: 5e-5 for all weights, 5e-4 for a LoRA")


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("model=nothing", CheckpointError, r"no model folder nothing.*hf download"),
        ("template=r2", SettingsError, "no prompt template 'r2'"),
        ("examples.file=absent.jsonl", DataError, r"no file of conversations absent\.jsonl"),
        ("examples.fields=reply=final", DataError, "column 'final' is absent or empty"),
        ("examples.fields=answer=final", SettingsError, "each of messages, prompt, input, reply"),
        ("examples.held_out=1", SettingsError, "held_out=1.0"),
        ("sft.lr=0", SettingsError, "must be positive"),
        ("sft.epochs=0", SettingsError, "epochs=0 must be at least 1"),
        ("sft.measure_every=0", SettingsError, "every=0"),
        ("sft.weighting=mean", SettingsError, "one of token_mean, sequence_mean is needed"),
        ("adapter.alpha=1", SettingsError, r"adapter\.alpha=1\.0 changes nothing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    asked: list[str], wrong: str, error: type[Exception], words: str
) -> None:
    given = [word for word in asked if word.partition("=")[0] != wrong.partition("=")[0]]
    with pytest.raises(error, match=words):
        rehearse(find("sft"), settings(given, wrong))


def test_a_script_trains_in_one_line(asked: list[str], tmp_path: Path) -> None:
    given = Examples.of([(Message("user", "1 plus 1"), Message("assistant", "2"))])
    trained = train(SFT(given, lr=1e-2, quiet=True), tmp_path / "model", tmp_path / "run")
    assert trained.path == tmp_path / "run" / "01-sft" / "model"
    before, after = (one.load().model.state_dict() for one in (Checkpoint(tmp_path / "model"), trained))
    assert not any(torch.equal(before[name], after[name]) for name in before if "_proj" in name)
