"""Stages that look and do not train: the readiness gate and the held-out evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longthought.core.errors import NotReady, SettingsError
from longthought.core.protocols import Renderer, Task
from longthought.core.types import Group, Rollout
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import EvaluationSettings, evaluate, part_means, summarize
from longthought.evaluation.readiness import Gate, probe
from longthought.runs import traces
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import new_folder, write_atomic
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.tasks.corpus import Probe
from longthought.text.renderer import PlainRenderer
from longthought.training.team import Team

SUMMARY, CHECKS = "summary.json", "checks.json"
_TRANSCRIPTS = 10


@dataclass(frozen=True)
class Folder:
    """An artifact that is no model."""

    path: Path

    def read(self, name: str) -> Any:
        """The JSON in one of its files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Evaluate:
    """Sample, grade and summarise. Makes ``summary.json`` and the rollouts as Parquet."""

    task: Task
    lexicon: Lexicon
    settings: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    title: str = field(default="evaluate", compare=False)
    quiet: bool = field(default=False, compare=False)

    def run(self, given: Checkpoint, place: Place) -> Folder:
        policy = given.load()
        began = time.perf_counter()
        sampler = ShardedEngine(Engine(policy, self.engine))
        with (
            Team(self.workers, sampler.handlers) as team,
            progress(self.title, self.settings.problems, quiet=self.quiet) as bar,
        ):
            sampler.join(team)
            groups = evaluate(
                self.task,
                sampler,
                policy.renderer,
                self.settings,
                lambda done, accuracy: bar.update(done, {"pass@1": round(accuracy, 3)}),
            )
        seconds = time.perf_counter() - began
        tokens = sum(len(r.completion.token_ids) for g in groups for r in g)
        with new_folder(place.path / "evaluation") as made:
            content = {
                "summary": asdict(summarize(groups, self.lexicon)),
                "accuracy_by_problem": {str(i): _accuracy(g) for i, g in enumerate(groups)},
                "parts_by_problem": {
                    name: {str(i): mean for i, mean in means.items()} for name, means in part_means(groups).items()
                },
                "problems": [g[0].problem.id for g in groups],
                "transcripts": [_transcript(g[0]) for g in groups[:_TRANSCRIPTS]],
            }
            (made / SUMMARY).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            values = [[r.score.value for r in g] for g in groups]
            blank = [[None] * len(g) for g in groups]
            traces.write(made, 0, groups, rewards=values, advantages=blank, shaping={})
        place.time(0, {"evaluation": seconds, "tokens": tokens})
        return Folder(place.path / "evaluation")

    def load(self, place: Place) -> Folder:
        return Folder(place.path / "evaluation")


@dataclass(frozen=True)
class CheckReadiness:
    """Measure whether a base can learn by RL at all; refuse it, with the reasons, if it cannot."""

    task: Task
    lexicon: Lexicon
    probes: Iterable[Probe]
    gate: Gate = Gate()
    settings: EvaluationSettings = EvaluationSettings(problems=50, samples=16, split="dev")
    engine: EngineSettings = EngineSettings()
    workers: int = 1

    def run(self, given: Checkpoint, place: Place) -> Folder:
        """Raises NotReady, after writing ``checks.json``, when a bound is missed."""
        policy = given.load()
        began = time.perf_counter()
        measured = probe(policy.model, _plain(policy.renderer), self.probes)
        sampler = ShardedEngine(Engine(policy, self.engine))
        with Team(self.workers, sampler.handlers) as team:
            sampler.join(team)
            groups = evaluate(self.task, sampler, policy.renderer, self.settings)
        ladder = {k: estimate.value for k, estimate in summarize(groups, self.lexicon).pass_at_k}
        checks = self.gate.checks({**measured, "pass_at_1": ladder[1], "pass_at_8": ladder[8]})
        content = json.dumps({"checks": [asdict(check) for check in checks]}, ensure_ascii=False, indent=1)
        failed = [f"{c.check}: {c.measured:.3f}, needed {c.needed}" for c in checks if not c.passed]
        place.time(0, {"readiness": time.perf_counter() - began})
        if failed:
            write_atomic(place.path / CHECKS, content.encode() + b"\n")
            raise NotReady(
                "reinforcement learning from this base cannot work, so it was not started:\n  "
                + "\n  ".join(failed)
                + "\nPretrain it longer (base.steps) or on another corpus; see docs/algorithms/readiness.md"
            )
        with new_folder(place.path / "readiness") as made:
            (made / CHECKS).write_text(content + "\n", encoding="utf-8")
        return Folder(place.path / "readiness")

    def load(self, place: Place) -> Folder:
        return Folder(place.path / "readiness")


def _plain(renderer: Renderer) -> PlainRenderer:
    if not isinstance(renderer, PlainRenderer):
        raise SettingsError("the readiness gate probes small models of our own; this one speaks another chat format")
    return renderer


def _accuracy(group: Group) -> float:
    return sum(r.score.correct for r in group) / len(group)


def _transcript(rollout: Rollout) -> dict[str, Any]:
    return {
        "problem": rollout.problem.id,
        "prompt": rollout.problem.messages[-1].content,
        "text": rollout.text,
        "tokens": len(rollout.completion.token_ids),
        "finish": str(rollout.completion.finish),
        "correct": rollout.score.correct if rollout.score.value is not None else None,
        "evidence": rollout.score.verdict.evidence,
    }
