"""What a reward model minimises: pairs of replies of which one is better, or single replies with a label.

A reward model gives every reply one number r. Objectives read it in ``PolicyOutput.values`` where ``batch.mask`` is
True, and are weighted sums as all of ``objective`` are; a micro-batch holds whole rows, and a row holds a whole pair.

    BradleyTerry   − log σ(r_w − r_l − m), and what keeps the rewards near 0
    Binary         the cross-entropy of σ(r) to a label

Metrics are means over the weight of the step: ``preference_loss`` (the first term alone), ``accuracy`` (a tie counts
one half), ``margin`` (r_w − r_l) and ``reward``; of labels ``accuracy`` and ``reward``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from longthought.algorithms.columns import check, read
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Loss, Pairs, PolicyOutput


def bradley_terry(
    better: Float[Tensor, "*n"], worse: Float[Tensor, "*n"], margin: Float[Tensor, "*n"] | float = 0.0
) -> Float[Tensor, "*n"]:
    """− log σ(r_w − r_l − m) of every pair, nats; log 2 where the two are m apart.

    Source: Bradley & Terry 1952; Ouyang et al., arXiv:2203.02155, equation 1; the margin: Llama 2, arXiv:2307.09288,
    equation 2.
    """
    return -logsigmoid(better - worse - margin)


def centring(better: Float[Tensor, "*n"], worse: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(r_w + r_l)² of every pair. Bradley–Terry fixes differences alone; this keeps the rewards themselves around 0.

    Source: Eisenstein et al., arXiv:2312.09244, section 2.
    """
    return (better + worse).square()


def binary(reward: Float[Tensor, "*n"], label: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """− y log σ(r) − (1 − y) log (1 − σ(r)) of every reply, nats; y = 1 for a good one.

    Source: the point-wise safety model of DeepSeek-R1, arXiv:2501.12948v2, supplementary methods.
    """
    return softplus(reward) - label * reward


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """− log σ(r_w − r_l − m) + centring · (r_w + r_l)² per pair of ``Pairs``.

    centring: λ; 0: off. Eisenstein et al. and TRL suggest 0.01.
    """

    centring: float = 0.0

    def __post_init__(self) -> None:
        check("BradleyTerry.centring", self.centring, lambda x: x >= 0, "at least 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        if not isinstance(batch, Pairs) or not bool((batch.mask.sum(1) == 2).all()):
            raise SettingsError("BradleyTerry needs Pairs, rows with the ends of two replies each")
        weight = batch.weight[batch.mask].view(-1, 2).sum(1)
        better, worse = _read(policy, batch).view(-1, 2).unbind(1)
        fit = weighted_sum(bradley_terry(better, worse, batch.margin), weight)
        value = fit + self.centring * weighted_sum(centring(better, worse), weight) if self.centring else fit
        gap = (better - worse).detach()
        metrics = {
            "preference_loss": fit.detach(),
            "accuracy": weighted_sum((gap.sign() + 1) / 2, weight),
            "margin": weighted_sum(gap, weight),
            "reward": weighted_sum((better + worse).detach() / 2, weight),
        }
        return Loss(value, metrics)


@dataclass(frozen=True, slots=True)
class Binary:
    """The cross-entropy of σ(r) to the label that stands in ``batch.returns`` at the end of every reply: 1 or 0."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"returns"})

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        reward, label = _read(policy, batch), read(self, batch, "returns")[batch.mask]
        weight = batch.weight[batch.mask]
        right = ((reward.detach() > 0) == (label > 0.5)).to(weight.dtype)
        metrics = {"accuracy": weighted_sum(right, weight), "reward": weighted_sum(reward.detach(), weight)}
        return Loss(weighted_sum(binary(reward, label), weight), metrics)


def _read(policy: PolicyOutput, batch: Batch) -> Tensor:
    """The rewards at the ends of the replies, row by row; 0 where nothing is trained."""
    if policy.values is None:
        raise SettingsError("a preference objective needs a reward model, but the model's output has no values")
    return torch.where(batch.weight != 0, policy.values, 0.0)[batch.mask]
