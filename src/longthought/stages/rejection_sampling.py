"""Rejection sampling: many replies to every prompt, of which those are kept that are right and good to read.

Source: DeepSeek-R1 (arXiv:2501.12948, section 2.3.3). Checkpoint in, examples for supervised fine-tuning out.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from longthought.core.errors import DataError, RunDamaged, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task, Verifier
from longthought.core.types import (
    Completion,
    Finish,
    Group,
    Message,
    Outcome,
    Problem,
    Rollout,
    SamplingParams,
    Score,
    Verdict,
)
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.evaluate import distinct
from longthought.rollout.collect import collect
from longthought.rollout.filters import Correct, Screen
from longthought.runs import traces
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes
from longthought.runs.place import TRACES, Place
from longthought.runs.progress import progress
from longthought.runs.settings import fingerprint_of
from longthought.runs.traces import Trained
from longthought.stages.example_set import EXAMPLES, REPORT, TEXT, ExampleSet, writing
from longthought.stages.sifting import (
    Against,
    Candidate,
    General,
    Prefer,
    Sieve,
    add_general,
    described,
    evaluations,
    histogram,
    ordered,
)
from longthought.tasks.grading import verify_all
from longthought.text.decontaminate import Duplicates
from longthought.text.reasoning import split
from longthought.training.team import Team

PROMPTS, DROPPED = "prompts.jsonl", "dropped.jsonl"
_JUDGE = "judge"


@dataclass(frozen=True)
class RejectionSampling:
    """``samples`` replies to each of ``prompts`` problems of the training split; makes an ``ExampleSet``.

    keep_per_prompt: at most so many; None: all that are right.  prefer: which of them: by lot, the shortest (Kimi
    k1.5's way to shorter thoughts), or the first.
    screen: what a right reply must be, too.
    judge: asked where the task gave no verdict; 1 is right.
    general: examples of other things, mixed in.
    against: evaluations that no example may share ``ngram`` words in a row with.
    similarity: share of common 3-grams from which on two replies are duplicates; 1: only equal words are.
    top_p, top_k: of the sampling; nothing here needs log-probs of the model itself.
    prompts_per_round: after each round, a killed run can go on; examples do not depend on it.
    """

    task: Task
    prompts: int = 256
    samples: int = 16
    max_tokens: int = 192
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    keep_per_prompt: int | None = None
    prefer: Prefer = "random"
    screen: Screen = Screen()
    judge: Verifier | None = None
    general: General | None = None
    against: tuple[Against, ...] = ()
    ngram: int = 10
    similarity: float = 0.8
    seed: int = 0
    prompts_per_round: int = 64
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "max_tokens", "prompts_per_round", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"rejection sampling: {name}={getattr(self, name)} must be at least 1")
        if self.keep_per_prompt is not None and self.keep_per_prompt < 1:
            raise SettingsError(f"rejection sampling: keep_per_prompt={self.keep_per_prompt} must be at least 1")
        if self.prefer not in ("random", "shortest", "first"):
            raise SettingsError(f"rejection sampling: prefer={self.prefer!r}; choose random, shortest or first")
        if self.prefer != "random" and self.keep_per_prompt is None:
            raise SettingsError(
                f"rejection sampling: prefer={self.prefer!r} changes nothing: all right replies are kept; set "
                "keep_per_prompt"
            )
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise SettingsError(
                f"rejection sampling: temperature={self.temperature}, samples={self.samples}: at 0 all replies to a "
                "prompt are equal; set samples=1 or a positive temperature"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SettingsError(f"rejection sampling: top_p={self.top_p} in (0, 1], top_k={self.top_k} at least 0")
        Duplicates(self.similarity)
        evaluations((), self.ngram)

    def run(self, given: Checkpoint, place: Place) -> ExampleSet:
        policy = given.load()
        context = policy.model.config.max_position_embeddings
        if self.max_tokens >= context:
            raise SettingsError(
                f"rejection sampling: max_tokens={self.max_tokens} does not fit into the model's context of {context} "
                "tokens, where the prompt needs room, too"
            )
        sampler = ShardedEngine(Engine(policy, self.engine))
        with Team(self.workers, sampler.handlers) as team:
            sampler.join(team)
            problems = self.sample(sampler, policy.renderer, place)
        return self.sift(problems, given, place)

    def load(self, place: Place) -> ExampleSet:
        return ExampleSet(place.path / "examples")

    def sample(self, sampler: Sampler, renderer: Renderer, place: Place) -> list[Problem]:
        """Sample, grade and screen, round by round, into the trace store; goes on after the last whole round."""
        problems = distinct(self.task, "train", self.prompts)
        rounds = self._rounds(problems)
        state = place.load_state()
        start = 0 if state is None else state.step
        params = SamplingParams(
            self.samples, self.max_tokens, self.temperature, self.seed, top_p=self.top_p, top_k=self.top_k
        )
        done = sum(map(len, rounds[:start]))
        with progress("rejection sampling", len(problems), start=done, quiet=self.quiet) as bar:
            for step, chosen in enumerate(rounds[start:], start + 1):
                began = time.perf_counter()
                groups = self._judged(collect(self.task, chosen, sampler, renderer, params))
                metrics = self._record(step, groups, place)
                place.time(step, {"sampling": time.perf_counter() - began})
                place.save_state(step, {}, {})
                done += len(chosen)
                bar.update(done, {name: metrics[name] for name in ("right", "good", "length")})
        return problems

    def sift(self, problems: Sequence[Problem], given: Checkpoint, place: Place) -> ExampleSet:
        """Choose among what was sampled; the same for the same traces. Raises DataError where nothing is left."""
        model = fingerprint_of(given.fingerprints())
        provenance = {
            "stage": "rejection_sampling",
            "from": given.fingerprints(),
            "model": model,
            "settings": describe(self),
        }
        with writing(place.path / "examples", provenance) as made:
            report = self._sifted(problems, model, place, made)
            if not report["kept"]["reasoning"]:
                raise DataError(
                    f"rejection sampling kept nothing:\n{described(report)}\nRaise samples, or loosen what drops most"
                )
            (made / REPORT).write_bytes(json_bytes(report, indent=1) + b"\n")
            (made / TEXT).write_text(described(report) + "\n", encoding="utf-8")
        if not self.quiet:
            print(described(report), file=sys.stderr)
        return ExampleSet(place.path / "examples")

    def _rounds(self, problems: list[Problem]) -> list[list[Problem]]:
        size = self.prompts_per_round
        return [problems[start : start + size] for start in range(0, len(problems), size)]

    def _judged(self, groups: list[Group]) -> list[Group]:
        """The judge's word where the task has none."""
        if self.judge is None:
            return groups
        pairs = [(one.problem, _reply(one)) for group in groups for one in group if one.score.value is None]
        verdicts = iter(verify_all(self.judge, pairs))
        return [tuple(_with(one, next(verdicts)) if one.score.value is None else one for one in g) for g in groups]

    def _record(self, step: int, groups: list[Group], place: Place) -> dict[str, float]:
        """Screen a round, and keep all of it in the trace store, with why it is left out."""
        screen = Screen((Correct(), *self.screen.filters))
        refusals = [[screen.refusal(one) for one in group] for group in groups]
        left_out = [["" if why is None else why[0] for why in row] for row in refusals]
        place.trace(
            step,
            groups,
            rewards=[[one.score.value for one in group] for group in groups],
            advantages=[[None] * len(group) for group in groups],
            shaping={},
            trained=[[Trained(left_out=why) for why in row] for row in left_out],
        )
        rollouts = [one for group in groups for one in group]
        metrics = {
            "right": sum(one.score.correct for one in rollouts) / len(rollouts),
            "good": sum(not why for row in left_out for why in row) / len(rollouts),
            "length": sum(len(one.completion.token_ids) for one in rollouts) / len(rollouts),
        }
        place.log(step, metrics)
        return metrics

    def _sifted(self, problems: Sequence[Problem], model: str, place: Place, made: Path) -> dict[str, Any]:
        """Write the examples, and what became of all others; the report."""
        counts: Counter[str] = Counter()
        screened: Counter[str] = Counter()
        rates: list[float] = []
        prompts_kept = reasoning = 0
        evaluated = evaluations(self.against, self.ngram)
        with (
            (made / EXAMPLES).open("wb") as kept_file,
            (made / DROPPED).open("wb") as dropped_file,
            (made / PROMPTS).open("wb") as prompts_file,
        ):
            sieve = Sieve(evaluated, Duplicates(self.similarity), kept_file, dropped_file, self.keep_per_prompt)
            for problem, rows in _by_problem(problems, self.prompts_per_round, place.path / TRACES):
                good = [row for row in rows if not row["left_out"]]
                for row in rows:
                    _count(row, counts, screened)
                    if row["left_out"] and row["correct"]:
                        refusal = self.screen.refusal(_rollout(problem, row))
                        sieve.drop(f"{problem.id}#{row['sample']}", *(refusal or (row["left_out"], "")))
                candidates = [self._candidate(problem, row, model) for row in good]
                kept = sieve.prompt(ordered(candidates, self.prefer, self.seed))
                right = sum(row["correct"] for row in rows)
                rates.append(right / len(rows))
                told = {"problem": problem.id, "sampled": len(rows), "right": right, "good": len(good), "kept": kept}
                prompts_file.write(json_bytes(told) + b"\n")
                reasoning, prompts_kept = reasoning + kept, prompts_kept + bool(kept)
            dropped = {**screened, **sieve.dropped}
            general = add_general(sieve, self.general, reasoning, self.seed) if self.general is not None else None
        return {
            "prompts": len(problems),
            **{name: counts[name] for name in ("sampled", "right", "wrong", "ungraded", "judged", "judged_right")},
            "tokens": counts["tokens"],
            "dropped": dict(sorted(dropped.items(), key=lambda item: -item[1])),
            "prompts_kept": prompts_kept,
            "kept": {"reasoning": reasoning, "general": general["kept"] if general else 0},
            "general": general,
            "evaluation_problems": evaluated.problems,
            "pass_rates": histogram(rates),
        }

    def _candidate(self, problem: Problem, row: dict[str, Any], model: str) -> Candidate:
        source = {
            "kind": "reasoning",
            "model": model,
            "problem": problem.id,
            "sample": row["sample"],
            "seed": self.seed,
            "temperature": self.temperature,
            "tokens": row["length"],
            "verifier": _JUDGE if _JUDGE in row["parts"] else self.task.name,
            "filters": [one.name for one in self.screen.filters],
        }
        return Candidate(problem, row["sample"], row["text"], row["length"], source)


def _reply(rollout: Rollout) -> Message:
    thought, content = split(rollout.text)
    return Message("assistant", content.strip(), thought.strip())


def _with(rollout: Rollout, verdict: Verdict) -> Rollout:
    value = verdict.value
    return replace(rollout, score=Score(value, value is not None and value >= 1, {_JUDGE: value or 0.0}, verdict))


def _by_problem(problems: Sequence[Problem], size: int, folder: Path) -> Iterator[tuple[Problem, list[dict[str, Any]]]]:
    """Every problem with the rows of its replies. Raises RunDamaged where the traces are not those of the problems."""
    for step, start in enumerate(range(0, len(problems), size), 1):
        chosen = problems[start : start + size]
        rows = traces.rows(traces.file_of(folder, step))
        groups = [(number, list(group)) for number, group in groupby(rows, key=lambda row: row["group"])]
        if [row[0]["problem"] for _, row in groups] != [problem.id for problem in chosen]:
            raise RunDamaged(f"{traces.file_of(folder, step)} holds other problems than round {step} asked")
        yield from zip(chosen, (group for _, group in groups), strict=True)


def _rollout(problem: Problem, row: dict[str, Any]) -> Rollout:
    """A rollout as the trace store keeps it."""
    ids, logprobs = tuple(row["tokens"]), tuple(row["logprobs"])
    verdict = Verdict(row["value"], Outcome(row["outcome"]), row["evidence"])
    score = Score(row["value"], row["correct"], row["parts"], verdict)
    completion = Completion(ids, logprobs, Finish(row["finish"]), row["version"])
    return Rollout(problem, tuple(row["prompt"]), completion, row["text"], score)


def _count(row: dict[str, Any], counts: Counter[str], screened: Counter[str]) -> None:
    judged = _JUDGE in row["parts"]
    counts["sampled"] += 1
    counts["tokens"] += row["length"]
    counts["right" if row["correct"] else "ungraded" if row["value"] is None else "wrong"] += 1
    counts["judged"] += judged
    counts["judged_right"] += judged and row["correct"]
    if row["left_out"] and not row["correct"]:
        screened[row["left_out"]] += 1
