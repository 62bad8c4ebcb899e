"""Multi-token prediction: the loss of the modules that predict tokens further ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longthought.algorithms.columns import check, where
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Loss, PolicyOutput


@dataclass(frozen=True, slots=True)
class MultiToken:
    """An objective, and λ/D Σ_k - Σ_t w_t log P^k(t) over the D modules that predict further tokens.

    The weights w_t are the batch's, the same for every module: a row's first k tokens, which module k cannot predict,
    lack the term and change no denominator.  weight: λ.
    Metrics: ``mtp_nll_1`` …, the weighted sum of every module.  Source: DeepSeek-V3, arXiv:2412.19437, equations 24
    and 25.
    """

    objective: Objective
    weight: float = 0.3

    def __post_init__(self) -> None:
        if isinstance(self.objective, MultiToken):
            raise SettingsError("MultiToken: the objective inside is a MultiToken, too; leave one of them out")
        check("MultiToken.weight", self.weight, lambda x: x > 0, "above 0; without it take the objective alone")

    @property
    def reads(self) -> frozenset[str]:
        return self.objective.reads

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        if policy.ahead is None:
            raise SettingsError(
                "MultiToken needs what the modules that predict further tokens say, but the policy's output has no "
                "such column: take a model with num_nextn_predict_layers, and ask it with LogprobHead(…, ahead=True)"
            )
        loss = self.objective(policy, batch)
        (logp,) = where((batch.weight != 0).unsqueeze(-1), policy.ahead)
        each = [-weighted_sum(one, batch.weight) for one in logp.unbind(-1)]
        metrics = {f"mtp_nll_{k}": nll.detach() for k, nll in enumerate(each, 1)}
        return Loss(loss.value + self.weight * torch.stack(each).mean(), {**loss.metrics, **metrics})
