"""Kernels of latent attention and routed experts against the same equations in float64, in all libraries and types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import test_native_kernels as kernels
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_native_kernels import FAMILIES, Runs, close, few, from_pairs, near, noise, rms_normed, runs, seeds
from torch import Tensor
from torch.nn.functional import silu

from longthought.models.kernels.core import Core, numbers, zeros
from longthought.models.rope import angles, rotate

loaded, core = kernels.loaded, kernels.core  # fixtures

ROWS = st.sampled_from([1, 2, 5, 8])


@given(seeds, ROWS, st.sampled_from([(1, 0, 16), (3, 16, 16), (2, 48, 32), (4, 32, 48)]), st.sampled_from([0, 16, 80]))
@few
def test_rotary_tails(core: Core, seed: int, rows: int, heads: tuple[int, int, int], first: int) -> None:
    count, plain, turned = heads
    wide, stride = count * (plain + turned), first + count * (plain + turned) + 16
    cos, sin = angles(turned, 40, 100.0)
    positions = torch.randint(0, 40, (rows,), generator=torch.Generator().manual_seed(seed))
    x, d = noise(seed, rows, stride), noise(seed + 1, rows, wide)
    exact = x.double().requires_grad_()
    by_head = exact[:, first : first + wide].view(rows, count, -1)
    tails = rotate(by_head[..., plain:], cos[positions, None].double(), sin[positions, None].double())
    expected = torch.cat((by_head[..., :plain], tails), -1).flatten(1)
    expected.backward(d.double())
    assert exact.grad is not None
    shape, y = torch.tensor(heads), core.items(rows, wide)
    core.call("rotary_tails", x, stride, first, shape, cos, sin, positions, rows, y)
    close(y, expected.detach(), 10.0)
    dx = torch.full_like(x, 7.0)
    core.call("rotary_tails_backward", d, shape, cos, sin, positions, rows, dx, stride, first)
    inside = slice(first, first + wide)
    close(dx[:, inside], exact.grad[:, inside], 10.0)
    assert bool((dx[:, :first] == 7.0).all() & (dx[:, first + wide :] == 7.0).all())


@given(seeds, st.sampled_from([1, 2, 3, 13]), st.sampled_from([16, 48]), st.sampled_from([0, 32]))
@few
def test_norms_of_columns(core: Core, seed: int, rows: int, width: int, first: int) -> None:
    stride = first + width + 16
    x, gain, dy, before = noise(seed, rows, stride), noise(1, width), noise(2, rows, width), noise(3, rows, stride)
    inside = slice(first, first + width)
    wide, wide_gain = x[:, inside].double().requires_grad_(), gain.double().requires_grad_()
    expected = rms_normed(wide, wide_gain, 1e-6)
    expected.backward(dy.double())
    assert wide.grad is not None
    assert wide_gain.grad is not None
    y, inverse, again = core.items(rows, width), numbers(rows), core.pairs(rows, width)
    core.call("rms_norm_columns", x, stride, first, gain, 1e-6, rows, width, y, inverse)
    close(y, expected.detach(), 10.0)
    dx, d_gain = before.clone(), zeros(width)
    core.call("rms_norm_columns_backward", x, stride, first, gain, inverse, dy, rows, width, dx, d_gain, again)
    close(dx[:, inside], before[:, inside] + wide.grad, 40.0)
    close(d_gain, wide_gain.grad, 20.0)
    assert torch.equal(from_pairs(core, again, rows), y)
    outside = [c for c in range(stride) if not first <= c < first + width]
    assert torch.equal(dx[:, outside], before[:, outside])


SHAPES = ((1, 16, 16, 16), (3, 32, 16, 48), (2, 16, 32, 16), (4, 48, 16, 32))
"""Heads, own and shared numbers of a key, numbers of a value."""


def attended(q: Tensor, kv: Tensor, common: Tensor, shape: Sequence[int], scale: float, seen: Tensor) -> Tensor:
    heads, own, _, _ = shape
    q, kv = q.view(len(q), heads, -1).transpose(0, 1), kv.view(len(kv), heads, -1).transpose(0, 1)
    k = torch.cat((kv[..., :own], common.expand(heads, -1, -1)), -1)
    weights = (scale * q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ kv[..., own:]).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("laid", FAMILIES, ids=lambda laid: str(len(laid.lengths)))
def test_latent_attention_in_families(core: Core, laid: Runs) -> None:
    _latent_attention(core, 1, SHAPES[1], laid, 0.2)


@given(seeds, st.sampled_from(SHAPES), runs(), st.sampled_from([0.05, 0.2]))
@few
def test_latent_attention(core: Core, seed: int, shape: tuple[int, ...], laid: Runs, scale: float) -> None:
    """Keys wider than values or narrower, a scale of its own, and a part of the keys that all heads have."""
    _latent_attention(core, seed, shape, laid, scale)


def _latent_attention(core: Core, seed: int, shape: tuple[int, ...], laid: Runs, scale: float) -> None:
    tokens, (heads, own, shared, value) = sum(laid.lengths), shape
    widths = (heads * (own + shared), heads * (own + value), shared)
    given_ = [noise(seed + n, tokens, width).to(core.dtype) for n, width in enumerate(widths)]
    d_o = noise(seed + 3, tokens, heads * value).to(core.dtype)
    wide = [x.double().requires_grad_() for x in given_]
    expected = attended(*wide, shape, scale, laid.seen())
    expected.backward(d_o.double())
    segments = laid.segments()
    where = (torch.tensor(shape), scale, *segments, segments.shape[1])
    o, lse, d = core.items(tokens, heads * value), numbers(tokens, heads), [numbers(tokens, width) for width in widths]
    core.call("latent_attention", *given_, *where, o, lse)
    near(core, o, expected.detach(), 0.02)
    for gradient in d:
        gradient.fill_(torch.nan)  # all of it is written
    core.call("latent_attention_backward", *given_, o, d_o, lse, *where, *d)
    near(core, torch.cat(d, 1), torch.cat([x.grad for x in wide if x.grad is not None], 1), 0.05)


# --- routed experts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routed:
    """Tokens, what they chose, and the matrices of the experts."""

    h: Tensor
    chosen: Tensor
    gates: Tensor
    matrices: Sequence[Tensor]

    @classmethod
    def drawn(cls, core: Core, seed: int, tokens: int, each: int, wide: int, used: Sequence[int]) -> Routed:
        """used: the experts that are chosen, of six."""
        g, width = torch.Generator().manual_seed(seed), 48
        places = torch.rand(tokens, len(used), generator=g).argsort(1)[:, :each]
        shapes = ((6, wide, width), (6, wide, width), (6, width, wide))
        matrices = [noise(seed + n, *s).to(core.dtype).float() / 4 for n, s in enumerate(shapes)]
        h = noise(seed + 5, tokens, width).to(core.dtype)
        return cls(h, torch.tensor(list(used))[places], noise(seed + 6, tokens, each), matrices)

    def shape(self) -> Tensor:
        count, wide, width = self.matrices[0].shape
        return torch.tensor([*self.chosen.shape, count, width, wide])

    def exactly(self, inputs: Sequence[Tensor]) -> Tensor:
        """Σ gate · net, one token and one expert at a time."""
        h, gates, gate, up, down = inputs
        rows = []
        for t, experts in enumerate(self.chosen.tolist()):
            nets = [down[e] @ (silu(gate[e] @ h[t]) * (up[e] @ h[t])) for e in experts]
            rows.append(sum(g * net for g, net in zip(gates[t], nets)))
        return torch.stack(rows)


class Said(NamedTuple):
    out: Tensor
    order: Tensor
    first: Tensor
    both: Tensor


def forward(core: Core, x: Routed, base: Tensor) -> Said:
    gate, up, down = (m.flatten(0, 1) for m in x.matrices)
    panels = core.matrix([gate, up], True, alternate=True).panels, core.matrix([down], True).panels
    order, first = torch.empty_like(x.chosen), torch.empty(7, dtype=torch.int64)
    said = Said(base.clone(), order, first, core.items(x.chosen.numel(), 2 * x.matrices[0].shape[1]))
    core.call("experts", *panels, x.h, x.chosen, x.gates, x.shape(), order, first, said.out, said.both)
    return said


def backward(core: Core, x: Routed, said: Said, d_out: Tensor, dh: Tensor, wanted: bool = True) -> list[Any]:
    """∂h, ∂gates and the gradients of the matrices."""
    gate, up, down = (m.flatten(0, 1) for m in x.matrices)
    pairs = core.matrix([gate, up], True, alternate=True).pairs, core.matrix([down], True).pairs
    d_gates = torch.full_like(x.gates, torch.nan)
    d = [torch.full_like(m, torch.nan) if wanted else None for m in x.matrices]
    laid = (said.order, said.first, x.shape())
    core.call("experts_backward", *pairs, d_out, x.h, said.both, x.gates, *laid, dh, d_gates, *d)
    return [dh, d_gates, *d]


@given(seeds, st.sampled_from([1, 2, 7, 97, 200]), st.sampled_from([1, 3]), st.sampled_from([16, 80]),
       st.sampled_from([(0, 1, 2, 3, 4, 5), (1, 3, 4), (5, 0, 2)]))  # fmt: skip
@few
def test_experts(core: Core, seed: int, tokens: int, each: int, wide: int, used: tuple[int, ...]) -> None:
    """Also where experts have no token: their gradients are zeros."""
    x = Routed.drawn(core, seed, tokens, each, wide, used)
    base, d_out = noise(seed + 7, *x.h.shape), noise(seed + 8, *x.h.shape).to(core.dtype)
    inputs = [t.double().requires_grad_() for t in (x.h, x.gates, *x.matrices)]
    expected = x.exactly(inputs)
    expected.backward(d_out.double())
    said = forward(core, x, base)
    near(core, said.out - base, expected.detach(), 2**-5, 1e-4)
    before = noise(seed + 9, *x.h.shape)
    d_h, *found = backward(core, x, said, d_out, before.clone())
    d_h = d_h - before
    for ours, exact in zip([d_h, *found], inputs):
        assert exact.grad is not None
        near(core, ours, exact.grad, 2**-4, 1e-4)
    for unused in set(range(6)) - set(used):
        assert not any(bool(matrix[unused].any()) for matrix in found[1:])


def test_many_tokens_of_one_expert(core: Core) -> None:
    """More than one sum of a weight's gradient takes: what is put first, and what is added."""
    x = Routed.drawn(core, 3, 2000, 1, 16, (4,))
    d_out = noise(4, *x.h.shape).to(core.dtype)
    inputs = [t.double().requires_grad_() for t in (x.h, x.gates, *x.matrices)]
    h, gates, gate, up, down = inputs
    expected = gates * ((silu(h @ gate[4].T) * (h @ up[4].T)) @ down[4].T)
    expected.backward(d_out.double())
    said = forward(core, x, zeros(*x.h.shape))
    for ours, exact in zip(backward(core, x, said, d_out, zeros(*x.h.shape)), inputs):
        assert exact.grad is not None
        near(core, ours, exact.grad, 2**-4, 1e-4)


def test_a_token_depends_on_no_other(core: Core) -> None:
    """Bit for bit, whoever else chose its experts; and the same batch gives the same bits."""
    x = Routed.drawn(core, 5, 150, 3, 80, range(6))
    base, d_out = noise(6, *x.h.shape), noise(7, *x.h.shape).to(core.dtype)
    said = forward(core, x, base)
    d = backward(core, x, said, d_out, zeros(*x.h.shape))
    for ours, again in zip(d, backward(core, x, forward(core, x, base), d_out, zeros(*x.h.shape))):
        assert torch.equal(ours, again)
    for rows in ([0], [149], [3, 77], list(range(40, 137))):
        part = Routed(x.h[rows], x.chosen[rows], x.gates[rows], x.matrices)
        alone = forward(core, part, base[rows])
        assert torch.equal(alone.out, said.out[rows])
        d_h, d_gates, *_ = backward(core, part, alone, d_out[rows], zeros(len(rows), 48))
        assert torch.equal(d_h, d[0][rows])
        assert torch.equal(d_gates, d[1][rows])


def test_frozen_experts_cost_nothing_and_change_nothing(core: Core) -> None:
    x = Routed.drawn(core, 8, 33, 2, 16, range(6))
    d_out = noise(9, *x.h.shape).to(core.dtype)
    said = forward(core, x, zeros(*x.h.shape))
    whole = backward(core, x, said, d_out, zeros(*x.h.shape))
    part = backward(core, x, said, d_out, zeros(*x.h.shape), wanted=False)
    assert torch.equal(part[0], whole[0])
    assert torch.equal(part[1], whole[1])
    assert part[2:] == [None] * 3


def test_choices_are_sorted_by_expert_and_then_by_token(core: Core) -> None:
    x = Routed.drawn(core, 10, 60, 3, 16, (0, 2, 3, 5))
    said = forward(core, x, zeros(*x.h.shape))
    assert torch.equal(said.order.flatten(), x.chosen.flatten().argsort(stable=True))
    assert said.first.tolist() == [0, *x.chosen.flatten().bincount(minlength=6).cumsum(0).tolist()]
