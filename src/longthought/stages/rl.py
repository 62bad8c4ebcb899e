"""Reinforcement learning with verifiable rewards. No line of it knows an algorithm or a task.

One step: sample a group of replies to each problem, grade them, turn rewards into advantages (``earning``), lay
everything out as one batch whose weights are final, minimise the objective (``updates``). What makes it GRPO, Dr. GRPO,
DAPO, RLOO or PPO are the small functions that it is given (``method``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from longthought.core.errors import Alarm, SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Group, Problem, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.behaviours import ENGLISH, Lexicon
from longthought.models.lora import LoRA
from longthought.rollout.collect import collect
from longthought.rollout.shaping import Overlong
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.runs.progress import progress
from longthought.stages.earning import is_live, nested, rewards_of
from longthought.stages.hacking import Hacking, HackingWatch
from longthought.stages.method import Method
from longthought.stages.monitors import Monitors
from longthought.stages.rl_metrics import headline, rollout_metrics
from longthought.stages.updates import Updates
from longthought.tasks.mixture import Mixture
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW, OptimizerSettings
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

_ROUND = 1_000_000_007  # between the seeds of two rounds of a step


@dataclass(frozen=True)
class RL:
    """``steps`` times: ``prompts`` problems × ``samples`` replies, then ``updates`` optimizer steps on them.

    ``longer``: pairs (step, tokens), both rising: from that step on replies may be so long. R1-Zero: 32,768 tokens, and
    65,536 from step 8,200 of 10,400 on. Dr. GRPO's constant length stays as it is, being but a factor of the learning
    rate; an ``Overlong`` below the last limit is refused, since it would punish what is allowed.
    ``adapter``: train a LoRA instead of the weights.
    ``reference_every``: the reference of the KL term becomes the policy every so many steps; 0 keeps the first one.
    ``gap_limit``: the largest mean |log-prob gap| (nats) between sampler and learner that is tolerated; None: what the
    precision explains, see ``updates.gap_limit``.
    ``monitors``: what is watched, and when the run stops by itself.
    ``replay_routing``: in the learner, tokens choose the experts that they chose when they were sampled, so that both
    run the same net; None: if the model has routed experts. The metric ``routing_disagreement`` is the share of these
    choices that the learner would not have made, at the step's first update. The biases that balance experts stay as
    they are, unless ``learner`` has ``balancing``.
    ``hacking``: whether and how reward hacking is looked for; where it is found, the run ends with earlier weights.
    ``workers``: processes that share the rollouts and the gradient.
    ``top_p``, ``top_k``: refused unless they are off. A policy gradient needs the probability under which a token was
    drawn; truncated sampling draws from another distribution than the one that is trained. (An evaluation may use them;
    what the model folder's generation config says is not used here.)
    """

    task: Task
    method: Method
    lexicon: Lexicon = ENGLISH
    steps: int = 100
    prompts: int = 16
    samples: int = 16
    updates: int = 2
    max_tokens: int = 192
    longer: tuple[tuple[int, int], ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    reference_every: int = 0
    gap_limit: float | None = None
    save_every: int = 1
    adapter: LoRA | None = None
    optimizer: OptimizerSettings = AdamW()
    learner: LearnerSettings = LearnerSettings()
    engine: EngineSettings = EngineSettings()
    replay_routing: bool | None = None
    hacking: Hacking | None = None
    monitors: Monitors = field(default=Monitors(), compare=False)
    workers: int = 1
    quiet: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "samples", "updates", "max_tokens", "save_every", "workers"):
            if getattr(self, name) < 1:
                raise SettingsError(f"rl: {name}={getattr(self, name)} must be at least 1")
        for name in ("temperature", "gap_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"rl: {name}={value}: must be positive")
        self._check_groups()
        self._check_limits()
        if self.updates > self.prompts * self.samples:
            raise SettingsError(
                f"rl: updates={self.updates} exceed the {self.prompts * self.samples} replies of a step"
            )
        if self.top_p != 1 or self.top_k:
            raise SettingsError(
                f"rl: top_p={self.top_p}, top_k={self.top_k}: rollouts of RL must come from the policy itself, since "
                "cut-off tokens make the log-probs of sampler and learner differ; leave top_p=1 and top_k=0 here; an "
                "evaluation may use them"
            )
        self._check_method()

    def _check_method(self) -> None:
        if self.reference_every and not self.method.needs_reference:
            raise SettingsError(
                f"rl: reference_every={self.reference_every} changes nothing: the method has no KL term (beta=0)"
            )
        if self.reference_every and self.adapter is not None:
            raise SettingsError(
                "rl: reference_every changes nothing with an adapter: the model without it is the reference"
            )
        if self.hacking is not None:
            self.hacking.check(self.steps, self.method)
        critic = self.method.critic
        if critic is not None and critic.pretrain >= self.steps:
            raise SettingsError(
                f"rl: the critic is pretrained for {critic.pretrain} of {self.steps} steps: the policy never learns"
            )

    def _check_groups(self) -> None:
        if self.samples < 2 and self.method.compares:
            raise SettingsError(f"rl: samples={self.samples}: a group needs at least 2 replies to have a baseline")
        if self.samples < 2 and self.method.refill is not None:
            raise SettingsError(f"rl: samples={self.samples}: with refill every group would be dropped; give 2 or more")

    def _check_limits(self) -> None:
        before = (1, self.max_tokens)
        if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in self.longer):
            raise SettingsError(f"rl: longer={self.longer} must hold pairs (step, tokens), such as ((200, 1024),)")
        for step, tokens in self.longer:
            if step <= before[0] or tokens <= before[1]:
                raise SettingsError(
                    f"rl: longer={self.longer}: steps must rise from 2 on, and tokens from max_tokens={self.max_tokens}"
                )
            before = (step, tokens)
        if before[0] > self.steps:
            raise SettingsError(f"rl: longer={self.longer}: step {before[0]} comes after the last of {self.steps}")
        for one in self.method.shaping:
            if self.longer and isinstance(one, Overlong) and one.maximum < self.longest:
                raise SettingsError(
                    f"rl: {one.name}: replies of {one.maximum} tokens would be punished as too long when "
                    f"{self.longest} are allowed (longer={self.longer}): give it that maximum, or leave it out"
                )

    def limit(self, step: int) -> int:
        """The longest reply of a step, in tokens."""
        return max((tokens for first, tokens in self.longer if first <= step), default=self.max_tokens)

    @property
    def longest(self) -> int:
        """The longest reply of any step, in tokens."""
        return self.limit(self.steps)

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        loop = _Loop(self, given.load())
        step = start = loop.restore(place)
        with loop.start_team(), progress("rl", self.steps, start=start, quiet=self.quiet) as bar:
            if not start and (first := loop.look(0)):
                place.log(0, first)
            while step < self.steps and not loop.caught:
                step += 1
                metrics = loop.step(step, place) | loop.look(step)
                place.log(step, metrics)
                place.time(step, loop.clock.read())
                if step % self.save_every == 0 or step == self.steps or loop.caught:
                    loop.save(step, place)
                bar.update(step, headline(metrics))
            loop.watch.finish()
        provenance = {"stage": "rl", "steps": self.steps, "seed": self.seed, "from": given.fingerprints()}
        if loop.hacking is not None:
            provenance["looks"] = loop.hacking.settle(step, loop.policy.model, place.path)
        return Checkpoint.save(place.path / "model", loop.policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")


class _Sampled(NamedTuple):
    """The groups of a step. ``dropped``: by dynamic sampling.  ``greedy``: one reply to each problem that was kept."""

    kept: list[Group]
    dropped: list[Group]
    greedy: list[Group]


class _Loop:
    """What lives through the steps: policy, learner, engine, and the reference and the critic if they are read."""

    def __init__(self, stage: RL, policy: Policy) -> None:
        self.stage, self.policy, self.clock = stage, policy, Clock()
        context = policy.model.config.max_position_embeddings
        if stage.longest >= context:
            name = "longer" if stage.longer else "max_tokens"
            raise SettingsError(
                f"rl: {name}={stage.longest} does not fit into the model's context of {context} tokens, "
                "where the prompt needs room, too"
            )
        routed = policy.model.config.experts is not None
        if stage.replay_routing and not routed:
            raise SettingsError("rl: replay_routing=True: the model has no routed experts; leave it out")
        self.drawn = 0  # problems sampled so far
        self.parts = stage.task.names if isinstance(stage.task, Mixture) else ()
        self.watch = stage.monitors.start()
        self.hacking: HackingWatch | None = None
        if stage.hacking is not None:
            params = SamplingParams(max_tokens=stage.longest, temperature=stage.temperature)
            self.hacking = HackingWatch(stage.hacking, stage.method, stage.steps, params)
        self.updates = Updates(stage, policy.model)
        self.engine = ShardedEngine(Engine(policy, replace(stage.engine, routing=routed or stage.engine.routing)))

    def start_team(self) -> Team:
        """The processes that share the work. To be called when all weights are in place."""
        members: list[ShardedLearner | ShardedEngine] = [*self.updates.members, self.engine]
        team = Team(self.stage.workers, {name: h for m in members for name, h in m.handlers.items()})
        for member in members:
            member.join(team)
        return team

    def step(self, step: int, place: Place) -> dict[str, float]:
        """One step of RL; its rollouts go to the trace store."""
        sampled = self._rollouts(step)
        groups = [*sampled.kept, *sampled.dropped]
        rewards = rewards_of(groups, self.stage.method, sampled.greedy)
        self.clock.lap("grading")
        done = self.updates.run(step, sampled.kept, rewards)
        self.clock.lap("training")
        place.trace(
            step,
            groups,
            rewards=nested(rewards.total.tolist(), groups),
            advantages=nested(done.advantages, groups),
            shaping=rewards.shaping,
            trained=nested(done.records, groups),
        )
        metrics = {**rollout_metrics(groups, rewards, self.stage.lexicon, self.parts), **done.metrics}
        if self.stage.longer:
            metrics["max_tokens"] = float(self.stage.limit(step))
        if self.stage.method.refill is not None:
            metrics["drawn"] = len(groups) / self.stage.prompts
        try:
            metrics |= self.watch.read(step, metrics)
        except Alarm as error:
            raise Alarm(f"{error}{_first_failure(groups)}") from error
        self.clock.lap("recording")
        return metrics

    @property
    def caught(self) -> bool:
        """Whether reward hacking was found."""
        return self.hacking is not None and self.hacking.caught

    def look(self, step: int) -> dict[str, float]:
        """What the watch for reward hacking measures after a step; nothing when it does not look."""
        if self.hacking is None or not self.hacking.is_due(step):
            return {}
        self.engine.version = self.updates.learner.version
        metrics = self.hacking.look(step, self.engine, self.policy.renderer, self.policy.model)
        self.clock.lap("looks")
        return metrics

    def _rollouts(self, step: int) -> _Sampled:
        """Sample and grade; with dynamic sampling, again and again until there are enough groups that teach."""
        stage, refill = self.stage, self.stage.method.refill
        kept: list[Group] = []
        dropped: list[Group] = []
        wanted = stage.prompts
        for number in range(refill.rounds if refill else 1):
            groups = self._sample(step, number, self._draw(wanted), stage.samples, stage.temperature)
            for group in groups:
                good = refill is None or (is_live(group) and len(kept) < stage.prompts)
                (kept if good else dropped).append(group)
            missing = stage.prompts - len(kept)
            if not missing:
                break
            share = max(len(kept) / (len(kept) + len(dropped)), 0.25)
            wanted = min(stage.prompts, math.ceil(missing / share))
        greedy: list[Group] = []
        if stage.method.greedy_baseline:
            greedy = self._sample(step, 0, [group[0].problem for group in kept], 1, 0.0)
        return _Sampled(kept, dropped, greedy)

    def _draw(self, count: int) -> list[Problem]:
        """The next problems of the training split."""
        self.drawn += count
        return [self.stage.task.problem("train", index) for index in range(self.drawn - count, self.drawn)]

    def _sample(self, step: int, number: int, problems: Sequence[Problem], count: int, heat: float) -> list[Group]:
        seed = self.stage.seed * 1_000_003 + step + number * _ROUND
        self.engine.version = self.updates.learner.version
        params = SamplingParams(count, self.stage.limit(step), heat, seed=seed)
        task, renderer = self.stage.task, self.policy.renderer
        groups = collect(task, problems, self.engine, renderer, params, lambda: self.clock.lap("sampling"))
        self.clock.lap("grading")  # only what was waited for: the rest was done beside sampling
        return groups

    def save(self, step: int, place: Place) -> None:
        tensors, values = self.updates.state()
        values |= {"drawn": self.drawn, "watch": self.watch.state()}
        if self.hacking is not None:
            best, values["hacking"] = self.hacking.state()
            tensors |= best
        place.save_state(step, tensors, values)

    def restore(self, place: Place) -> int:
        """Continue from the newest state in ``place``; returns the steps done."""
        state = place.load_state()
        if state is None:
            return 0
        self.updates.restore(state.tensors, state.values)
        self.drawn = state.values["drawn"]
        self.watch.restore(state.values["watch"])
        if self.hacking is not None:
            self.hacking.restore(state.tensors, state.values["hacking"])
        return state.step


def _first_failure(groups: Sequence[Group]) -> str:
    """What a verifier said of the first reply that it could not grade; empty if there is none."""
    for rollout in (rollout for group in groups for rollout in group):
        verdict = rollout.score.verdict
        if verdict.value is None:
            return f". The first: {rollout.problem.id}: {verdict.outcome}, {verdict.evidence[:300]}"
    return ""


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
