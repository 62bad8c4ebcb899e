"""Distillation: a student learns a teacher's whole distribution over the next token, and not the one token of a trace.

``Distill`` is the equation over what a learner's head has computed without ever storing logits; ``distillation`` is the
same from logits, for those who have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longthought.algorithms.columns import check, entropy_metric, where
from longthought.algorithms.divergence import forward_kl
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Loss, PolicyOutput


class Taught(PolicyOutput):
    """What a student says beside its teacher, (N, T): also the divergence at the teacher's temperature, in nats, and 1
    where both prefer the same token. These two are for the objective; what a learner keeps of a step has only the rest.
    """

    __slots__ = ("agreement", "divergence")

    divergence: Tensor
    agreement: Tensor

    def __init__(self, logp: Tensor, entropy: Tensor, divergence: Tensor, agreement: Tensor) -> None:
        PolicyOutput.__init__(self, logp, entropy)
        object.__setattr__(self, "divergence", divergence)
        object.__setattr__(self, "agreement", agreement)


@dataclass(frozen=True, slots=True)
class Distill:
    """Σ_t w_t (α T² D_t + (1 − α) e_t CE_t): D the divergence at temperature T, CE_t = − log π(oₜ) at temperature 1.

    T² keeps the gradient of D as large as that of CE: it shrinks like 1/T² (Hinton et al., arXiv:1503.02531, section
    2). e_t is 1 on the tokens of examples; on tokens that the student has sampled itself it is 0, since raising the
    likelihood of one's own samples teaches nothing. The batch says e_t w_t in its column ``imitation``; without that
    column it is w_t.
    alpha: α, above 0: without the divergence it is ``NLL``.  temperature: T, that of the head.
    Metrics: kl (D, whichever divergence it is), ce (Σ e_t w_t CE_t), agreement, entropy.
    """

    alpha: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check("Distill.alpha", self.alpha, lambda x: 0 < x <= 1, "above 0 and at most 1; without a teacher take NLL")
        check("Distill.temperature", self.temperature, lambda x: x > 0, "above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        if not isinstance(policy, Taught):
            raise SettingsError(
                "Distill needs what a teacher says of the same tokens, but the policy's output has no such columns: "
                "ask the student with training.teaching.BesideTeacher"
            )
        imitated = batch.weight if batch.imitation is None else batch.imitation
        logp, distance = where(batch.weight != 0, policy.logp, policy.divergence)
        kl, ce = weighted_sum(distance, batch.weight), -weighted_sum(logp, imitated)
        value = self.alpha * self.temperature**2 * kl
        if self.alpha < 1:
            value = value + (1 - self.alpha) * ce
        agreement = weighted_sum(policy.agreement.detach(), batch.weight)
        metrics = {"kl": kl.detach(), "ce": ce.detach(), "agreement": agreement}
        return Loss(value, {**metrics, **entropy_metric(policy, batch)})


def distillation(
    student: Float[Tensor, "*n v"],
    teacher: Float[Tensor, "*n v"],
    targets: Int[Tensor, "*n"],
    alpha: float = 0.5,
    temperature: float = 2.0,
) -> Float[Tensor, "*n"]:
    """α T² KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 − α) CE(student, target), per token, from logits.

    (..., V), (..., V), (...) → (...). No gradient reaches the teacher.  Source: arXiv:1503.02531, section 2.
    """
    Distill(alpha, temperature)
    distance = forward_kl(teacher.detach() / temperature, student / temperature)
    logp = student.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return alpha * temperature**2 * distance - (1 - alpha) * logp


def jensen_shannon(
    teacher: Float[Tensor, "*n v"], student: Float[Tensor, "*n v"], beta: float = 0.5
) -> Float[Tensor, "*n"]:
    """β KL(p‖m) + (1 − β) KL(q‖m) with m = βp + (1 − β)q, p the teacher, from logits, (..., V), (..., V) → (...).

    Source: GKD, arXiv:2306.13649, equation 1.
    """
    check("jensen_shannon: beta", beta, lambda x: 0 < x < 1, "between 0 and 1")
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    mixed = torch.logaddexp(p + torch.tensor(beta).log(), q + torch.tensor(1 - beta).log())
    return beta * forward_kl(p, mixed) + (1 - beta) * forward_kl(q, mixed)
