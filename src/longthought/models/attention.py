"""How packed tokens attend to each other. The decoder hands q, k, v to one of these and knows nothing of layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attention(Protocol):
    """softmax(scale · q kᵀ) v.  q: (S, H, C), k: (S, K, C), v: (S, K, C_v) of layer ``layer`` → (S, H, C_v).

    scale: None for 1/√C.
    """

    @property
    def keeps(self) -> bool:
        """Whether keys and values are stored. Latent attention then gives its latents, of which they are made."""
        ...

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, /) -> Tensor: ...


class PackedAttention:
    """Causal attention inside each of several sequences laid end to end, without padding outside of attention.

    Scores are computed on rows padded on the right: causality already hides the padding, so no mask is needed.
    Sequences of similar length waste little.

    parents: for every sequence an earlier one that it continues, or -1: its tokens see all of its parent's, too. So the
    replies to a prompt share the prompt's tokens. A parent has no parent.
    """

    keeps = False

    def __init__(
        self, lengths: Sequence[int], device: torch.device | str = "cpu", parents: Sequence[int] | None = None
    ) -> None:
        sizes = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.rows, self.width = len(lengths), int(sizes.max())
        row = torch.repeat_interleave(torch.arange(self.rows, device=device), sizes)
        start = torch.cumsum(sizes, 0) - sizes
        parent = torch.full_like(sizes, -1)
        before = torch.zeros_like(sizes)
        if parents is not None:
            parent = torch.tensor(parents, dtype=torch.int64, device=device)
            before = torch.where(parent < 0, 0, sizes[parent])
        self.segments = torch.stack((start, sizes, parent))
        inside = torch.arange(int(sizes.sum()), device=device) - start[row]
        self.positions = inside + before[row]
        self._slot = row * self.width + inside
        self._full = bool((sizes == self.width).all())
        self._before = before if parents is not None and bool(before.any()) else None

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
        self,
        layer: int,
        q: Float[Tensor, "s h c"],
        k: Float[Tensor, "s k c"],
        v: Float[Tensor, "s k v"],
        scale: float | None = None,
        /,
    ) -> Float[Tensor, "s h v"]:
        q, k, v = (self.pad(x).transpose(1, 2) for x in (q, k, v))
        gqa = q.shape[1] != k.shape[1]
        if self._before is None:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa, scale=scale)
        else:
            behind = self.segments[2].clamp(min=0)
            k, v = (torch.cat((x[behind], x), 2) for x in (k, v))
            seen = self._seen(self._before)
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=gqa, scale=scale)
        return self.pack(out.transpose(1, 2))

    def _seen(self, before: Tensor) -> Tensor:
        """Which of the parent's and its own tokens each token sees, (rows, 1, width, 2 width)."""
        place = torch.arange(self.width, device=before.device)
        parents = (place < before[:, None])[:, None, None].expand(-1, -1, self.width, -1)
        own = (place <= place[:, None]).expand(self.rows, 1, -1, -1)
        return torch.cat((parents, own), -1)
