"""Does the gradient depend on how rows are cut, packed and padded? In float64, where rounding is no excuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from longthought.core.types import Batch, PolicyOutput, Rollout, rows_of
from longthought.diagnosis.columns import littered, littered_output, off_policy, widened
from longthought.diagnosis.finding import Finding
from longthought.diagnosis.patient import Patient, updates_of
from longthought.diagnosis.plain import logits_of, said
from longthought.models import lora
from longthought.models.transformer import Transformer
from longthought.stages.method import Method
from longthought.stages.rl import RL
from longthought.training.batching import lay_out
from longthought.training.learner import PolicyLearner
from longthought.training.packing import shards

BOUND = 1e-6  # relative
_SMALL = 1e-12


class Pulled(NamedTuple):
    """The gradient of all trained parameters as one vector, the loss, and the sums of the metrics."""

    gradient: Tensor
    loss: float
    sums: Mapping[str, float]


def micro_batches(patient: Patient) -> list[Finding]:
    """One row at a time, all at once, random cuts and the shards of workers: the same gradient, loss and metrics."""
    name = "micro-batches"
    with updates_of(patient.small, patient.exact()) as updates:
        learner = updates.learner.learner
        _fill_adapter(learner.model)
        batch = _batch(patient, learner)
        rows = len(batch.tokens)
        cuts: dict[str, Callable[[], Pulled]] = {
            "one row per micro-batch": partial(_pull, learner, patient.small, [batch], 1),
            "random cuts": partial(_pull, learner, patient.small, _random_cuts(batch), 1 << 40),
            "the shards of three workers": partial(
                _pull, learner, patient.small, [batch.select(part) for part in shards(batch.lengths, 3)], 1 << 40
            ),
            "the equation written out": partial(_written_out, learner, patient.small, batch),
        }
        whole = _pull(learner, patient.small, [batch], 1 << 40)
        gaps = {how: _difference(whole, cut()) for how, cut in cuts.items()}
    told = f"{rows} off-policy rows{patient.exact_note}"
    if not bool(whole.gradient.isfinite().all()):
        return [Finding(name, "fail", f"the gradient of {told} is not finite", "look for a log, root or division by 0")]
    if float(whole.gradient.norm()) < _SMALL:
        return [Finding(name, "warn", f"the gradient of {told} is 0", "nothing in this batch pulls at the policy")]
    how, gap = max(gaps.items(), key=lambda item: item[1])
    what = f"largest relative difference of gradient, loss and metrics {gap:.1e} (bound {BOUND:.0e}), {told}"
    if gap < BOUND:
        return [Finding(name, "ok", what)]
    why = (
        f"{how} and all rows at once disagree: something is divided or averaged inside a micro-batch. A loss must be a "
        "plain sum of batch.weight × loss of the token; decide denominators once per step, in the weighting"
    )
    return [Finding(name, "fail", what, why)]


def padding(patient: Patient) -> list[Finding]:
    """What stands beyond the lengths and outside the mask changes nothing; a row alone is a row among others."""
    name = "padding"
    trouble = _layout_trouble(patient)
    with updates_of(patient.small, patient.exact()) as updates:
        learner = updates.learner.learner
        batch = _batch(patient, learner)
        vocabulary = patient.model.config.vocab_size
        gaps = _evaluation_gaps(learner, batch, vocabulary)
        policy = _policy(learner, batch)
    objective = _Equation(patient.small.method)
    whole = objective(policy, batch)
    wide = widened(batch, 7, 1)
    longer = replace(policy, **{n: _wider(getattr(policy, n), 7) for n in ("logp", "entropy")})
    gaps["the objective: columns behind the longest row"] = _difference(whole, objective(longer, wide))
    gaps["the weighting: columns behind the longest row"] = _weighting_gap(patient.small.method, batch)
    for value in (1e3, -7.0):
        dirty = objective(littered_output(policy, batch, value), littered(batch, vocabulary, value))
        gaps["the objective: garbage outside the replies"] = _difference(whole, dirty)
    where, gap = max(gaps.items(), key=lambda item: item[1])
    what = f"largest relative change through padding {gap:.1e} (bound {BOUND:.0e}), in {len(gaps)} ways"
    if trouble:
        return [Finding(name, "fail", trouble, "a mask must come from lengths, never from comparing tokens")]
    if gap >= BOUND:
        why = f"{where}: read only where batch.weight ≠ 0, and never use the padded width or the number of rows"
        return [Finding(name, "fail", what, why)]
    blank = objective(littered_output(policy, batch, math.nan), littered(batch, vocabulary, math.nan))
    if _difference(whole, blank) >= BOUND:
        why = "0 · NaN is NaN: choose with torch.where(batch.weight != 0, …, 0) before you multiply, as ours do"
        return [Finding(name, "warn", "NaN where no reply stands reaches the loss; other garbage does not", why)]
    return [Finding(name, "ok", what + ", NaN included")]


@dataclass(frozen=True)
class _Equation:
    """The objective alone, its gradient by the log-probs and entropies."""

    method: Method

    def __call__(self, policy: PolicyOutput, batch: Batch) -> Pulled:
        logp, entropy = policy.logp.detach().requires_grad_(), policy.entropy.detach().requires_grad_()
        loss = self.method.objective(PolicyOutput(logp, entropy), batch)
        pulled = torch.autograd.grad(loss.value, (logp, entropy), allow_unused=True)
        alive = [torch.zeros_like(logp) if g is None else g for g in pulled]
        live = batch.mask
        sums = {key: float(value) for key, value in loss.metrics.items()}
        return Pulled(torch.cat([g[live] for g in alive]), float(loss.value.detach()), sums)


def _batch(patient: Patient, learner: PolicyLearner) -> Batch:
    laid = lay_out(patient.rows)
    return off_policy(laid, _policy(learner, laid).logp, patient.small.method)


def _policy(learner: PolicyLearner, rows: Batch) -> PolicyOutput:
    """What the policy says of the replies, without a gradient, not narrowed to float32."""
    with torch.no_grad():
        return learner.head(learner.model, rows, rows.mask)


def _pull(learner: PolicyLearner, stage: RL, batches: Sequence[Batch], micro_tokens: int) -> Pulled:
    """What the learner accumulates over some batches."""
    method = stage.method
    before, learner.settings = learner.settings, replace(learner.settings, micro_tokens=micro_tokens)
    learner.model.zero_grad(set_to_none=True)
    try:
        tallies = [learner.accumulate(batch, method.objective)[0] for batch in batches]
        gradient = _gradient(learner)
    finally:
        learner.settings = before
        learner.model.zero_grad(set_to_none=True)
    names = dict.fromkeys(name for tally in tallies for name in tally.sums)
    sums = {name: sum(tally.sums.get(name, 0.0) for tally in tallies) for name in names}
    return Pulled(gradient, sum(tally.loss for tally in tallies), sums)


def _written_out(learner: PolicyLearner, stage: RL, batch: Batch) -> Pulled:
    """The objective of all rows on log-probs computed row by row, without a line of the learner."""
    method, model = stage.method, learner.model
    assert isinstance(model, Transformer)
    learner.model.zero_grad(set_to_none=True)
    logp, entropy = [], []
    width, temperature = batch.tokens.shape[1], stage.temperature
    for row, length in enumerate(batch.lengths.tolist()):
        tokens = tuple(batch.tokens[row, :length].tolist())
        start = int(batch.mask[row].nonzero()[0])
        one = said(logits_of(model, tokens, start), tokens[start:], temperature)
        logp.append(pad(one.logp[None], (start, width - length)))
        entropy.append(pad(one.entropy[None], (start, width - length)))
    columns = [torch.where(batch.mask, torch.cat(column), 0.0) for column in (logp, entropy)]
    loss = method.objective(PolicyOutput(*columns), batch)
    loss.value.backward()
    gradient = _gradient(learner)
    learner.model.zero_grad(set_to_none=True)
    sums = {key: float(value) for key, value in loss.metrics.items()}
    return Pulled(gradient, float(loss.value.detach()), sums)


def _gradient(learner: PolicyLearner) -> Tensor:
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained]).clone()


def _difference(one: Pulled, other: Pulled) -> float:
    """The largest relative difference of gradient, loss and metrics; infinite where one of them is not finite."""
    size = float(one.gradient.norm())
    gap = float((one.gradient - other.gradient).norm()) / max(size, _SMALL)
    numbers = [(one.loss, other.loss), *((value, other.sums.get(name, math.nan)) for name, value in one.sums.items())]
    gaps = [gap, *(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in numbers)]
    return max(value if math.isfinite(value) else math.inf for value in gaps)


def _random_cuts(batch: Batch) -> list[Batch]:
    order = torch.randperm(len(batch.tokens), generator=torch.Generator().manual_seed(1))
    cut = max(1, len(order) // 3)
    return [batch.select(part) for part in (order[:cut], order[cut:]) if len(part)]


def _evaluation_gaps(learner: PolicyLearner, batch: Batch, vocabulary: int) -> dict[str, float]:
    """How much the log-probs of the replies change: garbage beyond the lengths, rows alone."""
    together = _policy(learner, batch).logp
    dirty = _policy(learner, littered(widened(batch, 5, 2), vocabulary, 0.0)).logp[:, : batch.tokens.shape[1]]
    alone = torch.zeros_like(together)
    for row in range(len(batch.tokens)):
        one = batch.select(torch.tensor([row]))
        alone[row, : one.tokens.shape[1]] = _policy(learner, one).logp[0]
    size = max(float(together.abs().max()), _SMALL)
    gaps = {"the learner: tokens beyond the lengths": dirty, "the learner: a row alone": alone}
    return {how: _finite(float((other - together).abs().max()) / size) for how, other in gaps.items()}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _weighting_gap(method: Method, batch: Batch) -> float:
    width = batch.mask.shape[1]
    narrow, wide = method.weighting(batch.mask), method.weighting(_wider(batch.mask, 7))
    size = max(float(narrow.abs().max()), _SMALL)
    inside = _finite(float((wide[:, :width] - narrow).abs().max()) / size)
    outside = torch.cat((narrow[~batch.mask], wide[:, width:].flatten()))
    return max(inside, _finite(float(outside.abs().max()) / size) if len(outside) else 0.0)


def _wider(column: Tensor, by: int) -> Tensor:
    return torch.cat((column, column.new_zeros(len(column), by)), 1)


def _fill_adapter(model: torch.nn.Module) -> None:
    """B = 0 hides A: give it something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in lora.adapter_state(model).values():
            if not bool(tensor.any()):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)


def _layout_trouble(patient: Patient) -> str:
    """What is wrong with how rollouts are laid out, replies that hold the padding token included; empty if nothing."""
    rows = [*patient.rows, *(_with_padding_inside(row) for row in patient.rows[:2])]
    laid = lay_out(rows)
    expected = rows_of([r.prompt + r.completion.token_ids for r in rows])
    for number, rollout in enumerate(rows):
        start, length = len(rollout.prompt), len(rollout.prompt) + len(rollout.completion.token_ids)
        if int(laid.lengths[number]) != length or not torch.equal(
            laid.tokens[number, :length], expected.tokens[number, :length]
        ):
            return f"row {number}: the tokens of the batch are not those of prompt and reply"
        place = torch.arange(laid.mask.shape[1])
        if not torch.equal(laid.mask[number], (place >= start) & (place < length)):
            marked = int(laid.mask[number].sum())
            return f"row {number}: the mask marks {marked} tokens, the reply has {length - start}"
    return ""


def _with_padding_inside(rollout: Rollout) -> Rollout:
    ids = (0, *rollout.completion.token_ids[1:])
    return replace(rollout, completion=replace(rollout.completion, token_ids=ids))
