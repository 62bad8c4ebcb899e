"""R1-Zero on a laptop: from nothing to a model that taught itself to think.

Read ``tiny`` first: it is the whole road. Then ``stages/rl.py`` for what one step of RL is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from longthought.core.errors import SettingsError
from longthought.engine.engine import EngineSettings
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.evaluation.readiness import Gate
from longthought.models.precision import Precision
from longthought.models.presets import Architecture
from longthought.recipes.methods import Knobs, Shaped, method, summands
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.measure import CheckReadiness, Evaluate
from longthought.stages.method import Method
from longthought.stages.pretrain import Pretrain
from longthought.stages.rl import RL
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import WORDS, CountdownProbes, CountdownWeb, vocabulary
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW, MuonAdamW
from longthought.training.schedule import Schedule


@dataclass(frozen=True)
class Problems:
    """Countdown with three numbers.

    largest: the numbers are distinct, from 1 … largest.
    target: targets and results on the way are at most this.
    """

    largest: int = 28
    target: int = 99


@dataclass(frozen=True)
class Base:
    """Pretraining.

    corpus: web, or pure: no document of the RL's task.
    width: the one dial of the model's size; a multiple of 32.
    steps: optimizer steps.
    tokens_per_step: tokens of one step, at most; no document is read twice.
    muon_lr: learning rate of the matrices inside the blocks; none: 0.025, with arch=deepseek_v3 0.0075.
    adam_lr: learning rate of embeddings, head and norms.
    decay: share of the steps, at the end, over which both fall linearly to 0.
    """

    corpus: Literal["web", "pure"] = "web"
    width: int = 96
    steps: int = 4500
    tokens_per_step: int = 1536
    muon_lr: float | None = None
    adam_lr: float = 8e-3
    decay: float = 0.7


@dataclass(frozen=True)
class Reward:
    """Accuracy counts 1, and only inside the whole format. The rest is added; 0 leaves it out.

    format: reward of the format alone.
    language: weight of the share of words in the prompt's language.
    repetition: penalty for repeated 10-grams of tokens.
    overlong: width in tokens of DAPO's soft punishment before the cut.
    """

    format: float = 0.1
    language: float = 0.0
    repetition: float = 0.0
    overlong: int = 0


@dataclass(frozen=True)
class Reinforcement:
    """GRPO and its kin, with AdamW.

    method: the four small functions of recipes/methods.py.
    steps: rollout batches.
    prompts: problems of one step.
    samples: replies to each problem.
    updates: optimizer steps on each batch, on disjoint parts of it.
    max_tokens: longest reply, in tokens.
    lr: learning rate, falling linearly over all steps.
    final: what it falls to, as a share of lr.
    clip_low: ratios are clipped below 1 − this.
    clip_high: ratios are clipped above 1 + this.
    beta: weight of the KL term to the reference.
    entropy_bonus: weight of the entropy in what is maximised.
    reference_every: the reference becomes the policy every so many steps; 0: never.
    """

    method: Literal["tiny", "grpo", "dr_grpo", "dapo", "rloo"] = "tiny"
    steps: int = 120
    prompts: int = 16
    samples: int = 16
    updates: int = 2
    max_tokens: int = 192
    lr: float = 7e-4
    final: float = 0.2
    clip_low: float = 0.2
    clip_high: float = 0.28
    beta: float = 0.0
    entropy_bonus: float = 0.0
    reference_every: int = 0


@dataclass(frozen=True)
class TinySettings:
    """Everything that a run depends on.

    arch: dense, or deepseek_v3: latent attention, routed experts, and a module that predicts a further token.
    seed: of weights, corpus, problems and samples; not of the splits.
    workers: processes that share every step, one per core; results repeat bit by bit for the same number.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    """

    arch: Architecture = "dense"
    seed: int = 0
    workers: int = 2
    precision: Precision = "auto"
    problems: Problems = Problems()
    base: Base = Base()
    reward: Reward = Reward()
    rl: Reinforcement = Reinforcement()
    gate: Gate = Gate()
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        if self.rl.updates == 1 and (self.rl.clip_low, self.rl.clip_high) != (0.2, 0.28):
            raise SettingsError(
                "rl.clip_low and rl.clip_high change nothing with rl.updates=1: the policy is still the one that "
                "sampled, every ratio is 1 and nothing is clipped"
            )
        if self.rl.reference_every and not self.rl.beta:
            raise SettingsError("rl.reference_every changes nothing without a KL term: set rl.beta, too")


RATES: Final[dict[Architecture, float]] = {"dense": 0.025, "deepseek_v3": 0.0075}
"""Of Muon. No norm holds queries and keys of latent attention, whose scores outgrow the softmax at the rate of the
dense model, which has one (docs/deepseek_v3.md)."""

LEXICON = Lexicon(
    rejections=frozenset(word for words in WORDS.values() for word in (words.low, words.high)),
    reflections=frozenset(word for words in WORDS.values() for word in (words.retry, words.check)),
)


def tiny(settings: TinySettings, run: Run) -> Checkpoint:
    """Pretrain a base, check that it is ready, measure it, train it by reinforcement alone, measure it again."""
    task = task_of(settings)
    engine = EngineSettings(precision=settings.precision)
    look = Evaluate(task, LEXICON, settings.evaluation, engine, workers=settings.workers)
    base = run.do("base", pretraining(settings), None)
    ready = CheckReadiness(task, LEXICON, CountdownProbes(task), settings.gate, engine=engine, workers=settings.workers)
    run.do("readiness", ready, base)
    run.do("before", replace(look, title="before"), base)
    zero = run.do("rl", reinforcement(settings), base)
    run.do("after", replace(look, title="after"), zero)
    return zero


def task_of(settings: TinySettings) -> Countdown:
    """The task of the reinforcement learning. Its problems depend on the seed, its splits do not."""
    problems = settings.problems
    return Countdown(
        largest=problems.largest,
        target=problems.target,
        intermediate=problems.target,
        seed=settings.seed,
        format_weight=settings.reward.format,
    )


def pretraining(settings: TinySettings) -> Pretrain:
    """The base: a transformer and the corpus that it reads."""
    base, task = settings.base, task_of(settings)
    rate = RATES[settings.arch] if base.muon_lr is None else base.muon_lr
    return Pretrain(
        corpus=CountdownWeb(task, base.corpus, settings.seed),
        vocabulary=tuple(vocabulary(task)),
        width=base.width,
        arch=settings.arch,
        steps=base.steps,
        tokens_per_step=base.tokens_per_step,
        seed=settings.seed,
        workers=settings.workers,
        precision=settings.precision,
        optimizer=MuonAdamW(rate, base.adam_lr, schedule=Schedule(warmup=20, decay=base.decay)),
    )


def reinforcement(settings: TinySettings) -> RL:
    """The RL stage: the task, the algorithm, and their budgets."""
    rl = settings.rl
    return RL(
        task=task_of(settings),
        method=_method(settings),
        lexicon=LEXICON,
        steps=rl.steps,
        prompts=rl.prompts,
        samples=rl.samples,
        updates=rl.updates,
        max_tokens=rl.max_tokens,
        seed=settings.seed,
        reference_every=rl.reference_every,
        workers=settings.workers,
        learner=LearnerSettings(precision=settings.precision),
        engine=EngineSettings(precision=settings.precision),
        optimizer=AdamW(lr=rl.lr, schedule=Schedule(warmup=2, decay=1.0, final=rl.final)),
    )


def _method(settings: TinySettings) -> Method:
    rl, reward = settings.rl, settings.reward
    beside = Shaped(reward.language, reward.repetition, reward.overlong)
    knobs = Knobs(clip_low=rl.clip_low, clip_high=rl.clip_high, beta=rl.beta, entropy_bonus=rl.entropy_bonus)
    plain = replace(knobs, refill=0) if rl.method == "dapo" else knobs  # a step is the same work for every method
    return method(rl.method, plain, rl.max_tokens, summands(beside, rl.max_tokens))
