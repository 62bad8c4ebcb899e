"""A small base model from text of one's own: a tokenizer, the model, and a longer context if you like.

Read ``pretrain`` first: it is the whole road. Then ``stages/pretrain_loop.py`` for what one step is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longthought.core.errors import SettingsError
from longthought.models.precision import Precision
from longthought.models.presets import Architecture
from longthought.recipes.sources import weighted
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.guard import Spikes
from longthought.stages.held_out import HeldOut
from longthought.stages.pretrain import Cooldown, Pretrain
from longthought.stages.pretrain_longer import LongContext
from longthought.tasks.corpus import Corpus
from longthought.tasks.corpus_files import FileCorpus
from longthought.tasks.corpus_mix import CorpusMix, Part
from longthought.tasks.corpus_scan import CorpusReading, Split
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import CountdownWeb
from longthought.text.tokenizer_training import BytePairs
from longthought.training.optimizer import AdamW, MuonAdamW, OptimizerSettings
from longthought.training.schedule import Leg, Ramp, Schedule

_COUNTDOWN = "countdown"


@dataclass(frozen=True)
class Files:
    """What is read.

    path: files, folders and patterns such as src/**/*.py: text, .jsonl, .ndjson, .parquet.
    documents: what is a document in files of text: the whole file, every line, or what blank lines divide.
    field: key or column of the text in .jsonl and .parquet.
    bad: documents that cannot be read are listed and refused, or skipped and counted.
    held_out: share of the documents that is never trained on and measured; 0: nothing is measured.
    mix: further sources, each a file, folder, pattern, or countdown, with @WEIGHT for another share than 1.
    by: weights are shares of the documents, or of the characters.
    cooldown: sources, as in mix, that are read in their place at the end.
    cooldown_share: of the steps.
    """

    path: tuple[str, ...] = ("corpus.txt",)
    documents: Split = "file"
    field: str = "text"
    bad: Literal["refuse", "skip"] = "refuse"
    held_out: float = 0.02
    mix: tuple[str, ...] = ()
    by: Literal["documents", "characters"] = "documents"
    cooldown: tuple[str, ...] = ()
    cooldown_share: float = 0.1

    def __post_init__(self) -> None:
        if not self.cooldown and self.cooldown_share != 0.1:
            raise SettingsError(f"corpus.cooldown_share={self.cooldown_share} changes nothing without corpus.cooldown")
        if not (self.mix or self.cooldown) and self.by != "documents":
            raise SettingsError(f"corpus.by={self.by} changes nothing without corpus.mix or corpus.cooldown")


@dataclass(frozen=True)
class Shape:
    """The model.

    arch: dense, or deepseek_v3: latent attention, routed experts, and modules that predict further tokens.
    width: the one dial of the size; a multiple of 32.
    context: tokens of the longest window; longer documents are cut.
    ahead: modules of deepseek_v3 that predict further tokens; none: one.
    """

    arch: Architecture = "dense"
    width: int = 128
    context: int = 512
    ahead: int | None = None


@dataclass(frozen=True)
class Learning:
    """How it learns.

    steps: optimizer steps.
    tokens_per_step: tokens of a step, at most.
    ramp_first: tokens of the first step, which grow from there; none: all steps are alike.
    ramp_share: share of the steps over which they grow.
    optimizer: muon, for the matrices inside the blocks, with AdamW for the others; or adamw for all.
    lr: learning rate; none: 0.02 for muon, 1e-3 for adamw.
    weight_decay: of everything but norms and biases.
    schedule: linear or cosine down to a tenth over the last 70 %, constant, or deepseek_v3.
    warmup: steps over which the learning rate rises.
    fim: share of the documents that teach filling in the middle.
    """

    steps: int = 2000
    tokens_per_step: int = 4096
    ramp_first: int | None = None
    ramp_share: float = 0.3
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float | None = None
    weight_decay: float = 0.1
    schedule: Literal["linear", "cosine", "constant", "deepseek_v3"] = "cosine"
    warmup: int = 50
    fim: float = 0.1

    def __post_init__(self) -> None:
        if self.ramp_first is None and self.ramp_share != 0.3:
            raise SettingsError(f"train.ramp_share={self.ramp_share} changes nothing without train.ramp_first")


@dataclass(frozen=True)
class Longer:
    """A longer context, afterwards.

    context: tokens; 0: it stays as it is.
    factor: of YaRN; none: the new context over the old one.
    steps: optimizer steps.
    lr: learning rate, of AdamW.
    tokens_per_step: tokens of a step, at most; none: those of train, or the context if that is more.
    """

    context: int = 0
    factor: float | None = None
    steps: int = 200
    lr: float = 1e-4
    tokens_per_step: int | None = None

    def __post_init__(self) -> None:
        given = (self.factor, self.steps, self.lr, self.tokens_per_step)
        if not self.context and given != (None, 200, 1e-4, None):
            raise SettingsError("long.factor, steps, lr and tokens_per_step change nothing without long.context")


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that a run depends on.

    seed: of weights and of the order of the documents; not of what is held out.
    workers: processes that share every step, one per core; results repeat bit by bit for the same number.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    save_every: steps between two states from which a stopped run goes on.
    """

    seed: int = 0
    workers: int = 1
    precision: Precision = "auto"
    save_every: int = 200
    corpus: Files = Files()
    tokenizer: BytePairs = BytePairs()
    model: Shape = Shape()
    train: Learning = Learning()
    held_out: HeldOut = HeldOut()
    spikes: Spikes = Spikes()
    long: Longer = Longer()

    def __post_init__(self) -> None:
        if not self.corpus.held_out and self.held_out != HeldOut():
            raise SettingsError("held_out.every and held_out.documents change nothing with corpus.held_out=0")


def pretrain(settings: PretrainSettings, run: Run) -> Checkpoint:
    """Pretrain a small model on text of your own: tokenizer, base, and a longer context."""
    corpus = corpus_of(settings.corpus, settings.seed)
    base = run.do("base", base_of(settings, corpus), None)
    if not settings.long.context:
        return base
    return run.do("long", longer_of(settings, corpus_of(settings.corpus, settings.seed + 2)), base)


def corpus_of(files: Files, seed: int) -> Corpus:
    """The files, alone or mixed with other sources; they are scanned and checked whole."""
    reading = CorpusReading(files.documents, files.field, files.bad, files.held_out, seed)
    own = FileCorpus.read(*files.path, reading=reading)
    parts = [Part(own.name, own, 1.0), *_parts(files.mix, reading)]
    _check_read(files, [*parts, *_parts(files.cooldown, reading)])
    return _mixed(parts, files, seed) if files.mix else own


def cooldown_of(files: Files, seed: int) -> Cooldown | None:
    """What the last steps read, if it is something else."""
    if not files.cooldown:
        return None
    reading = CorpusReading(files.documents, files.field, files.bad, files.held_out, seed + 1)
    parts = _parts(files.cooldown, reading)
    corpus = parts[0].corpus if len(parts) == 1 else _mixed(parts, files, seed)
    return Cooldown(corpus, files.cooldown_share)


def base_of(settings: PretrainSettings, corpus: Corpus) -> Pretrain:
    """The stage that makes the base model."""
    train, model = settings.train, settings.model
    return Pretrain(
        corpus=corpus,
        vocabulary=settings.tokenizer,
        width=model.width,
        context=model.context,
        steps=train.steps,
        tokens_per_step=train.tokens_per_step,
        seed=settings.seed,
        save_every=settings.save_every,
        workers=settings.workers,
        precision=settings.precision,
        optimizer=_optimizer(train),
        arch=model.arch,
        ahead=model.ahead,
        packing="in_order",
        ramp=None if train.ramp_first is None else Ramp(train.ramp_first, train.ramp_share),
        cooldown=cooldown_of(settings.corpus, settings.seed),
        fim=train.fim,
        held_out=settings.held_out if settings.corpus.held_out else None,
        spikes=settings.spikes,
    )


def longer_of(settings: PretrainSettings, corpus: Corpus) -> LongContext:
    """The stage that makes the context longer."""
    long = settings.long
    tokens = max(settings.train.tokens_per_step, long.context) if long.tokens_per_step is None else long.tokens_per_step
    return LongContext(
        corpus=corpus,
        context=long.context,
        factor=long.factor,
        steps=long.steps,
        tokens_per_step=tokens,
        seed=settings.seed + 1,
        save_every=settings.save_every,
        workers=settings.workers,
        precision=settings.precision,
        optimizer=AdamW(long.lr, weight_decay=settings.train.weight_decay, schedule=Schedule(warmup=20)),
        fim=settings.train.fim,
        held_out=settings.held_out if settings.corpus.held_out else None,
        spikes=settings.spikes,
    )


def _optimizer(train: Learning) -> OptimizerSettings:
    schedule = _schedule(train)
    if train.optimizer == "adamw":
        return AdamW(1e-3 if train.lr is None else train.lr, weight_decay=train.weight_decay, schedule=schedule)
    return MuonAdamW(0.02 if train.lr is None else train.lr, weight_decay=train.weight_decay, schedule=schedule)


def _schedule(train: Learning) -> Schedule:
    if train.schedule == "deepseek_v3":
        return Schedule.deepseek_v3(train.warmup)
    if train.schedule == "constant":
        return Schedule(train.warmup)
    return Schedule(train.warmup, legs=(Leg("constant", 0.3), Leg(train.schedule, 0.7, 0.1)))


def _parts(sources: tuple[str, ...], reading: CorpusReading) -> list[Part]:
    found = []
    for name, weight in map(weighted, sources):
        corpus: Corpus = CountdownWeb(Countdown(), seed=reading.seed) if name == _COUNTDOWN else _read(name, reading)
        found.append(Part(corpus.name if isinstance(corpus, FileCorpus) else name, corpus, weight))
    return found


def _read(source: str, reading: CorpusReading) -> FileCorpus:
    if not (Path(source).exists() or "." in source or "/" in source or "*" in source):
        raise SettingsError(f"corpus: {source} is neither a file, a folder, a pattern nor {_COUNTDOWN}")
    return FileCorpus.read(source, reading=reading)


def _check_read(files: Files, parts: list[Part]) -> None:
    """Refuse ways of reading that no file is read by."""
    corpora = [part.corpus for part in parts if isinstance(part.corpus, FileCorpus)]
    if files.documents != "file" and not any(corpus.has_text for corpus in corpora):
        raise SettingsError(f"corpus.documents={files.documents} changes nothing: there is no file of text")
    if files.field != "text" and not any(corpus.has_rows for corpus in corpora):
        raise SettingsError(f"corpus.field={files.field} changes nothing: there is no .jsonl or .parquet file")


def _mixed(parts: list[Part], files: Files, seed: int) -> CorpusMix:
    """Parts of one name are numbered."""
    names = [part.name for part in parts]
    before = [names[:number].count(name) for number, name in enumerate(names)]
    numbered = (
        part._replace(name=f"{part.name}-{count + 1}" if count else part.name) for part, count in zip(parts, before)
    )
    return CorpusMix(tuple(numbered), files.by, seed)
