"""One tiny run, made by the command that a newcomer types."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    "base.width=32",
    "base.steps=40",
    "base.tokens_per_step=256",
    "rl.steps=2",
    "rl.prompts=2",
    "rl.samples=2",
    "rl.max_tokens=12",
    "evaluation.problems=3",
    "evaluation.samples=2",
    "evaluation.max_tokens=12",
    "gate.fact=0",
    "gate.hit=0",
    "gate.miss=1",
    "gate.pass_at_1=[0,1]",
    "gate.pass_at_8=0",
)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder made by ``longthought quickstart``, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = [sys.executable, "-m", "longthought", "quickstart", "--threads", "1", *SMALL]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    return folder / "runs" / "quickstart", done


@pytest.fixture
def run(quickstart: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    return Path(shutil.copytree(quickstart[0], tmp_path / "run"))
