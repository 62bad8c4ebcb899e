"""DeepSeekMoE (DeepSeek-V3, arXiv:2412.19437, section 2.1.2): a router, many small nets, and some that see all tokens.

No token is ever dropped: every expert computes all tokens that chose it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from longthought.models.config import ModelConfig
from longthought.models.grouped_linear import grouped_linear
from longthought.models.net import SwiGLU
from longthought.models.parts import Experts
from longthought.models.routing import Routing


class Router(nn.Module):
    """Which experts a token goes to, and how much each of them counts. Computed in float32, whatever the precision.

    ``weight``: the centroids e_i.  ``e_score_correction_bias``: b_i, no parameter: ``balance.update_bias`` moves it.
    """

    e_score_correction_bias: Tensor

    def __init__(self, width: int, shape: Experts) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.zeros(shape.n_routed_experts, width))
        if shape.noisy:
            self.noise = nn.Parameter(torch.zeros(shape.n_routed_experts, width))
        if shape.corrects:
            self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))

    def affinities(self, x: Float[Tensor, "s d"], noise: Float[Tensor, "s e"] | None = None) -> Float[Tensor, "s e"]:
        """s_{i,t} = σ(u_tᵀ e_i) (equation 15), or the softmax of u_tᵀ e_i over all experts.

        noise: (S, E) standard normal numbers, for a noisy gate: H(u)_i = u·e_i + n_i softplus(u·w_i), of which it is
        the softmax (arXiv:1701.06538, equation 4).
        """
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            logits = linear(wide, self.weight.to(wide.dtype))
            if self.shape.score == "sigmoid":
                return logits.sigmoid()
            if noise is not None:
                logits = logits + noise.to(wide) * softplus(linear(wide, self.noise.to(wide.dtype)))
            return logits.softmax(-1)

    @torch.no_grad()
    def select(self, s: Float[Tensor, "s e"]) -> Int[Tensor, "s k"]:
        """The K_r experts with the highest s_{i,t} + b_i (equation 16), inside the best groups, if there are groups."""
        shape = self.shape
        biased = s + self.e_score_correction_bias if shape.corrects else s
        if shape.n_group > 1:
            groups = biased.unflatten(-1, (shape.n_group, -1))
            best = groups.topk(2, -1).values.sum(-1).topk(shape.topk_group, -1).indices
            out = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(-1, best, False)
            biased = groups.masked_fill(out.unsqueeze(-1), -torch.inf).flatten(-2)
        return biased.topk(shape.num_experts_per_tok, -1).indices

    def gates(self, s: Float[Tensor, "s e"], chosen: Int[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        """g_{i,t}: the affinities of the chosen, divided by their sum if that is the shape, times the factor
        (equations 13 and 14). The bias is no part of them."""
        g = s.gather(-1, chosen)
        if self.shape.norm_topk_prob:
            g = g / (g.sum(-1, keepdim=True) + 1e-20)
        return g * self.shape.routed_scaling_factor


class RoutedExperts(nn.Module):
    """Σ g_{i,t} FFN_i(u_t) over the experts that a token has chosen. ``gate_proj`` …: the matrices of all, stacked."""

    def __init__(self, width: int, shape: Experts) -> None:
        super().__init__()
        count, wide = shape.n_routed_experts, shape.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(count, wide, width))
        self.up_proj = nn.Parameter(torch.empty(count, wide, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, wide))

    def forward(
        self, x: Float[Tensor, "s d"], chosen: Int[Tensor, "s k"], gates: Float[Tensor, "s k"]
    ) -> Float[Tensor, "s d"]:
        order = chosen.flatten().argsort(stable=True)  # (token, expert) pairs, by expert
        counts = chosen.flatten().bincount(minlength=len(self.gate_proj))
        grouped = x.index_select(0, order // chosen.shape[1])
        hidden = silu(grouped_linear(grouped, self.gate_proj, counts)) * grouped_linear(grouped, self.up_proj, counts)
        out = grouped_linear(hidden, self.down_proj, counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        by_token: Tensor = out.index_select(0, back).unflatten(0, chosen.shape)
        return (by_token * gates.unsqueeze(-1).to(out.dtype)).sum(1)


class MixtureOfExperts(nn.Module):
    """h_t − u_t = Σ FFN_i^(s)(u_t) + Σ g_{i,t} FFN_i^(r)(u_t)  (equation 12)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        shape, width = config.experts, config.hidden_size
        self.gate = Router(width, shape)
        self.experts = RoutedExperts(width, shape)
        self.shared_experts: SwiGLU | None = None
        if shape.n_shared_experts:
            self.shared_experts = SwiGLU(width, shape.n_shared_experts * shape.moe_intermediate_size)

    def forward(self, layer: int, x: Float[Tensor, "s d"], routing: Routing | None) -> Float[Tensor, "s d"]:
        chosen, gates = self.route(layer, x, routing)
        out: Tensor = self.experts(x, chosen, gates)
        return out if self.shared_experts is None else out + self.shared_experts(x)

    def route(
        self, layer: int, x: Float[Tensor, "s d"], routing: Routing | None
    ) -> tuple[Int[Tensor, "s k"], Float[Tensor, "s k"]]:
        """The experts of every token, and their gates. ``routing`` may prescribe the choice, and is told of it."""
        s = self.gate.affinities(x, None if routing is None else routing.noise(layer, len(x), self.gate.shape))
        prescribed = None if routing is None else routing.prescribed(layer)
        chosen = self.gate.select(s)
        if prescribed is not None:
            chosen = torch.where(prescribed < 0, chosen, prescribed)
        if routing is not None:
            routing.note(layer, s, chosen)
        return chosen, self.gate.gates(s, chosen)
