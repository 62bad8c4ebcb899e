"""How evenly routed experts are used, and what keeps it even.

The load of an expert is the number of (token, choice) pairs that went to it. Loads and losses are sums over the
sequences of an optimizer step, so that micro-batches and ranks add up.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def loads(chosen: Int[Tensor, "s k"], experts: int) -> Float[Tensor, " e"]:
    """How many tokens chose each expert, (E,)."""
    return chosen.flatten().bincount(minlength=experts).float()


@torch.no_grad()
def update_bias(bias: Float[Tensor, " e"], load: Float[Tensor, " e"], rate: float) -> None:
    """b_i += γ where expert i had less than the mean load, −= γ where it had more; in place, after an optimizer step.

    rate: γ.  Auxiliary-loss-free balancing, DeepSeek-V3, section 2.1.2; Wang et al., arXiv:2408.15664, algorithm 1.
    """
    bias.add_(rate * (load.mean() - load).sign().to(bias.dtype))


def maximal_violation(load: Float[Tensor, "*l e"]) -> Float[Tensor, "*l"]:
    """MaxVio: the heaviest load over the mean load, minus 1; 0 where nothing was chosen.  arXiv:2408.15664, eq. 4."""
    mean = load.mean(-1)
    return torch.where(mean > 0, load.amax(-1) / mean.clamp(min=1e-30) - 1, 0.0)


def sequence_balance(
    s: Float[Tensor, "s e"], chosen: Int[Tensor, "s k"], sequence: Int[Tensor, " s"], count: int
) -> Float[Tensor, " n"]:
    """Σ_i f_i P_i of every sequence (N,); 1 where it is even. α times its mean is L_Bal (DeepSeek-V3, equations 17–20).

    f_i = N_r / (K_r T) Σ_t [i chosen],  P_i = 1/T Σ_t s_{i,t} / Σ_j s_{j,t}.

    s: (S, E) affinities.  sequence: (S,) of every token, the number of its sequence, below ``count``.
    """
    experts, chosen_each = s.shape[1], chosen.shape[1]
    tokens = s.new_zeros(count).index_add(0, sequence, torch.ones_like(s[:, 0])).clamp(min=1)
    picked = torch.zeros_like(s).scatter_(1, chosen, 1.0)
    f = s.new_zeros(count, experts).index_add(0, sequence, picked) * experts / chosen_each / tokens[:, None]
    shares = s / s.sum(-1, keepdim=True).clamp(min=1e-20)
    p = s.new_zeros(count, experts).index_add(0, sequence, shares) / tokens[:, None]
    return (f * p).sum(-1)


def importance(s: Float[Tensor, "s e"], chosen: Int[Tensor, "s k"], gates: Float[Tensor, "s k"]) -> Float[Tensor, " e"]:
    """Σ_t G(u_t)_i: what the gates give to each expert, (E,).  Shazeer et al., arXiv:1701.06538, equation 6."""
    return torch.zeros_like(s[0]).index_add(0, chosen.flatten(), gates.flatten().to(s.dtype))


def squared_variation(x: Float[Tensor, " e"]) -> Float[Tensor, ""]:
    """CV(x)²: variance over squared mean. w times that of the importance is the classic gate's loss (ibid., eq. 7)."""
    return x.var(correction=0) / x.mean().square().clamp(min=1e-20)
