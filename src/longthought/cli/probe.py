"""Two seconds of the real work on this machine, with the actual settings and an untrained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longthought.algorithms.objective import NLL
from longthought.core.types import Group, SamplingParams, TokenIds
from longthought.engine.engine import Engine
from longthought.rollout.collect import collect
from longthought.runs.artifacts import Policy
from longthought.stages.pretrain import Pretrain
from longthought.stages.rl import RL
from longthought.training.batching import batch_of, documents, with_reference
from longthought.training.learner import LearnerSettings, PolicyLearner

SECONDS = 1.0  # for each of: pretraining, sampling and training in RL
_DOCUMENTS = 64
_REPLIES = 256
_FIRST_TOKENS = 8


class PretrainingRate(NamedTuple):
    """``seconds`` of one optimizer step, the reading of its documents included; ``optimizer`` bytes of its state."""

    seconds: float
    optimizer: int


class RLRate(NamedTuple):
    """Tokens per second, the mean length of a prompt, and bytes of the optimizer's state."""

    sampled: float
    trained: float
    prompt: float
    optimizer: int


def pretraining_rate(stage: Pretrain, policy: Policy) -> PretrainingRate:
    """Time real optimizer steps."""
    began = time.perf_counter()
    pages = [stage.corpus.document(index) for index in range(_DOCUMENTS)]
    read = [policy.renderer.document(page.user, page.text) for page in pages]
    reading = (time.perf_counter() - began) / sum(map(len, read))
    batch: list[TokenIds] = []
    room = stage.tokens_per_step
    while room >= len(read[len(batch) % len(read)]):
        batch.append(read[len(batch) % len(read)])
        room -= len(batch[-1])
    batch = batch or read[:1]
    settings = LearnerSettings(max(2048, stage.tokens_per_step))
    learner = PolicyLearner(policy.model, stage.optimizer, stage.steps, settings=settings)
    learner.step(documents(batch), NLL())  # the first one allocates
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < SECONDS:
        learner.step(documents(batch), NLL())
        steps += 1
    each = (time.perf_counter() - began) / steps
    return PretrainingRate(each + reading * sum(map(len, batch)), _optimizer_bytes(learner))


def rl_rate(stage: RL, policy: Policy) -> RLRate:
    """Time real rollouts and optimizer steps on them."""
    groups, seconds = _sampled(stage, policy)
    rollouts = [rollout for group in groups for rollout in group]
    tokens = sum(len(r.completion.token_ids) for r in rollouts)
    laid_out = sum(len(r.prompt) + len(r.completion.token_ids) for r in rollouts)
    advantages = torch.linspace(-1, 1, len(rollouts))
    batch = batch_of(rollouts, advantages, stage.method.weighting, torch.ones(len(rollouts), dtype=torch.bool))
    learner = PolicyLearner(
        policy.model, stage.optimizer, stage.steps * stage.updates, stage.temperature, stage.learner
    )
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < SECONDS:
        if "logp_ref" in stage.method.objective.reads:
            batch = with_reference(batch, learner.logprobs(batch))
        learner.step(batch, stage.method.objective)
        steps += 1
    trained = laid_out * steps / (time.perf_counter() - began)
    prompt = sum(len(r.prompt) for r in rollouts) / len(rollouts)
    return RLRate(tokens / seconds, trained, prompt, _optimizer_bytes(learner))


def _sampled(stage: RL, policy: Policy) -> tuple[list[Group], float]:
    """Graded rollouts and the seconds that they took; answers grow until this takes long enough to tell."""
    count = max(1, min(stage.prompts, _REPLIES // stage.samples))
    problems = [stage.task.problem("train", index) for index in range(count)]
    length = min(_FIRST_TOKENS, stage.max_tokens)
    while True:
        params = SamplingParams(min(stage.samples, _REPLIES), length, stage.temperature)
        began = time.perf_counter()
        groups = collect(stage.task, problems, Engine(policy.model, stage.engine), policy.renderer, params)
        seconds = time.perf_counter() - began
        if seconds >= SECONDS / 2 or length == stage.max_tokens:
            return groups, seconds
        length = min(stage.max_tokens, 2 * length)


def _optimizer_bytes(learner: PolicyLearner) -> int:
    tensors: Sequence[Tensor] = [t for name, t in learner.state()[0].items() if name.startswith("optimizer.")]
    return sum(t.numel() * t.element_size() for t in tensors)
