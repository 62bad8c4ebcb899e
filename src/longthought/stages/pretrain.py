"""Pretraining: next-token prediction on an endless corpus, no document read twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random

from longthought.algorithms.objective import NLL
from longthought.core.errors import SettingsError
from longthought.core.types import TokenIds
from longthought.models.config import ModelConfig
from longthought.models.precision import Precision
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.files import write_atomic
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.tasks.corpus import Corpus, describe
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import MuonAdamW, OptimizerSettings
from longthought.training.schedule import Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

_POOL = 2048  # documents sorted by length together, so that a batch pads little


@dataclass(frozen=True)
class Pretrain:
    """From nothing to a base model. ``steps`` optimizer steps of at most ``tokens_per_step`` tokens each."""

    corpus: Corpus
    vocabulary: tuple[str, ...]
    width: int = 64
    context: int = 512
    steps: int = 4000
    tokens_per_step: int = 1024
    seed: int = 0
    save_every: int = 200
    workers: int = 1
    precision: Precision = "auto"
    optimizer: OptimizerSettings = MuonAdamW(schedule=Schedule(warmup=20, decay=0.7))
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_step", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"pretraining: {name}={getattr(self, name)} must be at least 1")

    def run(self, given: None, place: Place) -> Checkpoint:
        renderer, policy = self.renderer(), self.new_policy()
        learner = PolicyLearner(
            policy.model, self.optimizer, self.steps, settings=LearnerSettings(self._micro, precision=self.precision)
        )
        start, tokens = 0, 0
        state = place.load_state()
        if state is not None:
            learner.restore(state.tensors, state.values["learner"])
            start, tokens = state.step, state.values["tokens"]
        sharded = ShardedLearner(learner, self.workers)
        reading = {"documents": partial(self._documents, renderer)}
        with (
            Team(self.workers, sharded.handlers | reading) as team,
            progress("pretrain", self.steps, start=start, quiet=self.quiet) as bar,
        ):
            sharded.join(team)
            loss, began = 0.0, time.perf_counter()
            for step, batch in enumerate(self.batches(team, start), start + 1):
                metrics = sharded.step(documents(batch), NLL()).metrics
                tokens += sum(map(len, batch))
                loss = metrics["loss"] if not loss else 0.98 * loss + 0.02 * metrics["loss"]
                if step % 10 == 0 or step == self.steps:
                    place.log(step, {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"], "tokens": tokens})
                    bar.update(step, {"loss (nats/token)": round(loss, 3), "Mtokens": round(tokens / 1e6, 2)})
                if step % self.save_every == 0 or step == self.steps:
                    place.time(step, {"training": time.perf_counter() - began})
                    began = time.perf_counter()
                    tensors, values = learner.state()
                    place.save_state(step, tensors, {"learner": values, "tokens": tokens})
        seen = {**describe(self.corpus), "tokens": tokens, "parameters": policy.model.config.parameters()}
        write_atomic(place.path / "corpus.json", json.dumps(seen, ensure_ascii=False, indent=1).encode() + b"\n")
        provenance = {"stage": "pretrain", "steps": self.steps, "tokens": tokens, "seed": self.seed}
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    @property
    def _micro(self) -> int:
        return max(2048, self.tokens_per_step)

    def renderer(self) -> PlainRenderer:
        """The chat format of the model, with its vocabulary."""
        return PlainRenderer(Tokenizer.of_words(self.vocabulary, (BEGIN, USER, ASSISTANT, END)))

    def new_policy(self) -> Policy:
        """The model before its first step."""
        renderer = self.renderer()
        model = Transformer(ModelConfig.sized(self.width, renderer.tokenizer.size, self.context))
        initialize(model, self.seed)
        return Policy(model, renderer)

    def batches(self, team: Team, start: int) -> Iterator[list[TokenIds]]:
        """The batches of steps ``start`` … ``steps`` − 1, a function of the seed alone.

        The team, whose handler ``documents`` is this stage's, shares the work; any team makes the same batches.
        """
        seen, pool = 0, 0
        while seen < self.steps:
            cuts = self._pool(team, pool)
            for number, cut in enumerate(cuts[: self.steps - seen]):
                if seen + number >= start:
                    yield cut
            seen, pool = seen + len(cuts), pool + 1

    def _pool(self, team: Team, pool: int) -> list[list[TokenIds]]:
        """One pool of documents, cut into batches of similar lengths, in random order."""
        first = pool * _POOL
        bounds = [first + member * _POOL // team.size for member in range(team.size + 1)]
        parts = team.call("documents", [(range(*ends),) for ends in pairwise(bounds)])
        sequences = sorted((sequence for part in parts for sequence in part), key=len)
        cuts: list[list[TokenIds]] = []
        room = 0
        for sequence in sequences:
            if not cuts or room < len(sequence):
                cuts.append([])
                room = self.tokens_per_step
            cuts[-1].append(sequence)
            room -= len(sequence)
        Random(f"{self.seed}/{pool}").shuffle(cuts)
        return cuts

    def _documents(self, renderer: PlainRenderer, member: int, indices: range) -> list[TokenIds]:
        """Those documents of the corpus, as tokens."""
        del member
        pages = (self.corpus.document(index) for index in indices)
        return [renderer.document(page.user, page.text) for page in pages]
