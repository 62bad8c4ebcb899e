"""From graded groups to advantages per token: rewards, the KL and other summands per token, the critic's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.algorithms.control import is_live as teaches
from longthought.algorithms.correction import correction_metrics
from longthought.algorithms.credit import Earned, kl_penalty
from longthought.core.errors import SettingsError
from longthought.core.types import CUT, Batch, Group
from longthought.stages.method import Method
from longthought.training.batching import shared_by_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Rewards:
    """What every rollout earned, nested as the groups are.

    total: task and shaping, (N,) float64, NaN where the task gave none.  shaping: the summands beside the task's.
    dense: named values of every token of every rollout.  baselines: (N,) task rewards of the greedy replies.
    task: (N,) the task's summand alone.
    """

    total: Tensor
    shaping: Mapping[str, list[list[float]]] = field(default_factory=dict)
    dense: Mapping[str, list[list[list[float]]]] = field(default_factory=dict)
    baselines: Tensor | None = None
    task: Tensor | None = None

    def first(self, groups: int, rollouts: int) -> Rewards:
        """Those of the first groups, which hold so many rollouts."""
        shaping = {name: values[:groups] for name, values in self.shaping.items()}
        dense = {name: values[:groups] for name, values in self.dense.items()}
        baselines = None if self.baselines is None else self.baselines[:rollouts]
        return Rewards(
            self.total[:rollouts], shaping, dense, baselines, None if self.task is None else self.task[:rollouts]
        )

    def missing(self) -> list[str]:
        """For every rollout what is missing for an advantage, in words; empty where nothing is."""
        absent = ["no reward" if gone else "" for gone in self.total.isnan().tolist()]
        if self.baselines is None:
            return absent
        unknown = self.baselines.isnan().tolist()
        return [why or ("no greedy reward" if gone else "") for why, gone in zip(absent, unknown)]


class Credited(NamedTuple):
    """Advantages (N, T), and for a critic the returns (N, T)."""

    advantages: Tensor
    returns: Tensor | None
    per_reply: Tensor | None  # (N,), where all tokens of a reply share one


def rewards_of(groups: Sequence[Group], method: Method, greedy: Sequence[Group] = ()) -> Rewards:
    """Task reward plus shaping, and the rewards of single tokens.

    greedy: one reply to each of the first problems.
    """
    task = torch.tensor(
        [float("nan") if r.score.value is None else r.score.value for group in groups for r in group],
        dtype=torch.float64,
    )
    total = task
    shaping = {one.name: [_each(one.name, one(group), len(group)) for group in groups] for one in method.shaping}
    for values in shaping.values():
        total = total + torch.tensor(list(chain.from_iterable(values)), dtype=torch.float64)
    dense = {one.name: [_each_token(one.name, one(group), group) for group in groups] for one in method.dense}
    return Rewards(total, shaping, dense, _baselines(groups, greedy) if greedy else None, task)


def _each(name: str, values: list[T], count: int) -> list[T]:
    """The values; SettingsError unless there are ``count``: more or fewer would go to the wrong replies."""
    if len(values) != count:
        raise SettingsError(f"reward {name!r}: {len(values)} values where {count} are needed, one for each")
    return values


def _each_token(name: str, values: list[list[float]], group: Group) -> list[list[float]]:
    rows = zip(_each(name, values, len(group)), group)
    return [_each(name, row, len(rollout.completion.token_ids)) for row, rollout in rows]


def _baselines(groups: Sequence[Group], greedy: Sequence[Group]) -> Tensor:
    """The task reward of the greedy reply to the problem of every rollout, NaN where there is none."""
    values = [one[0].score.value for one in greedy]
    each = [value for value, group in zip(values, groups) for _ in group]
    return torch.tensor([float("nan") if value is None else value for value in each], dtype=torch.float64)


def nested(values: Sequence[T], groups: Sequence[Group]) -> list[list[T]]:
    """One value per rollout, nested as the groups are."""
    rest = iter(values)
    return [[next(rest) for _ in group] for group in groups]


def is_live(group: Group) -> bool:
    """Whether a group holds right and wrong replies, by the task's verdict alone: a shaped reward hides dead groups."""
    return teaches([None if r.score.value is None else r.score.correct for r in group])


def penalties(method: Method, batch: Batch, logp_ref: Float[Tensor, "n t"] | None) -> Float[Tensor, "n t"]:
    """What the KL takes from the reward of every token, (N, T) float64; zeros without a KL in the reward."""
    if method.kl_reward is None:
        return torch.zeros(batch.tokens.shape, dtype=torch.float64)
    assert logp_ref is not None
    assert batch.logp_old is not None
    given = method.kl_reward
    return kl_penalty(batch.logp_old.double(), logp_ref.double(), batch.mask, given.beta, given.estimator)


def credit(
    method: Method,
    groups: Sequence[Group],
    rewards: Rewards,
    batch: Batch,
    token_rewards: Float[Tensor, "n t"],
    values: tuple[Tensor, Tensor] | None,
) -> Credited:
    """Advantages of the laid-out rollouts of ``groups``.

    token_rewards: (N, T) as of ``penalties``.  values: of the critic, before every token (N, T) and after the
    last (N,).  A credit per reply gets its KL penalties summed into the reward.
    """
    number = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g) for g in groups]))
    if method.token_credit is None:
        total = rewards.total + token_rewards.sum(1)
        per_reply = method.sequence_credit(total, number)
        return Credited(shared_by_tokens(per_reply, batch.mask), None, per_reply)
    cut = torch.tensor([r.completion.finish in CUT for g in groups for r in g])
    if method.critic is None or not method.critic.bootstrap:
        cut = torch.zeros_like(cut)
    earned = Earned(
        rewards=_so_far(rewards, cut),
        group=number,
        mask=batch.mask,
        token_rewards=token_rewards,
        cut=cut,
        values=None if values is None else values[0].double(),
        final_values=None if values is None else values[1].double(),
        baselines=rewards.baselines,
        streams={name: _laid(per_token, batch) for name, per_token in rewards.dense.items()},
    )
    advantages, returns = method.token_credit(earned)
    return Credited(advantages.float(), None if returns is None else returns.float(), None)


def _so_far(rewards: Rewards, cut: Tensor) -> Tensor:
    """What every reply has earned, (N,). One that is taken to go on has no verdict yet, but the critic's value.

    The verdict on the half reply *and* a bootstrap would pay twice, and a policy would learn to be cut.
    """
    if not cut.any():
        return rewards.total
    assert rewards.task is not None
    return torch.where(cut, rewards.total - rewards.task, rewards.total)


def corrected(method: Method, batch: Batch, logp: Float[Tensor, "n t"]) -> tuple[Batch, Mapping[str, float]]:
    """The batch with the learner's own log-probs before the update as π_old, and the policy-gradient term weighted by
    π_old / π_sampler as the correction says.

    The weights multiply the advantages: every surrogate is homogeneous in them, and no other term reads them.
    """
    assert method.correction is not None
    assert batch.logp_old is not None
    assert batch.advantage is not None
    weights = method.correction(logp, batch.logp_old, batch.mask)
    metrics = correction_metrics(weights, logp, batch.logp_old, batch.mask)
    old = torch.where(batch.mask, logp, 0.0)
    return replace(batch, logp_old=old, advantage=batch.advantage * weights), metrics


def _laid(per_token: list[list[list[float]]], batch: Batch) -> Tensor:
    """Values of the replies' tokens at their places, (N, T) float64."""
    laid = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    laid[batch.mask] = torch.tensor(list(chain.from_iterable(chain.from_iterable(per_token))), dtype=torch.float64)
    return laid
