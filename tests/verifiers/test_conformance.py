from dataclasses import dataclass

from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.conformance import conformance
from longthought.verifiers.exact import Exact, Number
from longthought.verifiers.math import Math

PROBLEMS = [Problem(str(number), (), answer) for number, answer in enumerate(["42", "-7", "1/2", "1,234"])]


def boxed(answer: str) -> str:
    return rf"So the answer is \boxed{{{answer}}}."


def test_sound_verifiers() -> None:
    for report in (
        conformance(Number(), PROBLEMS),
        conformance(Exact(), PROBLEMS),
        conformance(Math(), PROBLEMS, boxed),
    ):
        assert report.sound, [check for check in report.checks if check.examples]
        assert {check.name: check.asked for check in report.checks}["gold"] == 4


@dataclass(frozen=True)
class LastNumberAnywhere:
    """The popular rule: the gold answer stands somewhere in the reply."""

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return Verdict(float(problem.answer in reply.content), Outcome.GRADED)


def test_a_rule_that_pays_for_guessing_is_found_out() -> None:
    report = conformance(LastNumberAnywhere(), PROBLEMS)
    assert not report.sound
    failed = {check.name: check for check in report.checks if check.examples}
    assert set(failed) == {"many numbers", "sign turned"}
    assert failed["many numbers"].examples[0].problem == PROBLEMS[0]
    assert failed["many numbers"].examples[0].expected == 0.0


def test_a_verifier_that_never_pays_is_found_out() -> None:
    def never(problem: Problem, reply: Message, /) -> Verdict:
        return Verdict(0.0, Outcome.GRADED)

    report = conformance(never, PROBLEMS)
    assert [check.name for check in report.checks if check.examples] == ["gold", "gold with white space"]
    assert report.checks[0].passed == 0


def test_a_verifier_that_raises_is_reported() -> None:
    def broken(problem: Problem, reply: Message, /) -> Verdict:
        raise ValueError("no")

    report = conformance(broken, PROBLEMS)
    assert not report.sound
    assert all(check.absent == check.asked for check in report.checks)
    assert report.checks[0].examples[0].verdict == Verdict(None, Outcome.CRASHED, "raised ValueError: no")


def test_nothing_asked_is_not_sound() -> None:
    assert not conformance(Exact(), []).sound
