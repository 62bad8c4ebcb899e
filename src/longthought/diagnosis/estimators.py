"""The estimators that the lab measures: every named method, what has no name, critics of every quality, KL terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from longthought.algorithms.advantage import group_normalized, leave_one_out, per_group, rescaled_centered
from longthought.algorithms.columns import read, where
from longthought.algorithms.correction import SequenceTruncated, Truncated
from longthought.algorithms.credit import GAE, OPO, PerReply, ReinforcePlusPlus
from longthought.algorithms.divergence import k1
from longthought.algorithms.objective import GRPO, KL, REINFORCE, SAPO
from longthought.algorithms.weighting import sequence_mean, sequence_sum, token_mean, weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Loss, PolicyOutput
from longthought.diagnosis.toy import Critic
from longthought.stages.method import Critic as TrainedCritic
from longthought.stages.method import KLReward, Method


@dataclass(frozen=True)
class Estimator:
    """A method with what it is measured on.

    critic: what its critic says, if it reads one.
    target: ``reward``: the gradient of the expected reward. ``kl``: that of −KL(π‖π_ref), where nothing is rewarded.
    """

    name: str
    method: Method
    critic: Critic = "exact"
    target: Literal["reward", "kl"] = "reward"

    @property
    def compares(self) -> bool:
        """Whether a group needs at least two replies."""
        return self.method.compares or self.method.refill is not None


@dataclass(frozen=True, slots=True)
class K1Loss:
    """k1 as a loss, which ``terms.KL`` refuses: the lab shows why."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"logp_ref"})

    @property
    def silent_without_advantage(self) -> bool:
        return False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        logp, ref = where(batch.weight != 0, policy.logp, read(self, batch, "logp_ref"))
        return Loss(weighted_sum(k1(logp, ref), batch.weight))


def estimators(named: Mapping[str, Method], off_policy: bool = False) -> tuple[Estimator, ...]:
    """The named methods without their KL, and beside them what shows one part at a time.

    off_policy: also those that weigh replies by what sampled them, which change nothing on policy.
    """
    leave, normalized = per_group(leave_one_out), per_group(group_normalized)
    others = [
        Estimator("opo", Method(OPO(), token_mean, REINFORCE())),
        Estimator("gpg", Method(rescaled_centered, token_mean, REINFORCE())),
        Estimator("sapo", Method(normalized, sequence_mean, SAPO())),
        Estimator("grpo_token_mean", Method(normalized, token_mean, GRPO())),
        Estimator("grpo_sequence_sum", Method(normalized, sequence_sum, GRPO())),
        Estimator("rloo_sequence_mean", Method(leave, sequence_mean, GRPO())),
    ]
    methods = [Estimator(name, bare(made)) for name, made in named.items()]
    return (*methods, *others, *_critics(), *(_corrections() if off_policy else ()), *_kl_terms())


def bare(given: Method) -> Method:
    """A method for its reward alone: without the KL, in the loss or in the reward, of ``KLReward`` and ``GRPO``."""
    objective = given.objective
    if isinstance(objective, GRPO):
        objective = replace(objective, beta=0.0, kl="k3")
    made = replace(given, objective=objective, kl_reward=None, entropy=None)
    if made.needs_reference:
        raise SettingsError(
            "lab: an estimator is measured by the gradient of the reward, but this objective has a KL term: leave "
            "it out"
        )
    return made


def chosen(names: Sequence[str], known: Sequence[Estimator]) -> tuple[Estimator, ...]:
    """Those of the names, in the order of ``known``. Raises SettingsError, with the nearest name, for another one."""
    there = {one.name: one for one in known}
    for name in names:
        if name not in there:
            near = get_close_matches(name, there, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            only = "" if name not in {one.name for one in _corrections()} else "it needs --off-policy; "
            raise SettingsError(f"there is no estimator {name!r}: {only}{hint}There are: {', '.join(there)}")
    return tuple(one for one in known if one.name in names)


def _critics() -> list[Estimator]:
    """GAE without whitening, so that the critic alone is seen."""
    kinds: tuple[Critic, ...] = ("exact", "zero", "wrong")
    plain = {
        lam: Method(GAE(lam=lam, whiten=False), sequence_sum, GRPO(), critic=TrainedCritic()) for lam in (1.0, 0.95)
    }
    return [Estimator(f"gae_{lam:g}_{kind}_critic", made, critic=kind) for lam, made in plain.items() for kind in kinds]


def _corrections() -> list[Estimator]:
    base = Method(per_group(leave_one_out), sequence_sum, GRPO())
    return [
        Estimator("rloo_tis", replace(base, correction=Truncated())),
        Estimator("rloo_sequence_tis", replace(base, correction=SequenceTruncated())),
        Estimator("rloo_sequence_is", replace(base, correction=SequenceTruncated(cap=1e6))),
        Estimator("rloo_uncorrected", Method(per_group(leave_one_out), sequence_sum, REINFORCE())),
    ]


def _kl_terms() -> list[Estimator]:
    """A KL by itself, where nothing is rewarded."""
    leave = per_group(leave_one_out)
    nothing = ReinforcePlusPlus(whiten=False)  # any credit of no reward is 0; this one takes a group of one
    losses: dict[str, Objective] = {
        "k1": K1Loss(),
        "k2": KL(1.0, "k2"),
        "k3": KL(1.0, "k3"),
        "k3_corrected": KL(1.0, "k3_corrected"),
    }
    in_loss = [Estimator(f"kl_{k}_in_loss", Method(nothing, sequence_sum, o), target="kl") for k, o in losses.items()]
    credit = Method(PerReply(leave), sequence_sum, GRPO())
    in_reward = [
        Estimator(f"kl_{kind}_in_reward", replace(credit, kl_reward=KLReward(1.0, kind)), target="kl")
        for kind in ("k1", "k3")
    ]
    return [*in_loss, *in_reward]
