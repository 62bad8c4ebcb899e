"""Mathematical answers: is what a reply ends with the same as the gold answer?"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from longthought.core.errors import LongthoughtError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.batch import Pair
from longthought.verifiers.math_numbers import exact, same
from longthought.verifiers.math_text import Found, find, plain_symbols, refusal
from longthought.verifiers.pool import Answer, Pool

MAX_REPLY = 50_000
"""Characters at the end of a text in which an answer is looked for."""
MEMORY = 1 << 30

_GRADE, _WARM_UP = "longthought.verifiers.math_worker:grade", "longthought.verifiers.math_worker:warm_up"
_Task = tuple[tuple[str, bool], tuple[str, bool]]


@dataclass(frozen=True)
class Math:
    """The last ``\\boxed{}`` of a reply (or what follows "the answer is") against the problem's answer.

    Numbers are compared exactly, in this process; everything else by math-verify in worker processes that are killed
    after ``deadline`` seconds. Wrong: several different answers, and "41 or 42". ``UNPARSABLE``: no answer, or one that
    no grader should look at (too long, too deep, a tower of exponents). Equal verifiers share their workers.
    """

    deadline: float = 2.0
    workers: int = 2

    def __post_init__(self) -> None:
        Pool(_GRADE, self.workers, self.deadline)  # refuses settings that cannot be

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.compare([(reply.content, problem.answer)])[0]

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs, several at once; equal pairs are compared once."""
        return self.compare([(reply.content, problem.answer) for problem, reply in pairs])

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """As :func:`equivalent` on every (prediction, gold)."""
        prepared = [_prepare(prediction, gold) for prediction, gold in pairs]
        tasks: list[_Task] = list(dict.fromkeys(item for item in prepared if not isinstance(item, Verdict)))
        graded = dict(zip(tasks, self._ask(tasks)))
        return [item if isinstance(item, Verdict) else graded[item] for item in prepared]

    def start(self) -> None:
        """Start the workers now, so that the first answer does not wait for their imports."""
        _pool(self.workers, self.deadline).start()

    def close(self) -> None:
        """End the workers."""
        _pool(self.workers, self.deadline).close()

    def _ask(self, tasks: Sequence[_Task]) -> list[Verdict]:
        try:
            return [_verdict(answer) for answer in _pool(self.workers, self.deadline).map(tasks)]
        except LongthoughtError as error:
            return [Verdict(None, Outcome.CRASHED, str(error))] * len(tasks)


def equivalent(prediction: str, gold: str) -> Verdict:
    """Whether a prediction says what the gold answer says: 1.0 or 0.0, with what was compared as evidence.

    Not symmetric, as math-verify is not: a set answers an inequality, but an inequality, which the question may have
    stated, answers no set. Either may be a whole solution; then its answer is looked for. Bounded time; never raises;
    nothing is executed.

    ``UNPARSABLE`` (0.0): the prediction holds no answer that can be read. ``NO_GOLD`` (None): the gold answer cannot be
    read. ``TIMED_OUT``, ``CRASHED`` (None): math-verify did not come to an end.
    """
    return Math().compare([(prediction, gold)])[0]


_LOCK = threading.Lock()


def _pool(workers: int, deadline: float) -> Pool:
    with _LOCK:
        return _shared_pool(workers, deadline)


@functools.cache
def _shared_pool(workers: int, deadline: float) -> Pool:
    return Pool(_GRADE, workers, deadline, MEMORY, "math verifier", _WARM_UP)


def _prepare(prediction: str, gold: str) -> Verdict | _Task:
    """A verdict where text alone decides, else what a worker is to compare."""
    right = find(plain_symbols(gold[-MAX_REPLY:]))
    if right is None:
        return Verdict(None, Outcome.NO_GOLD, "the gold answer is empty")
    said = find(plain_symbols(prediction[-MAX_REPLY:]))
    if said is None:
        return Verdict(0.0, Outcome.UNPARSABLE, "no answer")
    if said.text == right.text:
        return Verdict(1.0, Outcome.GRADED, f"is {_cut(right.text)}")
    if reason := refusal(right.text):
        return Verdict(None, Outcome.NO_GOLD, f"the gold answer: {reason}")
    if reason := refusal(said.text):
        return Verdict(0.0, Outcome.UNPARSABLE, reason)
    return _by_value(said, right) or ((said.text, said.prose), (right.text, right.prose))


def _by_value(said: Found, right: Found) -> Verdict | None:
    """The verdict on two plain numbers."""
    prediction, gold = exact(said.text), exact(right.text)
    if prediction is None or gold is None:
        return None
    equal = same(prediction, gold)
    if equal is None:
        return None
    return Verdict(float(equal), Outcome.GRADED, f"{prediction.value} {'is' if equal else 'is not'} {gold.value}")


def _verdict(answer: Answer) -> Verdict:
    if answer.outcome is not Outcome.GRADED:
        return Verdict(None, answer.outcome, answer.evidence)
    value, outcome, evidence = answer.value
    return Verdict(value, Outcome(outcome), evidence)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
