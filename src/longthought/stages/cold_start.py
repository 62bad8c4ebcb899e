"""Cold start: a few thousand long, right, readable chains of thought, with which R1 begins.

Source: DeepSeek-R1 (arXiv:2501.12948, section 2.3.1). Checkpoints in, examples for supervised fine-tuning out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Task, Verifier
from longthought.core.types import Group, Problem, Rollout, SamplingParams
from longthought.engine.engine import EngineSettings
from longthought.evaluation.evaluate import distinct
from longthought.rollout.collect import grade_all, play
from longthought.rollout.filters import Screen
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes
from longthought.runs.place import TRACES, Place
from longthought.runs.progress import progress
from longthought.runs.settings import fingerprint_of
from longthought.stages import rewritten
from longthought.stages.chain_report import Tally, described
from longthought.stages.chain_sources import Direct, FewShot, Outputs, Source
from longthought.stages.epochs import check_counts
from longthought.stages.example_set import EXAMPLES, ExampleSet, said, write_report, writing
from longthought.stages.graded import JUDGE, by_problem, count, judged, left_out, record, rollout_of
from longthought.stages.rewriting import Rewriter
from longthought.stages.rewritten import Desk, Written
from longthought.stages.sampled import InRounds, Player
from longthought.stages.sifting import (
    SURPLUS,
    Against,
    Candidate,
    Prefer,
    Sieve,
    check_choice,
    evaluations,
    lot,
    ordered,
)
from longthought.tasks.examples import Examples
from longthought.text.decontaminate import Duplicates
from longthought.text.renderer import TemplateRenderer

__all__ = ["ColdStart", "Direct", "FewShot", "Outputs", "Player", "Source"]

PROMPTS, DROPPED, REWRITTEN = "prompts.jsonl", "dropped.jsonl", "rewritten"
SPARED, ENOUGH = "more than are rewritten of a prompt", "more than are wanted"


@dataclass(frozen=True)
class ColdStart(InRounds):
    """Long chains of thought from several sources, made readable; makes an ``ExampleSet``.

    Every reply is graded and screened; what is right and good is rewritten, and graded and screened again. Then
    duplicates go, and what shares words with an evaluation.

    sources: ``FewShot``, ``Direct``, ``Outputs``, each of a model by its name among those that the stage is given.
    rewriter: makes replies readable (``CountdownTidy``, ``EndpointRewriter``); None: they stay as they are.
    rewrites: right replies to a prompt, of each source, that are rewritten, by lot; None: all.
    screen: what a right reply must be, too, before it is rewritten and after.
    keep_per_prompt: at most so many, of all sources together; None: all.  prefer: which of them.
    most: examples of all sources together; those to the first prompts are kept.
    edited: conversations that a person has edited or written, taken first and whole, whatever they hold out; with
    ``sources=()`` instead of sampled ones.
    judge: asked where the task gave no verdict; 1 is right.
    against: evaluations that no example may share ``ngram`` words in a row with.
    similarity: share of common 3-grams from which on two replies are duplicates; 1: only equal words are.
    seed: of the choice among replies; sources have their own.
    prompts_per_round: after each round, a killed run can go on; examples do not depend on it.
    """

    called: ClassVar[str] = "cold start"

    task: Task
    sources: tuple[Source, ...]
    rewriter: Rewriter | None = None
    rewrites: int | None = None
    screen: Screen = Screen()
    keep_per_prompt: int | None = 1
    prefer: Prefer = "random"
    most: int | None = None
    edited: Examples | None = None
    judge: Verifier | None = None
    against: tuple[Against, ...] = ()
    ngram: int = 10
    similarity: float = 0.8
    seed: int = 0
    prompts_per_round: int = 64
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sources and self.edited is None:
            raise SettingsError("cold start: there is nothing to take examples from; give sources=…, or edited=…")
        check_counts(self.called, self, ("rewrites", "most", "prompts_per_round", "workers"))
        if self.rewrites is not None and self.rewriter is None:
            raise SettingsError(f"cold start: rewrites={self.rewrites} changes nothing without a rewriter")
        check_choice(self.called, self.keep_per_prompt, self.prefer)
        for number, source in enumerate(self.sources):
            if source in self.sources[:number]:
                raise SettingsError(
                    f"cold start: {source.kind} of {source.model} is given twice with the same settings"
                )
        Duplicates(self.similarity)
        evaluations((), self.ngram)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of every source in reports, numbered where it comes again."""
        names = [f"{source.kind} of {source.model}" for source in self.sources]
        before = [names[:number].count(name) for number, name in enumerate(names)]
        return tuple(f"{name} ({times + 1})" if times else name for name, times in zip(names, before))

    def run(self, given: Mapping[str, Checkpoint], place: Place) -> ExampleSet:
        missing = sorted({source.model for source in self.sources} - given.keys())
        if missing:
            raise SettingsError(
                f"cold start: sources ask for the model {', '.join(missing)}, and the stage is given "
                f"{', '.join(given) or 'none'}"
            )
        longest = [(f"{self.called}: {source.kind}", source.max_tokens) for source in self.sources]
        self.sample(lambda model: self._opened(given[model], *longest), place)
        return self.sift(given, place)

    def load(self, place: Place) -> ExampleSet:
        return ExampleSet(place.path / "examples")

    def sample(self, opened: Callable[[str], AbstractContextManager[Player]], place: Place) -> None:
        """Sample, grade, screen and rewrite, round by round; goes on after the last whole round.

        opened: makes the model of a name ready.
        """
        rounds = list(self._rounds())
        state = place.load_state()
        done = 0 if state is None else state.step
        with progress(self.called, len(rounds), start=done, quiet=self.quiet) as bar:
            for model, part in groupby(rounds[done:], key=lambda one: one.source.model):
                with opened(model) as player:
                    for one in part:
                        began = time.perf_counter()
                        metrics = self._play(one, player, place)
                        place.time(one.step, {"sampling": time.perf_counter() - began})
                        place.save_state(one.step, {}, {})
                        bar.update(one.step, {name: metrics[name] for name in ("right", "good", "length")})

    def sift(self, given: Mapping[str, Checkpoint], place: Place) -> ExampleSet:
        """Choose among what was sampled; the same for the same traces. Raises DataError where nothing is left."""
        models = {name: checkpoint.fingerprints() for name, checkpoint in given.items()}
        provenance = {
            "stage": "cold_start",
            "from": models,
            "edited": self.edited.conversations.fingerprint if self.edited else None,
            "settings": describe(self),
        }
        with writing(place.path / "examples", provenance, said) as made:
            report = self._sifted({name: fingerprint_of(files) for name, files in models.items()}, place, made)
            if not report["kept"]:
                raise DataError(
                    f"the cold start kept nothing:\n{described(report)}\nSample more, or loosen what drops most"
                )
            write_report(made, report, described(report))
        if not self.quiet:
            print(described(report), file=sys.stderr)
        return ExampleSet(place.path / "examples")

    @cached_property
    def _problems(self) -> list[Problem]:
        most = max((source.prompts for source in self.sources), default=0)
        return distinct(self.task, "train", most) if most else []

    def _rounds(self) -> Iterator[_Round]:
        """The rounds of the first source, then those of the next."""
        step = 0
        for label, source in zip(self.labels, self.sources):
            for problems in self._in_rounds(self._problems[: source.prompts]):
                step += 1
                yield _Round(step, label, source, problems)

    def _play(self, one: _Round, player: Player, place: Place) -> dict[str, float]:
        """A round: its replies go to the trace store, and those written anew into a file of their own."""
        source = one.source
        params = SamplingParams(source.samples, source.max_tokens, source.temperature, source.seed, top_p=source.top_p)
        single = isinstance(player.renderer, TemplateRenderer)
        asked = [replace(problem, messages=source.asked(problem, single)) for problem in one.problems]
        played = play(asked, player.sampler, player.renderer, params)
        groups = judged(self.judge, grade_all(self.task, one.problems, played, player.renderer))
        refused = left_out(groups, self.screen)
        metrics = record(one.step, groups, refused, place)
        if self.rewriter is not None:
            chosen = [two for group, why in zip(groups, refused) for two in self._to_rewrite(one.label, group, why)]
            desk = Desk(self.task, self.rewriter, self.screen, self.judge)
            rewritten.save(_file(place, one.step), desk(chosen, player.renderer))
        return metrics

    def _to_rewrite(self, label: str, group: Group, refused: Sequence[str]) -> list[tuple[int, Rollout]]:
        good = [(sample, rollout) for sample, rollout in enumerate(group) if not refused[sample]]
        by_lot = sorted(good, key=lambda one: lot(self.seed, "rewrite", label, one[1].problem.id, one[0]))
        return sorted(by_lot[: self.rewrites], key=lambda one: one[0])

    def _sifted(self, models: Mapping[str, str], place: Place, made: Path) -> dict[str, Any]:
        """Write the examples, and what became of all other replies; the report."""
        tallies = {label: Tally() for label in self.labels}
        evaluated = evaluations(self.against, self.ngram)
        kept = prompts_kept = 0
        with (
            (made / EXAMPLES).open("wb") as kept_file,
            (made / DROPPED).open("wb") as dropped_file,
            (made / PROMPTS).open("wb") as prompts_file,
        ):
            sieve = Sieve(evaluated, Duplicates(self.similarity), kept_file, dropped_file)
            edited = self._edited(sieve)
            for problem, replies in self._by_problem(place):
                candidates = [
                    one
                    for part in replies
                    for one in self._candidates(problem, part, models, sieve, tallies[part.label])
                ]
                taken = self._taken(candidates, sieve, tallies, kept)
                right = {part.label: sum(row["correct"] for row in part.rows) for part in replies}
                told = {"problem": problem.id, "right": right, "good": len(candidates), "kept": taken}
                prompts_file.write(json_bytes(told) + b"\n")
                kept, prompts_kept = kept + taken, prompts_kept + bool(taken)
        return {
            "prompts": len(self._problems),
            "prompts_kept": prompts_kept,
            "kept": kept + (edited["kept"] if edited else 0),
            "edited": edited,
            "sources": {
                label: {"prompts": source.prompts, **tallies[label].report()}
                for label, source in zip(self.labels, self.sources)
            },
            "evaluation_problems": evaluated.problems,
        }

    def _edited(self, sieve: Sieve) -> dict[str, Any] | None:
        """Take what a person has edited; what became of it."""
        if self.edited is None:
            return None
        tally, conversations = Tally(), self.edited.conversations
        sieve.dropped = tally.dropped
        for number in range(len(conversations)):
            file, line = conversations.where(number)
            source = {"kind": "edited", "file": file.rpartition("/")[2], "line": line}
            tally.kept += sieve.take(f"{source['file']}:{line}", conversations[number], source)
        return {"offered": len(conversations), "dropped": dict(tally.dropped), "kept": tally.kept}

    def _by_problem(self, place: Place) -> Iterator[tuple[Problem, list[_Replies]]]:
        """Every problem with the replies of all sources that were asked it."""
        parts = [self._of_source(label, source, place) for label, source in zip(self.labels, self.sources)]
        for number, problem in enumerate(self._problems):
            yield problem, [next(part) for part, source in zip(parts, self.sources) if number < source.prompts]

    def _of_source(self, label: str, source: Source, place: Place) -> Iterator[_Replies]:
        """The replies of a source, problem by problem."""
        steps = [one.step for one in self._rounds() if one.label == label]
        problems, size = self._problems[: source.prompts], self.prompts_per_round
        rows = by_problem(problems, size, place.path / TRACES, before=steps[0] - 1)
        for step in steps:
            lines = [] if self.rewriter is None else rewritten.load(_file(place, step))
            for problem, group in islice(rows, size):
                yield _Replies(label, source, group, [one for one in lines if one.problem == problem.id])

    def _candidates(
        self, problem: Problem, part: _Replies, models: Mapping[str, str], sieve: Sieve, tally: Tally
    ) -> list[Candidate]:
        """What may be kept of a source's replies to a problem; the others are dropped."""
        sieve.dropped = tally.dropped
        again = {one.sample: one for one in part.written}
        found = []
        for row in part.rows:
            count(row, tally.counts, tally.dropped)
            sample, origin = row["sample"], f"{part.label}/"
            name = f"{problem.id}#{origin}{sample}"
            if row["left_out"]:
                if row["correct"]:
                    sieve.drop(name, *(self.screen.refusal(rollout_of(problem, row)) or (row["left_out"], "")))
                continue
            if self.rewriter is not None and sample not in again:
                sieve.drop(name, SPARED, "")
                continue
            one = again.get(sample, Written(problem.id, sample, row["text"], row["length"]))
            if one.dropped:
                sieve.drop(name, one.dropped, one.detail)
                continue
            tally.counts["rewritten"] += self.rewriter is not None
            source = self._source(part, models[part.source.model], row, one)
            found.append(Candidate(problem, sample, one.text, one.tokens, source, origin))
        return found

    def _taken(self, candidates: Sequence[Candidate], sieve: Sieve, tallies: Mapping[str, Tally], before: int) -> int:
        """Keep replies to one prompt; how many were kept."""
        kept = 0
        limits = dict(zip(self.labels, (source.most for source in self.sources)))
        for one in ordered(candidates, self.prefer, self.seed):
            label = one.origin[:-1]
            tally, limit = tallies[label], limits[label]
            sieve.dropped = tally.dropped
            if kept == self.keep_per_prompt:
                sieve.drop(one.name, SURPLUS, "")
            elif before + kept == self.most or tally.kept == limit:
                sieve.drop(one.name, ENOUGH, "")
            elif sieve.take(one.name, one.messages, one.source):
                kept, tally.kept = kept + 1, tally.kept + 1
        return kept

    def _source(self, part: _Replies, model: str, row: dict[str, Any], one: Written) -> dict[str, Any]:
        source = part.source
        return {
            "kind": source.kind,
            "model": model,
            "model_name": source.model,
            "problem": one.problem,
            "sample": one.sample,
            "seed": source.seed,
            "temperature": source.temperature,
            "tokens": one.tokens,
            "verifier": JUDGE if JUDGE in row["parts"] else self.task.name,
            "filters": [filter_.name for filter_ in self.screen.filters],
            "rewriter": self.rewriter.name if self.rewriter is not None else None,
        }


class _Round(NamedTuple):
    """One step of the sampling: problems that a source is asked."""

    step: int
    label: str
    source: Source
    problems: Sequence[Problem]


class _Replies(NamedTuple):
    """The replies of a source to one problem, as sampled, and those that were rewritten."""

    label: str
    source: Source
    rows: list[dict[str, Any]]
    written: list[Written]


def _file(place: Place, step: int) -> Path:
    return place.path / REWRITTEN / f"step-{step:06d}.jsonl"
