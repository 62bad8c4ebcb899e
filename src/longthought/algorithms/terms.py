"""Terms to add to an objective in a ``Sum``: the KL to a reference, an entropy bonus, imitation of right replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from longthought.algorithms.columns import check, entropy_metric, read, where
from longthought.algorithms.divergence import k2, k3, k3_corrected
from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Loss, PolicyOutput

Estimator: TypeAlias = Literal["k2", "k3", "k3_corrected"]
"""KL estimators that are a loss (``divergence``); k1 is none."""


@dataclass(frozen=True, slots=True)
class KL:
    """beta · KL estimate to the reference: a term for ``Sum`` beside objectives that have none of their own.

    Source and estimators: ``divergence``. Metric: kl.
    """

    beta: float
    kind: Estimator = "k3"

    def __post_init__(self) -> None:
        check("KL.beta", self.beta, lambda x: x > 0, "above 0")
        check_estimator("KL.kind", self.kind)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"logp_ref"} | ({"logp_old"} if self.kind == "k3_corrected" else set()))

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        live = batch.weight != 0
        logp, ref = where(live, policy.logp, read(self, batch, "logp_ref"))
        (old,) = where(live, read(self, batch, "logp_old")) if self.kind == "k3_corrected" else (logp,)
        kl = weighted_sum(estimate(self.kind, logp, old, ref), batch.weight)
        return Loss(self.beta * kl, {"kl": kl.detach()})


@dataclass(frozen=True, slots=True)
class Entropy:
    """- entropy_bonus · entropy of the policy, which must be given with its gradient: a term for ``Sum``."""

    entropy_bonus: float

    def __post_init__(self) -> None:
        check("Entropy.entropy_bonus", self.entropy_bonus, lambda x: x >= 0, "at least 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        return Loss(-self.entropy_bonus * weighted_sum(policy.entropy, batch.weight), entropy_metric(policy, batch))


@dataclass(frozen=True, slots=True)
class Imitation:
    """VAPO's positive-example loss, a term for ``Sum``: mu · Σ imitation · (- log π).

    The column ``imitation`` of the batch holds 1 / (tokens of right replies) on the tokens of right replies and 0
    elsewhere (``weighting.positive_mean``): its denominator is not that of the policy's term.  Metric: imitation_nll.
    Source: arXiv:2504.05118, section 4.3 (μ = 0.1).
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        check("Imitation.mu", self.mu, lambda x: x > 0, "above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"imitation"})

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        weight = read(self, batch, "imitation")
        (logp,) = where(weight != 0, policy.logp)
        nll = -weighted_sum(logp, weight)
        return Loss(self.mu * nll, {"imitation_nll": nll.detach()})


def estimate(kind: Estimator, logp: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """The chosen KL estimate per token, of the shape of ``logp``."""
    match kind:
        case "k2":
            return k2(logp, ref)
        case "k3":
            return k3(logp, ref)
        case "k3_corrected":
            return k3_corrected(logp, old, ref)


def check_estimator(field: str, kind: str) -> None:
    """Raises SettingsError for an unknown estimator, and for k1, with the reason."""
    if kind == "k1":
        raise SettingsError(
            f"{field}: the expected gradient of k1 as a loss is zero, so it regularises nothing; take k2, k3 or "
            "k3_corrected here, or put k1 into the reward (credit.kl_penalty)"
        )
    if kind not in get_args(Estimator):
        raise SettingsError(f"{field} must be one of {', '.join(get_args(Estimator))}, got {kind!r}")
