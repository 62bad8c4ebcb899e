"""A world small enough to enumerate: every reply, its chance, its reward, and the exact policy gradient.

A policy is a table of logits (P, S, V): P problems, S states (the words said so far), V tokens: 0 ends the reply, the
others are words. A reply of ``length`` words ends by itself, so nothing is ever cut. The reward is a table over the
replies.

R replies in all, numbered through the problems; T tokens at most; D = P · S · V parameters. Everything is float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longthought.core.errors import SettingsError
from longthought.core.types import Completion, Finish, Message, Outcome, Problem, Rollout, Score, TokenIds, Verdict

Critic: TypeAlias = Literal["exact", "zero", "wrong"]
_FARTHEST = 3.0  # logit of the easiest problem's chance of success with skew 1
_MOST_REPLIES, _LONGEST = 300, 50


@dataclass(frozen=True)
class World:
    """What a toy is drawn from.

    problems: how many; each comes once in every step.
    words, length: a reply is up to ``length`` of so many words.
    skew: how different the problems are: 0, all are solved about half of the time; 1, from about 5 % to 95 %.
    off_policy: standard deviation of the gap between the logits of the sampler and of the policy; 0: they are one.
    reference: the same between the reference of a KL and the policy.
    seed: of all tables.
    """

    problems: int = 3
    words: int = 2
    length: int = 3
    skew: float = 0.7
    off_policy: float = 0.0
    reference: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("problems", "words", "length"):
            if getattr(self, name) < 1:
                raise SettingsError(f"lab: {name}={getattr(self, name)} must be at least 1")
        for name, most in (("skew", 1.0), ("off_policy", 5.0), ("reference", 5.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SettingsError(f"lab: {name}={getattr(self, name)} must be between 0 and {most:g}")
        small = max(self.problems, self.words, self.length) <= _MOST_REPLIES and self.length <= _LONGEST
        if not small or self.problems * sum(self.words**k for k in range(self.length + 1)) > _MOST_REPLIES:
            raise SettingsError(
                f"lab: {self.problems} problems with replies of up to {self.length} of {self.words} words are too many "
                f"to enumerate: at most {_MOST_REPLIES} replies in all, of at most {_LONGEST} tokens"
            )

    def draw(self) -> Toy:
        """Tables of logits, and rewards 0 and 1 that give the problems the wanted chances of success."""
        generator = torch.Generator().manual_seed(self.seed)
        states = sum(self.words**k for k in range(self.length))
        shape = (self.problems, states, self.words + 1)
        theta, sampler, reference = torch.randn((3, *shape), generator=generator, dtype=torch.float64).unbind()
        spread = torch.linspace(1, -1, self.problems) if self.problems > 1 else torch.zeros(1)
        wanted = torch.sigmoid(_FARTHEST * self.skew * spread).tolist()
        sampler, reference = theta + self.off_policy * sampler, theta + self.reference * reference
        blank = Toy(theta, sampler, reference, torch.zeros(0), self.length)
        rewards = torch.zeros(len(blank.replies), dtype=torch.float64)
        chance = blank.chance(theta)
        for number, goal in enumerate(wanted):
            rows = (blank.problem == number).nonzero().squeeze(-1)
            order = rows[torch.randperm(len(rows), generator=generator)]
            rewards[_solved(order, chance, goal)] = 1.0
        return replace(blank, rewards=rewards)


def _solved(order: Tensor, chance: Tensor, goal: float) -> list[int]:
    """Rows in the given order whose chances sum up to about ``goal``; at least one, and not all."""
    total, chosen = 0.0, list[int]()
    for row in order.tolist():
        if abs(total + float(chance[row]) - goal) < abs(total - goal):
            total, chosen = total + float(chance[row]), [*chosen, row]
    chosen = chosen or [int(order[chance[order].argmin()])]
    return chosen if len(chosen) < len(order) else [row for row in chosen if row != int(order[chance[order].argmin()])]


@dataclass(frozen=True, eq=False)
class Toy:
    """Tables: logits of the policy, of what samples, and of the reference, (P, S, V) each, and the rewards (R,).

    Raises SettingsError when the tables do not fit ``length``.
    """

    theta: Tensor
    sampler: Tensor
    reference: Tensor
    rewards: Tensor
    length: int

    def __post_init__(self) -> None:
        words = self.theta.shape[-1] - 1
        states = sum(words**k for k in range(self.length))
        if any(table.shape != self.theta.shape for table in (self.sampler, self.reference)) or words < 1:
            raise SettingsError("lab: the three tables of logits must have one shape (P, S, V) with V of at least 2")
        if self.theta.shape[1] != states or len(self.rewards) not in (0, len(self.replies)):
            raise SettingsError(
                f"lab: {words} words and length {self.length} have {states} states and {len(self.replies)} replies, "
                f"but the tables have {self.theta.shape[1]} states and {len(self.rewards)} rewards"
            )

    @cached_property
    def replies(self) -> list[tuple[int, TokenIds]]:
        """Problem and tokens of every reply, in the order of all tables of replies."""
        one = list(_replies(self.theta.shape[-1] - 1, self.length))
        return [(problem, reply) for problem in range(len(self.theta)) for reply in one]

    @cached_property
    def problem(self) -> Int[Tensor, " r"]:
        """Number of the problem of every reply."""
        return torch.tensor([problem for problem, _ in self.replies])

    @cached_property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Every reply as a rollout, with the log-probs of what samples."""
        logp = self.logp(self.sampler)
        return tuple(self._rollout(row, logp[row].tolist()) for row in range(len(self.replies)))

    def logp(self, logits: Float[Tensor, "p s v"]) -> Float[Tensor, "r t"]:
        """log-probs of the tokens of every reply, 0 after its end."""
        problem, state, token, mask = self._cells
        return torch.where(mask, logits.log_softmax(-1)[problem, state, token], 0.0)

    def entropy(self, logits: Float[Tensor, "p s v"]) -> Float[Tensor, "r t"]:
        """Entropy of the distribution that every token of every reply came from, nats; 0 after its end."""
        problem, state, _, mask = self._cells
        logp = logits.log_softmax(-1)
        return torch.where(mask, -(logp.exp() * logp).sum(-1)[problem, state], 0.0)

    def chance(self, logits: Float[Tensor, "p s v"]) -> Float[Tensor, " r"]:
        """Probability of every reply; those of a problem sum to 1."""
        return self.logp(logits).sum(1).exp()

    def values(self, critic: Critic) -> Float[Tensor, "r t"]:
        """What a critic says before every token: the mean reward from there under what samples, 0, or noise."""
        problem, state, _, mask = self._cells
        if critic == "zero":
            return torch.zeros(mask.shape, dtype=torch.float64)
        table = torch.randn(self.theta.shape[:2], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        if critic == "exact":
            chance = self.chance(self.sampler)[:, None] * mask
            seen, earned = torch.zeros_like(table), torch.zeros_like(table)
            seen.index_put_((problem, state), chance, accumulate=True)
            earned.index_put_((problem, state), chance * self.rewards[:, None], accumulate=True)
            table = earned / seen.clamp(min=1e-300)
        return torch.where(mask, table[problem, state], 0.0)

    def greedy(self) -> list[int]:
        """Number of the reply to each problem that takes the most likely token every time."""
        best = self.sampler.argmax(-1)
        problem, state, token, mask = self._cells
        follows = ((best[problem, state] == token) | ~mask).all(1)
        return [int(((self.problem == p) & follows).nonzero()[0]) for p in range(len(self.theta))]

    def policy_gradient(self) -> Float[Tensor, " d"]:
        """∇ of the mean over the problems of the expected reward under the policy."""
        theta = self.theta.clone().requires_grad_()
        return self._gradient((self.chance(theta) * self.rewards).sum(), theta)

    def kl_gradient(self) -> Float[Tensor, " d"]:
        """∇ of the mean over the problems of KL(π‖π_ref) of whole replies."""
        theta = self.theta.clone().requires_grad_()
        logp = self.logp(theta).sum(1)
        return self._gradient((logp.exp() * (logp - self.logp(self.reference).sum(1))).sum(), theta)

    def jacobians(self) -> tuple[Float[Tensor, "r t d"], Float[Tensor, "r t d"]]:
        """∇ log π, and ∇ entropy, of every token of every reply."""
        shape = (*self._cells[3].shape, -1)
        jacobian = torch.autograd.functional.jacobian
        logp, entropy = (jacobian(f, self.theta, vectorize=True).reshape(shape) for f in (self.logp, self.entropy))
        return logp, entropy

    def without_rewards(self) -> Toy:
        """The same world where nothing is rewarded, so that only a KL pulls."""
        return replace(self, rewards=torch.zeros_like(self.rewards))

    @property
    def success(self) -> list[float]:
        """Mean reward of every problem under the policy."""
        earned = self.chance(self.theta) * self.rewards
        return [float(earned[self.problem == p].sum()) for p in range(len(self.theta))]

    @property
    def gap(self) -> float:
        """KL(sampler‖policy) of whole replies, nats, mean over the problems."""
        logp, old = (self.logp(logits).sum(1) for logits in (self.theta, self.sampler))
        return float((old.exp() * (old - logp)).sum()) / len(self.theta)

    def _gradient(self, total: Tensor, theta: Tensor) -> Tensor:
        return torch.autograd.grad(total / len(theta), theta)[0].flatten()

    @cached_property
    def _cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Problem, state, token and mask of every token of every reply, (R, T) each."""
        words = self.theta.shape[-1] - 1
        state, token = torch.zeros((2, len(self.replies), self.length), dtype=torch.int64).unbind()
        mask = torch.zeros(len(self.replies), self.length, dtype=torch.bool)
        for row, (_, reply) in enumerate(self.replies):
            here = 0
            for t, said in enumerate(reply):
                state[row, t], token[row, t], mask[row, t] = here, said, True
                here = here * words + said
        return self.problem[:, None].expand_as(state), state, token, mask

    def _rollout(self, row: int, logp: list[float]) -> Rollout:
        number, reply = self.replies[row]
        reward = float(self.rewards[row])
        verdict = Verdict(reward, Outcome.GRADED)
        problem = Problem(f"toy/{number}", (Message("user", str(number)),), "")
        completion = Completion(reply, tuple(logp[: len(reply)]), Finish.STOP)
        score = Score(reward, reward > 0.5, {"table": reward}, verdict)
        return Rollout(problem, (0,), completion, " ".join(map(str, reply)), score)


def _replies(words: int, length: int) -> Iterator[TokenIds]:
    for count in range(length + 1):
        for said in itertools.product(range(1, words + 1), repeat=count):
            yield said if count == length else (*said, 0)


def arrangements(group: tuple[int, ...]) -> int:
    """In how many orders the members of a group may come: G! / Π (times each comes)!."""
    return math.factorial(len(group)) // math.prod(math.factorial(group.count(one)) for one in set(group))
