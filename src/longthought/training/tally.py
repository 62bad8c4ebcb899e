"""What an optimizer step sees on its way, gathered from micro-batches and shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from longthought.core.types import Batch, Loss, PolicyOutput, Rows
from longthought.training.balancing import Routed


@dataclass(frozen=True)
class Tally:
    """Sums over rows, so that those of micro-batches and shards add up.

    ``gap`` sums |logp − logp_old| over the ``tokens`` of the replies: before the first update of a step, what sampler
    and learner disagree about. ``routed``: what the routers did, of a model that has some.
    """

    loss: float = 0.0
    weight: float = 0.0
    sums: Mapping[str, float] = field(default_factory=dict)
    gap: float = 0.0
    gap_max: float = 0.0
    tokens: int = 0
    routed: Routed | None = None

    @classmethod
    def of(cls, policy: PolicyOutput, batch: Batch, loss: Loss) -> Tally:
        sums = {name: float(value.detach()) for name, value in loss.metrics.items()}
        weight = float(batch.weight.sum())
        if batch.logp_old is None:
            return cls(float(loss.value.detach()), weight, sums)
        gap = torch.where(batch.mask, (policy.logp.detach() - batch.logp_old).abs(), 0.0)
        largest = float(gap.max()) if gap.numel() else 0.0
        return cls(float(loss.value.detach()), weight, sums, float(gap.sum()), largest, int(batch.mask.sum()))

    def __add__(self, other: Tally) -> Tally:
        names = {**self.sums, **other.sums}
        return Tally(
            self.loss + other.loss,
            self.weight + other.weight,
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names},
            self.gap + other.gap,
            max(self.gap_max, other.gap_max),
            self.tokens + other.tokens,
            self.routed + other.routed if self.routed and other.routed else self.routed or other.routed,
        )

    def means(self) -> dict[str, float]:
        """The loss as it is; metrics divided by the total weight; the gap by the number of tokens; of the routers, see
        ``Routed.metrics``."""
        means = {name: value / (self.weight or 1.0) for name, value in self.sums.items()}
        gap = {"logprob_gap": self.gap / self.tokens, "logprob_gap_max": self.gap_max} if self.tokens else {}
        return {"loss": self.loss, **means, **gap, **(self.routed.metrics() if self.routed else {})}


class Part(NamedTuple):
    """What a batch is of its optimizer step: the step's number of sequences, and a number of its own."""

    sequences: int
    number: int


def merged(rows: Rows, parts: Sequence[Tensor], outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    """What was said of the parts of some rows, in the order of the rows, (N, T)."""
    columns = {name: torch.zeros(rows.tokens.shape) for name in ("logp", "entropy", "values")}
    for part, output in zip(parts, outputs, strict=True):
        for name, said in _columns(output):
            if name not in columns:
                columns[name] = torch.zeros(*rows.tokens.shape, *said.shape[2:])
            columns[name][part, : said.shape[1]] = said
    return PolicyOutput(**columns)


def kept(output: PolicyOutput) -> PolicyOutput:
    """Without its graph, float32, on the CPU."""
    return PolicyOutput(**{name: said.detach().float().cpu() for name, said in _columns(output)})


def _columns(output: PolicyOutput) -> list[tuple[str, Tensor]]:
    """Those that it has."""
    pairs = ((one.name, getattr(output, one.name)) for one in fields(output))
    return [(name, said) for name, said in pairs if said is not None]
