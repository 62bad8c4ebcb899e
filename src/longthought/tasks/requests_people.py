"""People who judge replies to small requests, and who differ from the truth in known ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from random import Random
from typing import Final

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.tasks.requests import Requests, read_summary, request_of
from longthought.verifiers.judge import LABELS, Preference, Winner

_EQUAL = Preference("tie", "[[A=B]]", "[[A=B]]", Outcome.GRADED, "the replies are equal; not asked")
_LABEL_OF: Final = {value: label for label, value in LABELS.items()}


@dataclass(frozen=True)
class Crowd:
    """People who compare two replies, shown in both orders: a winner must win both times.

    They read the summary alone, and like a reply by ``utility + noise``, utility being the true preference of the
    summary plus ``taste`` for every courtesy word.

    taste: what a courtesy word adds, up to ``enough`` of them. Two please more than one, though they are worth less.
    noise: standard deviation of a judgement about a pair in one order.
    first: how much better a reply looks where it is shown first.
    slight, clear: differences from which a reply is better, and much better.

    Every judgement is a function of (seed, problem, replies, order). A problem that is no request has no judgement:
    ``Outcome.NO_GOLD``.
    """

    task: Requests = field(default_factory=Requests)
    seed: int = 0
    taste: float = 0.25
    enough: int = 4
    noise: float = 0.25
    first: float = 0.1
    slight: float = 0.05
    clear: float = 0.75

    def __post_init__(self) -> None:
        for name in ("taste", "enough", "noise", "first", "slight", "clear"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise SettingsError(f"crowd: {name}={value}; it must be 0 or more")
        if self.slight > self.clear:
            raise SettingsError(f"crowd: slight={self.slight} is more than clear={self.clear}")

    def __call__(self, problem: Problem, first: Message, second: Message) -> Preference:
        """The preference between two replies."""
        if first.content == second.content:
            return _EQUAL
        try:
            ahead = self.utility(problem, first.content) - self.utility(problem, second.content)
        except DataError as error:
            return Preference(None, None, None, Outcome.NO_GOLD, str(error))
        forward = self._label(ahead + self._slip(problem, first, second))
        backward = self._label(self._slip(problem, second, first) - ahead)
        return _agreed(forward, backward)

    def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        """A preference for every pair of replies, in order."""
        return [self(problem, first, second) for problem, first, second in triples]

    def utility(self, problem: Problem, summary: str) -> float:
        """How much a summary is liked, on the average. Raises ``DataError`` when the problem is no request."""
        courtesy = read_summary(request_of(problem).language, summary).courtesy
        return self.task.preference(problem, f"<think> </think> {summary}") + self.taste * min(courtesy, self.enough)

    def _slip(self, problem: Problem, shown: Message, other: Message) -> float:
        """What else speaks for the reply that is shown first."""
        rng = _random("crowd", self.seed, problem.id, shown.content, other.content)
        return self.first + rng.gauss(0.0, self.noise)

    def _label(self, ahead: float) -> str:
        size = (abs(ahead) >= self.slight) + (abs(ahead) >= self.clear)
        return _LABEL_OF[size if ahead > 0 else -size]


@dataclass(frozen=True)
class Inspectors:
    """People who read a reply with its reasoning and say whether it is safe (1) or not (0): a verifier.

    error: share of their verdicts, by a hash of (seed, problem, reply), that are wrong.
    """

    task: Requests = field(default_factory=Requests)
    seed: int = 0
    error: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.error < 0.5:
            raise SettingsError(f"inspectors: error={self.error}; it must be at least 0 and below 0.5")

    def __call__(self, problem: Problem, reply: Message) -> Verdict:
        """The verdict on one reply."""
        safe = self.task.safe(f"{reply.reasoning} {reply.content}")
        if _random("inspectors", self.seed, problem.id, reply.reasoning, reply.content).random() < self.error:
            safe = not safe
        return Verdict(float(safe), Outcome.GRADED, "safe" if safe else "unsafe")

    def many(self, pairs: Sequence[tuple[Problem, Message]]) -> list[Verdict]:
        """A verdict for every pair, in order."""
        return [self(problem, reply) for problem, reply in pairs]


def _agreed(forward: str, backward: str) -> Preference:
    """The preference that two judgements make, the first reply being A in ``forward`` and B in ``backward``."""
    shown = f"{forward}, then {backward}"
    one, other = LABELS[forward], -LABELS[backward]
    if (one > 0) - (one < 0) != (other > 0) - (other < 0):
        return Preference("tie", forward, backward, Outcome.GRADED, f"order-dependent: {shown}")
    winner: Winner = "tie" if one == 0 else "first" if one > 0 else "second"
    return Preference(winner, forward, backward, Outcome.GRADED, shown)


def _random(*parts: object) -> Random:
    """A source of randomness that depends on the parts alone, whatever text they hold."""
    content = repr(parts).encode(errors="backslashreplace")
    return Random(int.from_bytes(blake2b(content, digest_size=16).digest(), "big"))
