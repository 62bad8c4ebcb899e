"""How hard a model finds problems: many replies to each, and the share that is right.

Source: Kimi k1.5 (arXiv:2501.12599, section 2.1). Checkpoint in, a set of prompts out::

    prompts/
    ├── prompts.jsonl     {"problem", "messages", "answer", "info", "sampled", "right", "cut", "ungraded"}, one a line
    ├── report.json       counts
    ├── report.txt        the same for a person
    └── provenance.json   what made them, and the SHA-256 of every other file
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from longthought.core.errors import DataError, SettingsError
from longthought.core.files import read_json
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import CUT, Group, Message, Problem, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.evaluate import distinct
from longthought.rollout.collect import collect
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import digests, json_bytes
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.runs.settings import fingerprint_of
from longthought.stages.example_set import PROVENANCE, REPORT, TEXT, ExampleSet, writing
from longthought.stages.rejection_sampling import PROMPTS
from longthought.stages.sifting import histogram
from longthought.tasks.prompt_set import Chosen, Ends, Order, Rated, Ratings
from longthought.training.team import Team

_BARS: Final = 40


@dataclass(frozen=True)
class PromptSet:
    """The folder of such a set, and the task that its problems are from."""

    path: Path
    origin: Task

    def ratings(self) -> Ratings:
        """Every problem with its counts. Raises DataError where a file was altered since it was written."""
        self.verify()
        return Ratings([_rated(line, where) for line, where in _lines(self.path / PROMPTS)])

    def task(
        self, low: float = 0.0, high: float = 1.0, ends: Ends = "both", order: Order = "mixed", seed: int = 0
    ) -> Chosen:
        """A task that asks the problems whose pass rate lies between two bounds; ``ends``: which of these belong to it.

        Problems that no reply was graded of have no rate, and are left out.

        Example: ``prompts.task(0.2, 0.8)``; what GRPO can learn from is ``prompts.task(ends="neither")``.

        Raises:
            SettingsError: the bounds can hold nothing.
            DataError: no problem lies there, the set was altered, is of another task, or of no training split.
        """
        told = self.provenance()
        if told.get("task") != self.origin.name:
            raise DataError(f"{self.path} holds problems of {told.get('task')}, not of {self.origin.name}")
        if told.get("split") != "train":
            raise DataError(
                f"{self.path} holds problems of the {told.get('split')} split: evaluations are not for training"
            )
        ratings = self.ratings()
        chosen = ratings.between(low, high, ends)
        if not len(chosen):
            raise DataError(
                f"{self.path}: none of {len(ratings):,} problems has a pass rate from {low:g} to {high:g} "
                f"(ends={ends!r})\n{described(self.report())}"
            )
        return Chosen(self.origin, chosen, order, seed)

    def report(self) -> dict[str, Any]:
        """The counts of ``report.json``."""
        return read_json(self.path, REPORT)

    def provenance(self) -> dict[str, Any]:
        """What made the set."""
        return read_json(self.path, PROVENANCE)

    def verify(self) -> None:
        """Compare the files with their digests. Raises DataError."""
        found = digests(self.path)
        for name, expected in self.provenance().get("files", {}).items():
            if found.get(name) != expected:
                raise DataError(f"{self.path / name} was altered or removed since it was written; make it again")


@dataclass(frozen=True)
class MeasureDifficulty:
    """``samples`` replies to each of ``prompts`` problems of a split; makes a ``PromptSet``.

    split: train, for prompts to train on; dev and test can be looked at, and give no task.
    prompts_per_round: after each round, a killed run can go on; results do not depend on it.
    """

    task: Task
    prompts: int = 256
    samples: int = 10
    max_tokens: int = 192
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    split: Literal["train", "dev", "test"] = "train"
    seed: int = 0
    prompts_per_round: int = 64
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "max_tokens", "prompts_per_round", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"difficulty: {name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise SettingsError(
                f"difficulty: temperature={self.temperature}, samples={self.samples}: at 0 all replies to a problem "
                "are equal; set samples=1 or a positive temperature"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SettingsError(f"difficulty: top_p={self.top_p} in (0, 1], top_k={self.top_k} at least 0")
        if self.split not in ("train", "dev", "test"):
            raise SettingsError(f"difficulty: split={self.split!r}; choose train, dev or test")

    def run(self, given: Checkpoint, place: Place) -> PromptSet:
        policy = given.load()
        sampler = ShardedEngine(Engine(policy, self.engine))
        with Team(self.workers, sampler.handlers) as team:
            sampler.join(team)
            rated = self.measure(sampler, policy.renderer, place)
        return self.write(rated, given, place)

    def load(self, place: Place) -> PromptSet:
        return PromptSet(place.path / "prompts", self.task)

    def measure(self, sampler: Sampler, renderer: Renderer, place: Place) -> list[Rated]:
        """Sample and grade, round by round, into the trace store; goes on after the last whole round."""
        problems = distinct(self.task, self.split, self.prompts)
        state = place.load_state()
        counts: list[list[int]] = [] if state is None else list(state.values["counts"])
        params = SamplingParams(
            self.samples, self.max_tokens, self.temperature, self.seed, top_p=self.top_p, top_k=self.top_k
        )
        size = self.prompts_per_round
        with progress("difficulty", len(problems), start=len(counts), quiet=self.quiet) as bar:
            while len(counts) < len(problems):
                began, step = time.perf_counter(), len(counts) // size + 1
                groups = collect(self.task, problems[len(counts) : len(counts) + size], sampler, renderer, params)
                _keep(step, groups, place)
                counts += [_counts(group) for group in groups]
                place.time(step, {"sampling": time.perf_counter() - began})
                place.save_state(step, {}, {"counts": counts})
                bar.update(len(counts), {"right": sum(c[0] for c in counts) / len(counts) / self.samples})
        return [Rated(problem, self.samples, *row) for problem, row in zip(problems, counts, strict=True)]

    def write(self, rated: Sequence[Rated], given: Checkpoint, place: Place) -> PromptSet:
        """The set of what was measured."""
        report = _report(rated)
        provenance = {
            "stage": "difficulty",
            "task": self.task.name,
            "split": self.split,
            "from": given.fingerprints(),
            "model": fingerprint_of(given.fingerprints()),
            "seed": self.seed,
            "settings": describe(self),
        }
        with writing(place.path / "prompts", provenance) as made:
            (made / PROMPTS).write_bytes(b"".join(json_bytes(_line(one)) + b"\n" for one in rated))
            (made / REPORT).write_bytes(json_bytes(report, indent=1) + b"\n")
            (made / TEXT).write_text(described(report) + "\n", encoding="utf-8")
        if not self.quiet:
            print(described(report), file=sys.stderr)
        return PromptSet(place.path / "prompts", self.task)


def ratings_of(made: ExampleSet, task: Task) -> Ratings:
    """How often each prompt of a rejection sampling was solved, at no cost: its ``prompts.jsonl``.

    It names problems and does not state them: ``task`` is asked for them again, so give the one that was sampled, or
    that with its seed. What was not graded counts as wrong there.

    Raises DataError where the file was altered, or names a problem that the task does not ask.
    """
    made.verify()
    rows = list(_lines(made.path / PROMPTS))
    problems = {problem.id: problem for problem in distinct(task, "train", len(rows))} if rows else {}
    found = []
    for row, where in rows:
        problem = problems.get(str(row.get("problem")))
        if problem is None:
            raise DataError(f"{where}: {task.name} does not ask {row.get('problem')!r} now: give the task as it was")
        found.append(Rated(problem, *_whole(row, where, "sampled", "right")))
    return Ratings(found)


def described(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"{report['sampled']:,} replies to {report['prompts']:,} prompts: {report['right']:,} right, "
        f"{report['cut']:,} cut, {report['ungraded']:,} not graded",
        "prompts by share of right replies:",
    ]
    most = max(report["pass_rates"].values())
    for name, count in report["pass_rates"].items():
        lines.append(f"  {name:>10} {count:>7,} {'█' * round(_BARS * count / max(1, most))}".rstrip())
    if report["unrated"]:
        lines.append(f"{report['unrated']:,} prompts of which no reply was graded have no rate")
    return "\n".join(lines)


def _report(rated: Sequence[Rated]) -> dict[str, Any]:
    rates = [one.rate for one in rated if one.rate is not None]
    sums = {name: sum(getattr(one, name) for one in rated) for name in ("sampled", "right", "cut", "ungraded")}
    return {"prompts": len(rated), **sums, "pass_rates": histogram(rates), "unrated": len(rated) - len(rates)}


def _keep(step: int, groups: Sequence[Group], place: Place) -> None:
    """All replies of a round in the trace store."""
    blank = [[None] * len(group) for group in groups]
    place.trace(step, groups, rewards=[[one.score.value for one in g] for g in groups], advantages=blank, shaping={})
    rollouts = [one for group in groups for one in group]
    place.log(
        step,
        {
            "right": sum(one.score.correct for one in rollouts) / len(rollouts),
            "cut": sum(one.completion.finish in CUT for one in rollouts) / len(rollouts),
            "length": sum(len(one.completion.token_ids) for one in rollouts) / len(rollouts),
        },
    )


def _counts(group: Group) -> list[int]:
    """Right, cut, ungraded."""
    return [
        sum(one.score.value is not None and one.score.correct for one in group),
        sum(one.completion.finish in CUT for one in group),
        sum(one.score.value is None for one in group),
    ]


def _line(one: Rated) -> dict[str, Any]:
    problem = one.problem
    return {
        "problem": problem.id,
        "messages": [
            {"role": said.role, "content": said.content} | ({"reasoning": said.reasoning} if said.reasoning else {})
            for said in problem.messages
        ],
        "answer": problem.answer,
        "info": dict(problem.info),
        "sampled": one.sampled,
        "right": one.right,
        "cut": one.cut,
        "ungraded": one.ungraded,
    }


def _rated(row: Mapping[str, Any], where: str) -> Rated:
    try:
        messages = tuple(Message(**said) for said in row["messages"])
        problem = Problem(str(row["problem"]), messages, str(row["answer"]), dict(row["info"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} holds no rated problem: {error}") from error
    return Rated(problem, *_whole(row, where, "sampled", "right", "cut", "ungraded"))


def _whole(row: Mapping[str, Any], where: str, *names: str) -> list[int]:
    """The counts of a line."""
    found = [row.get(name) for name in names]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in found):
        raise DataError(f"{where}: {', '.join(names)} must be whole numbers")
    return found  # type: ignore[return-value]


def _lines(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file of JSON lines, and where each stands."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is no JSON object")
        yield row, f"{file}, line {number}"
