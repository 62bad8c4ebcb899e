"""Supervised fine-tuning with a model and conversations of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.errors import SettingsError
from longthought.core.protocols import Weighting
from longthought.models.lora import LoRA
from longthought.models.precision import Precision
from longthought.recipes.r1_zero import Adapter, model_in
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.held_out import HeldOut
from longthought.stages.sft import SFT
from longthought.stages.sft_rows import Long, Unfit
from longthought.tasks.example_rows import ExampleFields
from longthought.tasks.examples import ExampleReading, Examples, Turns
from longthought.training.balancing import Balancing
from longthought.training.learner import LearnerSettings

_WEIGHTINGS: Final[dict[str, Weighting]] = {"token_mean": token_mean, "sequence_mean": sequence_mean}


@dataclass(frozen=True)
class ConversationFiles:
    """Files of conversations, and what of them is learned.

    file: .jsonl, .json, .parquet, .csv or .tsv: messages, ShareGPT, Alpaca, or a prompt and its reply.
    more: further files.
    fields: which columns hold what, as prompt=question,reply=worked; empty: found by themselves.
    bad: rows that cannot be used are listed and refused, or skipped and counted.
    turns: which replies of a conversation are learned: the last, or all.
    held_out: share of the questions that is not trained on but measured.
    long: what is longer than the context is refused, skipped and counted, or cut and counted.
    unfit: so is what the model's chat format has no place for.
    """

    file: Path = Path("conversations.jsonl")
    more: tuple[Path, ...] = ()
    fields: str = ""
    bad: Literal["refuse", "skip"] = "refuse"
    turns: Turns = "last"
    held_out: float = 0.05
    long: Long = "refuse"
    unfit: Unfit = "refuse"


@dataclass(frozen=True)
class Tuning:
    """Supervised fine-tuning.

    epochs: times that every example is learned.
    examples_per_step: of an optimizer step; none: 32, unless tokens_per_step is given.
    tokens_per_step: instead, steps of at most so many tokens.
    lr: learning rate; none: 5e-5 for all weights, 5e-4 for a LoRA.
    warmup: share of the steps over which it rises.
    final: what it falls to at the end, as a share of lr.
    weight_decay: of matrices.
    weighting: token_mean: every token of a step counts the same; sequence_mean: every reply.
    context: longest example, in tokens; none: the model's own.
    measure_every: steps between two measurements of what is held out.
    mtp_weight: of modules that predict further tokens; none: 0.1 where the model has some, 0 with a LoRA.
    balance: rate at which the bias of routed experts moves; 0: it stays.
    micro_tokens: tokens of one forward pass; memory, not mathematics.
    max_norm: gradients are clipped to it.
    save_every: steps between two states from which a killed run goes on.
    """

    epochs: int = 2
    examples_per_step: int | None = None
    tokens_per_step: int | None = None
    lr: float | None = None
    warmup: float = 0.03
    final: float = 0.1
    weight_decay: float = 0.0
    weighting: Literal["token_mean", "sequence_mean"] = "token_mean"
    context: int | None = None
    measure_every: int = 50
    mtp_weight: float | None = None
    balance: float = 0.0
    micro_tokens: int = 4096
    max_norm: float = 1.0
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise SettingsError(f"sft.lr={self.lr:g}: must be positive")


@dataclass(frozen=True)
class SFTSettings:
    """Everything that a run depends on.

    model: folder of a model in Hugging Face layout.
    template: prompt template of a base model, such as r1_zero; empty: the chat template of the folder.
    seed: of the orders of the examples.
    workers: processes that share every step, one per core.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    """

    model: Path = Path("model")
    template: str = ""
    seed: int = 0
    workers: int = 1
    precision: Precision = "auto"
    examples: ConversationFiles = ConversationFiles()
    sft: Tuning = Tuning()
    adapter: Adapter = Adapter()


def sft(settings: SFTSettings, run: Run) -> Checkpoint:
    """Teach a model to reply as the assistant of your conversations does."""
    base = model_in(settings.model, settings.template)
    return run.do("sft", fine_tuning(settings, examples_of(settings.examples)), base)


def examples_of(given: ConversationFiles) -> Examples:
    """The conversations, read and checked whole."""
    reading = ExampleReading(ExampleFields.parse(given.fields), given.bad)
    return Examples.read(given.file, *given.more, reading=reading, turns=given.turns, held_out=given.held_out)


def fine_tuning(settings: SFTSettings, examples: Examples) -> SFT:
    """The stage: the examples and their budget."""
    given, tuning, adapter = settings.examples, settings.sft, settings.adapter
    balancing = Balancing(tuning.balance, alpha=0.0) if tuning.balance else None
    usual = 5e-4 if adapter.rank else 5e-5
    return SFT(
        examples,
        epochs=tuning.epochs,
        examples_per_step=tuning.examples_per_step,
        tokens_per_step=tuning.tokens_per_step,
        lr=usual if tuning.lr is None else tuning.lr,
        warmup=tuning.warmup,
        final=tuning.final,
        weight_decay=tuning.weight_decay,
        weighting=_WEIGHTINGS[tuning.weighting],
        context=tuning.context,
        long=given.long,
        unfit=given.unfit,
        held_out=HeldOut(tuning.measure_every, documents=256),
        mtp_weight=tuning.mtp_weight,
        adapter=LoRA(adapter.rank, adapter.alpha) if adapter.rank else None,
        learner=LearnerSettings(
            tuning.micro_tokens, tuning.max_norm, precision=settings.precision, balancing=balancing
        ),
        seed=settings.seed,
        save_every=tuning.save_every,
        workers=settings.workers,
    )
