"""Bias and variance of gradient estimators, on a world where the policy gradient is known exactly.

An estimator takes the road that a training step takes: rollouts, rewards, credit (``stages.earning``), a ``Batch`` with
its weights, the objective. Its expectation runs over all groups of replies with their chances:

    alone     the groups of a step do not act on each other (GRPO, RLOO): each is enumerated by itself
    jointly   they do (a deviation over the batch, a mean over its tokens), and all steps can be enumerated
    sampled   they do, and there are too many: the mean over sampled steps, with its standard error

Whether groups act on each other is tried out, not looked up. ĝ is the direction of ascent, g the policy gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longthought.algorithms.advantage import group_centered, group_normalized, per_group
from longthought.algorithms.objective import REINFORCE
from longthought.algorithms.weighting import positive_mean, sequence_mean, sequence_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Group, PolicyOutput
from longthought.diagnosis.estimators import Estimator
from longthought.diagnosis.toy import Toy, arrangements
from longthought.stages.earning import corrected, credit, is_live, penalties, rewards_of
from longthought.stages.method import Method
from longthought.training.batching import lay_out

Unbiased: TypeAlias = Literal["yes", "scale only", "no", "unclear", "no gradient"]

_EXACT = 1e-4  # relative; the batch of a step is float32
_ENUMERATED = 5000  # groups of a problem, or steps
_PROBES = 12
_BLOCK = 64  # groups of one call: credit per group looks at all rows for every group


_NEAR = (
    Method(per_group(group_centered), sequence_sum, REINFORCE()),
    Method(per_group(group_normalized), sequence_mean, REINFORCE()),
)


@dataclass(frozen=True)
class Measured:
    """What is known of an estimator.

    how: alone, jointly or sampled.
    unbiased: yes; scale only (a constant mends it); no; unclear (sampled, and no error of direction was seen above the
    noise); or no gradient at all.
    angle: between E[ĝ] and g, degrees, without what the noise of sampling adds to it; NaN without a gradient.
    angle_error: its standard error; 0 if exact.
    scale: the factor c that brings c · g closest to E[ĝ].
    bias: ‖E[ĝ] − g‖ / ‖g‖.  bias_error: its standard error; 0 if exact.
    variance: trace of the covariance of ĝ of one step, / ‖g‖².
    steps: how many independent steps have a mean whose relative error is 10 %: trace / (0.01 ‖E[ĝ]‖²).
    per_problem: the factor of each problem's own gradient, easiest first; NaN where it has none.
    """

    name: str
    how: Literal["alone", "jointly", "sampled"]
    unbiased: Unbiased
    angle: float
    angle_error: float
    scale: float
    bias: float
    bias_error: float
    variance: float
    steps: float
    per_problem: tuple[float, ...]

    @property
    def signal_to_noise(self) -> float:
        """‖E[ĝ]‖² / trace of the covariance, of one step."""
        return 0.01**-1 / self.steps if self.steps else math.inf


@dataclass(frozen=True)
class Budget:
    """group: replies to a problem.  steps: sampled ones, where enumeration is out of reach.  seed: of the sampling."""

    group: int = 4
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.group <= 64:
            raise SettingsError(f"lab: group={self.group} must be between 1 and 64 replies")
        if self.steps < 100:
            raise SettingsError(f"lab: steps={self.steps}: at least 100 are needed for a standard error")


class _Slot(NamedTuple):
    """What one place of a step may hold: groups (K, G) of numbers of replies, and their chances (K,)."""

    groups: Tensor
    chances: Tensor


class _Moments(NamedTuple):
    """Mean (D,) and trace of the covariance of ĝ; the standard error of the mean (D,), 0 if exact."""

    mean: Tensor
    trace: float
    error: Tensor


def measure(estimators: Sequence[Estimator], toy: Toy, budget: Budget = Budget()) -> tuple[Measured, ...]:
    """Every estimator on this world, in the order given.

    Raises SettingsError when a group is too small for an estimator.
    """
    for one in estimators:
        if budget.group < 2 and one.compares:
            raise SettingsError(f"lab: {one.name} compares the replies to a problem: take a group of 2 or more")
    benches = {"reward": _Bench(toy, budget), "kl": _Bench(toy.without_rewards(), budget)}
    measured = []
    for one in estimators:
        try:
            measured.append(benches[one.target].measure(one))
        except SettingsError as error:
            raise SettingsError(f"lab: {one.name}: {str(error).removeprefix('lab: ')}") from error
    return tuple(measured)


def truth(estimator: Estimator, toy: Toy) -> Float[Tensor, " d"]:
    """What the estimator is judged by: ∇ E[reward], or −∇ KL(π‖π_ref) for one that measures a KL alone."""
    return -toy.kl_gradient() if estimator.target == "kl" else toy.policy_gradient()


class _Bench:
    """A toy laid out once: every reply as a row, what it is worth, and the gradients of its tokens."""

    def __init__(self, toy: Toy, budget: Budget) -> None:
        self.toy, self.budget = toy, budget
        self.rows = lay_out(toy.rollouts)
        logp, nothing = toy.logp(toy.theta), torch.zeros(len(toy.replies), 1, dtype=torch.float64)
        self.logp, self.logp_old, self.logp_ref, self.entropy = (
            torch.cat((nothing, column), 1)
            for column in (logp, toy.logp(toy.sampler), toy.logp(toy.reference), toy.entropy(toy.theta))
        )
        self.rows = replace(self.rows, logp_old=self.logp_old)
        self.slopes = tuple(torch.nn.functional.pad(j, (0, 0, 1, 0)).flatten(0, 1) for j in toy.jacobians())
        self.greedy = [(toy.rollouts[row],) for row in toy.greedy()]
        self.generator = torch.Generator().manual_seed(budget.seed)
        self.pools = [self._pool(problem) for problem in range(len(toy.theta))]
        self._credits: dict[object, Tensor] = {}
        self._tables: dict[int, Tensor] = {}

    def measure(self, one: Estimator) -> Measured:
        """Mean and variance by the cheapest road that is exact, else by sampling."""
        slots = self._live if one.method.refill is not None else self.pools
        if self._separable(one, slots):
            how: Literal["alone", "jointly", "sampled"] = "alone"
            found = self._alone(one, slots)
        elif math.prod(len(slot.chances) for slot in slots) <= _ENUMERATED and self._enumerable:
            how, found = "jointly", self._jointly(one, slots)
        else:
            how, found = "sampled", self._sampled(one, slots)
        if not self._enumerable:
            how = "sampled"
        return self._judged(one, how, found)

    @property
    def _enumerable(self) -> bool:
        replies = len(self.toy.replies) // len(self.toy.theta)
        return math.comb(replies + self.budget.group - 1, self.budget.group) <= _ENUMERATED

    def _pool(self, problem: int) -> _Slot:
        """Every group of replies to a problem (their order does not matter), or a sample of groups."""
        rows = (self.toy.problem == problem).nonzero().squeeze(-1)
        chance = self.toy.chance(self.toy.sampler)
        if not self._enumerable:
            size = (self.budget.steps, self.budget.group)
            drawn = torch.multinomial(chance[rows], size[0] * size[1], True, generator=self.generator)
            return _Slot(rows[drawn].view(size), torch.full((size[0],), 1 / size[0], dtype=torch.float64))
        groups = list(combinations_with_replacement(rows.tolist(), self.budget.group))
        orders = torch.tensor([arrangements(group) for group in groups], dtype=torch.float64)
        table = torch.tensor(groups)
        return _Slot(table, orders * chance[table].prod(1))

    @cached_property
    def _live(self) -> list[_Slot]:
        """With dynamic sampling every place of a step holds a group with both verdicts, of whichever problem."""
        groups, chances = (torch.cat(column) for column in zip(*self.pools))
        live = torch.tensor([is_live(self._group(group)) for group in groups.tolist()])
        if not live.any():
            raise SettingsError(
                "lab: no group of this world holds both right and wrong replies: nothing can be refilled"
            )
        return [_Slot(groups[live], chances[live] / chances[live].sum())] * len(self.pools)

    def _separable(self, one: Estimator, slots: Sequence[_Slot]) -> bool:
        """Whether a step's gradient is the mean of its groups' gradients, in some steps that are drawn for it."""
        steps = _held(slots, self._draw(slots, _PROBES))
        together = self._steps(one, steps)
        try:
            singly = self._steps(one, steps.flatten(0, 1)[:, None]).view(len(steps), len(slots), -1).mean(1)
        except SettingsError:  # a credit over the batch refuses a batch of one reply
            return False
        return torch.allclose(together, singly, rtol=0, atol=1e-5 * float(singly.abs().max() + 1e-9))

    def _alone(self, one: Estimator, slots: Sequence[_Slot]) -> _Moments:
        moments: list[_Moments] = []
        for number, slot in enumerate(slots):
            if number and slot is slots[0]:
                moments.append(moments[0])
                continue
            moments.append(_moments(self._groups(one, slot.groups), slot.chances, exact=self._enumerable))
        count = len(slots)
        errors = torch.stack([m.error for m in moments]).square().sum(0).sqrt() / count
        return _Moments(sum(m.mean for m in moments) / count, sum(m.trace for m in moments) / count**2, errors)  # type: ignore[arg-type]

    def _jointly(self, one: Estimator, slots: Sequence[_Slot]) -> _Moments:
        picked = torch.cartesian_prod(*(torch.arange(len(slot.chances)) for slot in slots)).view(-1, len(slots)).T
        chances = torch.stack([slot.chances[rows] for slot, rows in zip(slots, picked)]).prod(0)
        return _moments(self._steps(one, _held(slots, list(picked))), chances, exact=True)

    def _sampled(self, one: Estimator, slots: Sequence[_Slot]) -> _Moments:
        """The mean over sampled steps, less what chance alone did to the controls, whose expectation is known."""
        picked = self._draw(slots, self.budget.steps)
        found = self._steps(one, _held(slots, picked))
        plain = _moments(found, torch.full((len(found),), 1 / len(found), dtype=torch.float64), exact=False)
        if not self._enumerable:
            return plain
        tables = [self._controls(slot) for slot in slots]
        seen = torch.stack([table[rows] for table, rows in zip(tables, picked)]).mean(0)  # (S, C, D)
        means = [(slot.chances @ table.flatten(1)).view(table.shape[1:]) for slot, table in zip(slots, tables)]
        gap = seen - torch.stack(means).mean(0)
        centered = (seen - seen.mean(0)).permute(2, 0, 1)
        ridge = 1e-12 * torch.eye(gap.shape[1], dtype=torch.float64)
        square = centered.mT @ centered
        wanted = centered.mT @ (found - plain.mean).T[:, :, None]
        slope = torch.linalg.solve(square + ridge, wanted)[..., 0]  # (D, C)
        left = found - (gap * slope.T).sum(1)
        return _Moments(left.mean(0), plain.trace, left.std(0) / len(found) ** 0.5)

    def _controls(self, slot: _Slot) -> Tensor:
        """What is near every estimator and acts on no other group: r ∇log π minus a fixed baseline, and the credits of
        Dr. GRPO and GRPO, if there is a group; for every group of the slot, (K, 3 or 1, D)."""
        if id(slot) not in self._tables:
            rows = self.slopes[0].view(*self.logp.shape, -1).sum(1)
            own = (self.toy.rewards - self.toy.rewards.mean())[:, None] * rows
            near = _NEAR if self.budget.group > 1 else ()
            others = [self._groups(Estimator("", made), slot.groups) for made in near]
            self._tables[id(slot)] = torch.stack([own[slot.groups].mean(1), *others], 1)
        return self._tables[id(slot)]

    def _draw(self, slots: Sequence[_Slot], count: int) -> list[Tensor]:
        """For every slot the numbers of the groups that it holds in so many steps, (S,)."""
        generator = torch.Generator().manual_seed(self.budget.seed + 1)
        return [torch.multinomial(slot.chances, count, True, generator=generator) for slot in slots]

    def _steps(self, one: Estimator, steps: Int[Tensor, "s p g"]) -> Float[Tensor, "s d"]:
        """ĝ of every step."""
        batches = [self._batch(one, step) for step in steps]
        return self._gradients(one, _joined(batches), steps.flatten(1))

    def _groups(self, one: Estimator, groups: Int[Tensor, "k g"]) -> Float[Tensor, "k d"]:
        """ĝ of steps of one group each, for an estimator whose groups do not act on each other."""
        batches = []
        for block in groups.split(_BLOCK):
            batch = self._batch(one, block)
            scale = len(block)  # weights of a step of one group
            mended = None if batch.imitation is None else batch.imitation * scale
            batches.append(replace(batch, weight=batch.weight * scale, imitation=mended))
        return self._gradients(one, _joined(batches), groups)

    def _batch(self, one: Estimator, groups: Int[Tensor, "k g"]) -> Batch:
        """One step as ``stages.updates`` makes it: rewards, credit, correction, weights."""
        method, picked = one.method, groups.flatten()
        batch = self._picked(picked)
        laid = replace(batch, advantage=self._credited(one, groups, batch))
        if method.correction is not None:
            laid, _ = corrected(method, laid, self.logp[picked])
        laid = replace(laid, weight=method.weighting(laid.mask))
        if "imitation" in method.objective.reads:
            right = self.toy.rewards[picked] > 0.5
            laid = replace(laid, imitation=positive_mean(laid.mask, right))
        return laid

    def _credited(self, one: Estimator, groups: Tensor, batch: Batch) -> Tensor:
        """Advantages, remembered for the next estimator with the same credit."""
        method = one.method
        key = (
            method.advantage,
            method.kl_reward,
            method.shaping,
            method.dense,
            one.critic,
            tuple(groups.flatten().tolist()),
        )
        if key not in self._credits:
            together = [self._group(group) for group in groups.tolist()]
            greedy = (
                [self.greedy[int(self.toy.problem[group[0]])] for group in groups] if method.greedy_baseline else ()
            )
            rewards = rewards_of(together, method, greedy)
            spent = penalties(method, batch, self.logp_ref[groups.flatten()])
            values = self._values(one, groups.flatten()) if method.needs_values else None
            self._credits[key] = credit(method, together, rewards, batch, spent, values).advantages
        return self._credits[key]

    def _values(self, one: Estimator, picked: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.nn.functional.pad(self.toy.values(one.critic), (1, 0))[picked]
        return values, torch.zeros(len(picked), dtype=torch.float64)

    def _group(self, group: Sequence[int]) -> Group:
        return tuple(self.toy.rollouts[row] for row in group)

    def _picked(self, picked: Tensor) -> Batch:
        rows = self.rows
        assert rows.logp_old is not None
        return Batch(
            tokens=rows.tokens[picked],
            lengths=rows.lengths[picked],
            mask=rows.mask[picked],
            weight=rows.weight[picked],
            logp_old=rows.logp_old[picked],
            logp_ref=self.logp_ref[picked],
        )

    def _gradients(self, one: Estimator, batch: Batch, replies: Int[Tensor, "s n"]) -> Float[Tensor, "s d"]:
        """−∇ of the objective for every step. It is a sum over rows, so one backward pass serves all steps: to the
        log-probs and entropies of the tokens, and from there by their gradients in the table."""
        picked = replies.flatten()
        logp, entropy = (column[picked].clone().requires_grad_() for column in (self.logp, self.entropy))
        value = one.method.objective(PolicyOutput(logp, entropy), batch).value
        if not value.requires_grad:
            return torch.zeros(len(replies), self.slopes[0].shape[1], dtype=torch.float64)
        pulls = torch.autograd.grad(value, (logp, entropy), allow_unused=True)
        width = self.logp.shape[1]
        cells = (picked[:, None] * width + torch.arange(width)).view(len(replies), -1)
        total = torch.zeros(len(replies), self.slopes[0].shape[1], dtype=torch.float64)
        for pull, slope in zip(pulls, self.slopes):
            if pull is not None:
                table = torch.zeros(len(replies), len(slope), dtype=torch.float64)
                total -= table.scatter_add_(1, cells, pull.double().view(len(replies), -1)) @ slope
        return total

    def _judged(self, one: Estimator, how: Literal["alone", "jointly", "sampled"], found: _Moments) -> Measured:
        goal = truth(one, self.toy)
        size, length = float(goal.norm()), float(found.mean.norm())
        if not size:
            raise SettingsError("lab: the true gradient of this world is zero: there is nothing to estimate")
        noise = float(found.error.norm()) / size
        scale = float(found.mean @ goal) / size**2
        across = max(0.0, float((found.mean - scale * goal).norm() ** 2) / size**2 - noise**2) ** 0.5
        bias = float((found.mean - goal).norm()) / size
        silent = length <= max(_EXACT, 3 * noise) * size
        parts = zip(*(x.view(len(self.toy.theta), -1) for x in (found.mean, goal)))
        own = [float(mean @ true / true.square().sum()) if true.any() else math.nan for mean, true in parts]
        return Measured(
            name=one.name,
            how=how,
            unbiased="no gradient" if silent else _verdict(bias, across, scale, noise),
            angle=math.nan if silent else math.degrees(math.atan2(across, scale)),
            angle_error=0.0 if silent else math.degrees(math.atan(noise * size / length)),
            scale=scale,
            bias=bias,
            bias_error=noise,
            variance=found.trace / size**2,
            steps=math.inf if silent else found.trace / (0.01 * length**2),
            per_problem=tuple(own),
        )


def _verdict(bias: float, across: float, scale: float, noise: float) -> Unbiased:
    """All relative to the true gradient. ``noise``: what is to be expected by chance, 0 if exact."""
    if noise:
        return "no" if across > 1.5 * noise or scale < 0 else "unclear"
    if bias <= _EXACT:
        return "yes"
    return "scale only" if across <= _EXACT * abs(scale) and scale > 0 else "no"


def _held(slots: Sequence[_Slot], picked: Sequence[Tensor]) -> Int[Tensor, "s p g"]:
    """The steps in which slot i holds its groups with the numbers ``picked[i]``."""
    return torch.stack([slot.groups[rows] for slot, rows in zip(slots, picked)], 1)


def _moments(found: Tensor, chances: Tensor, exact: bool) -> _Moments:
    mean = (chances[:, None] * found).sum(0)
    spread = (chances[:, None] * (found - mean).square()).sum(0)
    error = torch.zeros_like(mean) if exact else (spread / max(len(found) - 1, 1)).sqrt()
    return _Moments(mean, float(spread.sum()), error)


def _joined(batches: Sequence[Batch]) -> Batch:
    """Steps one under the other; their weights are already final."""
    columns = {}
    for name in ("tokens", "lengths", "mask", "weight", "advantage", "logp_old", "logp_ref", "imitation"):
        parts = [getattr(batch, name) for batch in batches]
        columns[name] = None if parts[0] is None else torch.cat(parts)
    return Batch(**columns)  # type: ignore[arg-type]
