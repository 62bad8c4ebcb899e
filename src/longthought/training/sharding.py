"""A learner whose batches are cut over a team. The gradient is the same sum; only its order of addition differs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.core.protocols import Objective
from longthought.core.types import Batch, PolicyOutput, Rows, Update
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import Muon, cost
from longthought.training.packing import prompts_of, shards
from longthought.training.tally import Part, Tally, merged
from longthought.training.team import Handler, Team, share, shared


class ShardedLearner:
    """A ``PolicyLearner`` in every member of a team; the optimizer steps on shared weights.

    Member 0 adds the gradients, clips them and steps; of Muon's matrices every member orthogonalises a share.
    Build it, pass ``handlers`` to the team, then ``join`` the team. ``name`` tells several learners of a team apart.
    """

    def __init__(self, learner: PolicyLearner, workers: int, name: str = "policy") -> None:
        self.learner, self._name = learner, name
        self._parameters = [p for p in learner.model.parameters() if p.requires_grad]
        self._team: Team | None = None
        self._muons = [optimizer for optimizer in learner.optimizers if isinstance(optimizer, Muon)]
        if workers > 1:
            share([learner.model])
            self._gradients = [[shared(p.shape, p.dtype) for p in self._parameters] for _ in range(workers)]
            for muon in self._muons:
                muon.keep_in([shared(p.shape, p.dtype) for p in muon.matrices])

    @property
    def handlers(self) -> dict[str, Handler]:
        return {
            f"{self._name}.gradient": self._gradient,
            f"{self._name}.evaluate": self._evaluate,
            f"{self._name}.muon": self._step_muon,
        }

    def join(self, team: Team) -> None:
        """The team that was built with ``handlers``."""
        self._team = team
        if team.size > 1:
            for number, muon in enumerate(self._muons):
                portions = shards(torch.tensor([cost(p) for p in muon.matrices]), team.size)
                muon.hand_over(partial(self._call_muon, number, [portion.tolist() for portion in portions]))

    @property
    def version(self) -> int:
        return self.learner.version

    def step(self, batch: Batch, objective: Objective) -> Update:
        """As ``PolicyLearner.step``."""
        team = self._joined
        if team.size == 1:
            return self.learner.step(batch, objective)
        prompts = prompts_of(batch) if self.learner.shares_prompts else None
        parts = shards(batch.lengths, team.size, prompts)
        about = [Part(len(batch.tokens), self.version * team.size + number) for number in range(len(parts))]
        calls = [(batch.select(part), objective, one) for part, one in zip(parts, about)]
        seen = team.call(f"{self._name}.gradient", calls)
        self._add([present for _, _, present in seen])
        total: Tally = seen[0][0]
        for tally, _, _ in seen[1:]:
            total = total + tally
        return Update(self.learner.apply(total), merged(batch, parts, [output for _, output, _ in seen]))

    def evaluate(self, rows: Rows) -> PolicyOutput:
        """As ``PolicyLearner.evaluate``."""
        team = self._joined
        rows = Rows(rows.tokens, rows.lengths, routing=rows.routing)
        parts = shards(rows.lengths, team.size)
        return merged(rows, parts, team.call(f"{self._name}.evaluate", [(rows.select(part),) for part in parts]))

    def logprobs(self, rows: Rows) -> Float[Tensor, "n t"]:
        """As ``PolicyLearner.logprobs``."""
        return self.evaluate(rows).logp

    @property
    def _joined(self) -> Team:
        assert self._team is not None, "join a team first"
        return self._team

    def _gradient(
        self, member: int, batch: Batch, objective: Objective, part: Part
    ) -> tuple[Tally, PolicyOutput, list[bool]]:
        """Tally, output, and which parameters the loss has reached."""
        self._point([None] * len(self._parameters))
        tally, output = self.learner.accumulate(batch, objective, part)
        present = [p.grad is not None for p in self._parameters]
        self._record(member)
        self._point(self._gradients[member])
        return tally, output, present

    def _evaluate(self, member: int, rows: Rows) -> PolicyOutput:
        del member
        return self.learner.evaluate(rows)

    def _add(self, present: Sequence[Sequence[bool]]) -> None:
        """Add the other members' gradients to that of member 0, always in the same order.

        A parameter that the loss has reached in no member has none, so that no optimizer moves it.
        """
        for gradients in self._gradients[1 : len(present)]:
            torch._foreach_add_(self._gradients[0], gradients)
        reached = [any(flags) for flags in zip(*present)]
        self._point([gradient if some else None for gradient, some in zip(self._gradients[0], reached)])

    def _point(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _record(self, member: int) -> None:
        """Copy this process's gradients into the member's shared ones, where they are not these already."""
        pairs = [(own, p.grad) for own, p in zip(self._gradients[member], self._parameters) if p.grad is not own]
        present = [(own, gradient) for own, gradient in pairs if gradient is not None]
        if present:
            torch._foreach_copy_([own for own, _ in present], [gradient for _, gradient in present])
        for own, gradient in pairs:
            if gradient is None:
                own.zero_()

    def _call_muon(self, number: int, portions: Sequence[Sequence[int]]) -> None:
        """Step a Muon with the gradients of member 0: added, and clipped in place."""
        self._record(0)
        muon = self._muons[number]
        matrices, rates = muon.matrices, [group["lr"] for group in muon.param_groups]
        moving = [[place for place in portion if matrices[place].grad is not None] for portion in portions]
        self._joined.call(f"{self._name}.muon", [(number, portion, rates) for portion in moving])

    def _step_muon(self, member: int, number: int, portion: Sequence[int], rates: Sequence[float]) -> None:
        muon = self._muons[number]
        for group, rate in zip(muon.param_groups, rates, strict=True):
            group["lr"] = rate
        if member:
            self._point(self._gradients[0])
        muon.step_some(portion)
