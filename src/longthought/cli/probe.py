"""Some seconds of the real work on this machine, with the actual settings and an untrained model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from longthought.algorithms.multi_token import MultiToken
from longthought.core.protocols import Sampler
from longthought.core.types import Batch, Group, SamplingParams, TokenIds
from longthought.engine.engine import Engine
from longthought.engine.sharding import ShardedEngine
from longthought.rollout.collect import collect
from longthought.runs.artifacts import Policy
from longthought.stages.pretrain import Pretrain
from longthought.stages.pretrain_loop import learner_of, objective_at
from longthought.stages.rl import RL
from longthought.stages.sft import SFT
from longthought.stages.sft_rows import Rendered
from longthought.training.batching import batch_of, documents, with_reference
from longthought.training.learner import LogprobHead, PolicyLearner
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

SECONDS = 1.0  # for each of: pretraining, sampling and training in RL
_DOCUMENTS = 64
_REPLIES = 256
_EXAMPLES = 512
_FIRST_TOKENS = 8


class PretrainingRate(NamedTuple):
    """``seconds`` of one optimizer step, the reading of its documents included; ``optimizer`` bytes of its state."""

    seconds: float
    optimizer: int


class TuningRate(NamedTuple):
    """``seconds`` of one optimizer step, mean ``tokens`` of an example, bytes of the ``optimizer``'s state."""

    seconds: float
    tokens: float
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
    read = stage.sample(_DOCUMENTS)
    reading = (time.perf_counter() - began) / sum(map(len, read))
    chosen = _filled(read, stage.tokens_per_step)
    batch = documents(chosen)
    learner, objective = learner_of(stage, policy.model), objective_at(stage, policy.model.config, 0)
    sharded = ShardedLearner(learner, stage.workers)
    with Team(stage.workers, sharded.handlers) as team:
        sharded.join(team)
        each = _seconds(lambda: sharded.step(batch, objective))
    return PretrainingRate(each + reading * sum(map(len, chosen)), _optimizer_bytes(learner))


def tuning_rate(stage: SFT, policy: Policy) -> TuningRate:
    """Time real optimizer steps on the first examples; all weights are trained, whatever the stage says."""
    rendering, objective = stage.rendering(policy), stage.objective(policy.model.config)
    with Team(1, {"render": rendering.some}) as team:
        rows = Rendered.of(rendering, "train", team, "render", _EXAMPLES)
    batch = rows.batch(stage.steps(rows)[0][0], stage.weighting)
    settings = replace(stage.learner, balancing=None)
    head = LogprobHead(1.0, settings.head_chunk, ahead=isinstance(objective, MultiToken))
    learner = PolicyLearner(policy.model, stage.optimizer(1), 1, settings=settings, head=head)
    sharded = ShardedLearner(learner, stage.workers)
    with Team(stage.workers, sharded.handlers) as team:
        sharded.join(team)
        each = _seconds(lambda: sharded.step(batch, objective))
    return TuningRate(each, float(rows.lengths.mean()), _optimizer_bytes(learner))


def rl_rate(stage: RL, policy: Policy) -> RLRate:
    """Time real rollouts and optimizer steps on them."""
    learner = PolicyLearner(
        policy.model, stage.optimizer, stage.steps * stage.updates, stage.temperature, stage.learner
    )
    sharded, sampler = ShardedLearner(learner, stage.workers), ShardedEngine(Engine(policy, stage.engine))
    with Team(stage.workers, sharded.handlers | sampler.handlers) as team:
        sharded.join(team)
        sampler.join(team)
        groups, sampling = _sampled(stage, policy, sampler)
        batch = _batch(stage, groups)

        def step() -> None:
            full = batch
            if "logp_ref" in stage.method.objective.reads:
                full = with_reference(batch, sharded.logprobs(batch))
            sharded.step(full, stage.method.objective)

        training = _seconds(step)
    rollouts = [rollout for group in groups for rollout in group]
    tokens, prompts = (sum(map(len, part)) for part in zip(*((r.completion.token_ids, r.prompt) for r in rollouts)))
    prompt = prompts / len(rollouts)
    return RLRate(tokens / sampling, (prompts + tokens) / training, prompt, _optimizer_bytes(learner))


def _seconds(step: Callable[[], object]) -> float:
    """Of one step, as the mean over ``SECONDS`` of them; the first one, which allocates, does not count."""
    step()
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return (time.perf_counter() - began) / steps


def _filled(read: list[TokenIds], room: int) -> list[TokenIds]:
    """Documents, repeated if there are too few, of together at most ``room`` tokens, and at least one."""
    batch: list[TokenIds] = []
    while room >= len(read[len(batch) % len(read)]):
        batch.append(read[len(batch) % len(read)])
        room -= len(batch[-1])
    return batch or read[:1]


def _batch(stage: RL, groups: list[Group]) -> Batch:
    """As an RL step makes it, with advantages of every size."""
    rollouts = [rollout for group in groups for rollout in group]
    advantages = torch.linspace(-1, 1, len(rollouts))
    return batch_of(rollouts, advantages, stage.method.weighting, torch.ones(len(rollouts), dtype=torch.bool))


def _sampled(stage: RL, policy: Policy, sampler: Sampler) -> tuple[list[Group], float]:
    """Graded rollouts and the seconds that they took; answers grow until this takes long enough to tell."""
    count = max(1, min(stage.prompts, _REPLIES // stage.samples))
    problems = [stage.task.problem("train", index) for index in range(count)]
    length = min(_FIRST_TOKENS, stage.max_tokens)
    while True:
        params = SamplingParams(min(stage.samples, _REPLIES), length, stage.temperature)
        began = time.perf_counter()
        groups = collect(stage.task, problems, sampler, policy.renderer, params)
        seconds = time.perf_counter() - began
        if seconds >= SECONDS / 2 or length == stage.max_tokens:
            return groups, seconds
        length = min(stage.max_tokens, 2 * length)


def _optimizer_bytes(learner: PolicyLearner) -> int:
    tensors = [tensor for name, tensor in learner.state()[0].items() if name.startswith("optimizer.")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
