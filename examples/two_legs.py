"""A recipe of one's own: R1-Zero, then a second leg of RL with the language-consistency reward.

    longthought run examples/two_legs.py --show
    longthought run examples/two_legs.py --out runs/two_legs --reuse runs/quickstart

A recipe is a function of (settings, run). Its settings are a frozen dataclass; ``run.do`` makes a stage, resumes it, or
loads it when it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longthought.recipes.tiny import LEXICON, TinySettings, reinforcement, task_of, tiny
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.measure import Evaluate


@dataclass(frozen=True)
class Settings:
    """The laptop recipe and what comes after it.

    language: weight of the language reward in the second leg.
    steps: steps of the second leg.
    """

    tiny: TinySettings = TinySettings()
    language: float = 0.3
    steps: int = 60


def recipe(settings: Settings, run: Run) -> Checkpoint:
    """R1-Zero, then RL for one language at a time."""
    zero = tiny(settings.tiny, run)
    shaped = replace(settings.tiny, reward=replace(settings.tiny.reward, language=settings.language))
    consistent = run.do("consistent", replace(reinforcement(shaped), steps=settings.steps), zero)
    look = Evaluate(task_of(settings.tiny), LEXICON, settings.tiny.evaluation, workers=settings.tiny.workers)
    run.do("consistent_after", replace(look, title="after the second leg"), consistent)
    return consistent
