"""What the doctor looks at: an RL stage and the model that it starts from, made small enough to look at in seconds."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from longthought.algorithms.objective import MultiToken
from longthought.core.protocols import Task
from longthought.core.types import (
    Completion,
    Group,
    Outcome,
    Problem,
    Rollout,
    SamplingParams,
    Score,
    TokenIds,
    Verdict,
)
from longthought.engine.engine import Engine
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.transformer import Transformer
from longthought.rollout.collect import grade_all, play
from longthought.runs.artifacts import Policy
from longthought.stages.method import Method
from longthought.stages.monitors import Monitors
from longthought.stages.rl import RL
from longthought.stages.updates import Updates
from longthought.training.team import Team

STEPS = 3
_PROBLEMS, _REPLIES = 8, 4
_ROWS, _REPLY, _ROW = 6, 20, 96  # rows whose gradients are taken, tokens of their replies, tokens of a row
_FLOPS = 1e11  # of sampling: some seconds of two cores
_LARGE = 40_000_000  # parameters; of a larger model the first two layers are looked at in float64
_LAYERS = 2
_LIMIT = 24  # tokens of a reply in the short loop
_SILENT = Monitors(1.0, 1e9, 1e9, 0.0, 1e9, 1e9, 1.0, stop=())
_UNGRADED = Verdict(0.0, Outcome.GRADED, "by the doctor")


class Walk(NamedTuple):
    """The stages of a recipe: (name, stage, what it is given as plain text). ``stopped``: why they are not all."""

    steps: Sequence[tuple[str, Any, str]]
    stopped: str = ""


@dataclass(frozen=True)
class Recipe:
    """Settings, and a walk through the recipe with other ones, which raises LongthoughtError where they are refused."""

    settings: Any
    walk: Callable[[Any], Walk]


class Played(NamedTuple):
    """Problems, their prompts and replies, the seconds that sampling took, and the limit of tokens that they had."""

    problems: list[Problem]
    replies: list[tuple[TokenIds, list[Completion]]]
    seconds: float
    limit: int


class Graded(NamedTuple):
    """Rollouts, and the seconds that grading took."""

    groups: list[Group]
    seconds: float


@dataclass
class Patient:
    """A stage, a policy, and what is computed from them once for all checks.

    trained: False where the policy is a stand-in of the right shape, so that its answers say nothing about a run.
    """

    stage: RL
    policy: Policy
    trained: bool = True
    evaluations: Sequence[EvaluationSettings] = ()
    recipe: Recipe | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if woken := _wake(self.policy.model):
            self.trained = False
            self.notes.append(f"{woken} parameters are all 0; noise was put there, so that what reads them can be seen")

    @property
    def model(self) -> Transformer:
        """The policy's model: not to be changed."""
        return self.policy.model

    @cached_property
    def small(self) -> RL:
        """The stage with few, short replies, in which every reply is trained on; the mathematics is the user's.

        What trains modules that predict further tokens is left out: it adds to an objective and changes nothing in it.
        """
        stage, method = self.stage, self.stage.method
        critic = None if method.critic is None else replace(method.critic, pretrain=0)
        objective = method.objective.objective if isinstance(method.objective, MultiToken) else method.objective
        kept: Method = replace(method, objective=objective, filter_truncated=False, refill=None, critic=critic)
        return replace(
            stage,
            method=kept,
            steps=STEPS,
            prompts=max(min(stage.prompts, 3), 2),
            samples=min(stage.samples, _REPLIES),
            updates=1,
            max_tokens=min(stage.max_tokens, _LIMIT),
            longer=(),
            hacking=None,
            save_every=STEPS,
            workers=1,
            reference_every=0,
            gap_limit=math.inf,
            monitors=_SILENT,
            quiet=True,
        )

    @cached_property
    def problems(self) -> list[Problem]:
        """The first problems of train that differ."""
        found: dict[Any, Problem] = {}
        for index in range(50 * _PROBLEMS):
            problem = self.stage.task.problem("train", index)
            found.setdefault(problem.messages, problem)
            if len(found) == _PROBLEMS:
                break
        return list(found.values())

    @cached_property
    def played(self) -> Played:
        """Replies of the stage's engine at its temperature; as long as the stage allows, where that is affordable."""
        stage, count = self.stage, min(self.stage.samples, _REPLIES)
        affordable = int(_FLOPS / (2 * max(self.parameters, 1)) / (count * len(self.problems)))
        limit = min(stage.max_tokens, max(8, affordable))
        params = SamplingParams(count, limit, stage.temperature, seed=stage.seed)
        began = time.perf_counter()
        with _engine(self.policy, stage) as engine:
            replies = play(self.problems, engine, self.policy.renderer, params)
        return Played(self.problems, replies, time.perf_counter() - began, limit)

    @cached_property
    def graded(self) -> Graded:
        """The replies, graded by the stage's task."""
        played = self.played
        began = time.perf_counter()
        groups = grade_all(self.stage.task, played.problems, played.replies, self.policy.renderer)
        return Graded(groups, time.perf_counter() - began)

    @cached_property
    def rows(self) -> list[Rollout]:
        """A few of the replies with their log-probs, cut to different lengths, of short rows: for gradients."""
        nothing = Score(0.0, False, {}, _UNGRADED)
        found: list[Rollout] = []
        pairs = [(problem, *one) for problem, one in zip(self.played.problems, self.played.replies)]
        for number in range(max(len(completions) for _, _, completions in pairs)):
            for problem, prompt, completions in pairs:
                if number < len(completions) and completions[number].token_ids:
                    length = min(_REPLY, 3 + 5 * (len(found) % 4))
                    completion, start = completions[number], prompt[: _ROW - _REPLY]
                    short = replace(
                        completion, token_ids=completion.token_ids[:length], logprobs=completion.logprobs[:length]
                    )
                    found.append(Rollout(problem, start, short, "", nothing))
        return found[:_ROWS]

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        return sum(p.numel() for p in self.model.parameters())

    def exact(self) -> Transformer:
        """A copy in float64; of a large model, its first layers."""
        model = self.model
        if self.parameters <= _LARGE:
            return copy.deepcopy(model).double()
        config = replace(model.config, num_hidden_layers=min(_LAYERS, model.config.num_hidden_layers))
        short = Transformer(config)
        names = short.state_dict().keys()
        short.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names})
        return short.to(model.lm_head.weight.device).double()

    @property
    def exact_note(self) -> str:
        """What ``exact`` left out, in words."""
        layers = self.model.config.num_hidden_layers
        return f", first {_LAYERS} of {layers} layers" if self.parameters > _LARGE and layers > _LAYERS else ""


@contextmanager
def updates_of(stage: RL, model: Transformer) -> Iterator[Updates]:
    """The stage's own learners, reference and critic around ``model``, which is changed by what they do."""
    updates = Updates(stage, model)
    with Team(1, {name: h for one in updates.members for name, h in one.handlers.items()}) as team:
        for one in updates.members:
            one.join(team)
        yield updates


@contextmanager
def _engine(policy: Policy, stage: RL) -> Iterator[ShardedEngine]:
    engine = ShardedEngine(Engine(policy, stage.engine))
    with Team(1, engine.handlers) as team:
        engine.join(team)
        yield engine


@dataclass(frozen=True)
class Contrast:
    """The problems of a task, whose replies are paid in turns, so that every group teaches something."""

    task: Task

    @property
    def name(self) -> str:
        """That of the task."""
        return self.task.name

    def problem(self, split: str, index: int) -> Problem:
        """A problem of the task."""
        return self.task.problem(split, index)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Right, wrong, right, wrong …"""
        shift = sum(map(ord, problem.id)) % 2
        paid = [float((number + shift) % 2 == 0) for number in range(len(replies))]
        return [Score(value, value == 1, {"accuracy": value}, replace(_UNGRADED, value=value)) for value in paid]


def _wake(model: Transformer) -> int:
    """Put noise into matrices that are all zero, in place; returns how many there were."""
    generator = torch.Generator().manual_seed(0)
    asleep = [p for p in model.parameters() if p.dim() > 1 and not bool(p.any())]
    with torch.no_grad():
        for parameter in asleep:
            noise = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
            parameter.copy_(noise)
    return len(asleep)
