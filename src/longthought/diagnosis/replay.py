"""A recorded step of RL, computed again from its stored rollouts, as it was and with another method.

Nothing is sampled, graded or written. With the training state before the step (the newest two are kept), or for the
first step, the real ``Updates`` run on a copy of the weights, and the recorded method must give what was logged.
Without it, the log-probs that the learner recorded stand in for the weights: what is said of tokens is there, the
gradient of the weights is not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.algorithms.credit import ReMax
from longthought.core.errors import RunDamaged, RunError, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import (
    Batch,
    Completion,
    Finish,
    Group,
    Outcome,
    PolicyOutput,
    Problem,
    Rollout,
    Rows,
    Score,
    Update,
    Verdict,
)
from longthought.models.transformer import Transformer
from longthought.runs import state, traces
from longthought.runs.logs import read_log
from longthought.runs.place import METRICS, STATES, TRACES
from longthought.runs.state import State
from longthought.stages.earning import Rewards, is_live
from longthought.stages.method import Method
from longthought.stages.rl import RL
from longthought.stages.updates import DROPPED, Done, Updates
from longthought.training.learner import PolicyLearner, Tally
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

TOLERANCE = 1e-4
_PULLED = 1e-4  # share of the pull that counts


@dataclass(frozen=True)
class Recorded:
    """A step as the run stored it.

    groups: those that were kept, then those that dynamic sampling dropped (``kept`` counts the first).
    rows: of the trace, in the same order.  metrics: what was logged.
    before: the training state that the step started from; None where it is not kept, or for the first step.
    """

    stage: RL
    step: int
    groups: tuple[Group, ...]
    kept: int
    rows: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float]
    before: State | None
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the weights before the step are known."""
        return self.before is not None or self.step == 1

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group]


@dataclass(frozen=True)
class Replayed:
    """What a method makes of the step.

    metrics: as the stage logs them.  advantage: mean |A| over the tokens that it trained on.
    pulls: for every rollout of the step Σₜ −∂loss/∂log π(oₜ): how hard it is made more (> 0) or less (< 0) likely.
    gradients: of the weights, (D,), one for each update; none where the weights are not known.
    """

    metrics: Mapping[str, float]
    advantage: float
    pulls: tuple[float, ...]
    gradients: tuple[Tensor, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Check:
    """A metric of the recorded method, as it was logged and as it came out now."""

    name: str
    logged: float
    found: float

    @property
    def holds(self) -> bool:
        return abs(self.found - self.logged) <= TOLERANCE * max(1.0, abs(self.logged))


@dataclass(frozen=True)
class Changed:
    """A rollout (``row`` of the trace) and its share of the pull of its step, before and after."""

    row: int
    before: float
    after: float

    @property
    def size(self) -> float:
        return abs(self.after - self.before)

    @property
    def turned(self) -> bool:
        """Whether it is pulled the other way, by more than a trace."""
        return self.before * self.after < 0 and min(abs(self.before), abs(self.after)) > _PULLED


def read(place: Path, stage: RL, step: int) -> Recorded:
    """A step of the RL stage in the folder ``place``. Only reads, so the run may be going on.

    Raises:
        RunError: the step was not recorded.
        RunDamaged: a file of it is truncated or altered.
    """
    there = traces.steps(place / TRACES)
    if step not in there:
        known = f"there are {there[0]} to {there[-1]}" if there else "there is none yet"
        raise RunError(f"step {step} of {place} was not recorded: {known}")
    rows = list(traces.rows(traces.file_of(place / TRACES, step)))
    grouped = [list(members) for _, members in groupby(rows, key=lambda row: row["group"])]
    groups = tuple(tuple(_rollout(row) for row in members) for members in grouped)
    kept = sum(any(row["left_out"] != DROPPED for row in members) for members in grouped)
    logged: dict[str, float] = next((line for line in read_log(place / METRICS) if line["step"] == step), {})
    notes, before = list[str](), None
    if not logged:
        notes.append(f"step {step} has no line in {METRICS}: nothing can be checked")
    if step > 1:
        before = _state(place / STATES, step - 1)
    if step > 1 and before is None:
        have = [after + 1 for after in state.steps(place / STATES) if after + 1 in there]
        exact = ", ".join(map(str, sorted({1, *have} & set(there))))
        notes.append(
            f"the weights before step {step} are not kept: the log-probs that the learner recorded stand in for them, "
            f"those of the sampler where it recorded none; no gradient of the weights is known (exact: {exact})"
        )
    return Recorded(stage, step, groups, kept, tuple(rows), logged, before, tuple(notes))


def replay(recorded: Recorded, model: Transformer, method: Method | None = None) -> Replayed:
    """The step with ``method``; None: with the recorded one. ``model``: what the stage was given; it is not changed.

    Raises SettingsError for a method that needs what the run did not keep.
    """
    chosen = recorded.stage.method if method is None else _fitted(recorded, method)
    referring = recorded.stage.reference_every if chosen.needs_reference else 0
    stage = replace(recorded.stage, method=chosen, workers=1, quiet=True, reference_every=referring)
    updates = Updates(stage, copy.deepcopy(model))
    if recorded.before is not None:
        tensors, values = updates.state()
        kept = {
            name: tensor.clone() for name, tensor in recorded.before.tensors.items()
        }  # the optimizer works in place
        updates.restore({**tensors, **kept}, {**values, **recorded.before.values})
    learner = updates.learner.learner
    watched = _Watched(learner) if recorded.exact else _Remembered(learner, recorded)
    updates.learner = watched
    groups, dropped = _sorted(recorded, chosen)
    with Team(1, {name: handler for one in updates.members for name, handler in one.handlers.items()}) as team:
        for member in updates.members:
            member.join(team)
        done = updates.run(recorded.step, groups, _rewards(recorded, chosen, [*groups, *dropped]))
    return _replayed(recorded, groups, done, watched)


def checks(recorded: Recorded, found: Replayed) -> tuple[Check, ...]:
    """What was logged of the updates, beside what the recorded method gives now."""
    both = [name for name in found.metrics if recorded.metrics.get(name) is not None]
    return tuple(Check(name, float(recorded.metrics[name]), found.metrics[name]) for name in both)


def changed(recorded: Replayed, asked: Replayed) -> list[Changed]:
    """The rollouts whose share of the pull differs, most of all first."""
    shares = [[pull / (sum(map(abs, one.pulls)) or 1.0) for pull in one.pulls] for one in (recorded, asked)]
    found = [Changed(row, before, after) for row, (before, after) in enumerate(zip(*shares))]
    return sorted((one for one in found if one.size > 1e-6), key=lambda one: -one.size)


def cosines(one: Replayed, other: Replayed) -> tuple[float, ...]:
    """Between the gradients of every update; from the second on the weights may differ, too. NaN where one is zero."""
    return tuple(_cosine(a, b) for a, b in zip(one.gradients, other.gradients))


def pull_cosine(one: Replayed, other: Replayed) -> float:
    """Between what the rollouts are pulled by, without the weights; NaN where one does not pull."""
    return _cosine(torch.tensor(one.pulls), torch.tensor(other.pulls))


def _cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    size = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / size if size else math.nan


class _Watched(ShardedLearner):
    """The real learner, in this process, that keeps what it saw."""

    def __init__(self, learner: PolicyLearner) -> None:
        super().__init__(learner, 1)
        self.seen: list[tuple[Batch, Tensor]] = []  # rows of an update, and ∂loss/∂log π of their tokens
        self.gradients: list[Tensor] = []

    def step(self, batch: Batch, objective: Objective) -> Update:
        """As ``ShardedLearner.step``."""
        tally, output = self.learner.accumulate(batch, objective)
        self._keep(batch, objective, output)
        parameters = [p for p in self.learner.model.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.gradients.append(torch.cat([part.detach().flatten().clone() for part in parts]))
        return Update(self.learner.apply(tally), output)

    def _keep(self, batch: Batch, objective: Objective, output: PolicyOutput) -> Tally:
        logp = output.logp.clone().requires_grad_()
        policy = PolicyOutput(logp, output.entropy, output.values)
        loss = objective(policy, batch)
        if loss.value.requires_grad:
            loss.value.backward()
        pull = torch.zeros_like(logp) if logp.grad is None else -logp.grad
        self.seen.append((batch, pull))
        return Tally.of(policy, batch, loss)


class _Remembered(_Watched):
    """A learner without weights, that says what the run's learner said."""

    def __init__(self, learner: PolicyLearner, recorded: Recorded) -> None:
        super().__init__(learner)
        self.said: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
        for row in recorded.rows:
            self.said.setdefault((*row["prompt"], *row["tokens"]), []).append(row)

    def step(self, batch: Batch, objective: Objective) -> Update:
        """The metrics of the update, and no step."""
        output = self._output(batch, len(self.seen))
        return Update(self._keep(batch, objective, output).means(), output)

    def evaluate(self, rows: Rows) -> PolicyOutput:
        """What was said of the rows before the step: by the learner in the first update, else by the sampler."""
        return self._output(rows, 0, later=False)

    def _output(self, rows: Rows, update: int, later: bool = True) -> PolicyOutput:
        columns = torch.zeros((2, *rows.tokens.shape))
        for number, (tokens, length) in enumerate(zip(rows.tokens.tolist(), rows.lengths.tolist())):
            known = self.said[tuple(tokens[:length])]
            row = next((one for one in known if one["update"] == update), known[0])
            start = len(row["prompt"])
            learned = later or row["update"] == update
            logprobs = (row["logprobs_new"] if learned else None) or row["logprobs"]
            said = (logprobs, row["entropies"] or [0.0] * len(row["tokens"]))
            for column, values in zip(columns, said):
                column[number, start:length] = torch.tensor([0.0 if v is None else v for v in values])
        return PolicyOutput(columns[0], columns[1])


def _state(states: Path, step: int) -> State | None:
    """The training state after a step; None if it is not kept, or was removed just now by the run that goes on."""
    if step not in state.steps(states):
        return None
    try:
        return state.read(state.folder_of(states, step), step)
    except RunDamaged:
        if step in state.steps(states):
            raise
        return None


def _rollout(row: Mapping[str, Any]) -> Rollout:
    verdict = Verdict(row["value"], Outcome(row["outcome"]), row["evidence"])
    completion = Completion(tuple(row["tokens"]), tuple(row["logprobs"]), Finish(row["finish"]), row["version"])
    score = Score(row["value"], row["correct"], row["parts"], verdict)
    return Rollout(Problem(row["problem"], (), ""), tuple(row["prompt"]), completion, row["text"], score)


def _fitted(recorded: Recorded, method: Method) -> Method:
    """The asked method with the run's own critic. Raises SettingsError for one that cannot be replayed."""
    own = recorded.stage.method
    if method.shaping != own.shaping:
        raise SettingsError(
            "replay: the rewards are those that were recorded, shaping included; leave the settings of the reward alone"
        )
    if method.needs_values and (own.critic is None or not recorded.exact):
        why = "the run has none" if own.critic is None else f"its weights before step {recorded.step} are not kept"
        raise SettingsError(f"replay: this method reads a critic, but {why}")
    if method.needs_reference and not recorded.exact and recorded.stage.reference_every:
        raise SettingsError(
            f"replay: this method reads the reference, but the one of step {recorded.step} is not kept: it was renewed"
        )
    if method.greedy_baseline and not own.greedy_baseline:
        raise SettingsError("replay: remax needs the rewards of greedy replies, but the run sampled none")
    return replace(method, critic=own.critic) if method.critic is not None else method


def _sorted(recorded: Recorded, method: Method) -> tuple[list[Group], list[Group]]:
    """The groups that a method trains on, and those that it drops."""
    if method.refill is None:
        return list(recorded.groups), []
    kept = recorded.groups[: recorded.kept]
    live = [group for group in kept if is_live(group)]
    return live, [group for group in recorded.groups if not any(group is one for one in live)]


def _rewards(recorded: Recorded, method: Method, groups: Sequence[Group]) -> Rewards:
    """Those of the trace, in the order of ``groups``."""
    place = {id(rollout): number for number, rollout in enumerate(recorded.rollouts)}
    rows = [recorded.rows[place[id(rollout)]] for group in groups for rollout in group]
    total = torch.tensor([math.nan if row["reward"] is None else row["reward"] for row in rows], dtype=torch.float64)
    dense = {one.name: [one(group) for group in groups] for one in method.dense}
    return Rewards(total, {}, dense, _baselines(method, rows) if method.greedy_baseline else None)


def _baselines(method: Method, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """ReMax: the reward of the greedy reply is the reward less the advantage of the last token; it was not stored."""
    if method.kl_reward is not None or not isinstance(method.advantage, ReMax):
        raise SettingsError("replay: with a KL in the reward the greedy replies' rewards cannot be told from the trace")
    above = [0.0 if not row["advantages"] else row["advantages"][-1] for row in rows]
    known = [math.nan if row["reward"] is None else row["reward"] for row in rows]
    return torch.tensor(known, dtype=torch.float64) - torch.tensor(above, dtype=torch.float64)


def _replayed(recorded: Recorded, groups: Sequence[Group], done: Done, learner: _Watched) -> Replayed:
    place = {id(rollout): number for number, rollout in enumerate(recorded.rollouts)}
    trained = [
        (record.update, place[id(rollout)], rollout)
        for rollout, record in zip((one for group in groups for one in group), done.records)
        if record.update is not None
    ]
    waiting: dict[tuple[int, ...], list[int]] = {}  # equal replies in the order of their updates
    for _, number, rollout in sorted(trained, key=lambda one: one[:2]):
        waiting.setdefault(rollout.prompt + rollout.completion.token_ids, []).append(number)
    pulls, sizes = [0.0] * len(recorded.rows), list[float]()
    for batch, pull in learner.seen:
        live = batch.mask & (batch.weight != 0)
        if batch.advantage is not None:
            sizes += batch.advantage[live].abs().tolist()
        for row in live.any(1).nonzero().squeeze(-1).tolist():
            tokens = tuple(batch.tokens[row, : int(batch.lengths[row])].tolist())
            pulls[waiting[tokens].pop(0)] = float(pull[row].sum())
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return Replayed(done.metrics, mean, tuple(pulls), tuple(learner.gradients))
