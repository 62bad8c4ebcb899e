"""What a learner asks of a reward model: the reward of every sequence in its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from longthought.core.types import PolicyOutput, Rows
from longthought.models.attention import PackedAttention
from longthought.training.balancing import Watched
from longthought.training.learner import spread
from longthought.training.packing import Layout


@dataclass(frozen=True)
class RewardHead:
    """r at every needed token, which ends a sequence; the next token of the row begins another one, from position 0."""

    def __call__(self, model: Any, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput:
        laid = sequences_in(rows, needed)
        if isinstance(model, Watched):
            model.begin(rows, laid)
        states = model(rows.tokens.flatten()[laid.tokens], laid.attend.positions, laid.attend)
        values = model.value(states.index_select(0, laid.before))
        blank = values.new_zeros(needed.shape)
        return PolicyOutput(blank, blank, spread(values, laid.where, needed))


def sequences_in(rows: Rows, ends: Bool[Tensor, "n t"]) -> Layout:
    """The sequences that rows hold end to end; what follows a row's last end is nothing."""
    width = rows.tokens.shape[1]
    pieces, lengths = [], []
    for row, flags in enumerate(ends.cpu()):
        start = 0
        for end in flags.nonzero().flatten().tolist():
            pieces.append(torch.arange(row * width + start, row * width + end + 1))
            lengths.append(end + 1 - start)
            start = end + 1
    device = rows.tokens.device
    tokens = torch.cat(pieces).to(device)
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    return Layout(tokens, PackedAttention(lengths, device), last, tokens[last])
