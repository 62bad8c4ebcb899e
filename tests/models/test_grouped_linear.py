"""One kernel for all groups is taken only where it is there and computes what one product per group does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from longthought.models import grouped_linear as module
from longthought.models.grouped_linear import fused, grouped_linear

CPU = torch.device("cpu")


def lying(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """The first group's product for all."""
    if b.dim() == 2:
        return (a @ b).expand(len(ends), -1, -1)
    return a @ b[0]


def forgetful(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Right, but for groups without rows, whose gradient it leaves as it was."""
    spans = list(pairwise([0, *ends.tolist()]))
    if b.dim() == 2:
        groups = [a[:, i:j] @ b[i:j] if j > i else a.new_full((len(a), b.shape[1]), torch.nan) for i, j in spans]
        return torch.stack(groups)
    return torch.cat([a[i:j] @ one for (i, j), one in zip(spans, b)])


def missing(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    raise RuntimeError("grouped gemm is not supported on this device")


@pytest.mark.parametrize("product", [lying, forgetful, missing])
def test_a_kernel_that_computes_something_else_is_not_taken(product: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_product", product)
    assert not fused.__wrapped__(CPU)


def test_a_kernel_that_computes_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def right(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
        return forgetful(a, b, ends).nan_to_num()

    monkeypatch.setattr(module, "_product", right)
    assert fused.__wrapped__(CPU)


@pytest.mark.skipif(not fused(CPU), reason="PyTorch's grouped product is not there on a CPU")
@pytest.mark.parametrize("counts", [[5, 0, 12, 1], [0, 0, 18, 0], [18, 0, 0, 0], [3, 5, 4, 6]], ids=str)
def test_both_ways_are_one_function(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, in bfloat16, with the kernel that the CPU has."""
    _both(CPU, counts, monkeypatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("counts", [[5, 0, 12, 1], [0, 0, 18, 0], [700, 1, 0, 2000], [300, 500, 400, 600]], ids=str)
@pytest.mark.parametrize("widths", [(64, 48), (512, 256), (20, 36)], ids=str)
def test_on_a_gpu(counts: list[int], widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also widths whose rows are not aligned, which the kernel cannot read."""
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(torch, "_grouped_mm"):
        assert fused(device)
    _both(device, counts, monkeypatch, widths)


def _both(
    device: torch.device, counts: list[int], monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int] = (32, 48)
) -> None:
    g, (d, f) = torch.Generator().manual_seed(0), widths
    shapes = ((sum(counts), d), (len(counts), f, d), (sum(counts), f))
    x, weights, given = (torch.randn(shape, generator=g).to(device, torch.bfloat16) for shape in shapes)
    sizes, found = torch.tensor(counts, device=device), []
    choices = [module._fits] if device.type == "cuda" else [lambda *_: True]
    for fits in (*choices, lambda *_: False):
        monkeypatch.setattr(module, "_fits", fits)
        inputs = [t.clone().requires_grad_() for t in (x, weights)]
        out = grouped_linear(*inputs, sizes)
        found.append([out, *torch.autograd.grad(out, inputs, given)])
    for one, other in zip(*found):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.02, atol=0.02 * max(1, sum(counts)) ** 0.5)
