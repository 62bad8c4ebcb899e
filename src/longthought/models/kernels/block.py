"""One block of the decoder in the native core, forward and backward: the same equations as ``transformer.Block``.

With an ordinary net it is one function. Routed experts need their router in between, which is PyTorch's: the first
half gives its norm, too, and the second takes what was chosen.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longthought.models.experts import MixtureOfExperts
from longthought.models.kernels import attention, experts, gated
from longthought.models.kernels.core import Core, Pairs, core, zeros
from longthought.models.kernels.experts import NativeExperts
from longthought.models.kernels.packed import PackedExperts, PackedLayer, PackedNet
from longthought.models.kernels.stream import Pass, Stream, normed
from longthought.models.routing import Routing
from longthought.models.transformer import Block


def run(at: Pass, block: nn.Module, w: PackedLayer, x: Tensor, layer: int, routing: Routing | None) -> Tensor:
    """x: (S, D) float32 → the same, behind the block."""
    assert isinstance(block, Block)
    norm, own = block.post_attention_layernorm.weight, attention.parameters(block)
    mlp = block.mlp
    if not isinstance(mlp, MixtureOfExperts):
        return cast(Tensor, NativeBlock.apply(at, w, x, norm, *gated.parameters(mlp), *own))
    assert isinstance(w.net, PackedExperts)
    middle, h = NativeAttention.apply(at, w, x, norm, *own)
    chosen, gates = mlp.route(layer, h, routing)
    return cast(Tensor, NativeExperts.apply((at.core, w.net), middle, h, chosen, gates, *experts.parameters(mlp)))


class NativeBlock(torch.autograd.Function):
    """x + attention(norm(x)), and to that the gated net of its norm.  x: (S, D) float32."""

    @staticmethod
    def forward(ctx: Any, at: Pass, w: PackedLayer, x: Tensor, *parameters: Tensor | None) -> Tensor:
        assert isinstance(w.net, PackedNet)
        middle, kept = attention.forward(at, w, x)
        h, inverse = normed(at.core, middle, w.ffn_norm, at.config.rms_norm_eps)
        out, both = gated.forward(at.core, w.net, h, middle)
        ctx.at, ctx.weights = at, w
        ctx.save_for_backward(middle, inverse, both, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        at, w = ctx.at, ctx.weights
        middle, inverse, both, *kept = ctx.saved_tensors
        stream = Stream.of(at.core, grad)
        inside = gated.backward(at.core, w.net, both, stream)
        h = Pairs(at.core.pairs(*middle.shape))
        d_norm = _norm_backward(at.core, w, (middle, inverse), inside.dh, stream, h)
        d_net = gated.gradients(at.core, w.net, inside, h)
        d_attention = attention.backward(at, w, tuple(kept), stream)
        return None, None, stream.d, d_norm, *d_net, *d_attention


class NativeAttention(torch.autograd.Function):
    """x + attention(norm(x)), and the norm of it, all in float32: what a router and its experts read."""

    @staticmethod
    def forward(ctx: Any, at: Pass, w: PackedLayer, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        middle, kept = attention.forward(at, w, x)
        h, inverse = normed(core(at.core.library, torch.float32), middle, w.ffn_norm, at.config.rms_norm_eps)
        ctx.at, ctx.weights = at, w
        ctx.save_for_backward(middle, inverse, *kept)
        return middle, h.items

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, dh: Tensor) -> tuple[Any, ...]:
        at, w = ctx.at, ctx.weights
        middle, inverse, *kept = ctx.saved_tensors
        stream = Stream.ahead(at.core, grad)
        d_norm = _norm_backward(at.core, w, (middle, inverse), dh.contiguous(), stream, None)
        d_attention = attention.backward(at, w, tuple(kept), stream)
        return None, None, stream.d, d_norm, *d_attention


def _norm_backward(
    core: Core, w: PackedLayer, read: tuple[Tensor, Tensor], dh: Tensor, stream: Stream, h: Pairs | None
) -> Tensor:
    """Adds to the stream, in all its layouts, what comes from behind the second norm; gives the norm's output again,
    if wanted, and the gradient of its gain.  read: its input, and the inverse that belongs to it."""
    x, inverse = read
    d_gain = zeros(x.shape[1])
    core.call("rms_norm_backward", x, w.ffn_norm, inverse, dh, *x.shape, stream.d, d_gain,
              None if h is None else h.items, stream.rows.items, stream.pairs.items)  # fmt: skip
    return d_gain
