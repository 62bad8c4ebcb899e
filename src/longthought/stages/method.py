"""An algorithm, as the small functions in which the papers differ, and the parts that some of them need beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from longthought.algorithms.advantage import BatchAdvantage, PerGroup, batch_centered, global_normalized
from longthought.algorithms.control import EntropyTarget
from longthought.algorithms.correction import Correction
from longthought.algorithms.credit import OPO, Discounted, Estimator, PerReply, ReinforcePlusPlus, ReMax, TokenCredit
from longthought.algorithms.objective import MirrorDescent, ValueLoss
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective, Shaping, Weighting
from longthought.core.types import Rollout
from longthought.training.optimizer import AdamW


class DenseShaping(Protocol):
    """A named summand of the reward of every token: for each rollout of a group, one value per token."""

    @property
    def name(self) -> str: ...

    def __call__(self, group: Sequence[Rollout], /) -> list[list[float]]: ...


@dataclass(frozen=True)
class KLReward:
    """−beta · k of every token is part of its reward, instead of a KL term in the loss (``credit.kl_penalty``).

    A credit per reply sums it over the reply's tokens.
    """

    beta: float
    estimator: Estimator = "k1"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise SettingsError(f"kl_reward: beta={self.beta} must be positive; leave kl_reward out for no KL")


@dataclass(frozen=True)
class Refill:
    """DAPO's dynamic sampling (arXiv:2503.14476, section 3.2): groups that are all right or all wrong, by the task's
    verdict and before any shaping, are dropped, and others are sampled in their place, in at most ``rounds`` rounds."""

    rounds: int = 10

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise SettingsError(f"refill: rounds={self.rounds}: with less than 2 nothing is refilled")


@dataclass(frozen=True)
class Critic:
    """A value function, trained beside the policy on the same rollouts.

    optimizer: its own.  clip: of the value loss, in units of the value; None: none.
    pretrain: steps at the start in which only the critic learns (VAPO, arXiv:2504.05118: 50).
    bootstrap: a reply that a limit cut is credited with V of its last state *instead of* the task's verdict on the half
    reply, as if it went on. Without, the limit is part of the world: the verdict counts, and nothing comes after.
    """

    optimizer: AdamW = AdamW(lr=2e-3)
    clip: float | None = None
    pretrain: int = 0
    bootstrap: bool = False

    def __post_init__(self) -> None:
        if self.pretrain < 0:
            raise SettingsError(f"critic: pretrain={self.pretrain} must be 0 or more steps")
        ValueLoss(self.clip)  # refuses what is no clip


@dataclass(frozen=True)
class Method:
    """What is credited, averaged and minimised; the rest is off unless it is given.

    advantage: from rewards to one advantage per reply (``BatchAdvantage``) or per token (``TokenCredit``).
    weighting, objective: how tokens are averaged, what is minimised.
    shaping: summands of the reward of a reply.  dense: of single tokens; they need a credit per token.
    filter_truncated: replies that were cut leave the loss and its denominator; their rewards stay in the baseline.
    kl_reward, refill, critic: see their types.
    correction: weights for the gap between the sampler and the learner (``algorithms.correction``).
    entropy: a target that sets the objective's entropy bonus from step to step (``algorithms.control``).
    """

    advantage: BatchAdvantage | TokenCredit
    weighting: Weighting
    objective: Objective
    shaping: tuple[Shaping, ...] = ()
    dense: tuple[DenseShaping, ...] = ()
    filter_truncated: bool = False
    kl_reward: KLReward | None = None
    refill: Refill | None = None
    critic: Critic | None = None
    correction: Correction | None = None
    entropy: EntropyTarget | None = None

    def __post_init__(self) -> None:
        names = [one.name for one in self.shaping] + [one.name for one in self.dense]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SettingsError(f"method: two summands of the reward are called {sorted(twice)[0]!r}: rename one")
        if self.needs_values and self.critic is None:
            raise SettingsError(f"method: {type(self.advantage).__name__} needs the values of a critic: give one")
        if self.critic is not None and not self.needs_values:
            raise SettingsError("method: a critic changes nothing: this advantage does not read values")
        streams = sorted(one.name for one in self.dense)
        named = sorted(n for n, _ in self.advantage.gammas) if isinstance(self.advantage, Discounted) else []
        if streams != named:
            raise SettingsError(
                f"method: rewards of single tokens (dense) are {streams}, but the advantage has discounts for {named}"
            )
        if self.correction is not None and isinstance(self.objective, MirrorDescent):
            raise SettingsError("method: MirrorDescent is not homogeneous in the advantage: it takes no correction")
        if self.entropy is not None:
            self._check_entropy()

    def _check_entropy(self) -> None:
        if not hasattr(self.objective, "entropy_bonus"):
            raise SettingsError(
                f"method: entropy control changes nothing: {type(self.objective).__name__} has no entropy bonus"
            )
        if self.objective.entropy_bonus:
            raise SettingsError(
                f"method: entropy_bonus={self.objective.entropy_bonus} changes nothing: the entropy control sets the "
                "bonus; leave one of the two out"
            )

    @property
    def token_credit(self) -> TokenCredit | None:
        """The advantage, if it gives one number per token."""
        return self.advantage if hasattr(self.advantage, "needs_values") else None  # type: ignore[return-value]

    @property
    def sequence_credit(self) -> BatchAdvantage:
        """The advantage, if it gives one number per reply."""
        assert self.token_credit is None
        return self.advantage  # type: ignore[return-value]

    @property
    def compares(self) -> bool:
        """Whether the replies to one problem are compared with each other, so that a group needs at least two."""
        credit: object = self.advantage
        if isinstance(credit, ReinforcePlusPlus):
            return credit.baseline
        if isinstance(credit, PerReply | Discounted):
            credit = credit.advantage
        if isinstance(credit, partial):
            credit = credit.func
        per_token = hasattr(credit, "needs_values") or credit is None
        return isinstance(credit, PerGroup | OPO) or not (per_token or credit in (batch_centered, global_normalized))

    @property
    def greedy_baseline(self) -> bool:
        """Whether a greedy reply to every problem is sampled as its baseline."""
        return isinstance(self.advantage, ReMax)

    @property
    def needs_values(self) -> bool:
        """Whether a critic is read."""
        return self.token_credit is not None and self.token_credit.needs_values

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen reference is read, in the loss or in the reward."""
        return "logp_ref" in self.objective.reads or self.kl_reward is not None
