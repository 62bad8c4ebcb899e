"""Algorithms, a few lines each: what the papers chose where they differ. ``docs/algorithms`` has a page for each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final, Literal, TypeAlias

from longthought.algorithms.advantage import (
    batch_centered,
    batch_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
    per_group,
    rescaled_centered,
)
from longthought.algorithms.control import EntropyTarget
from longthought.algorithms.correction import Truncated
from longthought.algorithms.credit import (
    GAE,
    OPO,
    DecoupledGAE,
    LengthAdaptive,
    PerReply,
    ReinforcePlusPlus,
    ReMax,
)
from longthought.algorithms.objective import CISPO, GRPO, GSPO, KL, REINFORCE, SAPO, Imitation, MirrorDescent, Sum
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.errors import SettingsError
from longthought.core.protocols import Objective, Shaping
from longthought.rollout.shaping import LanguageConsistency, Length, Overlong, Repetition
from longthought.stages.method import Critic, KLReward, Method, Refill
from longthought.training.optimizer import AdamW

MethodName: TypeAlias = Literal[
    "grpo",
    "dr_grpo",
    "dapo",
    "rloo",
    "opo",
    "gpg",
    "gspo",
    "sapo",
    "cispo",
    "reinforce",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "ppo",
    "vapo",
    "kimi",
    "tiny",
]


@dataclass(frozen=True)
class Knobs:
    """What may be turned in a method; none: what its paper chose. One that the method does not read is refused.

    clip_low: ratios are clipped below 1 − this.
    clip_high: ratios are clipped above 1 + this.
    cap: bound of the ratio itself (cispo).
    dual_clip: bound of the ratio where the advantage is negative.
    beta: weight of the KL to the reference, in the loss or, where the paper puts it there, in the reward.
    kl: estimator of the KL.
    tau: strength of the pull to the last policy (kimi).
    entropy_bonus: weight of the entropy in what is maximised.
    entropy_target: entropy, in nats per token, to which the bonus is steered instead.
    lam: λ of the advantages (ppo, vapo).
    critic_lr: learning rate of the critic (ppo, vapo).
    critic_clip: clip of its loss (ppo, vapo).
    critic_pretrain: steps at the start in which only it learns (ppo, vapo).
    bootstrap: the critic's value stands for the verdict on a reply that was cut (ppo, vapo).
    refill: rounds in which groups without a signal are replaced by others; 0: they are kept.
    filter_truncated: replies that were cut leave the loss.
    correction: truncated importance weights between sampler and learner, at most this; 0: none.
    """

    clip_low: float | None = None
    clip_high: float | None = None
    cap: float | None = None
    dual_clip: float | None = None
    beta: float | None = None
    kl: Literal["k2", "k3", "k3_corrected"] | None = None
    tau: float | None = None
    entropy_bonus: float | None = None
    entropy_target: float | None = None
    lam: float | None = None
    critic_lr: float | None = None
    critic_clip: float | None = None
    critic_pretrain: int | None = None
    bootstrap: bool | None = None
    refill: int | None = None
    filter_truncated: bool | None = None
    correction: float | None = None


@dataclass(frozen=True)
class Shaped:
    """Summands of the reward beside the verifier's; 0 leaves one out.

    language: weight of the share of words in the prompt's language.
    repetition: penalty for repeated 10-grams of tokens.
    overlong: width in tokens of DAPO's soft punishment before the cut.
    length: weight of Kimi's length reward: shorter right replies earn more.
    """

    language: float = 0.0
    repetition: float = 0.0
    overlong: int = 0
    length: float = 0.0

    def __post_init__(self) -> None:
        for name in ("language", "repetition", "overlong", "length"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"reward.{name}={getattr(self, name)} must be at least 0; 0 leaves it out")


def summands(reward: Shaped, max_tokens: int) -> tuple[Shaping, ...]:
    """The summands that are not left out."""
    chosen: list[Shaping] = []
    if reward.language:
        chosen.append(LanguageConsistency(reward.language))
    if reward.repetition:
        chosen.append(Repetition(reward.repetition))
    if reward.overlong:
        chosen.append(Overlong(max_tokens, reward.overlong))
    if reward.length:
        chosen.append(Length(reward.length))
    return tuple(chosen)


_SURROGATE: Final = frozenset({"clip_low", "clip_high", "dual_clip", "entropy_bonus", "entropy_target"})
_KL: Final = frozenset({"beta", "kl"})
_CRITIC: Final = frozenset({"lam", "critic_lr", "critic_clip", "critic_pretrain", "bootstrap"})
_ALWAYS: Final = frozenset({"refill", "filter_truncated", "correction"})
_READS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "tiny", "reinforce_pp_baseline"), _SURROGATE | _KL),
    **dict.fromkeys(("rloo", "opo", "reinforce_pp", "remax"), _SURROGATE | {"beta"}),
    "ppo": _SURROGATE | _CRITIC | {"beta"},
    "vapo": _SURROGATE - {"entropy_target"} | _CRITIC | {"beta"},
    "gspo": _KL | {"clip_low", "clip_high"},
    "cispo": _KL | {"cap"},
    **dict.fromkeys(("reinforce", "gpg", "sapo"), _KL),
    "kimi": frozenset({"tau"}),
}


def method(name: MethodName, knobs: Knobs = Knobs(), max_tokens: int = 0, shaping: tuple[Shaping, ...] = ()) -> Method:
    """The method of a paper, with some knobs turned. ``max_tokens`` is read by dr_grpo, as its constant length.

    Raises SettingsError, naming it, for a knob that the method does not read.
    """
    given = {f.name: value for f in fields(knobs) if (value := getattr(knobs, f.name)) is not None}
    reads = _READS[name] | (_ALWAYS if name != "kimi" else _ALWAYS - {"correction"})
    for knob in given.keys() - reads:
        raise SettingsError(
            f"{knob}={given[knob]} changes nothing with method={name}, which reads {', '.join(sorted(reads))}"
        )
    made = replace(_published(name, knobs, max_tokens), shaping=shaping)
    if knobs.entropy_target is not None:
        made = replace(made, entropy=EntropyTarget(knobs.entropy_target))
    if knobs.refill is not None:
        made = replace(made, refill=Refill(knobs.refill) if knobs.refill else None)
    if knobs.filter_truncated is not None:
        made = replace(made, filter_truncated=knobs.filter_truncated)
    return replace(made, correction=Truncated(knobs.correction)) if knobs.correction else made


def _published(name: MethodName, knobs: Knobs, max_tokens: int) -> Method:  # noqa: C901  a table
    """What the papers chose. arXiv numbers: see ``docs/algorithms``."""
    leave = per_group(leave_one_out)
    match name:
        case "grpo":  # DeepSeekMath; R1-Zero
            return Method(per_group(group_normalized), sequence_mean, _surrogate(knobs, beta=0.001))
        case "dr_grpo":
            return Method(per_group(group_centered), partial(constant, length=max_tokens), _surrogate(knobs))
        case "dapo":
            objective = _surrogate(knobs, clip_high=0.28)
            return Method(per_group(group_normalized), token_mean, objective, filter_truncated=True, refill=Refill())
        case "rloo":
            return _kl_in_reward(Method(PerReply(leave), sequence_sum, _surrogate(knobs)), knobs)
        case "opo":
            return _kl_in_reward(Method(OPO(), sequence_sum, _surrogate(knobs)), knobs)
        case "gpg":
            return Method(rescaled_centered, token_mean, _with_kl(REINFORCE(), knobs))
        case "sapo":
            return Method(per_group(group_normalized), sequence_mean, _with_kl(SAPO(), knobs))
        case "gspo":
            return Method(per_group(group_normalized), sequence_mean, _with_kl(_gspo(knobs), knobs))
        case "cispo":
            objective_ = CISPO() if knobs.cap is None else CISPO(knobs.cap)
            return Method(per_group(group_normalized), token_mean, _with_kl(objective_, knobs))
        case "reinforce":
            return Method(batch_centered, sequence_sum, _with_kl(REINFORCE(), knobs))
        case "reinforce_pp":
            return _kl_in_reward(Method(ReinforcePlusPlus(), token_mean, _surrogate(knobs)), knobs, 0.001)
        case "reinforce_pp_baseline":
            return Method(batch_normalized, token_mean, _surrogate(knobs))
        case "remax":
            return _kl_in_reward(Method(ReMax(), sequence_sum, _surrogate(knobs)), knobs)
        case "ppo":
            credit = GAE(lam=1.0 if knobs.lam is None else knobs.lam)
            return _kl_in_reward(Method(credit, token_mean, _surrogate(knobs), critic=_critic(knobs, 0)), knobs)
        case "vapo":
            adaptive = DecoupledGAE(lam=LengthAdaptive() if knobs.lam is None else knobs.lam)
            both = Sum((_surrogate(knobs, clip_high=0.28), Imitation()))
            return _kl_in_reward(Method(adaptive, token_mean, both, critic=_critic(knobs, 50)), knobs)
        case "kimi":
            return Method(
                per_group(group_centered), sequence_sum, MirrorDescent(0.1 if knobs.tau is None else knobs.tau)
            )
        case "tiny":  # the laptop run: GRPO with REINFORCE++'s batch deviation and DAPO's token mean
            return Method(batch_normalized, token_mean, _surrogate(knobs, clip_high=0.28))


def _surrogate(knobs: Knobs, clip_high: float = 0.2, beta: float = 0.0) -> GRPO:
    """The clipped surrogate with the paper's values, the knobs turned."""
    in_loss = beta if knobs.beta is None else knobs.beta
    return GRPO(
        clip_low=0.2 if knobs.clip_low is None else knobs.clip_low,
        clip_high=clip_high if knobs.clip_high is None else knobs.clip_high,
        beta=in_loss,
        entropy_bonus=knobs.entropy_bonus or 0.0,
        dual_clip=knobs.dual_clip,
        kl=knobs.kl or "k3",
    )


def _kl_in_reward(made: Method, knobs: Knobs, beta: float = 0.0) -> Method:
    """The method with its KL moved from the loss, where ``_surrogate`` put it, into the reward, as in its paper."""
    weight = beta if knobs.beta is None else knobs.beta
    terms = made.objective.terms if isinstance(made.objective, Sum) else (made.objective,)
    free = tuple(replace(one, beta=0.0) if isinstance(one, GRPO) else one for one in terms)
    objective: Objective = Sum(free) if len(free) > 1 else free[0]
    return replace(made, objective=objective, kl_reward=KLReward(weight) if weight else None)


def _with_kl(objective: Objective, knobs: Knobs) -> Objective:
    if not knobs.beta:
        if knobs.kl is not None:
            raise SettingsError(f"kl={knobs.kl} changes nothing while beta is 0; set beta, too")
        return objective
    return Sum((objective, KL(knobs.beta, knobs.kl or "k3")))


def _gspo(knobs: Knobs) -> GSPO:
    low, high = knobs.clip_low, knobs.clip_high
    return replace(GSPO(), **{k: v for k, v in (("clip_low", low), ("clip_high", high)) if v is not None})


def _critic(knobs: Knobs, pretrain: int) -> Critic:
    lr = AdamW().lr if knobs.critic_lr is None else knobs.critic_lr
    steps = pretrain if knobs.critic_pretrain is None else knobs.critic_pretrain
    plain = Critic(AdamW(lr=lr), knobs.critic_clip, steps)
    return plain if knobs.bootstrap is None else replace(plain, bootstrap=knobs.bootstrap)
