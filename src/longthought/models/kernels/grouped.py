"""Grouped-query attention in the native core: from q, k and v before norms and rotation to the result, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from longthought.models.config import ModelConfig
from longthought.models.kernels.core import Pairs, Rows, numbers, zeros
from longthought.models.kernels.packed import PackedHeads, weight
from longthought.models.kernels.stream import Pass
from longthought.models.transformer import SelfAttention


def parameters(attention: SelfAttention) -> tuple[Tensor | None, ...]:
    """The order of gradients: what makes (q, k, v), the biases there, and the gains."""
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    gains = (getattr(norm, "weight", None) for norm in (attention.q_norm, attention.k_norm))
    return (*(weight(one) for one in linears), *(one.bias for one in linears), *gains)


def attend(at: Pass, a: PackedHeads, raw: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """raw: (S, (H + 2 K) C) → (S, H C) items, and what ``backward`` reads."""
    core, config, tokens, heads = at.core, at.config, len(raw), _heads(at.config)
    qkv = core.items(*raw.shape)
    core.call("rotary", raw, heads, a.q_gain, a.k_gain, config.rms_norm_eps, at.cos, at.sin, at.positions, tokens, qkv)
    o, lse = core.items(tokens, a.out.panels.shape[1]), numbers(tokens, config.num_attention_heads)
    core.call("attention", qkv, heads, *at.runs, o, lse)
    return o, (raw if a.q_gain is not None else None, qkv, lse)


def backward(
    at: Pass, a: PackedHeads, kept: tuple[Tensor, ...], o: Tensor, d_o: Tensor
) -> tuple[Tensor, Rows, Pairs, tuple[Tensor | None, ...]]:
    """∂raw in float32, rows and pairs, and the gradients of the gains."""
    core, heads, (raw, qkv, lse) = at.core, _heads(at.config), kept
    d = numbers(*qkv.shape)
    core.call("attention_backward", qkv, o, d_o, lse, heads, *at.runs, d)
    rows, pairs = core.items(*qkv.shape), core.pairs(*qkv.shape)
    d_gains = tuple(None if gain is None else zeros(at.config.head_dim) for gain in (a.q_gain, a.k_gain))
    core.call("rotary_backward", d, raw, heads, a.q_gain, a.k_gain, at.config.rms_norm_eps, at.cos, at.sin,
              at.positions, len(qkv), *d_gains, rows, pairs)  # fmt: skip
    return d, Rows(rows), Pairs(pairs), d_gains


def parted(at: Pass, d_matrix: Tensor, d_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient of the matrix that makes (q, k, v), and of its bias, in the order of ``parameters``."""
    queries, keys, width = _heads(at.config).tolist()
    sizes = [queries * width, keys * width, keys * width]
    return (*d_matrix.split(sizes), *((None,) * 3 if d_bias is None else d_bias.split(sizes)))


def _heads(config: ModelConfig) -> Tensor:
    return torch.tensor([config.num_attention_heads, config.num_key_value_heads, config.head_dim], device="cpu")
