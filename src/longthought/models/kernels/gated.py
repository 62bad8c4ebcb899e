"""The gated net in the native core, forward and backward."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longthought.models.kernels.core import PANEL, Core, Pairs, Rows, numbers
from longthought.models.kernels.packed import PackedNet, weight
from longthought.models.kernels.stream import Stream, total
from longthought.models.net import SwiGLU


def parameters(net: SwiGLU) -> tuple[Tensor | None, ...]:
    """The order of gradients."""
    linears = (net.gate_proj, net.up_proj, net.down_proj)
    return (*(weight(one) for one in linears), *(one.bias for one in linears))


def forward(core: Core, n: PackedNet, h: Rows, x: Tensor) -> tuple[Tensor, Tensor]:
    """x + net(h), and what ``backward`` reads: gate and up."""
    ffn = n.down.panels.shape[1]
    both, out = core.items(len(x), 2 * ffn), numbers(*x.shape)
    core.call("feedforward", n.gate_up.panels, n.down.panels, n.gate_up_bias, n.down_bias, h.items, x, *x.shape, ffn,
              out, both)  # fmt: skip
    return out, both


class Inside(NamedTuple):
    """∂h, and what the gradients of the matrices are made of once h is there in pairs."""

    dh: Tensor
    both: Pairs
    down: Tensor
    down_bias: Tensor | None


def backward(core: Core, n: PackedNet, both: Tensor, stream: Stream) -> Inside:
    """From ∂out, which is the stream's."""
    tokens, width = stream.d.shape
    ffn = n.down.panels.shape[1]
    d_both, inner, dh = core.pairs(tokens, 2 * ffn), core.pairs(tokens, ffn), numbers(tokens, width)
    core.call("feedforward_backward", n.gate_up.pairs, n.down.pairs, stream.rows.items, both, tokens, width, ffn, dh,
              d_both, inner)  # fmt: skip
    d_down = core.put(stream.pairs, Pairs(inner), numbers(width, ffn))
    return Inside(dh, Pairs(d_both), d_down, total(stream.d, n.down_bias))


def gradients(core: Core, n: PackedNet, inside: Inside, h: Pairs) -> tuple[Tensor | None, ...]:
    """In the order of ``parameters``."""
    d_both = inside.both.items
    d_gate, d_up = _parted(core.put(inside.both, h, numbers(d_both.shape[1], h.items.shape[1])))
    biases = (None, None) if n.gate_up_bias is None else _parted(_by_column(d_both, core.per))
    return d_gate, d_up, inside.down, *biases, inside.down_bias


def _parted(both: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up where pieces of 16 take turns, (2 F, …) → two (F, …): ``packed.alternating``, undone."""
    gate, up = both.view(-1, 2, PANEL, *both.shape[1:]).unbind(1)
    return gate.flatten(0, 1), up.flatten(0, 1)


def _by_column(pairs: Tensor, per: int) -> Tensor:
    """Sums of the columns of a matrix in pairs, (columns,)."""
    return pairs.view(-1, pairs.shape[1], per).float().sum((0, 2))
