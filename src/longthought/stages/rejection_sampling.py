"""Rejection sampling: many replies to every prompt, of which those are kept that are right and good to read.

Source: DeepSeek-R1 (arXiv:2501.12948, section 2.3.3). Checkpoint in, examples for supervised fine-tuning out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from longthought.core.errors import DataError
from longthought.core.protocols import Verifier
from longthought.core.types import Group, Problem
from longthought.engine.engine import EngineSettings
from longthought.evaluation.evaluate import distinct
from longthought.rollout.filters import Screen
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes
from longthought.runs.place import TRACES, Place
from longthought.runs.settings import fingerprint_of
from longthought.stages.example_set import EXAMPLES, ExampleSet, said, write_report, writing
from longthought.stages.graded import JUDGE, by_problem, count, judged, left_out, record, rollout_of
from longthought.stages.sampled import Sampled
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

PROMPTS, DROPPED = "prompts.jsonl", "dropped.jsonl"


@dataclass(frozen=True, kw_only=True)
class RejectionSampling(Sampled):
    """``samples`` replies to each of ``prompts`` problems of the training split; makes an ``ExampleSet``.

    keep_per_prompt: at most so many; None: all that are right.  prefer: which of them: by lot, the shortest (Kimi
    k1.5's way to shorter thoughts), the longest, or the first.
    screen: what a right reply must be, too.
    judge: asked where the task gave no verdict; 1 is right.
    general: examples of other things, mixed in.
    against: evaluations that no example may share ``ngram`` words in a row with.
    similarity: share of common 3-grams from which on two replies are duplicates; 1: only equal words are.
    Everything else: see ``Sampled``.
    """

    called: ClassVar[str] = "rejection sampling"

    prompts: int = field(default=256, kw_only=False)
    samples: int = field(default=16, kw_only=False)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.called, self.keep_per_prompt, self.prefer)
        Duplicates(self.similarity)
        evaluations((), self.ngram)

    def run(self, given: Checkpoint, place: Place) -> ExampleSet:
        return self.sift(self._sampled(given, place), given, place)

    def load(self, place: Place) -> ExampleSet:
        return ExampleSet(place.path / "examples")

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
            write_report(made, report, described(report))
        if not self.quiet:
            print(described(report), file=sys.stderr)
        return ExampleSet(place.path / "examples")

    def _problems(self) -> list[Problem]:
        return distinct(self.task, "train", self.prompts)

    def _keep(self, step: int, groups: list[Group], place: Place, values: dict[str, Any]) -> Mapping[str, float]:
        del values
        graded = judged(self.judge, groups)
        return record(step, graded, left_out(graded, self.screen), place)

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
