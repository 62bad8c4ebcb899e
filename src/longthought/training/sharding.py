"""A learner whose batches are cut over a team. The gradient is the same sum; only its order of addition differs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longthought.core.protocols import Objective
from longthought.core.types import Batch, PolicyOutput, Rows, Update
from longthought.training.learner import PolicyLearner, Tally
from longthought.training.team import Handler, Team, share, shared


def shards(lengths: Int[Tensor, " n"], count: int) -> list[Int[Tensor, " _"]]:
    """Row indices of ``count`` shards with nearly equal numbers of tokens; empty ones are left out.

    The longest row goes to the lightest shard, and so on: a function of the lengths alone.
    """
    heaps: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for row in torch.argsort(lengths, descending=True, stable=True).tolist():
        lightest = loads.index(min(loads))
        heaps[lightest].append(row)
        loads[lightest] += int(lengths[row])
    return [torch.tensor(sorted(heap)) for heap in heaps if heap]


class ShardedLearner:
    """A ``PolicyLearner`` in every member of a team; the optimizer steps in member 0, on shared weights.

    Build it, pass ``handlers`` to the team, then ``join`` the team. ``name`` tells several learners of a team apart.
    """

    def __init__(self, learner: PolicyLearner, workers: int, name: str = "policy") -> None:
        self.learner, self._name = learner, name
        self._parameters = [p for p in learner.model.parameters() if p.requires_grad]
        self._team: Team | None = None
        if workers > 1:
            share([learner.model])
            size = sum(p.numel() for p in self._parameters)
            self._gradients = shared((workers, size), self._parameters[0].dtype)

    @property
    def handlers(self) -> dict[str, Handler]:
        return {f"{self._name}.gradient": self._gradient, f"{self._name}.evaluate": self._evaluate}

    def join(self, team: Team) -> None:
        """The team that was built with ``handlers``."""
        self._team = team

    @property
    def version(self) -> int:
        return self.learner.version

    def step(self, batch: Batch, objective: Objective) -> Update:
        """As ``PolicyLearner.step``."""
        team = self._joined
        if team.size == 1:
            return self.learner.step(batch, objective)
        parts = shards(batch.lengths, team.size)
        seen = team.call(f"{self._name}.gradient", [(batch.select(part), objective) for part in parts])
        self._add(range(1, len(parts)))
        total: Tally = seen[0][0]
        for tally, _ in seen[1:]:
            total = total + tally
        return Update(self.learner.apply(total), _merged(batch, parts, [output for _, output in seen]))

    def evaluate(self, rows: Rows) -> PolicyOutput:
        """As ``PolicyLearner.evaluate``."""
        team = self._joined
        rows = Rows(rows.tokens, rows.lengths)
        parts = shards(rows.lengths, team.size)
        return _merged(rows, parts, team.call(f"{self._name}.evaluate", [(rows.select(part),) for part in parts]))

    def logprobs(self, rows: Rows) -> Float[Tensor, "n t"]:
        """As ``PolicyLearner.logprobs``."""
        return self.evaluate(rows).logp

    @property
    def _joined(self) -> Team:
        assert self._team is not None, "join a team first"
        return self._team

    def _gradient(self, member: int, batch: Batch, objective: Objective) -> tuple[Tally, PolicyOutput]:
        seen = self.learner.accumulate(batch, objective)
        if member:
            offset = 0
            for parameter in self._parameters:
                view = self._gradients[member, offset : offset + parameter.numel()]
                view.copy_(parameter.grad.flatten()) if parameter.grad is not None else view.zero_()
                parameter.grad = None
                offset += parameter.numel()
        return seen

    def _evaluate(self, member: int, rows: Rows) -> PolicyOutput:
        del member
        return self.learner.evaluate(rows)

    def _add(self, members: Sequence[int]) -> None:
        """Add the gradients of other members to this one's, always in the same order."""
        for member in members:
            offset = 0
            for parameter in self._parameters:
                gradient = self._gradients[member, offset : offset + parameter.numel()].view_as(parameter)
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
                offset += parameter.numel()


def _merged(rows: Rows, parts: Sequence[Tensor], outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    """What was said of the parts, in the order of the rows."""
    whole = PolicyOutput(*(torch.zeros(rows.tokens.shape) for _ in range(3)))
    for part, output in zip(parts, outputs, strict=True):
        width = output.logp.shape[1]
        whole.logp[part, :width], whole.entropy[part, :width] = output.logp, output.entropy
        if whole.values is not None and output.values is not None:
            whole.values[part, :width] = output.values
    return whole
