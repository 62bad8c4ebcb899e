"""One linear layer for every group of rows: what routed experts are made of, where PyTorch computes them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_ALIGNED = 16  # bytes, of rows that one kernel for all groups can read


def grouped_linear(
    x: Float[Tensor, "m d"], weights: Float[Tensor, "e f d"], counts: Int[Tensor, " e"]
) -> Float[Tensor, "m f"]:
    """x W_eᵀ, where the first counts[0] rows of x meet W_0, the next counts[1] meet W_1, and so on.

    On a GPU, in bfloat16, one kernel computes all groups, if it is there and was seen to compute this.
    """
    out: Tensor = _GroupedLinear.apply(x, weights, counts)
    return out


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x, weights = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weights))
        x = x.contiguous()
        fused = _fits(x, weights)
        ctx.products = _Fused(counts) if fused else _OneByOne(counts)
        ctx.save_for_backward(x, weights)
        out: Tensor = ctx.products.forward(x, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        d_out = d_out.to(x.dtype).contiguous()
        dw = ctx.products.outer(d_out, x) if ctx.needs_input_grad[1] else None
        return ctx.products.back(d_out, weights), dw, None


class _OneByOne:
    """One product per expert that has rows, into the rows of one result: nothing is gathered or added up twice."""

    def __init__(self, counts: Int[Tensor, " e"]) -> None:
        self._experts, first = len(counts), 0
        self._spans: list[tuple[int, slice]] = []
        for expert, count in enumerate(counts.tolist()):
            if count:
                self._spans.append((expert, slice(first, first + count)))
            first += count

    def forward(self, x: Float[Tensor, "m d"], weights: Float[Tensor, "e f d"]) -> Float[Tensor, "m f"]:
        """x W_eᵀ."""
        return self.back(x, weights.transpose(1, 2))

    def back(self, d_out: Float[Tensor, "m f"], weights: Float[Tensor, "e f d"]) -> Float[Tensor, "m d"]:
        """∂out W_e."""
        out = d_out.new_empty(len(d_out), weights.shape[2])
        for expert, rows in self._spans:
            torch.mm(d_out[rows], weights[expert], out=out[rows])
        return out

    def outer(self, d_out: Float[Tensor, "m f"], x: Float[Tensor, "m d"]) -> Float[Tensor, "e f d"]:
        """∂outᵀ x of every group; zeros for one without rows."""
        out = x.new_zeros(self._experts, d_out.shape[1], x.shape[1])
        for expert, rows in self._spans:
            torch.mm(d_out[rows].T, x[rows], out=out[expert])
        return out


class _Fused:
    """The same by PyTorch's grouped product, which reads the counts where they are: nothing waits for the GPU."""

    def __init__(self, counts: Int[Tensor, " e"]) -> None:
        self._ends = counts.cumsum(0, dtype=torch.int32)

    def forward(self, x: Float[Tensor, "m d"], weights: Float[Tensor, "e f d"]) -> Float[Tensor, "m f"]:
        return self.back(x, weights.transpose(1, 2))

    def back(self, d_out: Float[Tensor, "m f"], weights: Float[Tensor, "e f d"]) -> Float[Tensor, "m d"]:
        return _product(d_out, weights, self._ends)

    def outer(self, d_out: Float[Tensor, "m f"], x: Float[Tensor, "m d"]) -> Float[Tensor, "e f d"]:
        return _product(d_out.T, x, self._ends)


def _product(a: Tensor, b: Tensor, ends: Int[Tensor, " e"]) -> Tensor:
    """PyTorch's grouped product, by the name that it has here."""
    named = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    out: Tensor = named(a, b, offs=ends)
    return out


def _fits(x: Float[Tensor, "m d"], weights: Float[Tensor, "e f d"]) -> bool:
    """Whether PyTorch's grouped product takes these: bfloat16 on a GPU, in aligned rows."""
    if not (x.is_cuda and x.dtype == weights.dtype == torch.bfloat16 and len(x) and weights.is_contiguous()):
        return False
    wide = [width * x.element_size() for width in weights.shape[1:]]
    return not any(n % _ALIGNED for n in (*wide, x.data_ptr(), weights.data_ptr())) and fused(x.device)


@cache
def fused(device: torch.device) -> bool:
    """Whether PyTorch's grouped product is there on this device and gives what one product per group gives.

    Tried once, with groups that are long, short and empty: the kernels differ by device and by version.
    """
    counts = torch.tensor([40, 0, 1, 300, 0], device=device)
    generator = torch.Generator().manual_seed(0)
    shapes = ((341, 64), (5, 48, 64), (341, 48))
    x, weights, d_out = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    try:
        both = [
            (one.forward(x, weights), one.back(d_out, weights), one.outer(d_out, x))
            for one in (_Fused(counts), _OneByOne(counts))
        ]
        return all(
            torch.allclose(found.float(), expected.float(), rtol=0.02, atol=0.05) for found, expected in zip(*both)
        )
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return False
