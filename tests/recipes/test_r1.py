"""The whole road in miniature: it arrives, it is told, and a kill in any of its stages changes no bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longthought.cli.main import main
from longthought.cli.rehearsal import rehearse
from longthought.core.types import Message
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.evaluation.from_run import report_data
from longthought.evaluation.readiness import Gate
from longthought.recipes import laptop
from longthought.recipes.catalogue import find
from longthought.recipes.laptop_settings import Base, Collecting, Judging, R1Settings, Reinforcement, Scenarios, Tuning
from longthought.recipes.r1 import r1
from longthought.recipes.tiny import Problems
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.runs.state import JSON
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_tidy import surrendered, worked
from longthought.text.reasoning import split

pytestmark = pytest.mark.slow

ASKED = 6  # problems of the cold start and of rejection sampling
SHORT = Reinforcement(steps=2, prompts=2, samples=4)
MINIATURE = R1Settings(
    workers=1,
    precision="float32",
    max_tokens=40,
    problems=Problems(largest=9, target=20),
    base=Base(width=32, student=64, steps=100, tokens_per_step=512, requests=0.5),
    zero=SHORT,
    chains=Collecting(prompts=ASKED, samples=4, keep=2, surrendered=0.2),
    reasoning=SHORT,
    traces=Collecting(prompts=ASKED, samples=8, keep=2, surrendered=0.2),
    tuning=Tuning(cold=160, epochs=16, examples_per_step=8, lr=5e-3, general=0.6),
    judging=Judging(prompts=240, pairs=2, least_gap=0.0, epochs=1),
    ruled=SHORT,
    final=SHORT,
    scenarios=Scenarios(every=1),
    gate=Gate(fact=0, hit=0, miss=1, pass_at_1=(0, 1), pass_at_8=0),
    evaluation=EvaluationSettings(problems=4, samples=2, max_tokens=40),
)
MODELS = ("base", "zero", "cold_start", "reasoner", "taught", "ruled", "r1")
STUDENTS = ("small", "distilled", "distilled_logits", "small_rl_1x", "small_rl_5x")
KILLED = {
    "base": 1,
    "zero": 1,
    "chains": 2,  # in the middle of its sources
    "cold_start": 1,
    "reasoner": 2,
    "traces": 1,
    "taught": 1,
    "pairs": 2,
    "helpful": 1,
    "labels": 1,
    "safe": 1,
    "ruled": 1,
    "r1": 1,
    "distilled_logits": 1,
    "small_rl_5x": 3,
}
"""Stages, with the state that is their last before the kill."""
DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}


def taught(task: Countdown, count: int, attempts: int, seed: int) -> tuple[tuple[Message, ...], ...]:
    """People who do not only give up: they solve the very problems that are asked, as no model so small does."""
    solved = []
    for question, reply in worked(task, ASKED, attempts=1):
        thought, content = (part.strip() for part in split(reply))
        solved.append((Message("user", question), Message("assistant", content, thought)))
    return (*surrendered(task, count, 2, seed), *solved)


@pytest.fixture(scope="module", autouse=True)
def people() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laptop, "surrendered", taught)
        yield


def go(path: Path) -> Checkpoint:
    with Run.open(path, recipe="r1", settings=MINIATURE, command="test", threads=1) as run:
        return r1(MINIATURE, run)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in DEPENDS_ON_THE_CLOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("r1") / "run"
    go(path)
    return path


def stage(path: Path, name: str) -> Path:
    return Run.read(path).stage(name).path


def test_every_stage_is_there_in_the_order_of_the_paper(arrived: Path) -> None:
    def measured(*models: str) -> list[str]:
        return [name for model in models for name in (model, f"{model}_countdown", f"{model}_requests")]

    stages = Run.read(arrived).stages()
    assert all(one.finished for one in stages)
    assert [one.name for one in stages] == [
        *measured("base"),
        "ready",
        *measured("zero"),
        "chains",
        *measured("cold_start", "reasoner"),
        "traces",
        *measured("taught"),
        *("pairs", "helpful", "labels", "safe"),
        *measured("ruled", "r1"),
        *measured(*STUDENTS),
    ]


@pytest.mark.parametrize("name", [*MODELS, *STUDENTS])
def test_every_model_loads(arrived: Path, name: str) -> None:
    made = Checkpoint(stage(arrived, name) / "model")
    made.verify()
    assert made.load().model.config.hidden_size == (64 if name in STUDENTS else 32)


def test_it_is_told(arrived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", str(arrived)]) == 0
    told = capsys.readouterr().out
    assert all(one.name in told for one in Run.read(arrived).stages())
    lines = {one: " ".join(told.split(f"-{one} · ")[1].split("─ ")[0].split()) for one in ("taught", "helpful", "safe")}
    sources = {"taught": "traces", "helpful": "pairs", "safe": "labels"}
    assert all(f"-{sources[one]}" in line for one, line in lines.items()), lines  # what was learned, by its content
    assert main(["report", str(arrived), "--out", str(tmp_path / "report.html")]) == 0
    assert "Traceback" not in capsys.readouterr().err
    road = report_data(Run.read(arrived)).road
    assert road is not None
    assert {one.model for one in road.measurements} == {*MODELS, *STUDENTS}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in (*MODELS, *STUDENTS, "helpful", "safe"))


def test_a_second_time_nothing_is_done(arrived: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a state was saved")

    before = contents(arrived)
    monkeypatch.setattr(Place, "save_state", refuse)
    assert go(arrived).path == stage(arrived, "r1") / "model"
    assert contents(arrived) == before


def killed(path: Path, name: str, at: int) -> bool:
    """Whether a run in a process of its own was killed when a stage had saved its state ``at`` times."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        saved, save = [], Place.save_state

        def deadly(self: Place, step: int, tensors: dict[str, torch.Tensor], values: dict[str, JSON]) -> None:
            save(self, step, tensors, values)
            if self.path.name.partition("-")[2] == name:
                saved.append(step)
                if len(saved) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        Place.save_state = deadly  # type: ignore[method-assign, assignment]
        go(path)
    finally:
        os._exit(0)


@pytest.mark.slow
def test_a_kill_in_any_stage_changes_no_bit(arrived: Path, tmp_path: Path) -> None:
    for name, at in KILLED.items():
        assert killed(tmp_path / "run", name, at), name
        assert not Run.read(tmp_path / "run").stage(name).finished
    go(tmp_path / "run")
    found, expected = contents(tmp_path / "run"), contents(arrived)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_it_can_be_rehearsed() -> None:
    """Up to the cold start, whose examples are looked at."""
    rehearsal = rehearse(find("r1"), MINIATURE)
    assert rehearsal.steps[-1].name == "chains"
    assert rehearsal.testing().task == laptop.Laptop(MINIATURE).requests


def test_nobody_has_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laptop, "surrendered", surrendered)
    none = replace(MINIATURE, chains=replace(MINIATURE.chains, surrendered=0.0))
    assert laptop.Laptop(none).cold_start().edited is None
    some = laptop.Laptop(MINIATURE).cold_start().edited
    assert some is not None
    assert len(some.conversations) == round(0.2 * ASKED)
