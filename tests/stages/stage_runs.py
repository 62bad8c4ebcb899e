"""A stage alone in its folder, and in a run that is killed and goes on: not a bit differs."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parrot import Deadly
from torch import Tensor

from longthought.recipes.script import Script
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.runs.settings import fingerprint_of

DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}
NO_SAMPLING: tuple[dict[str, Any], ...] = (
    {"prompts": 0},
    {"samples": 0},
    {"max_tokens": 0},
    {"temperature": 0.0},
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"top_p": 0.0},
    {"top_p": float("nan")},
    {"top_k": -1},
    {"prompts_per_round": 0},
    {"workers": 0},
)
"""Settings that no stage takes that samples."""


def run_alone(stage: Any, given: Any, path: Path) -> Any:
    """What the stage makes of the artifact."""
    with Place(path) as place:
        return stage.run(given, place)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of its log."""
    return lines(path / "metrics.jsonl")


def weights(artifact: Any) -> Mapping[str, Tensor]:
    """Of a checkpoint or of a reward folder."""
    state: Mapping[str, Tensor] = artifact.load().model.state_dict()
    return state


def go(path: Path, given: Any, stage: Any) -> Any:
    """What the stage makes as the first one of a run, or of what is left of it."""
    with Run.open(path, recipe="script", settings=Script(), command="test", threads=1) as run:
        return run.do("stage", stage, given)


def contents(path: Path) -> dict[str, str]:
    """All that may not differ."""
    files = (one for one in path.rglob("*") if one.is_file() and one.name not in DEPENDS_ON_THE_CLOCK)
    return {str(one.relative_to(path)): fingerprint_of({"": one.read_bytes().hex()}) for one in files}


def check_kills(path: Path, given: Any, stage: Any, steps: Sequence[int]) -> None:
    """``kill -9`` as soon as the states of these steps are there, and the same command again each time."""
    go(path / "whole", given, stage)
    states = path / "killed" / "01-stage" / "state"
    for step in steps:
        child = _start(path / "killed", given, stage)
        while not (states / f"step-{step:06d}" / "manifest.json").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    go(path / "killed", given, stage)
    assert contents(path / "killed") == contents(path / "whole")


def check_deaths(path: Path, given: Any, stage: Any, dies_at: int, times: int) -> tuple[int, int]:
    """Killed in the middle of a round, several times; how often it was, and how often the task was asked after that."""
    go(path / "whole", given, replace(stage, task=Deadly()))
    deaths = 0
    for _ in range(times):
        child = _start(path / "killed", given, replace(stage, task=Deadly(dies_at=dies_at)))
        deaths += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    last = Deadly()
    go(path / "killed", given, replace(stage, task=last))
    assert contents(path / "killed") == contents(path / "whole")
    return deaths, len(last.calls)


def check_sampled_once(path: Path, given: Any, stage: Any) -> None:
    """Killed after ``check_deaths``, while it chose among what was sampled: the same, and the task is not asked."""
    (path / "killed/01-stage/done.json").unlink()
    again = Deadly()
    go(path / "killed", given, replace(stage, task=again))
    assert again.calls == []
    assert contents(path / "killed") == contents(path / "whole")


def check_same(one: Any, other: Any, *names: str) -> None:
    """Two artifacts have these files in common, byte for byte."""
    for name in names:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def _start(path: Path, given: Any, stage: Any) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            go(path, given, stage)
        finally:
            os._exit(0)
    return child
