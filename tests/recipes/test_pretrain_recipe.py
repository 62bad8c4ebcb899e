"""`longthought run pretrain` on files of one's own."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from longthought.cli.main import main
from longthought.core.errors import SettingsError
from longthought.recipes.pretrain import PretrainSettings, base_of, corpus_of, pretrain
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.runs.settings import override
from longthought.tasks.corpus_mix import CorpusMix
from longthought.training.optimizer import AdamW, MuonAdamW

Capture = pytest.CaptureFixture[str]
SMALL = (
    "corpus.documents=paragraph",
    "corpus.held_out=0.2",
    "tokenizer.size=300",
    "model.width=32",
    "model.context=32",
    "train.steps=12",
    "train.tokens_per_step=128",
    "held_out.every=5",
    "save_every=1",
)
CHANGES_BY_ITSELF = {"run.json", "timings.jsonl", "lock"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    made = tmp_path / "texts.txt"
    made.write_text("\n\n".join(f"Paragraph {n}: {'la ' * (n % 40)}and so on." for n in range(80)))
    return made


def test_from_the_command_line(texts: Path, tmp_path: Path, capsys: Capture) -> None:
    words = [f"corpus.path={texts}", *SMALL, "long.context=64", "long.steps=3", "workers=2"]
    assert main(["run", "pretrain", *words, "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "documents of one file" in err
    assert "held back" in err
    assert f"Model: {tmp_path / 'run/02-long/model'}" in out
    assert Checkpoint(tmp_path / "run/02-long/model").load().model.config.max_position_embeddings == 64
    assert main(["sample", str(tmp_path / "run"), "--prompt", "Paragraph", "--max-tokens", "5"]) == 0


def test_what_is_asked_is_what_is_done(texts: Path) -> None:
    words = [f"corpus.path={texts}", f"corpus.mix={texts.parent}@2,countdown@0.5", "corpus.by=characters"]
    words += ["corpus.cooldown=countdown", "corpus.cooldown_share=0.2", "train.optimizer=adamw", "train.lr=3e-4"]
    words += ["train.schedule=deepseek_v3", "train.ramp_first=2048", "model.arch=deepseek_v3", "model.ahead=2"]
    words += ["model.width=32", "tokenizer.size=300"]
    settings = override(PretrainSettings(), words)
    corpus = corpus_of(settings.corpus, settings.seed)
    stage = base_of(settings, corpus)
    assert isinstance(corpus, CorpusMix)
    assert corpus.parts[0].name == "texts"
    assert [part.weight for part in corpus.parts] == [1.0, 2.0, 0.5]
    assert corpus.by == "characters"
    assert stage.cooldown is not None
    assert stage.cooldown.share == 0.2
    assert isinstance(stage.optimizer, AdamW)
    assert stage.optimizer.lr == 3e-4
    assert stage.optimizer.schedule.legs[1].kind == "cosine"
    assert stage.ramp is not None
    assert stage.new_policy().model.config.num_nextn_predict_layers == 2
    plain = base_of(override(PretrainSettings(), [f"corpus.path={texts}", "corpus.held_out=0"]), corpus)
    assert isinstance(plain.optimizer, MuonAdamW)
    assert plain.held_out is None


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("corpus.cooldown_share=0.2", "without corpus.cooldown"),
        ("corpus.by=characters", "without corpus.mix"),
        ("train.ramp_share=0.5", "without train.ramp_first"),
        ("long.steps=5", "without long.context"),
    ],
)
def test_settings_that_change_nothing(word: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        override(PretrainSettings(), [word])


def test_held_out_settings_without_held_out_documents() -> None:
    with pytest.raises(SettingsError, match=r"corpus\.held_out=0"):
        override(PretrainSettings(), ["corpus.held_out=0", "held_out.every=5"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["corpus.path=missing"], "there is no file or folder missing"),
        (["corpus.field=body"], "corpus.field=body changes nothing"),
        (["corpus.mix=nothing"], "neither a file, a folder, a pattern nor countdown"),
    ],
)
def test_the_command_line_says_what_is_wrong(words: list[str], told: str, texts: Path, capsys: Capture) -> None:
    first = [] if words[0].startswith("corpus.path") else [f"corpus.path={texts}"]
    assert main(["plan", "pretrain", *first, *words]) != 0
    assert told in capsys.readouterr().err


def test_a_way_of_reading_that_no_file_is_read_by(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    settings = override(PretrainSettings(), [f"corpus.path={tmp_path / 'a.jsonl'}", "corpus.documents=line"])
    with pytest.raises(SettingsError, match="no file of text"):
        corpus_of(settings.corpus, 0)


def go(out: Path, texts: Path) -> None:
    settings = override(PretrainSettings(), [f"corpus.path={texts}", *SMALL, "workers=2"])
    with Run.open(out, recipe="pretrain", settings=settings, command="test", threads=1) as run:
        pretrain(settings, run)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in CHANGES_BY_ITSELF)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_kill_minus_nine(texts: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    go(tmp_path / "whole", texts)
    whole = time.monotonic() - began
    chance = random.Random(1)
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                torch.set_num_threads(1)
                go(tmp_path / "killed", texts)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.1, 0.6) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    go(tmp_path / "killed", texts)
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
