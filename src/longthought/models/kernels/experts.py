"""Routed experts, and the shared ones beside them, in the native core. Routers stay in PyTorch, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longthought.models.experts import MixtureOfExperts
from longthought.models.kernels import gated
from longthought.models.kernels.core import Core, numbers, zeros
from longthought.models.kernels.packed import PackedExperts
from longthought.models.kernels.stream import Stream


def parameters(mixture: MixtureOfExperts) -> tuple[Tensor | None, ...]:
    """The order of gradients: the matrices of the routed experts, and those of the shared ones."""
    routed, shared = mixture.experts, mixture.shared_experts
    own = () if shared is None else gated.parameters(shared)
    return (routed.gate_proj, routed.up_proj, routed.down_proj, *own)


class NativeExperts(torch.autograd.Function):
    """x + Σ shared experts (h) + Σ gates · routed experts (h).

    x, h: (S, D) float32.  chosen: (S, K), numbers of experts, which the router's own ``gather`` has checked.
    gates: (S, K).
    """

    @staticmethod
    def forward(
        ctx: Any, by: tuple[Core, PackedExperts], x: Tensor, h: Tensor, chosen: Tensor, gates: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        core, w = by
        items = core.to_rows(h)
        out, shared = (x.clone(), None) if w.shared is None else gated.forward(core, w.shared, items, x)
        chosen, gates = chosen.contiguous(), gates.float().contiguous()
        order, first = torch.empty_like(chosen), torch.empty(w.count + 1, dtype=torch.int64, device="cpu")
        both = core.items(chosen.numel(), 2 * w.wide)
        shape = _shape(w, chosen, x)
        core.call("experts", w.gate_up.panels, w.down.panels, items.items, chosen, gates, shape, order, first, out,
                  both)  # fmt: skip
        ctx.by, ctx.shape = by, shape
        ctx.save_for_backward(items.items, gates, order, first, both, shared)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        core, w = ctx.by
        h, gates, order, first, both, shared = ctx.saved_tensors
        grad = grad.contiguous()
        rows = core.to_rows(grad)
        d_shared: tuple[Tensor | None, ...] = ()
        if w.shared is None:
            dh = zeros(*grad.shape)
        else:
            inside = gated.backward(core, w.shared, shared, Stream(grad, rows, core.to_pairs(grad)))
            dh, d_shared = inside.dh, gated.gradients(core, w.shared, inside, core.to_pairs(h))
        d_gates = numbers(*gates.shape)
        tall, flat = (w.count, w.wide, h.shape[1]), (w.count, h.shape[1], w.wide)
        wanted = any(ctx.needs_input_grad[5:8])
        d_routed = [numbers(*size) if wanted else None for size in (tall, tall, flat)]
        core.call("experts_backward", w.gate_up.pairs, w.down.pairs, rows.items, h, both, gates, order, first,
                  ctx.shape, dh, d_gates, *d_routed)  # fmt: skip
        return None, grad, dh, None, d_gates, *d_routed, *d_shared


def _shape(w: PackedExperts, chosen: Tensor, x: Tensor) -> Tensor:
    return torch.tensor([*chosen.shape, w.count, x.shape[1], w.wide], device="cpu")
