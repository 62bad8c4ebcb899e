"""Multi-head latent attention in the native core, in the expanded form of ``models/latent.py``.

Numbers that are rotated stand in halves: ``packed.pack_latent`` orders the rows of the matrices so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longthought.models.kernels.core import Matrix, Pairs, Panels, Rows, numbers, zeros
from longthought.models.kernels.packed import PackedLatent, weight
from longthought.models.kernels.stream import Pass
from longthought.models.latent import LatentAttention


def parameters(attention: LatentAttention) -> tuple[Tensor | None, ...]:
    """The order of gradients: what makes (q or c^Q, c^KV and k^R), the biases there; W^UQ and (W^UK, W^UV), and the
    gains of the norms of latents."""
    compressed = attention.shape.q_lora_rank is not None
    into = (attention.q_a_proj if compressed else attention.q_proj, attention.kv_a_proj_with_mqa)
    return (
        *(weight(one) for one in into),
        *(one.bias for one in into),
        weight(attention.q_b_proj) if compressed else None,
        weight(attention.kv_b_proj),
        attention.q_a_layernorm.weight if compressed else None,
        attention.kv_a_layernorm.weight,
    )


def attend(at: Pass, a: PackedLatent, raw: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """raw: (S, Q + L + R), that is q or c^Q, c^KV and k^R before norms and rotation → (S, H V) items, and what
    ``backward`` reads."""
    core, shape, tokens = at.core, a.shape, len(raw)
    first = a.queries
    if a.q_up is None or a.q_gain is None:
        q_raw, q_inverse = raw, None
    else:
        c_q, q_inverse = _normed(at, a, raw, 0, a.q_gain)
        q_raw = core.put(c_q, Panels(a.q_up.panels), numbers(tokens, a.q_up.panels.shape[0]))
    q = _rotated(at, q_raw, 0, _tails(a))
    common = _rotated(at, raw, first + shape.kv_lora_rank, _tail(a))
    c_kv, inverse = _normed(at, a, raw, first, a.kv_gain)
    kv = core.put(c_kv, Panels(a.kv_up.panels), core.items(tokens, a.kv_up.panels.shape[0]))
    o, lse = core.items(tokens, a.heads * shape.v_head_dim), numbers(tokens, a.heads)
    core.call("latent_attention", q, kv, common, _heads(a), a.scale, *at.runs, o, lse)
    return o, (raw, q, kv, common, lse, inverse, q_inverse)


def backward(
    at: Pass, a: PackedLatent, kept: tuple[Tensor, ...], o: Tensor, d_o: Tensor
) -> tuple[Tensor, Rows, Pairs, tuple[Tensor | None, ...]]:
    """∂raw in float32, rows and pairs, and the gradients of W^UQ, (W^UK, W^UV) and the gains."""
    core, rank = at.core, a.shape.kv_lora_rank
    raw, q, kv, common, lse, inverse, q_inverse = kept
    d_q, d_kv, d_common = (numbers(*x.shape) for x in (q, kv, common))
    core.call("latent_attention_backward", q, kv, common, o, d_o, lse, _heads(a), a.scale, *at.runs, d_q, d_kv,
              d_common)  # fmt: skip
    d_raw = zeros(*raw.shape)
    _rotated_back(at, d_common, _tail(a), d_raw, a.queries + rank)
    d_kv_up, d_kv_gain = _latent_backward(at, a.kv_up, a.kv_gain, (raw, inverse, a.queries), d_kv, d_raw)
    d_q_up, d_q_gain = None, None
    if a.q_up is None or a.q_gain is None:
        _rotated_back(at, d_q, _tails(a), d_raw, 0)
    else:
        d_wide = numbers(*q.shape)
        _rotated_back(at, d_q, _tails(a), d_wide, 0)
        d_q_up, d_q_gain = _latent_backward(at, a.q_up, a.q_gain, (raw, q_inverse, 0), d_wide, d_raw)
        d_q_up = restored(d_q_up, a.order)
    return d_raw, core.to_rows(d_raw), core.to_pairs(d_raw), (d_q_up, d_kv_up, d_q_gain, d_kv_gain)


def parted(a: PackedLatent, d_matrix: Tensor, d_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient of the matrix that makes ``raw``, and of its bias, in the order of ``parameters``."""
    queries, latents = _two(a, d_matrix)
    if d_bias is None:
        return queries, latents, None, None
    biases = _two(a, d_bias)
    return queries, latents, biases[0] if a.q_up is not None else None, biases[1]


def _two(a: PackedLatent, d: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the queries and of the latents, in the order of the model."""
    queries, latents = d.split([a.queries, len(d) - a.queries])
    return queries if a.q_up is not None else restored(queries, a.order), restored(latents, a.latent_order)


def restored(d: Tensor, order: Tensor | None) -> Tensor:
    """The gradient of a matrix from that of its rows in this order."""
    return d if order is None else torch.empty_like(d).index_copy_(0, order, d)


def _normed(at: Pass, a: PackedLatent, raw: Tensor, first: int, gain: Tensor) -> tuple[Rows, Tensor]:
    """The norm of columns of ``raw``."""
    y, inverse = at.core.items(len(raw), len(gain)), numbers(len(raw))
    at.core.call("rms_norm_columns", raw, raw.shape[1], first, gain, a.eps, *y.shape, y, inverse)
    return Rows(y), inverse


def _latent_backward(
    at: Pass, up: Matrix, gain: Tensor, latent: tuple[Tensor, Tensor, int], d_wide: Tensor, d_raw: Tensor
) -> tuple[Tensor, Tensor]:
    """From what was made of a latent to its columns of ``d_raw``; the gradients of matrix and gain.

    latent: ``raw``, the inverse of the norm, and the first of its columns.
    """
    core, (raw, inverse, first), shape = at.core, latent, (len(d_raw), len(gain))
    d_latent = core.put(core.to_rows(d_wide), up.back, numbers(*shape))
    normed, d_gain = core.pairs(*shape), zeros(len(gain))
    core.call("rms_norm_columns_backward", raw, raw.shape[1], first, gain, inverse, d_latent, *shape, d_raw, d_gain,
              normed)  # fmt: skip
    d_up = core.put(core.to_pairs(d_wide), Pairs(normed), numbers(d_wide.shape[1], len(gain)))
    return d_up, d_gain


def _rotated(at: Pass, x: Tensor, first: int, tails: Tensor) -> Tensor:
    heads, plain, turned = tails.tolist()
    y = at.core.items(len(x), heads * (plain + turned))
    at.core.call("rotary_tails", x, x.shape[1], first, tails, at.cos, at.sin, at.positions, len(x), y)
    return y


def _rotated_back(at: Pass, d: Tensor, tails: Tensor, dx: Tensor, first: int) -> None:
    at.core.call("rotary_tails_backward", d, tails, at.cos, at.sin, at.positions, len(d), dx, dx.shape[1], first)


def _tails(a: PackedLatent) -> Tensor:
    """Of the queries: heads, plain and rotated numbers of each."""
    return torch.tensor([a.heads, a.shape.qk_nope_head_dim, a.shape.qk_rope_head_dim], device="cpu")


def _tail(a: PackedLatent) -> Tensor:
    """Of k^R."""
    return torch.tensor([1, 0, a.shape.qk_rope_head_dim], device="cpu")


def _heads(a: PackedLatent) -> Tensor:
    shape = a.shape
    return torch.tensor([a.heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim], device="cpu")
