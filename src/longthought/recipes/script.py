"""One stage from a script or a notebook, with a run folder of its own."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Made, Run, Stage

_INSIDE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Script:
    """The settings of a run that a script made: none. Its stage says what was asked."""


def train(stage: Stage[Checkpoint, Made], model: Checkpoint | Path | str, out: Path | str) -> Made:
    """Run one stage that takes a model on a model folder, into a run folder; returns what it makes.

    The same call goes on with a run that was stopped, and loads the result of one that is finished.

    Example: ``trained = train(RL(task, method("grpo")), "my-model", "runs/mine")``, and in the same way
    ``train(SFT(Examples.read("chats.jsonl")), …)``, ``train(RejectionSampling(task), …)``.

    Raises what ``Run.open``, ``Run.do`` and the stage raise.
    """
    base = model if isinstance(model, Checkpoint) else Checkpoint(Path(model))
    command = shlex.join(["python", *sys.argv])
    settings = Script()
    name = _INSIDE.sub("_", type(stage).__name__).lower()
    with Run.open(
        Path(out), recipe="script", settings=settings, command=command, threads=torch.get_num_threads()
    ) as run:
        return run.do(name, stage, base)
