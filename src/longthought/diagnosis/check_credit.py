"""Does credit stay inside its group, whatever the order, and does the better reply get more?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from longthought.algorithms.advantage import BatchAdvantage
from longthought.core.types import Group, Rollout
from longthought.diagnosis import made_up
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient
from longthought.stages.earning import credit, rewards_of
from longthought.stages.method import Method
from longthought.training.batching import lay_out

_NAME = "credit"
_GROUPS, _REPLIES, _LONGEST = 5, 4, 6
_BOUND = 1e-5  # relative; advantages are float32
_SHIFT = 3.7


def credit_stays_in_its_group(patient: Patient) -> list[Finding]:
    """Shift, permute, equalise and compare the rewards of made-up groups, through the stage's own credit."""
    case = _Case(patient.stage.method, max(2, min(_REPLIES, patient.stage.samples)) if patient.stage.samples > 1 else 1)
    for trouble in (_mixing(case), _order(case), _interleaved(case), _equal(case), _sign(case)):
        if trouble:
            what, why = trouble
            return [Finding(_NAME, "fail", what, why)]
    kind = "own group" if case.method.compares else "whole batch, critic or own reward"
    what = (
        f"{_GROUPS} groups of {case.replies}: shifted, permuted, equal and better rewards are credited right ({kind})"
    )
    return [Finding(_NAME, "ok", what)]


class _Case:
    """Made-up groups under a method."""

    def __init__(self, method: Method, replies: int) -> None:
        self.method, self.replies = method, replies
        self.groups = made_up.groups(_GROUPS, replies, _LONGEST)
        self.rewards = made_up.rewards(_GROUPS, replies)
        self.number = torch.arange(_GROUPS).repeat_interleave(replies)

    def advantages(self, rewards: Tensor, groups: Sequence[Group] | None = None) -> list[Tensor]:
        """Advantages of the tokens of every reply, in order, through ``earning.credit``."""
        chosen = list(groups or self.groups)
        laid = lay_out([rollout for group in chosen for rollout in group])
        earned = replace(rewards_of(chosen, self.method), total=rewards)
        if self.method.greedy_baseline:
            earned = replace(earned, baselines=torch.full((len(rewards),), 0.2, dtype=torch.float64))
        flat = torch.where(laid.mask, 0.3, 0.0)
        values = (flat, torch.zeros(len(rewards))) if self.method.needs_values else None
        nothing = torch.zeros(laid.tokens.shape, dtype=torch.float64)
        made = credit(self.method, chosen, earned, laid, nothing, values).advantages
        return [row[mask].double() for row, mask in zip(made, laid.mask)]


_Trouble = tuple[str, str] | None


def _mixing(case: _Case) -> _Trouble:
    """A constant added to the rewards of one group."""
    before = case.advantages(case.rewards)
    for moved in range(_GROUPS):
        own = case.number == moved
        after = case.advantages(case.rewards + _SHIFT * own)
        others = [i for i in range(len(own)) if not own[i]]
        mine = [i for i in range(len(own)) if own[i]]
        scale = max(float(torch.cat(before).abs().max()), 1e-6)
        changed = max(float((after[i] - before[i]).abs().max()) for i in range(len(own))) / scale
        if changed < _BOUND:
            continue
        if case.method.compares:
            elsewhere = max(float((after[i] - before[i]).abs().max()) for i in others) / scale
            what = (
                f"credit mixes groups: with {_SHIFT:g} more for all replies to problem {moved}, advantages change by "
                f"{changed:.2g} of their size ({elsewhere:.2g} in other groups), not by 0"
            )
            why = (
                "the baseline must come from the replies to the same problem: look at how replies are matched with "
                "their group. If a baseline over the whole batch is meant, take batch_centered or global_normalized"
            )
            return what, why
        for part in (others,) if case.method.token_credit else (others, mine):
            off = _unlike(torch.cat([before[i] for i in part]), torch.cat([after[i] for i in part])) / scale
            if off > _BOUND:
                what = f"credit mixes groups: a shift of one group moves replies unlike ({off:.2g} of their size)"
                return what, "a baseline over the batch moves all other replies alike; this one reaches some of them"
    return None


def _unlike(before: Tensor, after: Tensor) -> float:
    """The largest distance of ``after`` from the best a · before + b."""
    design = torch.stack((before, torch.ones_like(before)), 1)
    fit = torch.linalg.lstsq(design, after[:, None]).solution
    return float((design @ fit - after[:, None]).abs().max())


def _order(case: _Case) -> _Trouble:
    """Replies in another order inside their groups, and groups in another order."""
    before = case.advantages(case.rewards)
    places = torch.arange(_GROUPS * case.replies).view(_GROUPS, case.replies)
    for how, order in (("replies", places.flip(1)), ("groups", places[torch.tensor([2, 0, 4, 1, 3])])):
        flat = order.flatten()
        shuffled = [tuple(_at(case, int(i)) for i in row) for row in order]
        after = case.advantages(case.rewards[flat], shuffled)
        gap = max(float((after[new] - before[int(old)]).abs().max()) for new, old in enumerate(flat))
        if not gap < _BOUND * max(1.0, float(torch.cat(before).abs().max())):
            what = f"with the {how} in another order, advantages differ by {gap:.2g}"
            return what, "credit must depend on the rewards and on which replies are of one problem, not on positions"
    return None


def _at(case: _Case, place: int) -> Rollout:
    return case.groups[place // case.replies][place % case.replies]


def _interleaved(case: _Case) -> _Trouble:
    """Rows of one group that do not stand together, where the credit is told the group of every row."""
    advantage = _per_reply(case.method)
    if advantage is None:
        return None
    order = torch.arange(len(case.rewards)).view(_GROUPS, case.replies).T.flatten()
    together = advantage(case.rewards, case.number)
    apart = advantage(case.rewards[order], case.number[order])
    gap = float((apart - together[order]).abs().max())
    if gap < _BOUND * max(1.0, float(together.abs().max())):
        return None
    what = f"with the rows of a group apart from each other, advantages differ by {gap:.2g}"
    return what, "go by the group number of every row, not by its position"


def _per_reply(method: Method) -> BatchAdvantage | None:
    if method.token_credit is None:
        return method.sequence_credit
    inner: BatchAdvantage | None = getattr(method.token_credit, "advantage", None)
    return inner


def _equal(case: _Case) -> _Trouble:
    """Groups of equal rewards teach nothing where replies are compared."""
    if not case.method.compares:
        return None
    flat = case.number.double() * 0.37 + 0.1
    largest = max(float(row.abs().max()) for row in case.advantages(flat))
    if largest == 0 or case.method.dense:
        return None
    what = f"equal rewards in every group give advantages up to {largest:.2g}, not 0"
    return what, "compare max − min of the rewards with a tolerance: the deviation of equal numbers is not 0 in floats"


def _sign(case: _Case) -> _Trouble:
    """The better reply of a group never gets less at its last token."""
    if case.method.dense:
        return None
    made = [float(row[-1]) for row in case.advantages(case.rewards)]
    if not all(map(math.isfinite, made)):
        return "an advantage is not finite", "look for a division by 0"
    for group in range(_GROUPS):
        rows = sorted((int(i) for i in (case.number == group).nonzero()), key=lambda i: float(case.rewards[i]))
        for low, high in pairwise(rows):
            if made[high] < made[low] - _BOUND:
                what = (
                    f"the reply with reward {float(case.rewards[high]):.2f} gets the advantage {made[high]:.2f}, its "
                    f"sibling with {float(case.rewards[low]):.2f} gets {made[low]:.2f}"
                )
                return what, "the sign is turned, or rewards and replies are matched wrongly: the policy unlearns"
    return None
