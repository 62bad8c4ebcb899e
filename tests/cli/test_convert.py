"""``longthought convert``: a folder that transformers loads, whole or not there; what is in the way stays as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from longthought.cli.main import STOPPED, main
from longthought.core.types import Message
from longthought.models import lora, safetensors_file, weights
from longthought.models.config import ModelConfig
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

Capture = pytest.CaptureFixture[str]


def policy() -> Policy:
    tokenizer = Tokenizer.of_words([*map(str, range(10)), "use", "make"], (BEGIN, USER, ASSISTANT, END))
    return Policy(tiny_model(vocab_size=tokenizer.size), PlainRenderer(tokenizer))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of somebody else's: without provenance."""
    Checkpoint.save(tmp_path / "source", policy(), {})
    (tmp_path / "source" / "provenance.json").unlink()
    return tmp_path / "source"


def told(capsys: Capture, *words: object, code: int = 0) -> str:
    assert main(["convert", *map(str, words)]) == code
    shown = capsys.readouterr()
    if not code:
        return shown.out
    [error] = [line for line in shown.err.splitlines() if not line.startswith("convert ")]  # how far it came
    return error


def left(folder: Path) -> set[str]:
    """Names in a folder, those of temporary files among them."""
    return {file.name for file in folder.iterdir()}


def test_what_is_read_and_written_is_told(source: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = told(capsys, source, tmp_path / "ours", "--dtype", "bfloat16", "--shard-size", "10kB").splitlines()
    numbers = policy().model.config.parameters()
    files = len(list((tmp_path / "ours").glob("*.safetensors")))
    assert files > 3
    assert lines[0] == f"read      {source}: qwen3, 1 file, {4 * numbers / 1000:.2f} kB, float32 (100.00 %)"
    assert lines[1].startswith(f"written   {tmp_path / 'ours'}: {files} files, {2 * numbers / 1000:.2f} kB, bfloat16, ")
    assert lines[1].endswith(f"{numbers:,} parameters ({numbers / 1000:.2f} k)")
    assert [line.split()[0] for line in lines[2:]] == ["verified", "seconds"]
    assert all(file.stat().st_size < 10_000 + 3000 for file in (tmp_path / "ours").glob("*.safetensors"))
    assert left(tmp_path) == {"source", "ours"}


def test_transformers_loads_all_of_it(source: Path, tmp_path: Path, capsys: Capture) -> None:
    transformers = pytest.importorskip("transformers")
    told(capsys, source, tmp_path / "ours", "--shard-size", "10kB")
    theirs, again = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("source", "ours"))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, atol=0, rtol=0)
    assert again.generation_config.to_dict() == theirs.generation_config.to_dict()
    chat = [{"role": "user", "content": "use 9 4 3 make 3"}]
    first, second = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("source", "ours"))
    assert first.apply_chat_template(chat)["input_ids"] == second.apply_chat_template(chat)["input_ids"]
    copied = left(source) - {"config.json", "model.safetensors"}
    assert copied > {"tokenizer.json", "generation_config.json"}
    assert all((tmp_path / "ours" / name).read_bytes() == (source / name).read_bytes() for name in copied)


def test_logits_are_compared(source: Path, tmp_path: Path, capsys: Capture) -> None:
    def gap(name: str, *words: object) -> float:
        compared = told(capsys, source, tmp_path / name, "--check", *words).splitlines()[3]
        return float(compared.split("at most ")[1].split(",")[0])

    assert gap("same") == 0
    assert 0 < gap("half", "--dtype", "float16") < gap("narrow", "--dtype", "bfloat16") < 0.5


def test_a_model_that_computes_something_else_is_not_kept(
    source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = safetensors_file._raw
    monkeypatch.setattr(safetensors_file, "_raw", lambda tensor, dtype: write(tensor * 1.01, dtype))
    assert "logits differ by" in told(capsys, source, tmp_path / "ours", "--check", code=2)
    assert left(tmp_path) == {"source"}


def test_a_lora_is_merged(source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = weights.load_folder(ModelConfig.read(source), source)
    before = model.logits(torch.arange(9)[None])
    lora.add(model, lora.LoRA(4), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    lora.save(model, tmp_path / "lora", "base")
    lines = told(capsys, source, tmp_path / "ours", "--adapter", tmp_path / "lora", "--check").splitlines()
    assert lines[1] == f"merged    {tmp_path / 'lora'}"
    after = Checkpoint(tmp_path / "ours").load().model.logits(torch.arange(9)[None])
    torch.testing.assert_close(after, model.logits(torch.arange(9)[None]), atol=1e-4, rtol=0)
    assert not torch.allclose(after, before, atol=0.1)


def test_what_our_own_models_tell_of_themselves_stays_true(tmp_path: Path, capsys: Capture) -> None:
    Checkpoint.save(tmp_path / "source", policy(), {"stage": "rl"})
    told(capsys, tmp_path / "source", tmp_path / "ours", "--dtype", "bfloat16")
    again = Checkpoint(tmp_path / "ours")
    assert again.provenance()["stage"] == "rl"
    assert again.provenance()["converted"] == {"dtype": "bfloat16", "adapter": None}
    assert again.load().renderer.prompt((Message("user", "use 9 make 9"),))  # and its digests are those of its files
    config = tmp_path / "source" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert "was altered" in told(capsys, tmp_path / "source", tmp_path / "again", code=2)


def test_nothing_is_overwritten(source: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("mine")
    (tmp_path / "link").symlink_to("letters")
    (tmp_path / "nothing").symlink_to("nowhere")
    for name in ("file", "letters", "link", "nothing"):
        assert "exists: choose another name" in told(capsys, source, tmp_path / name, code=2)
        assert "is not replaced" in told(capsys, source, tmp_path / name, "--force", code=2)
    assert (tmp_path / "letters" / "dear.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    told(capsys, source, tmp_path / "ours")
    assert "exists" in told(capsys, source, tmp_path / "ours", code=2)
    told(capsys, source, tmp_path / "ours", "--force", "--dtype", "float16")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("target", ["source", "source/", "source/inside", "source/../source", ".", "link", "link/x"])
def test_a_folder_is_not_written_over_what_is_read(target: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "link").symlink_to("source")
    before = left(source)
    assert "lie in each other" in told(capsys, source, f"{tmp_path}/{target}", "--force", code=2)
    assert left(source) == before


def test_a_kill_or_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> memoryview:
        raise KeyboardInterrupt

    told(capsys, source, tmp_path / "ours")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(safetensors_file, "_raw", stop)
        told(capsys, source, tmp_path / "ours", "--force", "--dtype", "float16", code=STOPPED)
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 100, 100))
    assert "the disk has 100 B left" in told(capsys, source, tmp_path / "more", code=2)
    assert left(tmp_path) == {"source", "ours"}


def test_folders_above_the_target_are_made(source: Path, tmp_path: Path, capsys: Capture) -> None:
    told(capsys, source, tmp_path / "a" / "b" / "ours")
    assert Checkpoint(tmp_path / "a" / "b" / "ours").load()


@pytest.mark.parametrize("damage", ["cut", "config", "gone", "nan", "provenance", "tokenizer"])
def test_a_damaged_source_is_one_line(damage: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    file = source / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "config":
        (source / "config.json").write_text("[]")
    elif damage == "gone":
        shutil.rmtree(source)
    elif damage == "provenance":
        (source / "provenance.json").write_text('{"files": []}')
    elif damage == "tokenizer":
        (source / "tokenizer.json").unlink()
        os.mkfifo(source / "tokenizer.json")
    else:
        file.write_bytes(file.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    error = told(capsys, source, tmp_path / "ours", code=2)
    expected = {"cut": "cut short", "config": "no JSON object", "gone": "is no folder", "nan": "not finite"}
    expected |= {"provenance": "files must be an object", "tokenizer": "is not a regular file"}
    assert expected[damage] in error
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float64"], "invalid choice"),
        (["--shard-size", "big"], "a number of bytes"),
        (["--adapter", "nowhere"], "nowhere is no folder"),
        (["--forse"], "did you mean --force"),
    ],
    ids=str,
)
def test_bad_options(words: list[str], message: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert message in told(capsys, source, tmp_path / "ours", *words, code=2)
    assert left(tmp_path) == {"source"}
