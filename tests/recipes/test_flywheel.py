"""The flywheel on a world of six words: it turns, stops when it should, and a kill changes no bit."""

from __future__ import annotations

import json
import os
import signal
from itertools import product
from pathlib import Path

import pytest
import torch

from longthought.cli.rehearsal import rehearse
from longthought.core.errors import DataError, SettingsError
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.recipes.catalogue import Recipe
from longthought.recipes.flywheel import FlywheelSettings, Harvest, Wheel, flywheel
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.runs.settings import fingerprint_of, override
from longthought.runs.state import JSON
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

WORDS = ("red", "blue", "green", "black", "white", "brown")
DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FlywheelSettings:
    """Say the last of three words. A random model does so once in some ten times."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END))
    model = Transformer(ModelConfig(tokenizer.size, 32, 48, 2, 4, 2, 8, max_position_embeddings=32))
    initialize(model, 0)
    Checkpoint.save(folder / "model", Policy(model.eval(), PlainRenderer(tokenizer)), {})
    rows = [{"question": " ".join(three), "answer": three[-1]} for three in product(WORDS, repeat=3)]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = [f"model={folder}/model", f"problems.file={folder}/problems.jsonl", "problems.verifier=exact"]
    words += ["problems.form=free", "problems.format_weight=0", "precision=float32", "sft.lr=2e-2", "sft.epochs=8"]
    words += ["sft.examples_per_step=8"]
    settings = FlywheelSettings(
        wheel=Wheel(rounds=2),
        harvest=Harvest(prompts=80, samples=32, keep=1, max_tokens=2),
        dev=EvaluationSettings(problems=200, samples=8, max_tokens=2, split="dev"),
        evaluation=EvaluationSettings(problems=8, samples=8, max_tokens=2),
    )
    return override(settings, words)


def go(path: Path, settings: FlywheelSettings) -> Checkpoint:
    with Run.open(path, recipe="flywheel", settings=settings, command="test", threads=1) as run:
        return flywheel(settings, run)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in DEPENDS_ON_THE_CLOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def stages(path: Path) -> list[str]:
    return [stage.name for stage in Run.read(path).stages()]


def decision(path: Path, number: int) -> dict[str, object]:
    (file,) = path.glob(f"*-round_{number}_decision/decision/decision.json")
    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return found


def accuracy(path: Path, name: str) -> float:
    (file,) = path.glob(f"*-{name}/evaluation/summary.json")
    return float(json.loads(file.read_text(encoding="utf-8"))["summary"]["accuracy"]["value"])


def asked(path: Path, name: str) -> list[str]:
    (file,) = path.glob(f"*-{name}/*/prompts.jsonl")
    return [json.loads(line)["problem"] for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def turned(world: FlywheelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("turned") / "run"
    go(path, world)
    return path


def test_it_turns_and_the_best_model_is_the_last_word(turned: Path, world: FlywheelSettings) -> None:
    round_ = ("traces", "diversity", "examples", "sft", "score", "decision")
    names = ["round_0_score", "before", *(f"round_{number}_{part}" for number in (1, 2) for part in round_), "after"]
    assert stages(turned) == names
    assert accuracy(turned, "after") > accuracy(turned, "before") + 0.2
    decided = decision(turned, 2)
    assert [row["round"] for row in decided["history"]] == [1, 2]  # type: ignore[attr-defined]
    model = go(turned, world)  # loaded, not made again
    assert fingerprint_of(model.fingerprints()) == decided["model"]
    best = {f"round_{n}_sft": accuracy(turned, f"round_{n}_score") for n in (1, 2)}
    assert model.path.parent.name.endswith(max(best, key=lambda name: best[name]))


def test_every_round_asks_other_problems(turned: Path) -> None:
    first, second = (asked(turned, f"round_{number}_traces") for number in (1, 2))
    assert len(first) == len(second) == 80
    assert set(first).isdisjoint(second)


def test_original_data_keep_their_share(turned: Path) -> None:
    (file,) = turned.glob("*-round_2_examples/examples/report.json")
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["original_share"] >= 0.25
    assert report["sets"]["round_2"] > 0


def test_collapsed_examples_are_not_learned(tmp_path: Path, world: FlywheelSettings) -> None:
    """All right replies are kept: those of a model that has learned its lesson are all the same."""
    go(tmp_path / "run", override(world, ["harvest.keep=none", "wheel.rounds=4"]))
    assert stages(tmp_path / "run")[-4:] == ["round_2_traces", "round_2_diversity", "round_2_decision", "after"]
    decided = decision(tmp_path / "run", 2)
    assert (decided["kept"], decided["stop"]) == ("best", True)
    assert "unrepeated" in str(decided["reason"])


def test_a_fall_ends_it_with_the_model_from_before(tmp_path: Path, turned: Path, world: FlywheelSettings) -> None:
    """A model that has learned is trained on at a rate that destroys it."""
    base = go(turned, world)
    settings = override(world, [f"model={base.path}", "sft.lr=3", "wheel.rounds=4"])
    model = go(tmp_path / "run", settings)
    assert decision(tmp_path / "run", 1)["stop"]
    assert stages(tmp_path / "run")[-2:] == ["round_1_decision", "after"]
    assert model.path == base.path


def test_hard_problems_are_asked_first(tmp_path: Path, world: FlywheelSettings) -> None:
    settings = override(world, ["harvest.seeds=hard", "harvest.prompts=20", "wheel.rounds=1"])
    settings = override(settings, ["harvest.pool=90", "harvest.tries=32"])
    go(tmp_path / "run", settings)
    (file,) = (tmp_path / "run").glob("*-round_1_difficulty/prompts/prompts.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 90
    rates = {row["problem"]: row["right"] for row in rows}
    chosen = asked(tmp_path / "run", "round_1_traces")
    assert len(chosen) == 20
    assert sorted(rates[name] for name in chosen) == sorted(rate for rate in rates.values() if rate)[:20]


def killed(path: Path, settings: FlywheelSettings, at: int) -> bool:
    """Whether a run in a process of its own was killed when it saved its state for the ``at``-th time."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        saved, save = [], Place.save_state

        def deadly(self: Place, step: int, tensors: dict[str, torch.Tensor], values: dict[str, JSON]) -> None:
            save(self, step, tensors, values)
            saved.append(step)
            if len(saved) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        Place.save_state = deadly  # type: ignore[method-assign, assignment]
        go(path, settings)
    finally:
        os._exit(0)


def test_a_kill_changes_no_bit(tmp_path: Path, turned: Path, world: FlywheelSettings) -> None:
    """Killed in every stage that saves its state, and started again each time."""
    kills = 0
    while killed(tmp_path / "run", world, 1):
        kills += 1
    assert kills >= 6  # two rounds of sampling and one fine-tuning, twice
    go(tmp_path / "run", world)
    found, expected = contents(tmp_path / "run"), contents(turned)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_people_may_write_the_original_data(tmp_path: Path, world: FlywheelSettings) -> None:
    rows = [{"prompt": " ".join(three), "reply": three[-1]} for three in product(WORDS[:3], repeat=3)]
    (tmp_path / "people.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = override(world, [f"wheel.original={tmp_path}/people.jsonl", "wheel.floor=0.6", "wheel.rounds=1"])
    go(tmp_path / "run", settings)
    (file,) = (tmp_path / "run").glob("*-round_1_examples/examples/report.json")
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["original"] == report["sets"]["people.jsonl"] > report["sets"]["round_1"] > 0
    assert report["dropped"]["contaminated"] > 0  # some of them are asked in an evaluation
    with pytest.raises(DataError, match="absent"):
        go(tmp_path / "other", override(settings, ["wheel.original=absent.jsonl"]))
    assert stages(tmp_path / "other") == []  # before anything is sampled


def test_it_can_be_rehearsed(world: FlywheelSettings) -> None:
    found = rehearse(Recipe("flywheel", flywheel, FlywheelSettings()), world)
    assert found.testing().settings.split == "test"
    assert [step.name for step in found.steps] == ["round_0_score", "before", "round_1_traces", "round_1_diversity"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("wheel.rounds=0", "rounds=0"),
        ("wheel.patience=0", "patience=0"),
        ("wheel.floor=1.5", "floor=1.5"),
        ("wheel.margin=-1", "margin=-1.0"),
        ("wheel.diversity=2", "least=2.0"),
        ("harvest.pool=500", "change nothing with harvest.seeds=fresh"),
        ("harvest.tries=5", "change nothing with harvest.seeds=fresh"),
        ("harvest.samples=0", "samples=0"),
        ("harvest.keep=0", "keep=0"),
        ("dev.split=test", "both test"),
        ("dev.split=train", "must not be train"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    world: FlywheelSettings, wrong: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        rehearse(Recipe("flywheel", flywheel, FlywheelSettings()), override(world, [wrong]))


def test_a_pool_smaller_than_what_is_asked_of_it_is_refused(world: FlywheelSettings) -> None:
    with pytest.raises(SettingsError, match="pool=10 holds no 80"):
        override(world, ["harvest.seeds=hard", "harvest.pool=10"])
    with pytest.raises(SettingsError, match=r"leave out wheel\.original"):
        override(world, ["wheel.original=a.jsonl", "wheel.floor=0"])
