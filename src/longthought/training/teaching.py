"""A student and its teacher before the same tokens: the head that asks both, and measuring without learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from longthought.algorithms.distillation import Taught
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Rows
from longthought.models.precision import Precision, autocast, computed, native
from longthought.models.teacher_head import Divergence, States, compared
from longthought.models.transformer import Transformer
from longthought.training.learner import PolicyLearner, hidden_before, spread
from longthought.training.packing import micro_batches
from longthought.training.tally import Tally


class Teacher:
    """A frozen model that is only ever asked, by the native core where it can.

    Its weights are packed once, here: in a team, before the members are forked.
    """

    def __init__(self, model: Transformer, precision: Precision = "auto") -> None:
        self.model = model.requires_grad_(False).eval()
        self._core, self._precision = native(model, precision), precision
        self._asked = computed(model, self._core, backward=False)

    @torch.no_grad()
    def states(self, rows: Rows, needed: Bool[Tensor, "n t"]) -> States:
        """The states that predict the needed tokens (M, D), and the head (V, D)."""
        if self._core is not None:
            return States(hidden_before(self._asked, rows, needed).states, self.model.lm_head.weight)
        with autocast(self.model, self._precision):
            return States(hidden_before(self._asked, rows, needed).states, self.model.lm_head.weight)


@dataclass(frozen=True, eq=False)
class BesideTeacher:
    """The head of a student: log-prob and entropy of every token at temperature 1, and how far its distribution is from
    the teacher's. chunk: tokens whose logits exist at a time."""

    student: Transformer
    teacher: Teacher
    divergence: Divergence
    chunk: int

    def __call__(self, model: Any, rows: Rows, needed: Bool[Tensor, "n t"], /) -> Taught:
        states, where = hidden_before(model, rows, needed)
        own = States(states, self.student.lm_head.weight)
        told = self.teacher.states(rows, needed)
        said = compared(own, rows.tokens.flatten()[where], told, self.divergence, self.chunk)
        return Taught(*(spread(column, where, needed) for column in said))


class Measuring(PolicyLearner):
    """A learner that never learns: what an objective makes of a batch, without gradients."""

    @torch.no_grad()
    def tally(self, batch: Batch, objective: Objective) -> Tally:
        """Sums over the batch, in passes of bounded size."""
        total = Tally()
        with self._asking(backward=False) as ask:
            for index in micro_batches(batch.lengths, self.settings.micro_tokens):
                micro = batch.select(index).to(self.device)
                policy = ask(micro, micro.mask, self._watch(None))
                total = total + Tally.of(policy, micro, objective(policy, micro))
        return total
