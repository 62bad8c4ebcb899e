"""The backward half of an RL step: from graded groups to optimizer steps of the policy and of a critic."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from longthought.algorithms.objective import MirrorDescent, MultiToken, ValueLoss, explained_variance
from longthought.algorithms.weighting import positive_mean, token_mean
from longthought.core.errors import LogprobGap, NotFinite
from longthought.core.protocols import Objective
from longthought.core.types import CUT, Batch, Group, Rollout, Rows, Update
from longthought.models import lora
from longthought.models.precision import products
from longthought.models.transformer import Transformer
from longthought.runs.traces import Trained
from longthought.stages.earning import Credited, Rewards, corrected, credit, penalties
from longthought.stages.method import Critic
from longthought.training.batching import lay_out, moving, weighted
from longthought.training.critic import ValueHead, ValueModel, with_end
from longthought.training.learner import LogprobHead, PolicyLearner, WithoutAdapter
from longthought.training.optimizer import AdamW
from longthought.training.sharding import ShardedLearner

if TYPE_CHECKING:
    from longthought.stages.rl import RL

DROPPED = "group dropped by dynamic sampling"
"""Why a rollout of a group that was sampled and not kept is left out."""

_WIDE_GAP, _NARROW_GAP = 1e-3, 3e-2
_AT_FIRST = ("logprob_gap", "logprob_gap_max", "routing_disagreement")
"""What sampler and learner disagree about: later updates have moved the weights."""
_PATIENCE = 3  # updates in a row whose gradient is not finite

_warn = logging.getLogger(__name__).warning


class Done(NamedTuple):
    """What a step did: metrics, and for every rollout its one advantage (None where tokens have their own) and what
    became of it."""

    metrics: dict[str, float]
    advantages: list[float | None]
    records: list[Trained]


def gap_limit(stage: RL, model: Transformer) -> float:
    """The largest mean gap of log-probs that is tolerated, in nats.

    Where it is not given, what rounding explains: in bfloat16 a sum that another order of additions moves to the next
    number moves all that follows, more with every layer (random weights: 0.002 with 4 layers, 0.012 with 24).
    """
    if stage.gap_limit is not None:
        return stage.gap_limit
    types = (products(model, stage.engine.precision), products(model, stage.learner.precision))
    return _NARROW_GAP if torch.bfloat16 in types else _WIDE_GAP


class Updates:
    """Policy, reference and critic, and what they carry from step to step."""

    def __init__(self, stage: RL, model: Transformer) -> None:
        method = stage.method
        self.stage, self.gap_limit = stage, gap_limit(stage, model)
        self.failures = {"policy": 0, "critic": 0}  # updates in a row that could not be made
        self.bonus, self.entropy = 0.0, 0.0  # of the entropy control: its coefficient, and what was measured last
        self.critic = _critic(stage, method.critic, model) if method.critic else None
        self.reference = _reference(stage, model) if method.needs_reference else None
        if stage.adapter is not None:
            lora.add(model, stage.adapter, stage.seed)
        steps = (stage.steps - (method.critic.pretrain if method.critic else 0)) * stage.updates
        learner = PolicyLearner(model, stage.optimizer, steps, stage.temperature, stage.learner, _head(stage))
        self.learner = ShardedLearner(learner, stage.workers)

    @property
    def members(self) -> list[ShardedLearner]:
        """The learners that share a team."""
        return [one for one in (self.learner, self.reference, self.critic) if one is not None]

    def run(self, step: int, groups: list[Group], rewards: Rewards) -> Done:
        """Train on ``groups``, the first of those that ``rewards`` speaks of."""
        every = self.stage.reference_every
        if self.reference is not None and every and step > 1 and (step - 1) % every == 0:
            self.reference.learner.model.load_state_dict(self.learner.learner.model.state_dict())
        return _Step(self, step, groups, rewards).run()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which ``restore`` continues bit for bit."""
        tensors, learner = self.learner.learner.state()
        values = {"learner": learner, "failures": self.failures["policy"], "entropy": [self.bonus, self.entropy]}
        if self.reference is not None and self.stage.adapter is None:
            tensors |= {f"reference.{name}": t.clone() for name, t in self.reference.learner.model.state_dict().items()}
        if self.critic is not None:
            critic, own = self.critic.learner.state()
            values["critic"] = {**own, "failures": self.failures["critic"]}
            tensors |= {f"critic.{name}": t for name, t in critic.items()}
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo everything since ``state``."""
        own = {k: v for k, v in tensors.items() if not k.startswith(("reference.", "critic."))}
        self.learner.learner.restore(own, values["learner"])
        self.failures["policy"], (self.bonus, self.entropy) = values["failures"], values["entropy"]
        if self.reference is not None and self.stage.adapter is None:
            self.reference.learner.model.load_state_dict(_part(tensors, "reference."))
        if self.critic is not None:
            self.critic.learner.restore(_part(tensors, "critic."), values["critic"])
            self.failures["critic"] = values["critic"]["failures"]


class _Step:
    """The updates of one step, and what becomes of every rollout in them."""

    def __init__(self, updates: Updates, step: int, groups: list[Group], rewards: Rewards) -> None:
        self.all, self.step, self.groups = updates, step, groups
        self.rollouts = [rollout for group in groups for rollout in group]
        self.rewards = rewards.first(len(groups), len(self.rollouts))
        dropped = len(rewards.total) - len(self.rollouts)
        cuts = self.all.stage.method.filter_truncated
        why = [_why_not(r, cuts, gone) for r, gone in zip(self.rollouts, self.rewards.missing())]
        self.trained = torch.tensor([not reason for reason in why], dtype=torch.bool)
        self.records = [Trained(left_out=reason) for reason in why + [DROPPED] * dropped]
        self.per_reply: Tensor | None = None

    def run(self) -> Done:
        metrics = {k: v for k, v in self._train().items() if math.isfinite(v)} if self.rollouts else {"updates": 0.0}
        return Done(metrics, self._advantages(), self.records)

    def _train(self) -> dict[str, float]:
        """``updates`` optimizer steps on disjoint random parts of the rollouts; their mean metrics."""
        stage, own = self.all.stage, self.all
        laid, extra = self._laid()
        generator = torch.Generator().manual_seed(stage.seed * 1_000_003 + self.step)
        order = torch.randperm(len(self.rollouts), generator=generator)
        done: list[Mapping[str, float]] = []
        critic: list[Mapping[str, float]] = []
        for number, part in enumerate(order.tensor_split(stage.updates)):
            if own.critic is not None:
                critic += self._teach_critic(laid, part)
            if stage.method.critic is not None and self.step <= stage.method.critic.pretrain:
                self._leave_out(part, "only the critic learned")
            else:
                done += self._update(number, laid, part)
        metrics = {**extra, **_means(critic, "critic/"), "updates": float(len(done))}
        if critic:
            metrics["critic/explained_variance"] = explained_variance(_means(critic, ""))
        if not done:
            return metrics
        means = _means(done, "")
        metrics = {**means, **{name: done[0][name] for name in _AT_FIRST if name in done[0]}, **metrics}
        self._check_gap(metrics)
        if stage.method.entropy is not None:
            metrics["entropy_bonus"] = stage.method.entropy.bonus(own.bonus, own.entropy)
            own.bonus, own.entropy = stage.method.entropy(own.bonus, metrics["entropy"]), metrics["entropy"]
        return metrics

    def _advantages(self) -> list[float | None]:
        """One for every rollout of the step; None where its tokens have each their own, or it was dropped."""
        if self.per_reply is None:
            return [None] * len(self.records)
        return [*self.per_reply.tolist(), *[None] * (len(self.records) - len(self.per_reply))]

    def _laid(self) -> tuple[Batch, dict[str, float]]:
        """The rollouts with every column that the method reads, but their weights; and what was measured on the way."""
        own, method = self.all, self.all.stage.method
        batch, extra = lay_out(self.rollouts), {}
        reference = None
        if own.reference is not None:  # whose tokens choose their experts by themselves
            reference = torch.where(batch.mask, own.reference.logprobs(Rows(batch.tokens, batch.lengths)), 0.0)
        values = None if own.critic is None else _values(own.critic, batch)
        token_rewards = penalties(method, batch, reference)
        credited = credit(method, self.groups, self.rewards, batch, token_rewards, values)
        self.per_reply = credited.per_reply
        batch = _filled(batch, credited, reference, values)
        if method.kl_reward is not None:
            spent = float(token_rewards.sum()) / len(self.rollouts)
            extra["kl_reward"] = spent
        if method.correction is not None:
            assert batch.logp_old is not None
            logp = own.learner.logprobs(batch)
            gap = (logp - batch.logp_old).abs()[batch.mask]
            extra |= {"logprob_gap": float(gap.mean()), "logprob_gap_max": float(gap.max())}
            batch, measured = corrected(method, batch, logp)
            extra |= measured
        return batch, extra

    def _update(self, number: int, laid: Batch, part: Tensor) -> list[Mapping[str, float]]:
        """The metrics of one optimizer step of the policy, if one was made."""
        own, method = self.all, self.all.stage.method
        batch, rows = weighted(laid, part, method.weighting, self.trained[part]), part
        if "imitation" in method.objective.reads:
            right = torch.tensor([self.rollouts[row].score.correct for row in part.tolist()])
            batch = replace(batch, imitation=positive_mean(batch.mask, right & self.trained[part]))
        objective: Objective = method.objective
        if method.entropy is not None:
            bonus = method.entropy.bonus(own.bonus, own.entropy)
            objective = replace(objective, entropy_bonus=bonus)  # type: ignore[type-var]
        # MirrorDescent pulls to the policy that sampled; at the first update only rounding is between the two
        if objective.silent_without_advantage or (not number and isinstance(objective, MirrorDescent)):
            keep = moving(batch)
            self._leave_out(rows[~keep], "advantage 0")
            batch, rows = batch.select(keep.nonzero().squeeze(-1)), part[keep]
        update = self._attempt("policy", own.learner, batch, objective)
        if update is None:
            self._leave_out(rows, "gradient not finite")
            return []
        self._record(number, batch, rows, update)
        return [update.metrics]

    def _attempt(self, name: str, learner: ShardedLearner, batch: Batch, objective: Objective) -> Update | None:
        """One optimizer step; None when no token weighs anything, or the gradient was not finite.

        Raises NotFinite when that happens too often in a row.
        """
        if not batch.weight.any():
            return None
        failures = self.all.failures
        try:
            update = learner.step(batch, objective)
        except NotFinite as error:
            failures[name] += 1
            _warn(f"step {self.step}, {name}: {error}")
            if failures[name] >= _PATIENCE:
                raise NotFinite(
                    f"{_PATIENCE} updates of the {name} in a row were not finite, the last at step {self.step}"
                ) from error
            return None
        failures[name] = 0
        return update

    def _leave_out(self, rows: Tensor, reason: str) -> None:
        """Record why rows were not trained on, where nothing else is known."""
        for row in rows.tolist():
            if not self.records[row].left_out:
                self.records[row] = Trained(left_out=reason)

    def _record(self, number: int, batch: Batch, rows: Tensor, update: Update) -> None:
        """What the update made of every rollout, for the trace store."""
        per_token = self.per_reply is None or self.all.stage.method.correction is not None
        for i, row in enumerate(rows.tolist()):
            if self.records[row].left_out:
                continue
            mask = batch.mask[i]
            self.records[row] = Trained(
                logprobs=update.output.logp[i, : len(mask)][mask].tolist(),
                advantages=batch.advantage[i][mask].tolist() if per_token and batch.advantage is not None else None,
                entropies=update.output.entropy[i, : len(mask)][mask].tolist(),
                update=number,
                weight=float(batch.weight[i].sum()),
            )

    def _teach_critic(self, laid: Batch, part: Tensor) -> list[Mapping[str, float]]:
        """The metrics of one optimizer step of the critic, if one was made."""
        critic, settings = self.all.critic, self.all.stage.method.critic
        assert critic is not None
        assert settings is not None
        batch = weighted(laid, part, token_mean, ~self.rewards.total[part].isnan())
        batch = replace(batch, logp_old=None, routing=None)  # it has no log-probs, and other experts than the sampler
        update = self._attempt("critic", critic, batch, ValueLoss(settings.clip))
        return [] if update is None else [update.metrics]

    def _check_gap(self, metrics: Mapping[str, float]) -> None:
        if not metrics["logprob_gap"] <= self.all.gap_limit:  # NaN is no small gap
            raise LogprobGap(
                f"step {self.step}: the learner's log-probs differ from the sampler's by {metrics['logprob_gap']:.2e} "
                f"nats a token on average (limit {self.all.gap_limit:.0e}). The sampler does not run the "
                "learner's weights, or computes them differently; a run that goes on would be off-policy without "
                "saying so"
            )


def _head(stage: RL) -> LogprobHead | None:
    """What the policy is asked, if it is not what any policy is."""
    ahead, replay = isinstance(stage.method.objective, MultiToken), stage.replay_routing is not False
    return LogprobHead(stage.temperature, stage.learner.head_chunk, ahead, replay) if ahead or not replay else None


def _reference(stage: RL, model: Transformer) -> ShardedLearner:
    """The frozen policy that the KL is measured to: with an adapter the model itself, without the adapter."""
    settings = replace(stage.learner, balancing=None)
    head = LogprobHead(stage.temperature, settings.head_chunk, replay=False)
    if stage.adapter is None:
        frozen = PolicyLearner(copy.deepcopy(model), AdamW(), 1, settings=settings, head=head)
    else:
        frozen = PolicyLearner(model, AdamW(), 1, settings=settings, head=WithoutAdapter(head))
    return ShardedLearner(frozen, stage.workers, "reference")


def _critic(stage: RL, critic: Critic, model: Transformer) -> ShardedLearner:
    values, steps = ValueModel(model), stage.steps * stage.updates
    learner = PolicyLearner(values, critic.optimizer, steps, settings=stage.learner, head=ValueHead())
    return ShardedLearner(learner, stage.workers, "critic")


def _values(critic: ShardedLearner, batch: Batch) -> tuple[Tensor, Tensor]:
    """The critic's values before every token of the replies (N, T), and after the last one (N,)."""
    said = critic.evaluate(with_end(batch)).values
    assert said is not None
    before = torch.where(batch.mask, said[:, :-1], 0.0)
    return before, said[torch.arange(len(said)), batch.lengths]


def _filled(batch: Batch, credited: Credited, reference: Tensor | None, values: tuple[Tensor, Tensor] | None) -> Batch:
    return replace(
        batch,
        advantage=credited.advantages,
        logp_ref=reference,
        returns=credited.returns,
        value_old=None if values is None else values[0],
    )


def _why_not(rollout: Rollout, filter_truncated: bool, missing: str) -> str:
    """Why a rollout is not trained on; empty if it is."""
    if missing:
        return missing
    return "cut by a limit and filtered" if filter_truncated and rollout.completion.finish in CUT else ""


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _means(done: Sequence[Mapping[str, float]], prefix: str) -> dict[str, float]:
    return {prefix + name: sum(m[name] for m in done) / len(done) for name in done[0]} if done else {}
