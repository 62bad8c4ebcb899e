"""Pretraining: next-token prediction on a corpus, from nothing to a base model.

``pretrain_reading`` says what a step reads, ``pretrain_loop`` what all steps do, ``guard`` what happens to
steps that go wrong; ``pretrain_longer`` goes on with a longer context.
"""

from __future__ import annotations

import hashlib
import json
import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from longthought.core.errors import SettingsError
from longthought.core.types import TokenIds
from longthought.models.config import ModelConfig
from longthought.models.precision import Precision
from longthought.models.presets import Architecture, sized
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.files import write_atomic
from longthought.runs.place import Place
from longthought.stages.guard import Spikes
from longthought.stages.held_out import HeldOut
from longthought.stages.pretrain_loop import (
    AT_FIRST,
    Experts,
    Phase,
    Pretraining,
    Usual,
    check_course,
    check_model,
    reading,
)
from longthought.stages.pretrain_reading import Packing, Pages
from longthought.tasks.corpus import Corpus, Finite, describe, epochs
from longthought.text.fim import FIM_TOKENS, FillInTheMiddle
from longthought.text.renderer import BEGIN, PlainRenderer
from longthought.text.templates import HOLE, Template
from longthought.text.tokenizer import Tokenizer
from longthought.text.tokenizer_training import CHAT_TOKENS, BytePairs
from longthought.training.optimizer import MuonAdamW, OptimizerSettings
from longthought.training.schedule import Ramp, Schedule, Switch
from longthought.training.team import Team

CONTINUE = Template("text", BEGIN + HOLE, "the text itself, to be continued")
"""How a model is spoken to that has read nothing but text."""

_MEASURED = 64  # documents that tell how long tokens are, and whether there are conversations


@dataclass(frozen=True)
class Cooldown:
    """The last ``share`` of the steps reads another corpus, such as one of higher quality, from its beginning."""

    corpus: Corpus
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SettingsError(f"cooldown: share={self.share} of the steps must be between 0 and 1")


@dataclass(frozen=True)
class Pretrain:
    """From nothing to a base model. ``steps`` optimizer steps of at most ``tokens_per_step`` tokens each.

    vocabulary: words, or how byte pairs are trained on the corpus.
    width, arch, ahead: the shape of the model, see ``models.presets``; ahead: modules that predict further tokens,
    none in a dense model.
    context: tokens of the longest window; a longer document is cut into several.
    packing: by_length: windows of similar lengths together, which suits short documents and an endless corpus;
    in_order: as the corpus gives them, which suits long ones.
    ramp: steps that begin small.  cooldown: another corpus at the end.  fim: share of the plain documents that are
    turned by fill-in-the-middle.
    held_out: a measurement on what is never trained on.  spikes: what is unusual, and what follows.
    mtp_weight: λ of the modules that predict further; balancing: of the experts. None: as in DeepSeek-V3, where the
    model has these parts.
    """

    corpus: Corpus
    vocabulary: tuple[str, ...] | BytePairs
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
    arch: Architecture = "dense"
    ahead: int | None = None
    packing: Packing = "by_length"
    ramp: Ramp | None = None
    cooldown: Cooldown | None = None
    fim: float = 0.0
    held_out: HeldOut | None = None
    spikes: Spikes = Spikes()
    mtp_weight: Switch | None = None
    balancing: Experts | None = None

    def __post_init__(self) -> None:
        check_course(self)
        if self.fim:
            FillInTheMiddle(self.fim)
        if self.arch == "dense" and self.ahead:
            raise SettingsError(f"pretraining: ahead={self.ahead} changes nothing with arch=dense")
        check_model(self, self._config(1))

    def run(self, given: None, place: Place) -> Checkpoint:
        policy, renderer = self.new_policy(), self.renderer()
        self._tell(renderer)
        work = Pretraining(self, policy.model, self._phases(renderer), fingerprint_of(renderer.tokenizer))
        work.run(place, "pretrain")
        seen = {"tokens": work.tokens, "parameters": policy.model.config.parameters(), **work.guard.counts}
        write_atomic(place.path / "corpus.json", _json({**describe(self.corpus), **seen}))
        provenance = {"stage": "pretrain", "steps": self.steps, "tokens": work.tokens, "seed": self.seed}
        if not self._converses:
            provenance["template"] = asdict(CONTINUE)
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    @property
    def usual(self) -> Usual:
        """What experts and further tokens weigh if nothing is said."""
        return AT_FIRST

    def renderer(self) -> PlainRenderer:
        """The chat format of the model, with its vocabulary."""
        if isinstance(self.vocabulary, BytePairs):
            return PlainRenderer(_trained(self.vocabulary, self.corpus, self.fim > 0))
        special = (*CHAT_TOKENS, *(FIM_TOKENS if self.fim else ()))
        return PlainRenderer(Tokenizer.of_words(self.vocabulary, special))

    def new_policy(self) -> Policy:
        """The model before its first step."""
        renderer = self.renderer()
        model = Transformer(self._config(renderer.tokenizer.size))
        initialize(model, self.seed)
        return Policy(model, renderer)

    def sample(self, count: int) -> list[TokenIds]:
        """The windows of the first documents, to look at."""
        [phase, *_] = self._phases(self.renderer())
        return [window for windows in phase.pages.windows(0, range(count)) for window in windows]

    def batches(self, team: Team, start: int) -> Iterator[list[TokenIds]]:
        """The batches of steps ``start`` … ``steps`` − 1, a function of the seed alone.

        The team, which has the handlers of ``makers``, shares the work; any team makes the same batches.
        """
        return (read.windows for read in reading(self, team, self._phases(self.renderer()), start))

    def makers(self) -> dict[str, Any]:
        """What a team needs to make batches."""
        return {phase.name: phase.pages.windows for phase in self._phases(self.renderer())}

    @property
    def _converses(self) -> bool:
        """Whether conversations are read; otherwise the model knows how to continue a text, and nothing else."""
        corpora = [self.corpus, *([self.cooldown.corpus] if self.cooldown else [])]
        return any(corpus.document(number).user is not None for corpus in corpora for number in range(_MEASURED))

    def _tell(self, renderer: PlainRenderer) -> None:
        """What files were found to hold, and the tokenizer made of them."""
        if self.quiet or not isinstance(self.corpus, Finite):
            return
        print(f"corpus: {self.corpus.description}", file=sys.stderr)
        if not renderer.tokenizer.is_closed:
            texts = [self.corpus.document(number).text for number in range(_MEASURED)]
            tokens = sum(len(renderer.tokenizer.encode(text)) for text in texts)
            each = sum(len(text.encode()) for text in texts) / tokens
            print(f"tokenizer: {renderer.tokenizer.size:,} tokens, of {each:.2f} bytes on average", file=sys.stderr)

    def _config(self, vocabulary: int) -> ModelConfig:
        ahead = 1 if self.ahead is None else self.ahead
        return sized(self.arch, self.width, vocabulary, self.context, ahead)

    def _phases(self, renderer: PlainRenderer) -> list[Phase]:
        last = round(self.steps * self.cooldown.share) if self.cooldown else 0
        phases = [Phase("documents", self._pages(self.corpus, renderer, "main"), range(self.steps - last))]
        if self.cooldown is not None:
            pages = self._pages(self.cooldown.corpus, renderer, "cooldown")
            phases.append(Phase("cooldown", pages, range(self.steps - last, self.steps)))
        return phases

    def _pages(self, corpus: Corpus, renderer: PlainRenderer, name: str) -> Pages:
        fim = FillInTheMiddle(self.fim, f"{self.seed}/{name}") if self.fim else None
        return Pages(corpus, renderer, self.context, fim)


@lru_cache(maxsize=4)
def _trained(pairs: BytePairs, corpus: Corpus, fim: bool) -> Tokenizer:
    """The tokenizer of the first documents of a corpus, none of which is read twice."""
    once = bisect_left(range(pairs.documents), 1.0, key=lambda number: epochs(corpus, number))
    pages = map(corpus.document, range(once))
    return pairs.train((f"{page.user}\n{page.text}" if page.user else page.text for page in pages), fim)


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """SHA-256 of the vocabulary, id by id."""
    names = [tokenizer.decode((number,)) for number in range(tokenizer.size)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"
