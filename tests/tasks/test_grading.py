import pytest

from longthought.core.types import Outcome, Verdict
from longthought.tasks.grading import grade_reply

REPLY = "<think> a </think> <answer> 7 </answer>"


def verdict(value: float | None, outcome: Outcome = Outcome.GRADED):
    return lambda answer: Verdict(value, outcome, answer)


def test_right_answer_in_format() -> None:
    score = grade_reply(REPLY, verdict(1.0), 0.1)
    assert score.value == pytest.approx(1.1)
    assert score.correct
    assert score.parts == {"accuracy": 1.0, "format": 1.0}
    assert score.verdict.evidence == "7"


def test_wrong_answer_in_format() -> None:
    score = grade_reply(REPLY, verdict(0.0), 0.1)
    assert (score.value, score.correct, score.parts["format"]) == (pytest.approx(0.1), False, 1.0)


def test_right_answer_without_format_earns_nothing() -> None:
    score = grade_reply("<answer> 7 </answer>", verdict(1.0), 0.1)
    assert (score.value, score.correct, score.parts) == (0.0, False, {"accuracy": 0.0, "format": 0.0})
    assert "<think>" in score.verdict.evidence


def test_timeout_leaves_no_value() -> None:
    score = grade_reply(REPLY, verdict(None, Outcome.TIMED_OUT), 0.1)
    assert (score.value, score.correct, score.verdict.outcome) == (None, False, Outcome.TIMED_OUT)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), MemoryError(), UnprintableError()])
def test_raising_verifier_is_crashed(error: Exception) -> None:
    def raising(answer: str) -> Verdict:
        raise error

    score = grade_reply(REPLY, raising, 0.1)
    assert (score.value, score.correct, score.verdict.outcome) == (None, False, Outcome.CRASHED)
    assert type(error).__name__ in score.verdict.evidence


def test_interrupts_pass() -> None:
    def interrupted(answer: str) -> Verdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_reply(REPLY, interrupted, 0.1)
