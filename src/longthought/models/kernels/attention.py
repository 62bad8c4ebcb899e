"""The first half of a block in the native core, x + attention(norm(x)), forward and backward."""

from __future__ import annotations

from torch import Tensor

from longthought.models.kernels import grouped, latent
from longthought.models.kernels.core import Pairs, Panels, Rows, numbers, zeros
from longthought.models.kernels.packed import PackedLatent, PackedLayer, weight
from longthought.models.kernels.stream import Pass, Stream, normed, total
from longthought.models.latent import LatentAttention
from longthought.models.transformer import Block


def parameters(block: Block) -> tuple[Tensor | None, ...]:
    """The order of gradients: the norm, the matrix of the output and its bias, and those of the kind of attention."""
    a = block.self_attn
    own = latent.parameters(a) if isinstance(a, LatentAttention) else grouped.parameters(a)
    return (block.input_layernorm.weight, weight(a.o_proj), a.o_proj.bias, *own)


def forward(at: Pass, w: PackedLayer, x: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """x: (S, D) float32 → the same, and what ``backward`` reads."""
    core, a = at.core, w.attention
    h, inverse = normed(core, x, w.attention_norm, at.config.rms_norm_eps)
    raw = core.put(h, Panels(a.qkv.panels), numbers(len(x), a.qkv.panels.shape[0]), a.qkv_bias)
    o, kept = latent.attend(at, a, raw) if isinstance(a, PackedLatent) else grouped.attend(at, a, raw)
    return core.plus(x, Rows(o), Panels(a.out.panels), a.out_bias), (x, inverse, o, *kept)


def backward(at: Pass, w: PackedLayer, kept: tuple[Tensor, ...], stream: Stream) -> tuple[Tensor | None, ...]:
    """The gradients in the order of ``parameters``; that of x is added to ``stream.d``."""
    core, a, (x, inverse, o, *inner) = at.core, w.attention, kept
    width = x.shape[1]
    d_out_bias = total(stream.d, a.out_bias)
    d_o = core.put(stream.rows, a.out.back, core.items(*o.shape))
    d_out = core.put(stream.pairs, core.to_pairs(o), numbers(width, o.shape[1]))
    if isinstance(a, PackedLatent):
        d_raw, rows, pairs, d_own = latent.backward(at, a, tuple(inner), o, d_o)
    else:
        d_raw, rows, pairs, d_own = grouped.backward(at, a, tuple(inner), o, d_o)
    dh = core.put(rows, a.qkv.back, numbers(*x.shape))
    h_pairs, d_norm = core.pairs(*x.shape), zeros(width)
    core.call("rms_norm_backward", x, w.attention_norm, inverse, dh, *x.shape, stream.d, d_norm, h_pairs, None, None)
    d_matrix = core.put(pairs, Pairs(h_pairs), numbers(d_raw.shape[1], width))
    d_bias = total(d_raw, a.qkv_bias)
    parts = latent.parted(a, d_matrix, d_bias) if isinstance(a, PackedLatent) else grouped.parted(at, d_matrix, d_bias)
    return (d_norm, d_out, d_out_bias, *parts, *d_own)
