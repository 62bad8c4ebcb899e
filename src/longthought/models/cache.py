"""Key/value cache of a decoding batch: a fixed number of slots, each holding one sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig

_STRIDE = 32  # attended widths are rounded up to this, so that few distinct shapes occur


class SlotCache:
    """Keys and values of ``slots`` sequences of at most ``capacity`` tokens, allocated once.

    Of latent attention it holds c^KV and k^R, in the place of the keys of one head; c^KV is the values, too.

    As an ``Attention`` it serves one decoding step: row i of the packed tokens is the next token of slot i; where a
    step has several tokens for each, they stand slot by slot. ``length`` (slots,) counts the tokens stored; the step's
    own tokens are stored by the call, and stay only if they are counted.

    layers: those that are kept, one after the other; None: those of the model.
    """

    keeps = True

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        layers: range | None = None,
    ) -> None:
        heads, key, value = config.cached
        kept = range(config.num_hidden_layers) if layers is None else layers
        shape = (len(kept), slots, heads, capacity)
        self._first = kept.start
        self.keys = torch.zeros((*shape, key), dtype=dtype, device=device)
        self.values = torch.zeros((*shape, value), dtype=dtype, device=device)
        self.length = torch.zeros(slots, dtype=torch.int64, device=device)
        self._row = torch.arange(slots, device=device)
        self._mask: Tensor | None = None
        self._several = 1

    @property
    def slots(self) -> int:
        return int(self.length.shape[0])

    def begin_step(self, tokens: int = 1) -> None:
        """Fix what every layer of the next step may look at: the stored tokens and the new ones up to its own.

        tokens: of every slot; there must be room for them behind the longest.
        """
        width = -(-(int(self.length.max()) + tokens) // _STRIDE) * _STRIDE
        width = min(width, self.keys.shape[3])
        place = torch.arange(width, device=self.length.device)
        self._several = tokens
        if tokens == 1:
            self._mask = (place <= self.length[:, None])[:, None, None, :]
        else:
            self._mask = (place <= self._places()[:, :, None])[:, None, :, None, :]

    def end_step(self) -> None:
        """Count the tokens that the step has stored. (Free slots drift; they stay within the cache.)"""
        self.length = (self.length + 1).clamp_(max=self.keys.shape[3] - 1)

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "s h c"],
        k: Float[Tensor, "s k c"],
        v: Float[Tensor, "s k v"],
        scale: float | None = None,
        /,
    ) -> Float[Tensor, "s h v"]:
        assert self._mask is not None, "begin_step comes first"
        keys, values = self.keys[layer - self._first], self.values[layer - self._first]
        if self._several > 1:
            return self._attend_several(keys, values, q, k, v, scale)
        keys[self._row, :, self.length] = k.to(keys.dtype)
        if values.shape[-1]:
            values[self._row, :, self.length] = v.to(values.dtype)
        else:
            values = keys[..., : v.shape[-1]]
        width = self._mask.shape[-1]
        heads = k.shape[1]
        grouped = q.unflatten(1, (heads, -1))  # the query heads of a key head are attended as its queries
        out: Tensor = scaled_dot_product_attention(
            grouped, keys[:, :, :width], values[:, :, :width], attn_mask=self._mask, scale=scale
        )
        return out.flatten(1, 2)

    def _attend_several(
        self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float | None
    ) -> Float[Tensor, "s h v"]:
        """As one token, with the new tokens of a slot as further queries of its key heads."""
        assert self._mask is not None
        new, heads, width = self._several, k.shape[1], self._mask.shape[-1]
        row, places = self._row[:, None], self._places()
        keys[row, :, places] = k.unflatten(0, (-1, new)).to(keys.dtype)
        if values.shape[-1]:
            values[row, :, places] = v.unflatten(0, (-1, new)).to(values.dtype)
        else:
            values = keys[..., : v.shape[-1]]
        by_head = q.unflatten(1, (heads, -1)).unflatten(0, (-1, new)).transpose(1, 2)  # (slots, K, new, H / K, C)
        mask = self._mask.expand(-1, -1, -1, by_head.shape[3], -1).flatten(2, 3)
        out = scaled_dot_product_attention(
            by_head.flatten(2, 3), keys[:, :, :width], values[:, :, :width], attn_mask=mask, scale=scale
        )
        packed: Tensor = out.unflatten(2, (new, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return packed

    def _places(self) -> Int[Tensor, "slots new"]:
        """Where the new tokens of every slot go."""
        return self.length[:, None] + torch.arange(self._several, device=self.length.device)

    def fill(self, slots: Int[Tensor, " n"], prompts: Prefill, rows: Int[Tensor, " n"]) -> None:
        """Put the prompt ``rows[i]`` of a prefill into ``slots[i]``."""
        width = prompts.width
        for layer, (k, v) in enumerate(prompts.stored):
            self.keys[layer, slots, :, :width] = k[rows].to(self.keys.dtype)
            self.values[layer, slots, :, :width] = v[rows][..., : self.values.shape[-1]].to(self.values.dtype)
        self.length[slots] = prompts.sizes[rows]

    def keep(self, rows: Int[Tensor, " n"]) -> None:
        """Drop every slot but ``rows``, which move to the front."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.length, self._row = self.length[rows], self._row[: len(rows)]


class Prefill(PackedAttention):
    """Packed attention that remembers the keys and values of prompts, each computed once for its whole group."""

    keeps = True

    def __init__(self, lengths: list[int], device: torch.device | str = "cpu") -> None:
        super().__init__(lengths, device)
        self.sizes = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.stored: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "s h c"],
        k: Float[Tensor, "s k c"],
        v: Float[Tensor, "s k v"],
        scale: float | None = None,
        /,
    ) -> Float[Tensor, "s h v"]:
        self.stored.append((self.pad(k).transpose(1, 2), self.pad(v).transpose(1, 2)))
        return super().__call__(layer, q, k, v, scale)
