"""How far a student's next-token distribution is from a teacher's, a chunk of tokens at a time.

With p the teacher's and q the student's softmax(logits / T), over the whole vocabulary:

    forward   KL(p‖q) = Σ p (log p − log q)                q covers all that p does (Hinton et al., arXiv:1503.02531)
    reverse   KL(q‖p) = Σ q (log q − log p)                q may choose one mode of p (MiniLLM, arXiv:2306.08543)
    jsd       β KL(p‖m) + (1 − β) KL(q‖m), m = βp + (1 − β)q   between the two (GKD, arXiv:2306.13649, equation 1)

``jsd`` / β tends to the forward KL for β → 0, and ``jsd`` / (1 − β) to the reverse one for β → 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from longthought.core.errors import DataError, SettingsError

Kind: TypeAlias = Literal["forward", "reverse", "jsd"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which one, at which temperature T.  beta: the teacher's share β of the mixture of ``jsd``; 0.5 if not given."""

    kind: Kind = "forward"
    temperature: float = 1.0
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"divergence={self.kind!r}: choose one of {', '.join(get_args(Kind))}")
        if not 0 < self.temperature < math.inf:
            raise SettingsError(f"temperature={self.temperature}: must be above 0 and finite")
        if self.beta is None:
            return
        if self.kind != "jsd":
            raise SettingsError(f"beta={self.beta} changes nothing: it belongs to divergence='jsd'; leave it out")
        if not 0 < self.beta < 1:
            raise SettingsError(f"beta={self.beta}: must lie between 0 and 1; at the ends take forward or reverse")

    def of(self, teacher: Float[Tensor, "s v"], student: Float[Tensor, "s v"]) -> Float[Tensor, " s"]:
        """The divergence of every row, in nats, from the logs of p and q."""
        if self.kind == "forward":
            return (teacher.exp() * (teacher - student)).sum(-1)
        if self.kind == "reverse":
            return (student.exp() * (student - teacher)).sum(-1)
        lift, beta = self._lift(teacher, student), self._beta
        theirs = (teacher.exp() * (teacher - student - lift)).sum(-1)
        return beta * theirs - (1 - beta) * (student.exp() * lift).sum(-1)

    def gradient(self, teacher: Float[Tensor, "s v"], student: Float[Tensor, "s v"]) -> Float[Tensor, "s v"]:
        """∂D/∂z, z the student's logits / T, q = softmax(z), from the logs of p and q.

        ∂q_j/∂z_i = q_j (1[i=j] − q_i), so that ∂D/∂z_i = q_i (g_i − Σ_j q_j g_j) with g = ∂D/∂q, in which a constant
        added to g cancels:
            forward   g = −p / q                                         ∂D/∂z = q − p
            reverse   g = log q − log p + 1                              ∂D/∂z = q (log q − log p − D)
            jsd       g = (1 − β)(log q − log m + 1 − (βp + (1 − β)q) / m)
                        = (1 − β)(log q − log m)                         ∂D/∂z = (1 − β) q (log q/m − KL(q‖m))
        """
        q = student.exp()
        if self.kind == "forward":
            return q - teacher.exp()
        ratio = student - teacher if self.kind == "reverse" else -self._lift(teacher, student)
        slope = q * (ratio - (q * ratio).sum(-1, keepdim=True))
        return slope if self.kind == "reverse" else (1 - self._beta) * slope

    @property
    def _beta(self) -> float:
        return 0.5 if self.beta is None else self.beta

    def _lift(self, teacher: Tensor, student: Tensor) -> Tensor:
        """log m − log q, exactly 0 where p = q: with d = log p − log q it is log(1 + β (eᵈ − 1)), which for d > 0 is
        d + log(1 + (1 − β)(e⁻ᵈ − 1))."""
        gap, beta = teacher - student, self._beta
        above, below = gap.clamp(min=0), gap.clamp(max=0)
        return above + torch.log1p((1 - beta) * torch.expm1(-above)) + torch.log1p(beta * torch.expm1(below))


class States(NamedTuple):
    """Hidden states (S, D) that predict, and the head (V, D) that reads them."""

    hidden: Tensor
    weight: Tensor


class Said(NamedTuple):
    """Of every token, (S,), float32 or wider: log-prob of the target and entropy under the student at temperature 1;
    the divergence at its own temperature; 1 where both find the same token the most likely one, else 0.

    Gradients flow through ``logp`` and ``divergence``, to the student.
    """

    logp: Tensor
    entropy: Tensor
    divergence: Tensor
    agreement: Tensor


class _Compared(torch.autograd.Function):
    """``Said``, with both models' logits rebuilt chunk by chunk in the backward pass.

    With s = h Wᵀ, o = onehot(target), z = s / T:
        ∂ log q₁(target) / ∂s = o − softmax(s)        ∂D / ∂s = (∂D / ∂z) / T
    """

    @staticmethod
    def forward(  # noqa: PLR0913  autograd hands tensors over one by one
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        other: Tensor,
        other_weight: Tensor,
        divergence: Divergence,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp, entropy, distance, agreement = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(4))
        for rows in torch.arange(len(hidden), device=hidden.device).split(chunk):
            s, t = _logits(hidden[rows], weight), _logits(other[rows], other_weight)
            logq = s.log_softmax(-1)
            logp[rows] = logq.gather(-1, targets[rows, None]).squeeze(-1)
            entropy[rows] = -(logq.exp() * logq).sum(-1)
            distance[rows] = divergence.of(*_logs(t, s, divergence)).to(wide)
            agreement[rows] = (s.argmax(-1) == t.argmax(-1)).to(wide)
        ctx.save_for_backward(hidden, weight, targets, other, other_weight)
        ctx.divergence, ctx.chunk = divergence, chunk
        ctx.mark_non_differentiable(entropy, agreement)
        return logp, entropy, distance, agreement

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor, grad_entropy: Tensor, grad_divergence: Tensor, grad_agreement: Tensor
    ) -> tuple[Tensor | None, ...]:
        del grad_entropy, grad_agreement
        hidden, weight, targets, other, other_weight = ctx.saved_tensors
        divergence: Divergence = ctx.divergence
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # None: the head is frozen
        for rows in torch.arange(len(hidden), device=hidden.device).split(ctx.chunk):
            s, t = _logits(hidden[rows], weight), _logits(other[rows], other_weight)
            slope = divergence.gradient(*_logs(t, s, divergence)).to(s.dtype)
            grad = slope * (grad_divergence[rows, None] / divergence.temperature)
            grad -= s.softmax(-1) * grad_logp[rows, None]
            grad.scatter_add_(-1, targets[rows, None], grad_logp[rows, None])
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[rows])
        return grad_hidden, grad_weight, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):  # the backward pass must rebuild the same numbers
        s = hidden @ weight.T
    return s.to(torch.promote_types(s.dtype, torch.float32))


def _logs(teacher: Tensor, student: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """log p and log q."""
    wide = torch.promote_types(teacher.dtype, student.dtype)
    p, q = ((logits.to(wide) / divergence.temperature).log_softmax(-1) for logits in (teacher, student))
    return p, q


def compared(
    student: States, targets: Int[Tensor, " s"], teacher: States, divergence: Divergence, chunk: int = 1024
) -> Said:
    """What a student says of S tokens beside a frozen teacher, who may be of another width.

    targets: (S,).  Memory: a few times chunk × V, not S × V. Raises DataError where the vocabularies differ in size.
    """
    if len(student.weight) != len(teacher.weight):
        raise DataError(
            f"the student has {len(student.weight):,} tokens and the teacher {len(teacher.weight):,}: distributions "
            "over different vocabularies cannot be compared"
        )
    own, other = ((states.hidden.to(states.weight.dtype), states.weight) for states in (student, teacher))
    return Said(*_Compared.apply(*own, targets, *(tensor.detach() for tensor in other), divergence, chunk))
