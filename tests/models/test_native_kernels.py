"""Every kernel of the native core against the same equation in float64: all instruction sets, both kinds of words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from longthought.models.kernels import library
from longthought.models.kernels.core import Core, Panels, Rows, numbers
from longthought.models.kernels.core import core as core_of
from longthought.models.kernels.packed import alternating
from longthought.models.rope import angles, rotate

DTYPES = (torch.float32, torch.bfloat16)
few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 1000)
widths = st.sampled_from([16, 32, 48, 272])
ROWS = (1, 2, 3, 5, 6, 7, 12, 13, 31)


@pytest.fixture(scope="module", params=library.NAMES)
def loaded(request: pytest.FixtureRequest) -> library.Library:
    if library.available() is None:
        pytest.skip(library.why_not())
    if request.param not in library.usable():
        pytest.skip(f"no {request.param} here")
    return library.load(request.param)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def core(loaded: library.Library, request: pytest.FixtureRequest) -> Core:
    return core_of(loaded, request.param)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor, size: Tensor | float) -> None:
    """As near as float32 sums of terms that add up to ``size`` are, and items are rounded."""
    bound = 1e-5 * size + (2**-8 * expected.abs() if found.dtype == torch.bfloat16 else 0)
    assert found.shape == expected.shape
    assert bool(((found.double() - expected).abs() <= bound).all())


def near(core: Core, found: Tensor, expected: Tensor, loose: float, tight: float = 3e-5) -> None:
    """As near as a chain of products is, whose operands are rounded to items."""
    rms = expected.square().mean().sqrt()
    assert found.shape == expected.shape
    bound = (loose if core.narrow else tight) * (expected.abs() + rms)
    assert bool(((found.double() - expected).abs() <= bound).all())


def from_pairs(core: Core, pairs: Tensor, rows: int) -> Tensor:
    """The matrix that lies in pairs; what is behind its rows must be zeros."""
    found = pairs.view(-1, pairs.shape[1], core.per).transpose(1, 2).reshape(pairs.shape)
    assert not found[rows:].any()
    return found[:rows]


def from_panels(core: Core, panels: Tensor, rows: int) -> Tensor:
    found = panels.view(-1, panels.shape[1] // core.per, 16, core.per).transpose(1, 2).reshape(panels.shape)
    assert not found[rows:].any()
    return found[:rows]


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33])
def test_layouts(core: Core, rows: int, stored: torch.dtype) -> None:
    """Also of a part of a wider matrix, with halves between two bf16 numbers, and with what is not finite."""
    x = noise(rows, rows, 96).to(stored)
    x[0, 32:39] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 3e38, 1.00390625, 1.01171875])
    part, same = x[:, 32:80], {"rtol": 0, "atol": 0, "equal_nan": True}
    expected = part.to(core.dtype)
    torch.testing.assert_close(core.to_rows(part).items, expected, **same)
    torch.testing.assert_close(from_pairs(core, core.to_pairs(part).items, rows), expected, **same)
    matrix = core.matrix([part], backward=True)
    assert matrix.pairs is not None
    torch.testing.assert_close(from_panels(core, matrix.panels, rows), expected, **same)
    torch.testing.assert_close(from_pairs(core, matrix.pairs, rows), expected, **same)


@pytest.mark.parametrize("alternate", [False, True])
def test_parts_of_a_matrix(core: Core, alternate: bool) -> None:
    parts = [noise(number, 48, 32) for number in range(2)]
    pieces = torch.stack([part.view(3, 16, 32) for part in parts], 1) if alternate else torch.stack(parts)
    found, whole = core.matrix(parts, True, alternate), core.matrix([pieces.reshape(96, 32)], True)
    assert torch.equal(found.panels, whole.panels)
    assert found.pairs is not None
    assert whole.pairs is not None
    assert torch.equal(found.pairs, whole.pairs)


class Operands(NamedTuple):
    """a (M, K) and b (K, N) with their product in float64, and what its terms add up to without signs."""

    a: Tensor
    b: Tensor
    product: Tensor
    size: Tensor

    @classmethod
    def drawn(cls, core: Core, seed: int, rows: int, reduced: int, columns: int) -> Operands:
        a, b = noise(seed, rows, reduced).to(core.dtype), noise(seed + 1, reduced, columns).to(core.dtype)
        wide_a, wide_b = a.double(), b.double()
        return cls(a, b, wide_a @ wide_b, wide_a.abs() @ wide_b.abs() + 1)


@given(seeds, st.sampled_from(ROWS), widths, st.sampled_from([1, 2, 3, 7, 8, 13]), st.booleans(), st.booleans())
@few
def test_product_of_rows(
    core: Core, seed: int, rows: int, reduced: int, panels: int, in_panels: bool, biased: bool
) -> None:
    x = Operands.drawn(core, seed, rows, reduced, 16 * panels)
    right = Panels(core.matrix([x.b.T], False).panels) if in_panels else core.to_pairs(x.b)
    bias = noise(seed + 2, 16 * panels) if biased else None
    expected = x.product if bias is None else x.product + bias
    for out in (core.items(*expected.shape), numbers(*expected.shape)):
        close(core.put(Rows(x.a), right, out, bias), expected, x.size)
    before = noise(seed + 3, *expected.shape)
    kept = before.clone()
    close(core.plus(before, Rows(x.a), right), x.product + kept, x.size)
    if isinstance(right, Panels):
        close(core.plus(kept, Rows(x.a), right, bias), expected + kept, x.size)


@given(seeds, st.sampled_from([16, 32, 80]), st.sampled_from([1, 2, 3, 31, 255, 513, 1030]), st.sampled_from([1, 5]))
@few
def test_product_of_pairs(core: Core, seed: int, rows: int, reduced: int, panels: int) -> None:
    """Aᵀ B of two matrices of as many rows, odd numbers and more than one sum takes among them."""
    x = Operands.drawn(core, seed, rows, reduced, 16 * panels)
    left, right = core.to_pairs(x.a.T.contiguous()), core.to_pairs(x.b)
    close(core.put(left, right, numbers(rows, 16 * panels)), x.product, x.size)
    before = noise(seed + 3, rows, 16 * panels)
    close(core.plus(before, left, right), x.product + before, x.size)


@pytest.mark.parametrize("panels", [1, 2, 3, 8, 11])
def test_a_row_of_a_product_depends_on_no_other_row(core: Core, panels: int) -> None:
    """Bit for bit, wherever it stands and however many there are."""
    x = Operands.drawn(core, panels, 31, 272, 16 * panels)
    right = Panels(core.matrix([x.b.T], False).panels)
    whole = core.put(Rows(x.a), right, numbers(31, 16 * panels))
    for rows in ROWS:
        for first in (0, 31 - rows):
            part = core.put(Rows(x.a[first : first + rows]), right, numbers(rows, 16 * panels))
            assert torch.equal(part, whole[first : first + rows])


def fed_forward(core: Core, h: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Any:
    """The output, and gate and up as they are laid."""
    gate, up, down = weights
    gate_up, packed = core.matrix([gate, up], False, alternate=True).panels, core.matrix([down], False).panels
    both, out = core.items(len(h), 2 * len(gate)), numbers(*x.shape)
    core.call("feedforward", gate_up, packed, *biases, h, x, *x.shape, len(gate), out, both)
    core.call("feedforward", gate_up, packed, *biases, h, x, *x.shape, len(gate), again := numbers(*x.shape), None)
    torch.testing.assert_close(out, again, rtol=0, atol=0, equal_nan=True)
    return out, both


@given(
    seeds, st.sampled_from([1, 2, 7, 96, 97, 200]), st.sampled_from([16, 48]), st.sampled_from([16, 80]), st.booleans()
)
@few
def test_feedforward(core: Core, seed: int, rows: int, width: int, ffn: int, biased: bool) -> None:
    h, x = noise(seed, rows, width).to(core.dtype), noise(seed + 1, rows, width)
    weights = [
        noise(seed + n, *shape).to(core.dtype) / 4 for n, shape in enumerate([(ffn, width)] * 2 + [(width, ffn)])
    ]
    g_bias, u_bias, d_bias = (
        noise(seed + 5 + n, size) if biased else torch.zeros(size) for n, size in enumerate([ffn, ffn, width])
    )
    laid = alternating([g_bias, u_bias]) if biased else None
    out, both = fed_forward(core, h, x, [w.float() for w in weights], [laid, d_bias if biased else None])
    gate, up, down = (w.double() for w in weights)
    g, u = h.double() @ gate.T + g_bias, h.double() @ up.T + u_bias
    close(both.view(rows, -1, 2, 16).transpose(1, 2).reshape(rows, -1), torch.cat((g, u), 1), 10.0)
    a = silu(g) * u
    near(core, out, x + a @ down.T + d_bias, 2**-6)


def test_the_gate_at_all_sizes(core: Core) -> None:
    """σ where eˣ is 0, tiny, huge and beyond float32; NaN stays NaN."""
    gate, one = torch.linspace(-120, 120, 1600).to(core.dtype).view(100, 16), torch.ones(100, 16, dtype=core.dtype)
    gate[::10] = torch.nan
    unit = torch.eye(32)
    found, _ = fed_forward(
        core, torch.cat((gate, one), 1), torch.zeros(100, 32), [unit[:16], unit[16:], unit[:, :16]], [None] * 2
    )
    torch.testing.assert_close(
        found[:, :16].double(), silu(gate.double()), rtol=2**-8 if core.narrow else 1e-6, atol=1e-30, equal_nan=True
    )


def rms_normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


@given(seeds, st.sampled_from(ROWS), widths, st.sampled_from([1.0, 1e-3, 1e3]))
@few
def test_rms_norm(core: Core, seed: int, rows: int, width: int, scale: float) -> None:
    x, gain, dy, before = (
        scale * noise(seed, rows, width),
        noise(1, width),
        noise(2, rows, width),
        noise(3, rows, width),
    )
    wide, wide_gain = x.double().requires_grad_(), gain.double().requires_grad_()
    expected = rms_normed(wide, wide_gain, 1e-6)
    expected.backward(dy.double())
    assert wide.grad is not None
    assert wide_gain.grad is not None
    y, inverse = core.items(rows, width), numbers(rows)
    core.call("rms_norm", x, gain, 1e-6, rows, width, y, inverse)
    close(y, expected.detach(), 10.0)
    close(inverse, (wide.detach().square().mean(-1) + 1e-6).rsqrt(), 1 / scale)

    dx, dgain = before.clone(), gain.clone()
    y_pairs, dx_rows, dx_pairs = core.pairs(rows, width), core.items(rows, width), core.pairs(rows, width)
    for pieces in ((y_pairs, dx_rows, dx_pairs), (None, None, None)):
        dx, dgain = before.clone(), gain.clone()
        core.call("rms_norm_backward", x, gain, inverse, dy, rows, width, dx, dgain, *pieces)
        close(dx, before + wide.grad, 20 * (1 + 1 / scale))
        close(dgain, gain + wide_gain.grad, 20.0)
    assert torch.equal(from_pairs(core, y_pairs, rows), y)
    assert torch.equal(dx_rows, dx.to(core.dtype))
    assert torch.equal(from_pairs(core, dx_pairs, rows), dx_rows)


HEADS = ((1, 1, 16), (4, 2, 16), (3, 1, 32), (2, 2, 48), (8, 2, 64))


@given(seeds, st.sampled_from([1, 2, 5, 8]), st.sampled_from(HEADS), st.booleans())
@few
def test_rotary(core: Core, seed: int, rows: int, heads: tuple[int, int, int], normed: bool) -> None:
    queries, keys, width = heads
    everything, turned = (queries + 2 * keys) * width, queries + keys
    cos, sin = angles(width, 40, 100.0)
    positions = torch.randint(0, 40, (rows,), generator=torch.Generator().manual_seed(seed))
    qkv, d = noise(seed, rows, everything), noise(seed + 1, rows, everything)
    gains = [noise(seed + number, width) for number in (2, 3)] if normed else [None, None]
    wide = qkv.double().requires_grad_()
    wide_gains = [None if g is None else g.double().requires_grad_() for g in gains]
    q, k, v = wide.view(rows, -1, width).split([queries, keys, keys], 1)
    q, k = (x if g is None else rms_normed(x, g, 1e-6) for x, g in zip((q, k), wide_gains))
    at = [table[positions, None].double() for table in (cos, sin)]
    expected = torch.cat((rotate(q, *at), rotate(k, *at), v), 1).flatten(1)
    expected.backward(d.double())
    assert wide.grad is not None

    shape, out = torch.tensor(heads), core.items(rows, everything)
    core.call("rotary", qkv, shape, *gains, 1e-6, cos, sin, positions, rows, out)
    close(out, expected.detach(), 20.0)
    back, d_gains = d.clone(), [None if g is None else g.clone() for g in gains]
    d_rows, d_pairs = core.items(rows, everything), core.pairs(rows, everything)
    core.call("rotary_backward", back, qkv if normed else None, shape, *gains, 1e-6, cos, sin, positions, rows,
              *d_gains, d_rows, d_pairs)  # fmt: skip
    close(back, wide.grad, 50.0)
    assert torch.equal(back[:, turned * width :], d[:, turned * width :])
    assert torch.equal(d_rows, back.to(core.dtype))
    assert torch.equal(from_pairs(core, d_pairs, rows), d_rows)
    for found, gain, exact in zip(d_gains, gains, wide_gains):
        if found is not None and gain is not None and exact is not None and exact.grad is not None:
            close(found, gain + exact.grad, 50.0)


@given(seeds, st.sampled_from([1, 2, 7, 96, 97, 200]), st.sampled_from([16, 48]), st.sampled_from([16, 80]))
@few
def test_feedforward_backward(core: Core, seed: int, rows: int, width: int, ffn: int) -> None:
    d_out, both = noise(seed, rows, width).to(core.dtype), (4 * noise(seed + 1, rows, 2 * ffn)).to(core.dtype)
    gate, up, down = (
        noise(seed + n, *s).to(core.dtype).float() / 4 for n, s in enumerate([(ffn, width)] * 2 + [(width, ffn)])
    )
    dh, d_both, a_pairs = numbers(rows, width), core.pairs(rows, 2 * ffn), core.pairs(rows, ffn)
    matrices = core.matrix([gate, up], True, alternate=True).pairs, core.matrix([down], True).pairs
    core.call("feedforward_backward", *matrices, d_out, both, rows, width, ffn, dh, d_both, a_pairs)
    wide = both.double().requires_grad_()
    g, u = wide.view(rows, -1, 2, 16).unbind(2)
    a = (silu(g) * u).flatten(1)
    a.backward(d_out.double() @ down.double())
    assert wide.grad is not None
    near(core, from_pairs(core, a_pairs, rows), a.detach(), 2**-6)
    near(core, from_pairs(core, d_both, rows), wide.grad, 2**-5)
    dg, du = wide.grad.view(rows, -1, 2, 16).unbind(2)
    near(core, dh, dg.flatten(1) @ gate.double() + du.flatten(1) @ up.double(), 2**-5)


class Runs(NamedTuple):
    """Runs of tokens laid end to end, as the core takes them."""

    lengths: Sequence[int]
    parents: Sequence[int]

    def segments(self) -> Tensor:
        sizes = torch.tensor(self.lengths)
        return torch.stack((sizes.cumsum(0) - sizes, sizes, torch.tensor(self.parents)))

    def seen(self) -> Tensor:
        """Which token sees which, (S, S), one by one."""
        owner = list(chain.from_iterable([run] * length for run, length in enumerate(self.lengths)))
        return torch.tensor([
            [a == self.parents[b] or (a == b and s <= t) for s, a in enumerate(owner)] for t, b in enumerate(owner)
        ])  # fmt: skip


@st.composite
def runs(draw: st.DrawFn) -> Runs:
    lengths = draw(st.lists(st.sampled_from([1, 2, 3, 15, 16, 17, 31, 47, 48, 49, 97]), min_size=1, max_size=4))
    parents = [-1]
    for run in range(1, len(lengths)):
        parents.append(draw(st.sampled_from([-1, *(p for p in range(run) if parents[p] < 0)])))
    return Runs(lengths, parents)


def attended(qkv: Tensor, heads: tuple[int, int, int], seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output (S, H C), log Σ exp of the scores (S, H), and the output without signs."""
    queries, keys, width = heads
    q, k, v = qkv.view(len(qkv), -1, width).transpose(0, 1).split([queries, keys, keys])
    k, v = (x.repeat_interleave(queries // keys, 0) for x in (k, v))
    scores = (q @ k.transpose(1, 2) / width**0.5).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1)
    out, size = (weights @ v).transpose(0, 1).flatten(1), (weights @ v.abs()).transpose(0, 1).flatten(1)
    return out, scores.logsumexp(-1).T, size


FAMILIES = (Runs([5, *[1] * 12], [-1] + [0] * 12), Runs([50, 1, 3, 100], [-1, 0, -1, 0]), Runs([1, 1], [-1, 0]))


@pytest.mark.parametrize("laid", FAMILIES, ids=lambda laid: str(len(laid.lengths)))
def test_attention_in_families(core: Core, laid: Runs) -> None:
    """Many children, children of one token, a child longer than a block of queries."""
    _attention(core, 1, (4, 2, 16), laid, 1.0)


@given(seeds, st.sampled_from(HEADS), runs(), st.sampled_from([0.1, 1.0, 4.0]))
@few
def test_attention(core: Core, seed: int, heads: tuple[int, int, int], laid: Runs, scale: float) -> None:
    _attention(core, seed, heads, laid, min(scale, 1.0) if core.narrow else scale)  # bf16: peaks lose digits


def _attention(core: Core, seed: int, heads: tuple[int, int, int], laid: Runs, scale: float) -> None:
    tokens, (queries, keys, width) = sum(laid.lengths), heads
    qkv = (scale * noise(seed, tokens, (queries + 2 * keys) * width)).to(core.dtype)
    d_o = noise(seed + 1, tokens, queries * width).to(core.dtype)
    wide = qkv.double().requires_grad_()
    expected, expected_lse, size = attended(wide, heads, laid.seen())
    expected.backward(d_o.double())
    assert wide.grad is not None
    segments, shape = laid.segments(), torch.tensor(heads)
    o, lse, d = core.items(tokens, queries * width), numbers(tokens, queries), numbers(*qkv.shape)
    core.call("attention", qkv, shape, *segments, segments.shape[1], o, lse)
    close(o, expected.detach(), (size.detach() + 1) * (1 + 2**-8 * 1e5 * core.narrow))
    close(lse, expected_lse.detach(), 10 + expected_lse.detach().abs())
    d.fill_(torch.nan)  # all of it is written
    core.call("attention_backward", qkv, o, d_o, lse, shape, *segments, segments.shape[1], d)
    near(core, d, wide.grad, 0.05, 3e-5 * max(1.0, scale**2))


@given(
    seeds,
    st.sampled_from([1, 2, 17, 239, 240, 241, 485]),
    st.sampled_from([5, 16, 23, 1000, 1024, 1025, 2061]),
    st.sampled_from([16, 48]),
    st.sampled_from([0.5, 1.0, 1.7]),
)
@few
def test_head(core: Core, seed: int, rows: int, vocabulary: int, width: int, temperature: float) -> None:
    h, w = noise(seed, rows, width).to(core.dtype), noise(seed + 1, vocabulary, width).to(core.dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    targets[-1] = vocabulary - 1
    d_logp, d_entropy = noise(seed + 2, rows), noise(seed + 3, rows)
    wide_h, wide_w = h.double().requires_grad_(), w.double().requires_grad_()
    logq = (wide_h @ wide_w.T / temperature).log_softmax(-1)
    expected_logp, expected_entropy = logq.gather(-1, targets[:, None]).squeeze(-1), -(logq.exp() * logq).sum(-1)
    torch.autograd.backward((expected_logp, expected_entropy), (d_logp.double(), d_entropy.double()))
    assert wide_h.grad is not None
    assert wide_w.grad is not None

    matrix = core.matrix([w], backward=True)
    logp, entropy, lse = (numbers(rows) for _ in range(3))
    core.call("head", matrix.panels, vocabulary, width, 1 / temperature, h, targets, rows, logp, entropy, lse)
    close(logp, expected_logp.detach(), 10 + expected_logp.detach().abs())
    close(entropy, expected_entropy.detach(), 20.0)
    assert matrix.pairs is not None
    dw = wide_w.grad.float()  # is added to
    for into in (dw, None):
        dh = wide_h.grad.float()
        core.call("head_backward", matrix.panels, matrix.pairs, vocabulary, width, 1 / temperature, h, targets, lse,
                  entropy, d_logp, d_entropy, rows, dh, into)  # fmt: skip
        near(core, dh, 2 * wide_h.grad, 0.02)
    near(core, dw, 2 * wide_w.grad, 0.02)


@pytest.mark.parametrize("place", [0, 3, 40])
def test_what_is_not_a_number_is_not_hidden(core: Core, place: int) -> None:
    """One NaN of the vocabulary, or among the keys, is in every result that it enters."""
    h, w = noise(1, 3, 16).to(core.dtype), noise(2, 41, 16).to(core.dtype)
    w[place, 2] = torch.nan
    logp, entropy, lse = (numbers(3) for _ in range(3))
    matrix, targets = core.matrix([w], True), torch.tensor([1, 2, 5])
    core.call("head", matrix.panels, 41, 16, 1.0, h, targets, 3, logp, entropy, lse)
    assert bool(logp.isnan().all() & entropy.isnan().all() & lse.isnan().all())
    qkv, o, lse = noise(3, 45, 48).to(core.dtype), core.items(45, 16), numbers(45, 1)
    qkv[place, 16] = torch.nan
    start, length, parent = Runs([45], [-1]).segments()
    core.call("attention", qkv, torch.tensor([1, 1, 16]), start, length, parent, 1, o, lse)
    assert bool(o[place:].isnan().all())
    assert not o[:place].isnan().any()
