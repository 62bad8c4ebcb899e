"""What the blocks of a pass share, and the gradient that goes back along the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longthought.models.config import ModelConfig
from longthought.models.kernels.core import Core, Pairs, Rows, numbers


@dataclass(frozen=True)
class Pass:
    """Packed tokens on their way through the blocks, and who computes them.

    segments: start, length and parent of every run of tokens, (3, count) int64.
    """

    core: Core
    config: ModelConfig
    positions: Tensor
    segments: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def runs(self) -> tuple[Tensor | int, ...]:
        """The segments as the core takes them."""
        return (*self.segments, self.segments.shape[1])


class Stream(NamedTuple):
    """∂x of the stream (S, D), float32, and in the layouts of the products that read it."""

    d: Tensor
    rows: Rows
    pairs: Pairs

    @classmethod
    def of(cls, core: Core, grad: Tensor) -> Stream:
        """A copy, since what the blocks say of it is added in place."""
        d = grad.clone(memory_format=torch.contiguous_format)
        return cls(d, core.to_rows(d), core.to_pairs(d))

    @classmethod
    def ahead(cls, core: Core, grad: Tensor) -> Stream:
        """The same, before something is added that fills the layouts."""
        d = grad.clone(memory_format=torch.contiguous_format)
        return cls(d, Rows(core.items(*d.shape)), Pairs(core.pairs(*d.shape)))


def normed(core: Core, x: Tensor, gain: Tensor, eps: float) -> tuple[Rows, Tensor]:
    """x · r ⊙ gain in items, and r of every row."""
    y, inverse = core.items(*x.shape), numbers(len(x))
    core.call("rms_norm", x, gain, eps, *x.shape, y, inverse)
    return Rows(y), inverse


def total(rows: Tensor, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias, if there is one."""
    return None if bias is None else rows.sum(0)
