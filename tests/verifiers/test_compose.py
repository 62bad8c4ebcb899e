from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from longthought.core.errors import SettingsError
from longthought.core.protocols import Verifier
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.batch import BatchVerifier, Pair, many
from longthought.verifiers.compose import All, Any, First, Threshold, Weighted, disagreements

PROBLEM = Problem("p", (), "42")
REPLY = Message("assistant", "42")


@dataclass(frozen=True)
class Says:
    value: float | None
    outcome: Outcome = Outcome.GRADED

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return Verdict(self.value, self.outcome, "so")


RIGHT, WRONG, HALF = Says(1.0), Says(0.0), Says(0.5)
SLOW, BROKEN, UNREAD = Says(None, Outcome.TIMED_OUT), Says(None, Outcome.CRASHED), Says(0.0, Outcome.UNPARSABLE)


@pytest.mark.parametrize(
    ("verifier", "value", "outcome"),
    [
        (Weighted({"a": (RIGHT, 1.0), "b": (HALF, 0.2)}), 1.1, Outcome.GRADED),
        (Weighted({"a": (RIGHT, 1.0), "b": (SLOW, 0.2)}), None, Outcome.TIMED_OUT),
        (Weighted({"a": (UNREAD, 1.0), "b": (RIGHT, 0.2)}), 0.2, Outcome.GRADED),
        (Weighted({"a": (UNREAD, 1.0)}), 0.0, Outcome.UNPARSABLE),
        (First(RIGHT, WRONG), 1.0, Outcome.GRADED),
        (First(WRONG, RIGHT), 0.0, Outcome.GRADED),
        (First(SLOW, UNREAD, RIGHT), 1.0, Outcome.GRADED),
        (First(SLOW, BROKEN), None, Outcome.CRASHED),
        (All(RIGHT, RIGHT), 1.0, Outcome.GRADED),
        (All(RIGHT, HALF), 0.0, Outcome.GRADED),
        (All(SLOW, WRONG), 0.0, Outcome.GRADED),
        (All(RIGHT, SLOW), None, Outcome.TIMED_OUT),
        (Any(WRONG, RIGHT), 1.0, Outcome.GRADED),
        (Any(WRONG, UNREAD), 0.0, Outcome.GRADED),
        (Any(SLOW, RIGHT), 1.0, Outcome.GRADED),
        (Any(WRONG, BROKEN), None, Outcome.CRASHED),
        (Threshold(HALF), 1.0, Outcome.GRADED),
        (Threshold(HALF, 0.6), 0.0, Outcome.GRADED),
        (Threshold(UNREAD), 0.0, Outcome.UNPARSABLE),
        (Threshold(SLOW), None, Outcome.TIMED_OUT),
        (All(Any(WRONG, RIGHT), Threshold(HALF)), 1.0, Outcome.GRADED),
    ],
)
def test_values(verifier: BatchVerifier, value: float | None, outcome: Outcome) -> None:
    verdict = verifier(PROBLEM, REPLY)
    assert (verdict.value, verdict.outcome) == (pytest.approx(value) if value is not None else None, outcome)
    assert verifier.many([(PROBLEM, REPLY)] * 3) == [verdict] * 3
    assert verifier.many([]) == []


def test_the_evidence_names_the_parts() -> None:
    evidence = Weighted({"math": (RIGHT, 1.0), "form": (SLOW, 1.0)})(PROBLEM, REPLY).evidence
    assert evidence == "math 1 (so); form timed_out (so)"


class Counting:
    def __init__(self, outcome: Outcome) -> None:
        self.asked: list[int] = []
        self.outcome = outcome

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.many([(problem, reply)])[0]

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        self.asked.append(len(pairs))
        graded = self.outcome is Outcome.GRADED
        return [
            Verdict(1.0, Outcome.GRADED) if graded or pair[1].content == "42" else Verdict(None, self.outcome)
            for pair in pairs
        ]


def test_first_asks_the_later_ones_about_the_rest_alone() -> None:
    one, other = Counting(Outcome.CRASHED), Counting(Outcome.GRADED)
    pairs = [(PROBLEM, Message("assistant", text)) for text in ("42", "7", "8")]
    assert [verdict.value for verdict in First(one, other).many(pairs)] == [1.0, 1.0, 1.0]
    assert (one.asked, other.asked) == ([3], [2])


def test_many_asks_at_once_where_it_can() -> None:
    counting = Counting(Outcome.GRADED)
    assert len(many(counting, [(PROBLEM, REPLY)] * 4)) == 4
    assert counting.asked == [4]
    assert many(RIGHT, [(PROBLEM, REPLY)] * 2) == [Verdict(1.0, Outcome.GRADED, "so")] * 2


def test_settings_are_compared() -> None:
    assert First(RIGHT, WRONG) == First(RIGHT, WRONG) != First(WRONG, RIGHT)
    assert All(RIGHT) != Any(RIGHT)


def test_disagreements() -> None:
    found = disagreements(RIGHT, Threshold(HALF, 0.6), [(PROBLEM, REPLY)])
    assert [(one.reply, [verdict.value for verdict in one.verdicts]) for one in found] == [(REPLY, [1.0, 0.0])]
    assert disagreements(RIGHT, Threshold(HALF), [(PROBLEM, REPLY)]) == []
    assert len(disagreements(WRONG, SLOW, [(PROBLEM, REPLY)])) == 1


def test_refusals() -> None:
    parts: list[type] = [First, All, Any]
    for make in parts:
        with pytest.raises(SettingsError):
            make()
    for wrong in ({}, {"a": (RIGHT, float("nan"))}):
        with pytest.raises(SettingsError):
            Weighted(wrong)
    with pytest.raises(SettingsError):
        Threshold(RIGHT, float("inf"))


def test_they_are_verifiers() -> None:
    verifiers: list[Verifier] = [First(RIGHT), All(RIGHT), Any(RIGHT), Threshold(RIGHT), Weighted({"a": (RIGHT, 1.0)})]
    assert all(isinstance(verifier, BatchVerifier) for verifier in verifiers)
