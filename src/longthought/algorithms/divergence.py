"""Distances between policies: estimators from the sampled tokens, and sums over the vocabulary.

Log-probabilities are per token, (N, T), in nats; half precision is widened to float32 before anything is subtracted.

With d = log π - log π_ref and tokens sampled from π (values: Schulman 2020, http://joschu.net/blog/kl-approx.html;
gradients: arXiv:2506.09477, arXiv:2510.01555):

    estimator               value                         expected gradient, when used as a loss
    k1 = d                  KL(π‖π_ref), unbiased         0: it regularises nothing
    k2 = d² / 2             biased                        ∇KL(π‖π_ref)
    k3 = e⁻ᵈ - 1 + d        KL(π‖π_ref), unbiased         ∇KL(π_ref‖π), the forward KL
    k3_corrected = ρ k3     KL(π‖π_ref), unbiased         ∇KL(π‖π_ref), also when π_old ≠ π sampled
    k1 in the reward        -                             ∇KL(π‖π_ref)
    k3 in the reward        -                             ∇KL(π‖π_ref) - ∇KL(π_ref‖π)
    k2 in the reward        -                             that of no KL
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LIMIT = 20.0
"""Log-ratios are clamped to ±LIMIT before ``exp``: e²⁰ = 5e8 is finite in float32, and so is its square."""


def log_ratio(logp: Float[Tensor, "*n"], other: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log π - log π_other, same shape, float32 or wider."""
    return _wide(logp) - _wide(other)


def ratio(logp: Float[Tensor, "*n"], logp_old: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """ρ = π / π_old, same shape; the gradient stops where the log-ratio is beyond ±LIMIT."""
    return log_ratio(logp, logp_old).clamp(-LIMIT, LIMIT).exp()


def k1(logp: Float[Tensor, "*n"], logp_ref: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """d = log π - log π_ref. As a loss its expected gradient is zero; put it, detached, into the reward instead."""
    return log_ratio(logp, logp_ref)


def k2(logp: Float[Tensor, "*n"], logp_ref: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """d² / 2. As a loss its expected gradient is ∇KL(π‖π_ref), the reverse KL, when the tokens come from π."""
    return log_ratio(logp, logp_ref).square() / 2


def k3(logp: Float[Tensor, "*n"], logp_ref: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """e⁻ᵈ - 1 + d ≥ 0, d clamped to ±LIMIT. GRPO's KL term (DeepSeekMath, arXiv:2402.03300, equation 4).

    Its value estimates KL(π‖π_ref); as a loss its expected gradient is ∇KL(π_ref‖π), the *forward* KL.
    """
    d = log_ratio(logp, logp_ref).clamp(-LIMIT, LIMIT)
    return torch.expm1(-d) + d


def k3_corrected(
    logp: Float[Tensor, "*n"], logp_old: Float[Tensor, "*n"], logp_ref: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """ρ · k3 with ρ = π / π_old not detached, for tokens sampled from π_old.

    As a loss its expected gradient is ∇KL(π‖π_ref), the reverse KL, whatever π_old was. Where a clamp binds, the
    gradient of both factors stops. Source: DeepSeek-V3.2, arXiv:2512.02556, section 3.1 (unbiased KL estimate).
    """
    product = ratio(logp, logp_old) * k3(logp, logp_ref)
    inside = (log_ratio(logp, logp_old).abs() <= LIMIT) & (log_ratio(logp, logp_ref).abs() <= LIMIT)
    return torch.where(inside, product, product.detach())


def forward_kl(logits_p: Float[Tensor, "*n v"], logits_q: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """KL(p‖q) = Σ p (log p - log q) over the last axis, (..., V), (..., V) → (...).

    p is the target (teacher), q the model: q must cover all that p does. A logit of -inf in p is a forbidden token and
    adds 0; one in q under a p > 0 makes the result +inf.
    """
    log_p = _wide(logits_p).log_softmax(-1)
    log_q = _wide(logits_q).log_softmax(-1)
    allowed = ~log_p.isneginf()
    gap = torch.where(allowed, log_p, 0.0) - torch.where(allowed, log_q, 0.0)
    return (log_p.exp() * gap).sum(-1)


def reverse_kl(logits_p: Float[Tensor, "*n v"], logits_q: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """KL(q‖p) for the same arguments as ``forward_kl``: q may choose one mode of p."""
    return forward_kl(logits_q, logits_p)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
