"""A recipe of many models: each is made, and then measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run, Stage
from longthought.stages.measure import Evaluate

Given = TypeVar("Given")


class Road:
    """A run whose models are all measured alike: ``looks`` follow every one, as stages called ``<model>_<title>``."""

    def __init__(self, run: Run, looks: Sequence[Evaluate]) -> None:
        self._run, self._looks = run, tuple(looks)

    def model(self, name: str, stage: Stage[Given, Checkpoint], given: Given) -> Checkpoint:
        """The model that a stage makes, measured."""
        made = self._run.do(name, stage, given)
        for look in self._looks:
            self._run.do(f"{name}_{look.title}", look, made)
        return made
