"""kill -9 at random moments, the same command again: not a bit differs from the run that was left alone."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longthought.core.errors import NotReady, RunMismatch
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.evaluation.readiness import Gate
from longthought.recipes.tiny import Base, Reinforcement, Reward, TinySettings, tiny
from longthought.runs.run import Run

# Two workers: the kill must take them along, and the resumed team must continue bit by bit.
OPEN_GATE = Gate(fact=0, hit=0, miss=1, pass_at_1=(0, 1), pass_at_8=0)
SHORT = TinySettings(
    seed=3,
    workers=2,
    base=Base(width=32, steps=40, tokens_per_step=256),
    reward=Reward(language=0.1, repetition=0.1, overlong=8),
    rl=Reinforcement(steps=6, prompts=3, samples=4, max_tokens=24, beta=0.01, reference_every=2),
    gate=OPEN_GATE,
    evaluation=EvaluationSettings(problems=4, samples=4, max_tokens=24),
)
DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}


def go(path: Path, settings: TinySettings = SHORT) -> None:
    with Run.open(path, recipe="tiny", settings=settings, command="test", threads=1) as run:
        tiny(settings, run)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in DEPENDS_ON_THE_CLOCK)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def start(path: Path) -> int:
    """The run in a forked process."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            torch.set_num_threads(1)
            go(path)
        finally:
            os._exit(0)
    return child


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    began = time.monotonic()
    go(tmp_path / "whole")
    whole = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    chance = random.Random(0)
    kills = 0
    while kills < 20:
        child = start(tmp_path / "killed")
        time.sleep(chance.uniform(0.02, 0.2) * whole)
        finished, _ = os.waitpid(child, os.WNOHANG)
        if finished:
            assert contents(tmp_path / "killed") == expected
            (tmp_path / "killed").rename(tmp_path / f"finished-{kills}")  # once more, from the start
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    go(tmp_path / "killed")
    found = contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    settings = replace(SHORT, rl=replace(SHORT.rl, steps=1))
    go(tmp_path / "run", settings)
    with pytest.raises(RunMismatch, match=r"rl\.lr"):
        go(tmp_path / "run", replace(settings, rl=replace(settings.rl, lr=0.5)))


def test_a_base_that_is_not_ready_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    settings = replace(SHORT, gate=Gate())
    with pytest.raises(NotReady, match="says yes to an attempt that hits"):
        go(tmp_path / "run", settings)
    assert (tmp_path / "run/02-readiness/checks.json").is_file()
    assert not (tmp_path / "run/04-rl").exists()


def test_another_method_starts_from_the_same_base(tmp_path: Path) -> None:
    go(tmp_path / "first")
    other = replace(SHORT, rl=replace(SHORT.rl, method="dr_grpo"))
    with Run.open(tmp_path / "second", recipe="tiny", settings=other, command="test", threads=1) as run:
        run.reuse = Run.read(tmp_path / "first")
        tiny(other, run)
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert {name for name in first if name.startswith(("01", "03")) and first[name] != second.get(name)} == set()
    assert (tmp_path / "second/01-base/timings.jsonl").read_bytes() == (
        tmp_path / "first/01-base/timings.jsonl"
    ).read_bytes()  # copied, not made again
    assert first["04-rl/model/model.safetensors"] != second["04-rl/model/model.safetensors"]


def test_every_step_of_rl_is_recorded(tmp_path: Path) -> None:
    go(tmp_path / "run")
    names = sorted(file.name for file in (tmp_path / "run/04-rl/traces").iterdir())
    assert names == [f"step-{n:06d}.parquet" for n in range(1, 7)]
    assert len((tmp_path / "run/04-rl/metrics.jsonl").read_text().splitlines()) == 6
