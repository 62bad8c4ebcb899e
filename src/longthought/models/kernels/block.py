"""One block of the decoder in the native core, forward and backward: the same equations as ``transformer.Block``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longthought.models.config import ModelConfig
from longthought.models.kernels.core import PANEL, Core, Pairs, Panels, Rows, numbers, zeros
from longthought.models.kernels.packed import PackedLayer, weight
from longthought.models.net import SwiGLU
from longthought.models.transformer import Block, SelfAttention


@dataclass(frozen=True)
class Where:
    """Which token stands where. ``segments``: start, length and parent of every run of tokens, (3, count) int64."""

    positions: Tensor
    segments: Tensor
    cos: Tensor
    sin: Tensor


def parameters(block: nn.Module) -> tuple[Tensor | None, ...]:
    """What ``NativeBlock`` gives gradients to, in the order of its arguments."""
    assert isinstance(block, Block)
    a, m = block.self_attn, block.mlp
    assert isinstance(a, SelfAttention)
    assert isinstance(m, SwiGLU)
    linears = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)
    norms = (block.input_layernorm, block.post_attention_layernorm, a.q_norm, a.k_norm)
    return (
        *(weight(one) for one in linears),
        *(one.bias for one in linears),
        *(getattr(one, "weight", None) for one in norms),
    )


class NativeBlock(torch.autograd.Function):
    """x + attention(norm(x)), and to that the gated net of its norm.  x: (S, D) float32."""

    @staticmethod
    def forward(
        ctx: Any, core: Core, config: ModelConfig, w: PackedLayer, where: Where, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        tokens, heads, a, n = len(x), _heads(config), w.attention, w.net
        h, inverse = _norm(core, x, w.attention_norm, config.rms_norm_eps)
        raw = core.put(h, Panels(a.qkv.panels), numbers(tokens, a.qkv.panels.shape[0]), a.qkv_bias)
        qkv = core.items(*raw.shape)
        core.call("rotary", raw, heads, a.q_gain, a.k_gain, config.rms_norm_eps, where.cos, where.sin,
                  where.positions, tokens, qkv)  # fmt: skip
        o, lse = core.items(tokens, a.out.panels.shape[1]), numbers(tokens, config.num_attention_heads)
        core.call("attention", qkv, heads, *where.segments, where.segments.shape[1], o, lse)
        middle = core.plus(x, Rows(o), Panels(a.out.panels), a.out_bias)
        h, inverse_2 = _norm(core, middle, w.ffn_norm, config.rms_norm_eps)
        both, out = core.items(tokens, 2 * config.intermediate_size), numbers(*x.shape)
        core.call("feedforward", n.gate_up.panels, n.down.panels, n.gate_up_bias, n.down_bias, h.items, middle,
                  *x.shape, config.intermediate_size, out, both)  # fmt: skip
        ctx.core, ctx.config, ctx.weights, ctx.where = core, config, w, where
        kept = raw if a.q_gain is not None else None
        ctx.save_for_backward(x, inverse, kept, qkv, o, lse, middle, inverse_2, both)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        core, config, w, where = ctx.core, ctx.config, ctx.weights, ctx.where
        a, n = w.attention, w.net
        x, inverse, raw, qkv, o, lse, middle, inverse_2, both = ctx.saved_tensors
        tokens, width = x.shape
        ffn, heads = n.down.panels.shape[1], _heads(config)
        dx = grad.clone(memory_format=torch.contiguous_format)
        dx_rows, dx_pairs = core.to_rows(dx), core.to_pairs(dx)
        d_down_bias = _sum(dx, n.down_bias)
        # the gated net
        d_both, inner, dh = core.pairs(tokens, 2 * ffn), core.pairs(tokens, ffn), numbers(tokens, width)
        core.call("feedforward_backward", n.gate_up.pairs, n.down.pairs, dx_rows.items, both, tokens, width, ffn, dh,
                  d_both, inner)  # fmt: skip
        d_down = core.put(dx_pairs, Pairs(inner), numbers(width, ffn))
        h_pairs, d_ffn_norm = core.pairs(tokens, width), zeros(width)
        core.call("rms_norm_backward", middle, w.ffn_norm, inverse_2, dh, tokens, width, dx, d_ffn_norm, h_pairs,
                  dx_rows.items, dx_pairs.items)  # fmt: skip
        d_gate_up = core.put(Pairs(d_both), Pairs(h_pairs), numbers(2 * ffn, width))
        d_gate, d_up = _parted(d_gate_up)
        d_gate_bias, d_up_bias = (None, None) if n.gate_up_bias is None else _parted(_by_column(d_both, core.per))
        # attention
        d_out_bias = _sum(dx, a.out_bias)
        d_o = core.put(dx_rows, Pairs(a.out.pairs), core.items(*o.shape))
        d_out = core.put(dx_pairs, core.to_pairs(o), numbers(width, o.shape[1]))
        d_qkv = numbers(*qkv.shape)
        core.call("attention_backward", qkv, o, d_o, lse, heads, *where.segments, where.segments.shape[1], d_qkv)
        d_rows, d_pairs = core.items(*qkv.shape), core.pairs(*qkv.shape)
        d_gains = [None if g is None else zeros(config.head_dim) for g in (a.q_gain, a.k_gain)]
        core.call("rotary_backward", d_qkv, raw, heads, a.q_gain, a.k_gain, config.rms_norm_eps, where.cos, where.sin,
                  where.positions, tokens, *d_gains, d_rows, d_pairs)  # fmt: skip
        dh = core.put(Rows(d_rows), Pairs(a.qkv.pairs), dh)
        d_attention_norm = zeros(width)
        core.call("rms_norm_backward", x, w.attention_norm, inverse, dh, tokens, width, dx, d_attention_norm, h_pairs,
                  None, None)  # fmt: skip
        d_all = core.put(Pairs(d_pairs), Pairs(h_pairs), numbers(qkv.shape[1], width))
        sizes = [int(some) * config.head_dim for some in (heads[0], heads[1], heads[1])]
        d_biases = (None,) * 3 if a.qkv_bias is None else d_qkv.sum(0).split(sizes)
        return (
            None, None, None, None, dx,
            *d_all.split(sizes), d_out, d_gate, d_up, d_down,
            *d_biases, d_out_bias, d_gate_bias, d_up_bias, d_down_bias,
            d_attention_norm, d_ffn_norm, *d_gains,
        )  # fmt: skip


def _heads(config: ModelConfig) -> Tensor:
    return torch.tensor([config.num_attention_heads, config.num_key_value_heads, config.head_dim], device="cpu")


def _norm(core: Core, x: Tensor, gain: Tensor, eps: float) -> tuple[Rows, Tensor]:
    y, inverse = core.items(*x.shape), numbers(len(x))
    core.call("rms_norm", x, gain, eps, *x.shape, y, inverse)
    return Rows(y), inverse


def _parted(both: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up where pieces of 16 take turns, (2 F, …) → two (F, …): ``packed.alternating``, undone."""
    gate, up = both.view(-1, 2, PANEL, *both.shape[1:]).unbind(1)
    return gate.flatten(0, 1), up.flatten(0, 1)


def _by_column(pairs: Tensor, per: int) -> Tensor:
    """Sums of the columns of a matrix in pairs, (columns,)."""
    return pairs.view(-1, pairs.shape[1], per).float().sum((0, 2))


def _sum(rows: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else rows.sum(0)
