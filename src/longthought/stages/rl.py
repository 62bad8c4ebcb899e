"""Reinforcement learning with verifiable rewards. No line of it knows an algorithm or a task.

One step: sample a group of replies to each problem, grade them, turn rewards into advantages, lay everything out as
one batch whose weights are final, minimise the objective. What makes it GRPO, Dr. GRPO, DAPO or RLOO are the four
small functions that it is given (``Method``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longthought.algorithms.advantage import BatchAdvantage
from longthought.core.errors import LogprobGap, SettingsError
from longthought.core.protocols import Objective, Shaping, Task, Weighting
from longthought.core.types import CUT, Batch, Group, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.behaviours import Lexicon
from longthought.rollout.collect import grade, play
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.stages.rl_metrics import headline, rollout_metrics
from longthought.training.batching import batch_of, informative, with_reference
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW, OptimizerSettings
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team


@dataclass(frozen=True)
class Method:
    """An algorithm, as the four small functions in which the papers differ.

    ``filter_truncated`` leaves replies that were cut out of the loss and its denominator; their rewards stay in the
    baseline.
    """

    advantage: BatchAdvantage
    weighting: Weighting
    objective: Objective
    shaping: tuple[Shaping, ...] = ()
    filter_truncated: bool = False


@dataclass(frozen=True)
class RL:
    """``steps`` times: ``prompts`` problems × ``samples`` replies, then ``updates`` optimizer steps on them.

    ``reference_every``: the reference of the KL term becomes the policy every so many steps; 0 keeps the first one.
    ``gap_limit``: the largest mean |log-prob gap| (nats) between sampler and learner that is tolerated.
    ``workers``: processes that share the rollouts and the gradient.
    """

    task: Task
    method: Method
    lexicon: Lexicon
    steps: int = 100
    prompts: int = 16
    samples: int = 16
    updates: int = 2
    max_tokens: int = 192
    temperature: float = 1.0
    seed: int = 0
    reference_every: int = 0
    gap_limit: float = 1e-3
    save_every: int = 1
    optimizer: OptimizerSettings = AdamW()
    learner: LearnerSettings = LearnerSettings()
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "updates", "max_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"rl: {name}={getattr(self, name)} must be at least 1")
        if self.samples < 2:
            raise SettingsError(f"rl: samples={self.samples}: a group needs at least 2 replies to have a baseline")
        if self.updates > self.prompts * self.samples:
            raise SettingsError(
                f"rl: updates={self.updates} exceed the {self.prompts * self.samples} replies of a step"
            )
        if self.temperature <= 0:
            raise SettingsError(f"rl: temperature={self.temperature}: must be positive")
        if self.reference_every and "logp_ref" not in self.method.objective.reads:
            raise SettingsError(
                f"rl: reference_every={self.reference_every} changes nothing: the objective has no KL term (beta=0)"
            )

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        loop = _Loop(self, given.load())
        start = loop.restore(place)
        with loop.start_team(), progress("rl", self.steps, start=start, quiet=self.quiet) as bar:
            for step in range(start + 1, self.steps + 1):
                metrics = loop.step(step, place)
                place.log(step, metrics)
                place.time(step, loop.clock.read())
                if step % self.save_every == 0 or step == self.steps:
                    loop.save(step, place)
                bar.update(step, headline(metrics))
        provenance = {"stage": "rl", "steps": self.steps, "seed": self.seed, "from": given.provenance().get("files")}
        return Checkpoint.save(place.path / "model", loop.policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")


class _Loop:
    """What lives through the steps: policy, learner, engine, and the reference if the objective reads one."""

    def __init__(self, stage: RL, policy: Policy) -> None:
        self.stage, self.policy, self.clock = stage, policy, Clock()
        learner = PolicyLearner(
            policy.model, stage.optimizer, stage.steps * stage.updates, stage.temperature, stage.learner
        )
        self.learner = ShardedLearner(learner, stage.workers)
        self.engine = ShardedEngine(Engine(policy.model, stage.engine))
        self.reference: ShardedLearner | None = None
        if "logp_ref" in stage.method.objective.reads:
            frozen = PolicyLearner(copy.deepcopy(policy.model), AdamW(), 1, stage.temperature, stage.learner)
            self.reference = ShardedLearner(frozen, stage.workers, "reference")

    def start_team(self) -> Team:
        """The processes that share the work. To be called when all weights are in place."""
        handlers = self.learner.handlers | self.engine.handlers
        team = Team(self.stage.workers, handlers | (self.reference.handlers if self.reference else {}))
        for member in (self.learner, self.engine, self.reference):
            if member is not None:
                member.join(team)
        return team

    def step(self, step: int, place: Place) -> dict[str, float]:
        """One step of RL; its rollouts go to the trace store."""
        groups = self._rollouts(step)
        shaping = {one.name: [one(group) for group in groups] for one in self.stage.method.shaping}
        rewards = _rewards(groups, shaping)
        number = torch.arange(len(groups)).repeat_interleave(self.stage.samples)
        advantages = self.stage.method.advantage(rewards, number)
        self.clock.lap("grading")
        updates = self._train(step, groups, advantages, rewards)
        self.clock.lap("training")
        width = self.stage.samples
        place.trace(
            step,
            groups,
            rewards=rewards.view(-1, width).tolist(),
            advantages=advantages.view(-1, width).tolist(),
            shaping=shaping,
        )
        metrics = {**rollout_metrics(groups, rewards, self.stage.lexicon), **updates}
        self.clock.lap("recording")
        return metrics

    def _rollouts(self, step: int) -> list[Group]:
        stage = self.stage
        first = (step - 1) * stage.prompts
        problems = [stage.task.problem("train", first + i) for i in range(stage.prompts)]
        params = SamplingParams(stage.samples, stage.max_tokens, stage.temperature, seed=stage.seed * 1_000_003 + step)
        self.engine.version = self.learner.version
        played = play(problems, self.engine, self.policy.renderer, params)
        self.clock.lap("sampling")
        return [grade(stage.task, problem, one, self.policy.renderer) for problem, one in zip(problems, played)]

    def _train(self, step: int, groups: Sequence[Group], advantages: Tensor, rewards: Tensor) -> dict[str, float]:
        """``updates`` optimizer steps on disjoint random parts of the rollouts."""
        stage, method = self.stage, self.stage.method
        if self.reference and stage.reference_every and step > 1 and (step - 1) % stage.reference_every == 0:
            self.reference.learner.model.load_state_dict(self.policy.model.state_dict())
        rollouts = [rollout for group in groups for rollout in group]
        trained = ~rewards.isnan()
        if method.filter_truncated:
            trained &= torch.tensor([r.completion.finish not in CUT for r in rollouts])
        order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(stage.seed * 1_000_003 + step))
        parts = [
            batch_of([rollouts[i] for i in part], advantages[part], method.weighting, trained[part])
            for part in order.tensor_split(stage.updates)
        ]
        done: list[Mapping[str, float]] = []
        for batch in map(self._complete, parts):
            if len(batch.tokens):
                done.append(self.learner.step(batch, method.objective))
        if not done:
            return {"updates": 0.0}
        self._check_gap(step, done[0])
        means = {name: sum(m[name] for m in done) / len(done) for name in done[0]}
        on_policy = {name: done[0][name] for name in ("logprob_gap", "logprob_gap_max")}
        return {**means, **on_policy, "updates": float(len(done))}

    def _complete(self, batch: Batch) -> Batch:
        """Leave out rows that cannot move the weights, or fill the reference column when there is a KL term."""
        if self.stage.method.objective.silent_without_advantage:
            batch = informative(batch)
        return batch if self.reference is None else with_reference(batch, self.reference.logprobs(batch))

    def _check_gap(self, step: int, first: Mapping[str, float]) -> None:
        if first["logprob_gap"] > self.stage.gap_limit:
            raise LogprobGap(
                f"step {step}: the learner's log-probs differ from the sampler's by {first['logprob_gap']:.2e} nats a "
                f"token on average (limit {self.stage.gap_limit:.0e}). The sampler does not run the learner's weights, "
                "or computes them differently; a run that goes on would be off-policy without saying so"
            )

    def save(self, step: int, place: Place) -> None:
        tensors, values = self.learner.learner.state()
        if self.reference is not None:
            tensors |= {f"reference.{name}": t.clone() for name, t in self.reference.learner.model.state_dict().items()}
        place.save_state(step, tensors, {"learner": values})

    def restore(self, place: Place) -> int:
        """Continue from the newest state in ``place``; returns the steps done."""
        state = place.load_state()
        if state is None:
            return 0
        self.learner.learner.restore(state.tensors, state.values["learner"])
        if self.reference is not None:
            prefix = "reference."
            weights = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
            self.reference.learner.model.load_state_dict(weights)
        return state.step


class Clock:
    """Where the time of a step went, in seconds by part."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Book the time since the last call under ``part``."""
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Everything booked since the last ``read``."""
        parts, self._parts = self._parts, {}
        return parts


def _rewards(groups: Sequence[Group], shaping: Mapping[str, Sequence[Sequence[float]]]) -> Tensor:
    """Task reward plus shaping, (N,) float64; NaN where the task gave none."""
    rewards = torch.tensor(
        [float("nan") if r.score.value is None else r.score.value for group in groups for r in group],
        dtype=torch.float64,
    )
    for values in shaping.values():
        rewards = rewards + torch.tensor([value for group in values for value in group], dtype=torch.float64)
    return rewards
