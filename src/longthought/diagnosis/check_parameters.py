"""Does every parameter that is meant to learn move?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from longthought.algorithms.objective import MultiToken
from longthought.diagnosis.columns import off_policy
from longthought.diagnosis.finding import Finding, listed
from longthought.diagnosis.loop import with_lr
from longthought.diagnosis.patient import Patient, updates_of
from longthought.training.batching import lay_out
from longthought.training.learner import PolicyLearner

_NAME = "parameters move"
_AHEAD = "model.mtp."
"""What predicts further tokens: only ``MultiToken`` trains it."""


@dataclass(frozen=True)
class _Seen:
    """Names of parameters: all, those that are not trained, without a gradient, and still at their place."""

    every: list[str]
    frozen: list[str]
    dry: list[str]
    unmoved: list[str]
    infinite: list[str]


def parameters_move(patient: Patient) -> list[Finding]:
    """Two real updates of a copy with advantages of both signs, at the full learning rate of the stage."""
    stage = patient.small
    optimizer, adapted = stage.optimizer, stage.adapter is not None
    whole = replace(stage.method, objective=patient.stage.method.objective)
    fast = replace(stage, method=whole, optimizer=with_lr(optimizer, optimizer.lr))
    with updates_of(fast, copy.deepcopy(patient.model)) as updates:
        learner = updates.learner.learner
        laid = lay_out(patient.rows)
        before = _values(learner.model)
        dry = set(before)
        for _ in range(2):  # the A of a LoRA moves from the second step on: its B is 0 before
            batch = off_policy(laid, updates.learner.logprobs(laid), whole, scale=1e-6)
            learner.accumulate(batch, whole.objective)
            dry &= _without_gradient(learner.model)
            learner.model.zero_grad(set_to_none=True)
            updates.learner.step(batch, whole.objective)
        seen = _seen(learner, before, dry)
    ahead = isinstance(whole.objective, MultiToken)
    meant = [name for name in seen.every if "lora_" in name or not (adapted or (_AHEAD in name and not ahead))]
    return [_verdict(seen, meant, adapted, patient.stage.optimizer.lr)]


def _verdict(seen: _Seen, meant: list[str], adapted: bool, lr: float) -> Finding:
    if seen.infinite:
        return Finding(
            _NAME, "fail", f"not finite after two updates: {listed(seen.infinite)}", "lower the learning rate"
        )
    frozen = [name for name in meant if name in seen.frozen]
    if frozen:
        what = f"{len(frozen)} of {len(meant)} parameters are frozen: {listed(frozen)}"
        return Finding(
            _NAME, "fail", what, "something has set requires_grad=False; an adapter is the way to train a part"
        )
    loose = [name for name in seen.every if name not in meant and name not in seen.frozen]
    if adapted and loose:
        return Finding(_NAME, "fail", f"beside the adapter, {listed(loose)} would be trained", "freeze the base model")
    dry = [name for name in meant if name in seen.dry]
    if dry:
        what = f"{len(dry)} of {len(meant)} parameters get no gradient: {listed(dry)}"
        return Finding(_NAME, "fail", what, "they are cut off from the loss (detach, no_grad, a layer that is skipped)")
    unmoved = [name for name in meant if name in seen.unmoved]
    if unmoved:
        what = f"{len(unmoved)} of {len(meant)} parameters have a gradient and did not move at lr={lr:g}: "
        why = "the optimizer does not hold them, or the learning rate is below the precision of the weights"
        return Finding(_NAME, "fail", what + listed(unmoved), why)
    what = (
        f"all {len(meant)} {'matrices of the adapter' if adapted else 'parameters'} moved in two updates at lr={lr:g}"
    )
    idle = f"; the {len(loose)} that predict further tokens have no part in the objective" if loose else ""
    moved = [name for name in loose if name not in seen.unmoved]
    if moved:
        return Finding(_NAME, "fail", f"without a part in the objective, {listed(moved)} moved", "weight decay did it")
    return Finding(_NAME, "ok", what + idle)


def _seen(learner: PolicyLearner, before: dict[str, Tensor], dry: set[str]) -> _Seen:
    now = dict(learner.model.named_parameters())
    return _Seen(
        every=list(now),
        frozen=[name for name, p in now.items() if not p.requires_grad],
        dry=sorted(dry),
        unmoved=[name for name, p in now.items() if torch.equal(p, before[name])],
        infinite=[name for name, p in now.items() if not bool(p.isfinite().all())],
    )


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
