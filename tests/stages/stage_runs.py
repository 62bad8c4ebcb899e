"""A stage alone in its folder, and in a run that is killed and goes on: not a bit differs."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from longthought.recipes.script import Script
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.runs.settings import fingerprint_of

DEPENDS_ON_THE_CLOCK = {"run.json", "timings.jsonl", "lock"}


def run_alone(stage: Any, given: Any, path: Path) -> Any:
    """What the stage makes of the artifact."""
    with Place(path) as place:
        return stage.run(given, place)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of its log."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(artifact: Any) -> Mapping[str, Tensor]:
    """Of a checkpoint or of a reward folder."""
    state: Mapping[str, Tensor] = artifact.load().model.state_dict()
    return state


def go(path: Path, given: Any, stage: Any) -> None:
    """The stage as the first one of a run, or what is left of it."""
    with Run.open(path, recipe="script", settings=Script(), command="test", threads=1) as run:
        run.do("stage", stage, given)


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


def _start(path: Path, given: Any, stage: Any) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            go(path, given, stage)
        finally:
            os._exit(0)
    return child
