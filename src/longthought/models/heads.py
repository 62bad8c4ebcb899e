"""From hidden states to log-probabilities, a chunk of tokens at a time: full logits are never stored."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class _TokenLogprob(torch.autograd.Function):
    """log p(target) and entropy of softmax(h Wᵀ / T), with logits rebuilt chunk by chunk in the backward pass.

    With p = softmax(z), z = h Wᵀ / T, o = onehot(target), H = −Σ p log p:
        ∂ log p(target) / ∂z = o − p            ∂H / ∂z = −p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp, entropy, normalizer = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(3))
        for rows in torch.arange(len(hidden), device=hidden.device).split(chunk):
            z = _logits(hidden[rows], weight, temperature)
            lse = z.logsumexp(-1)
            normalizer[rows] = lse
            logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - lse
            entropy[rows] = lse - ((z - lse[:, None]).exp() * z).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normalizer, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizer, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # None: the head is frozen
        for rows in torch.arange(len(hidden), device=hidden.device).split(ctx.chunk):
            logq = _logits(hidden[rows], weight, ctx.temperature) - normalizer[rows, None]
            p = logq.exp()
            grad = -p * (grad_logp[rows, None] + grad_entropy[rows, None] * (logq + entropy[rows, None]))
            grad.scatter_add_(-1, targets[rows, None], grad_logp[rows, None])
            grad = (grad / ctx.temperature).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[rows])
        return grad_hidden, grad_weight, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    z = hidden @ weight.T
    return z.to(torch.promote_types(z.dtype, torch.float32)) / temperature


def token_logprobs(
    hidden: Float[Tensor, "s d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " s"],
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
    """log softmax(h Wᵀ / T)[target] and the entropy in nats of that softmax, both (S,), float32 or wider.

    hidden: (S, D) states that predict; weight: (V, D) head; targets: (S,). Memory: chunk × V, not S × V.
    """
    pair = _TokenLogprob.apply(hidden, weight, targets, temperature, chunk)
    return cast(tuple[Tensor, Tensor], pair)
