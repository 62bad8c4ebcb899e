"""Cut a batch into micro-batches of similar lengths."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def micro_batches(lengths: Int[Tensor, " n"], tokens: int) -> list[Int[Tensor, " _"]]:
    """Row indices of micro-batches of at most ``tokens`` real tokens each (a longer row stands alone).

    Rows are sorted by length, longest first, so that attention pads little; the order is a function of the lengths
    alone.  lengths: (N,) → index tensors that partition 0 … N−1.
    """
    order = torch.argsort(lengths, descending=True, stable=True).tolist()
    cuts: list[list[int]] = []
    room = 0
    for row in order:
        size = int(lengths[row])
        if not cuts or size > room:
            cuts.append([])
            room = tokens
        cuts[-1].append(row)
        room -= size
    return [torch.tensor(cut) for cut in cuts]
