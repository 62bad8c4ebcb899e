"""A student beside its teacher: the gradient of the whole model, however the step is cut, and what is only measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.distillation import Distill, jensen_shannon
from longthought.algorithms.divergence import forward_kl
from longthought.algorithms.objective import NLL
from longthought.algorithms.weighting import sequence_mean
from longthought.core.types import Batch
from longthought.models.attention import PackedAttention
from longthought.models.teacher_head import Divergence, Kind
from longthought.models.transformer import Transformer
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.teaching import BesideTeacher, Measuring, Teacher

WIDE = LearnerSettings(precision="float32")


def batch() -> Batch:
    """Six replies to three prompts, of unequal lengths; the last two are the student's own."""
    torch.manual_seed(0)
    prompts = [tuple(torch.randint(23, (9,)).tolist()) for _ in range(3)]
    rows = [prompts[n % 3] + tuple(torch.randint(23, (2 + n,)).tolist()) for n in range(6)]
    laid = documents(rows, [[place >= 9 for place in range(len(row))] for row in rows])
    weight = sequence_mean(laid.mask)
    return replace(laid, weight=weight, imitation=weight * (torch.arange(6) < 4)[:, None])


def taught(kind: Kind, tie: bool, micro_tokens: int = 4096) -> tuple[PolicyLearner, Transformer]:
    student = tiny_model(tie_word_embeddings=tie)
    told = tiny_model(5, hidden_size=48, num_hidden_layers=1)
    head = BesideTeacher(student, Teacher(told, "float32"), Divergence(kind, 2.0), chunk=5)
    settings = replace(WIDE, micro_tokens=micro_tokens)
    return PolicyLearner(student, AdamW(), 1, settings=settings, head=head), told


def logits(model: Transformer, row: Tensor) -> Tensor:
    attend = PackedAttention([len(row)])
    hidden: Tensor = model(row, attend.positions, attend)
    return (hidden @ model.lm_head.weight.T)[:-1]


def distances(kind: Kind, student: Tensor, teacher: Tensor) -> Tensor:
    """Of every token, from logits."""
    if kind == "jsd":
        return jensen_shannon(teacher, student)
    p, q = (teacher, student) if kind == "forward" else (student, teacher)
    return forward_kl(p, q)


def by_autograd(student: Transformer, told: Transformer, of: Batch, kind: Kind) -> Tensor:
    """The loss from whole logits, row by row."""
    total = torch.zeros(())
    assert of.imitation is not None
    for tokens, length, weight, own in zip(of.tokens, of.lengths.tolist(), of.weight, of.imitation):
        s, t = logits(student, tokens[:length]), logits(told, tokens[:length]).detach()
        nll = -s.log_softmax(-1).gather(-1, tokens[1:length, None]).squeeze(-1)
        total = total + 0.3 * 4 * (distances(kind, s / 2, t / 2) * weight[1:length]).sum()
        total = total + 0.7 * (nll * own[1:length]).sum()
    return total


@pytest.mark.parametrize("tie", [False, True], ids=["two matrices", "tied"])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("micro_tokens", [1, 30, 4096])
def test_the_gradient_is_that_of_whole_logits(kind: Kind, tie: bool, micro_tokens: int, computed_by: str) -> None:
    learner, told = taught(kind, tie, micro_tokens)
    tally, output = learner.accumulate(batch(), Distill(0.3, 2.0))
    found = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    wanted = by_autograd(learner.model, told, batch(), kind)  # type: ignore[arg-type]
    wanted.backward()
    assert tally.loss == pytest.approx(float(wanted.detach()), abs=2e-5)
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in told.parameters())
    plain = PolicyLearner(learner.model, AdamW(), 1, settings=WIDE).logprobs(batch())
    torch.testing.assert_close(output.logp, torch.where(batch().mask, plain, 0.0), atol=1e-5, rtol=1e-4)


def test_what_is_measured_leaves_no_trace(computed_by: str) -> None:
    learner, _ = taught("forward", tie=False, micro_tokens=30)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    measuring = Measuring(learner.model, AdamW(), 1, settings=learner.settings, head=learner.head)
    tally = measuring.tally(batch(), Distill(0.3, 2.0))
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())
    same, _ = learner.accumulate(batch(), Distill(0.3, 2.0))
    assert tally.loss == pytest.approx(same.loss, abs=1e-6)
    assert tally.sums == pytest.approx(same.sums, abs=1e-6)


def test_a_teacher_changes_nothing_for_who_does_not_ask_it(computed_by: str) -> None:
    learner, _ = taught("forward", tie=False)
    tally, _ = learner.accumulate(batch(), NLL())
    plain, _ = PolicyLearner(tiny_model(), AdamW(), 1, settings=WIDE).accumulate(batch(), NLL())
    assert tally.loss == pytest.approx(plain.loss, abs=1e-6)
