"""One stage from a script or a notebook, with a run folder of its own."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.rl import RL
from longthought.stages.sft import SFT


@dataclass(frozen=True)
class Script:
    """The settings of a run that a script made: none. Its stage says what was asked."""


def train(stage: RL | SFT, model: Checkpoint | Path | str, out: Path | str) -> Checkpoint:
    """Run one stage on a model folder, into a run folder. The same call goes on with a run that was stopped, and loads
    the result of one that is finished.

    Example: ``trained = train(RL(task, method("grpo")), "my-model", "runs/mine")``, and in the same way
    ``train(SFT(Examples.read("chats.jsonl")), …)``.

    Raises what ``Run.open``, ``Run.do`` and the stage raise.
    """
    base = model if isinstance(model, Checkpoint) else Checkpoint(Path(model))
    command = shlex.join(["python", *sys.argv])
    settings = Script()
    with Run.open(
        Path(out), recipe="script", settings=settings, command=command, threads=torch.get_num_threads()
    ) as run:
        return run.do("sft" if isinstance(stage, SFT) else "rl", stage, base)
