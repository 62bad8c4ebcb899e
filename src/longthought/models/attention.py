"""How packed tokens attend to each other. The decoder hands q, k, v to one of these and knows nothing of layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attention(Protocol):
    """q: (S, H, C), k and v: (S, K, C) of layer ``layer`` → (S, H, C)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor: ...


class PackedAttention:
    """Causal attention inside each of several sequences laid end to end, without padding outside of attention.

    Scores are computed on rows padded on the right: causality already hides the padding, so no mask is needed.
    Sequences of similar length waste little. ``store`` (optional) is shown the padded keys and values of every layer.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        sizes = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.rows, self.width = len(lengths), int(sizes.max())
        row = torch.repeat_interleave(torch.arange(self.rows, device=device), sizes)
        start = torch.cumsum(sizes, 0) - sizes
        self.positions = torch.arange(int(sizes.sum()), device=device) - start[row]
        self._slot = row * self.width + self.positions
        self._full = bool((sizes == self.width).all())

    def pad(self, x: Shaped[Tensor, "s ..."]) -> Shaped[Tensor, "{self.rows} {self.width} ..."]:
        """(S, …) → (rows, width, …), zeros where a row has ended."""
        if self._full:
            return x.view(self.rows, self.width, *x.shape[1:])
        padded = x.new_zeros(self.rows * self.width, *x.shape[1:]).index_copy(0, self._slot, x)
        return padded.view(self.rows, self.width, *x.shape[1:])

    def pack(self, x: Shaped[Tensor, "{self.rows} {self.width} ..."]) -> Shaped[Tensor, "s ..."]:
        """(rows, width, …) → (S, …)."""
        flat = x.reshape(self.rows * self.width, *x.shape[2:])
        return flat if self._full else flat.index_select(0, self._slot)

    def __call__(
        self, layer: int, q: Float[Tensor, "s h c"], k: Float[Tensor, "s k c"], v: Float[Tensor, "s k c"], /
    ) -> Float[Tensor, "s h c"]:
        q, k, v = (self.pad(x).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.pack(out.transpose(1, 2))
