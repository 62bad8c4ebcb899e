"""The functions of the native core, on tensors. Shapes and layouts are those of ``csrc/``.

A matrix of items (float32 or bfloat16) has three layouts: ``rows``, ``pairs`` (words along the rows) and ``panels`` (of
16 rows, words along the columns); see ``csrc/product.h``. In float32 a word is one number, in bfloat16 two.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longthought.models.kernels.library import Library

PANEL = 16
"""Rows of a panel; every width that the core sees is a multiple of it."""

_P, _I, _F = c_void_p, c_int64, c_float
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "pack": (c_int, c_int, _P, _I, _I, _I, _I, _I, _P),
    "product": (c_int, _P, _I, c_int, _P, _I, _I, _I, _I, c_int, _P, _I, _P, _P),
    "rms_norm": (_P, _P, _F, _I, _I, _P, _P),
    "rms_norm_backward": (_P, _P, _P, _P, _I, _I, _P, _P, _P, _P, _P),
    "rotary": (_P, _P, _P, _P, _F, _P, _P, _P, _I, _P),
    "rotary_backward": (_P, _P, _P, _P, _P, _F, _P, _P, _P, _I, _P, _P, _P, _P),
    "feedforward": (_P, _P, _P, _P, _P, _P, _I, _I, _I, _P, _P),
    "feedforward_backward": (_P, _P, _P, _P, _I, _I, _I, _P, _P, _P),
    "attention": (_P, _P, _P, _P, _P, _I, _P, _P),
    "attention_backward": (_P, _P, _P, _P, _P, _P, _P, _P, _I, _P),
    "latent_attention": (_P, _P, _P, _P, _F, _P, _P, _P, _I, _P, _P),
    "latent_attention_backward": (_P, _P, _P, _P, _P, _P, _P, _F, _P, _P, _P, _I, _P, _P, _P),
    "rms_norm_columns": (_P, _I, _I, _P, _F, _I, _I, _P, _P),
    "rms_norm_columns_backward": (_P, _I, _I, _P, _P, _P, _I, _I, _P, _P, _P),
    "rotary_tails": (_P, _I, _I, _P, _P, _P, _P, _I, _P),
    "rotary_tails_backward": (_P, _P, _P, _P, _P, _I, _P, _I, _I),
    "experts": (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P),
    "experts_backward": (_P,) * 14,
    "head": (_P, _I, _I, _F, _P, _P, _I, _P, _P, _P),
    "head_backward": (_P, _P, _I, _I, _F, _P, _P, _P, _P, _P, _P, _I, _P, _P),
}


class Rows(NamedTuple):
    """A left operand in rows, reduced over its columns."""

    items: Tensor


class Pairs(NamedTuple):
    """An operand in pairs, reduced over its rows."""

    items: Tensor


class Panels(NamedTuple):
    """A right operand in panels: the transpose of a matrix, reduced over its columns."""

    items: Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight (out, in) in the layouts of the forward and, if asked for, of the backward pass.

    panels: (⌈out / 16⌉ · 16, in), for x Wᵀ.  pairs: the same numbers, for y W.
    """

    panels: Tensor
    pairs: Tensor | None

    @property
    def back(self) -> Pairs:
        """The operand of the backward pass, for which it was packed."""
        assert self.pairs is not None
        return Pairs(self.pairs)


class Core:
    """The functions of one library for one type of items."""

    def __init__(self, library: Library, dtype: torch.dtype) -> None:
        self.dtype, self.narrow = dtype, int(dtype == torch.bfloat16)
        self.per = 2 if self.narrow else 1
        self.library = library
        self._functions = {
            name: library.bind(f"lt_{name}", (c_int, *types), c_int) for name, types in _FUNCTIONS.items()
        }

    def items(self, *shape: int) -> Tensor:
        """Room for items."""
        return torch.empty(shape, dtype=self.dtype, device="cpu")

    def pairs(self, rows: int, columns: int) -> Tensor:
        """Room for a matrix in pairs; an odd last row is paired with zeros."""
        return self.items(-(-rows // self.per) * self.per, columns)

    def matrix(self, parts: Sequence[Tensor], backward: bool, alternate: bool = False) -> Matrix:
        """Weights (out, in) stacked along ``out``, packed. alternate: their panels take turns."""
        out, columns = sum(part.shape[0] for part in parts), parts[0].shape[1]
        padded = -(-out // PANEL) * PANEL
        panels = self.items(padded, columns)
        pairs = self.items(padded, columns) if backward else None
        if pairs is not None:
            pairs[-(-out // self.per) * self.per :] = 0
        row = 0
        for number, part in enumerate(parts):
            every, first, at = (len(parts), number, 0) if alternate else (1, 0, row)
            self._pack(2, part, every, first, panels[at:])
            if pairs is not None:
                self._pack(1, part, every, first, pairs[at:])
            row += part.shape[0]
        return Matrix(panels, pairs)

    def to_rows(self, x: Tensor) -> Rows:
        out = self.items(*x.shape)
        self._pack(0, x, 1, 0, out)
        return Rows(out)

    def to_pairs(self, x: Tensor) -> Pairs:
        out = self.pairs(*x.shape)
        self._pack(1, x, 1, 0, out)
        return Pairs(out)

    def _pack(self, kind: int, x: Tensor, every: int, first: int, out: Tensor) -> None:
        wide = int(x.dtype == torch.float32)
        if x.stride(1) != 1:
            x = x.contiguous()
        self._run("pack", wide, kind, x.data_ptr(), *x.shape, x.stride(0), every, first, out.data_ptr())

    def put(self, a: Rows | Pairs, b: Pairs | Panels, out: Tensor, bias: Tensor | None = None) -> Tensor:
        """out = a b (+ bias), of items or of float32."""
        self._product(a, b, out, int(out.dtype == self.dtype and self.narrow), bias, None)
        return out

    def plus(self, x: Tensor, a: Rows | Pairs, b: Pairs | Panels, bias: Tensor | None = None) -> Tensor:
        """x + a b (+ bias), float32."""
        out = numbers(*x.shape)
        self._product(a, b, out, 2, bias, x)
        return out

    def _product(
        self, a: Rows | Pairs, b: Pairs | Panels, out: Tensor, result: int, bias: Tensor | None, beside: Tensor | None
    ) -> None:
        if isinstance(a, Rows):
            rows, reduced = a.items.shape
            a_width = reduced // self.per
        else:
            reduced, rows = a.items.shape
            a_width = rows
        columns = b.items.shape[1] if isinstance(b, Pairs) else b.items.shape[0]
        words = reduced // self.per
        self._run(
            "product",
            int(isinstance(a, Pairs)),
            a.items.data_ptr(),
            a_width,
            1 if isinstance(b, Pairs) else 2,
            b.items.data_ptr(),
            columns if isinstance(b, Pairs) else words,
            rows,
            columns // PANEL,
            words,
            result,
            out.data_ptr(),
            out.shape[1],
            at(bias),
            at(beside),
        )

    def call(self, name: str, *arguments: Any) -> None:
        """A function of the core; tensors go as their addresses."""
        self._run(name, *(at(a) if isinstance(a, Tensor) else a for a in arguments))

    def _run(self, name: str, *arguments: Any) -> None:
        if self._functions[name](self.narrow, *arguments):
            raise MemoryError("no memory is left for the native core: fewer tokens at once (micro_tokens)")


def at(tensor: Tensor | None) -> int | None:
    """The address of a tensor, which C reads and writes without asking: it must be dense, and in this memory."""
    if tensor is None:
        return None
    assert tensor.is_cpu
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def numbers(*shape: int) -> Tensor:
    """Room for float32."""
    return torch.empty(shape, device="cpu")


def zeros(*shape: int) -> Tensor:
    """float32 zeros, to be added to."""
    return torch.zeros(shape, device="cpu")


@cache
def core(library: Library, dtype: torch.dtype) -> Core:
    """The functions for float32 or bfloat16."""
    return Core(library, dtype)
