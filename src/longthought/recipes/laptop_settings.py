"""What may be set in recipe ``r1``."""

from __future__ import annotations

from dataclasses import dataclass

from longthought.evaluation.evaluate import EvaluationSettings
from longthought.evaluation.readiness import Gate
from longthought.models.precision import Precision
from longthought.models.presets import Architecture
from longthought.recipes.methods import MethodName
from longthought.recipes.tiny import Problems


@dataclass(frozen=True)
class Base:
    """Pretraining of the base and of the student.

    width: the one dial of the base's size; a multiple of 32.
    student: that of the student.
    steps: optimizer steps of either.
    tokens_per_step: tokens of one step, at most; no document is read twice.
    requests: share of the documents on which somebody answers a small request; the rest is the web of Countdown.
    asked_to_check: share of the Countdown pages whose question asks for a check.
    quoting: share of the Countdown pages whose question quotes other such pages first.
    """

    width: int = 96
    student: int = 64
    steps: int = 5000
    tokens_per_step: int = 1536
    requests: float = 0.25
    asked_to_check: float = 0.1
    quoting: float = 0.1


@dataclass(frozen=True)
class Reinforcement:
    """One stretch of RL, with AdamW.

    method: an algorithm of recipes/methods.py.
    steps: rollout batches.
    prompts: problems of one step.
    samples: replies to each problem.
    updates: optimizer steps on each batch, on disjoint parts of it.
    temperature: of the rollouts, and of the log-probabilities that are trained.
    lr: learning rate, falling linearly over all steps.
    final: what it falls to, as a share of lr.
    format: reward of the format alone.
    language: weight of the share of words in the prompt's language.
    overlong: width in tokens of DAPO's soft punishment before the cut; 0: none.
    """

    method: MethodName = "tiny"
    steps: int = 120
    prompts: int = 16
    samples: int = 16
    updates: int = 2
    temperature: float = 1.0
    lr: float = 7e-4
    final: float = 0.2
    format: float = 0.1
    language: float = 0.0
    overlong: int = 0


@dataclass(frozen=True)
class Collecting:
    """Replies from which examples are chosen.

    prompts: problems that are asked, of each source.
    samples: replies to each.
    keep: examples of one problem, at most.
    surrendered: problems to which people admit, after many attempts, that they found nothing; as a share of prompts.
    """

    prompts: int = 1024
    samples: int = 8
    keep: int = 4
    surrendered: float = 0.1


@dataclass(frozen=True)
class Tuning:
    """Supervised fine-tuning.

    cold: times that every example of the cold start is learned.
    epochs: times that every example of rejection sampling is learned.
    examples_per_step: of an optimizer step.
    lr: learning rate.
    general: share of the examples after rejection sampling that answer requests.
    """

    cold: int = 3
    epochs: int = 2
    examples_per_step: int = 16
    lr: float = 2e-3
    general: float = 0.25


@dataclass(frozen=True)
class Judging:
    """Preferences, labels, and the models that learn them.

    prompts: requests to which pairs of replies are compared, and for which as many replies are labelled.
    taste: how much people like a word of courtesy beyond what it is worth.
    samples: replies to each.
    pairs: of one request, at most.
    least_gap: how far apart, on a scale from −2 to 2, four comparisons must find two replies for their pair to count.
    epochs: times that every judgement is learned.
    batch: judgements of one step.
    lr: learning rate.
    """

    prompts: int = 3500
    taste: float = 0.05
    samples: int = 4
    pairs: int = 6
    least_gap: float = 1.0
    epochs: int = 3
    batch: int = 64
    lr: float = 1e-3


@dataclass(frozen=True)
class Scenarios:
    """The last part of the RL: all kinds of prompts, and rewards by preference.

    requests: share of the prompts that are requests.
    helpful: weight of the helpfulness of the summary.
    safe: weight of the harmlessness of reasoning and summary.
    every: steps between two looks for reward hacking.
    """

    requests: float = 0.4
    helpful: float = 0.3
    safe: float = 0.3
    every: int = 10


@dataclass(frozen=True)
class R1Settings:
    """Everything that a run depends on.

    arch: dense, or deepseek_v3: latent attention, routed experts, and a module that predicts a further token.
    seed: of weights, corpus, problems and samples; not of the splits.
    workers: processes that share every step, one per core; results repeat bit by bit for the same number.
    precision: of matrix products: float32, bfloat16, or auto, the fastest here; bits repeat on the same kind of CPU.
    max_tokens: longest reply in training, in tokens.
    zero: R1-Zero.
    chains: of which the cold start is made.
    reasoning: RL after the cold start.
    traces: rejection sampling.
    ruled: all-scenario RL, its first part: rewards by rule alone.
    final: all-scenario RL, its last part.
    """

    arch: Architecture = "dense"
    seed: int = 0
    workers: int = 2
    precision: Precision = "auto"
    max_tokens: int = 192
    problems: Problems = Problems()
    base: Base = Base()
    zero: Reinforcement = Reinforcement()
    chains: Collecting = Collecting()
    reasoning: Reinforcement = Reinforcement(steps=60, lr=4e-4, language=0.1)
    traces: Collecting = Collecting(prompts=2048)
    tuning: Tuning = Tuning()
    judging: Judging = Judging()
    ruled: Reinforcement = Reinforcement(steps=20, temperature=0.7, lr=3e-4, language=0.1, overlong=16)
    final: Reinforcement = Reinforcement(steps=40, temperature=0.7, lr=1.5e-4, language=0.1, overlong=16)
    scenarios: Scenarios = Scenarios()
    gate: Gate = Gate()
    evaluation: EvaluationSettings = EvaluationSettings(samples=32)
