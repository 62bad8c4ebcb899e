"""Our system, as the benchmarks run it. Every setting of ours that a benchmark uses stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from longthought.algorithms.advantage import group_normalized
from longthought.algorithms.objective import GRPO
from longthought.algorithms.weighting import token_mean
from longthought.core.types import (
    Batch,
    Completion,
    Metrics,
    Outcome,
    Problem,
    Rollout,
    SamplingParams,
    Score,
    TokenIds,
    Verdict,
)
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.models.kernels.core import Core, Panels, core
from longthought.models.kernels.library import available
from longthought.models.precision import Precision
from longthought.models.transformer import Transformer
from longthought.training.batching import batch_of, informative
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

Prepare: TypeAlias = Callable[[Tensor, Tensor], Callable[[], object]]
"""(M, K), (K, N) → a call that multiplies them; packing the operands is not part of the call."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PRECISIONS: dict[str, Precision] = {"bf16": "bfloat16", "fp32": "float32"}
"""Of the matrix products of engine and learner; the first is what the benchmarks use by default."""

SLOTS = 256
MICRO_TOKENS = 2048


def engine(model: Transformer, precision: str) -> Engine:
    """What one process samples with, on one thread."""
    return Engine(model, EngineSettings(SLOTS, PRECISIONS[precision], threads=1))


def learner(model: Transformer, precision: str, rate: float) -> PolicyLearner:
    """What one process trains with, on one thread."""
    settings = LearnerSettings(micro_tokens=MICRO_TOKENS, precision=PRECISIONS[precision])
    return PolicyLearner(model, AdamW(lr=rate), 1, settings=settings)


def kernels() -> dict[str, tuple[Prepare, torch.dtype]]:
    """Our own matrix products, by name, with the dtype of their items; none where the native core is missing."""
    library = available()
    if library is None:
        return {}
    return {f"ours {name}": (_product(core(library, dtype)), dtype) for name, dtype in DTYPES.items()}


def _product(found: Core) -> Prepare:
    def prepare(a: Tensor, b: Tensor) -> Callable[[], object]:
        rows, panels = found.to_rows(a), Panels(found.matrix([b.T], backward=False).panels)
        return partial(found.put, rows, panels, torch.empty(len(a), b.shape[1]))

    return prepare


class System:
    """Sampler and learner of one model."""

    def __init__(self, sampler: ShardedEngine, trainer: ShardedLearner) -> None:
        self._sampler, self._trainer = sampler, trainer

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        torch.set_num_threads(1)
        return self._sampler.sample(prompts, params)

    def step(self, batch: Batch) -> Metrics:
        """One optimizer step of GRPO: ``loss``, ``grad_norm`` and more."""
        torch.set_num_threads(1)
        return self._trainer.step(batch, GRPO()).metrics


@contextmanager
def system(model: Transformer, precision: str, threads: int, rate: float = 1e-6) -> Iterator[System]:
    """Ours on ``threads`` cores: one process for each. rate: learning rate; 0 leaves the weights as they are."""
    torch.set_num_threads(1)
    sampler = ShardedEngine(engine(model, precision))
    trainer = ShardedLearner(learner(model, precision, rate), threads)
    with Team(threads, {**sampler.handlers, **trainer.handlers}) as team:
        sampler.join(team)
        trainer.join(team)
        yield System(sampler, trainer)


def graded(
    prompts: Sequence[TokenIds], groups: Sequence[Sequence[Completion]], reward: Callable[[TokenIds], float]
) -> Batch:
    """The batch of a GRPO step: advantages within each group, every token weighing the same, rows that teach only."""
    rollouts, advantages = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        rewards = [reward(completion.token_ids) for completion in group]
        advantages.append(group_normalized(torch.tensor(rewards)))
        rollouts += [_rollout(prompt, *pair) for pair in zip(group, rewards, strict=True)]
    everyone = torch.ones(len(rollouts), dtype=torch.bool)
    return informative(batch_of(rollouts, torch.cat(advantages), token_mean, everyone))


def _rollout(prompt: TokenIds, completion: Completion, reward: float) -> Rollout:
    score = Score(reward, reward > 0, {}, Verdict(reward, Outcome.GRADED))
    return Rollout(Problem("made up", (), ""), prompt, completion, "", score)
