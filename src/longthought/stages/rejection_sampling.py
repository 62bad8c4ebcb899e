"""Rejection sampling: many replies to every prompt, of which those are kept that are right and good to read.

Source: DeepSeek-R1 (arXiv:2501.12948, section 2.3.3). Checkpoint in, examples for supervised fine-tuning out.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task, Verifier
from longthought.core.types import Problem, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.evaluate import distinct
from longthought.rollout.collect import collect
from longthought.rollout.filters import Screen
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes
from longthought.runs.place import TRACES, Place
from longthought.runs.progress import progress
from longthought.runs.settings import fingerprint_of
from longthought.stages.example_set import EXAMPLES, REPORT, TEXT, ExampleSet, said, writing
from longthought.stages.graded import JUDGE, by_problem, count, judged, left_out, record, rollout_of
from longthought.stages.sifting import (
    Against,
    Candidate,
    General,
    Prefer,
    Sieve,
    add_general,
    check_choice,
    described,
    evaluations,
    histogram,
    ordered,
)
from longthought.text.decontaminate import Duplicates
from longthought.training.team import Team

PROMPTS, DROPPED = "prompts.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class RejectionSampling:
    """``samples`` replies to each of ``prompts`` problems of the training split; makes an ``ExampleSet``.

    keep_per_prompt: at most so many; None: all that are right.  prefer: which of them: by lot, the shortest (Kimi
    k1.5's way to shorter thoughts), the longest, or the first.
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
        check_choice("rejection sampling", self.keep_per_prompt, self.prefer)
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
                groups = judged(self.judge, collect(self.task, chosen, sampler, renderer, params))
                metrics = record(step, groups, left_out(groups, self.screen), place)
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
        with writing(place.path / "examples", provenance, said) as made:
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
            for problem, rows in by_problem(problems, self.prompts_per_round, place.path / TRACES):
                good = [row for row in rows if not row["left_out"]]
                for row in rows:
                    count(row, counts, screened)
                    if row["left_out"] and row["correct"]:
                        refusal = self.screen.refusal(rollout_of(problem, row))
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
            "verifier": JUDGE if JUDGE in row["parts"] else self.task.name,
            "filters": [one.name for one in self.screen.filters],
        }
        return Candidate(problem, row["sample"], row["text"], row["length"], source)
