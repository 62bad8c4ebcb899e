from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.tasks.grading import Grading, ReplyForm, grade_reply

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


GOOD = Problem("p", (), "7")


@dataclass(frozen=True)
class Equal:
    def __call__(self, problem: Problem, reply: Message) -> Verdict:
        return Verdict(float(reply.content == problem.answer), Outcome.GRADED, reply.content)


@dataclass(frozen=True)
class Together(Equal):
    lose: int = 0

    def many(self, pairs: Sequence[tuple[Problem, Message]]) -> list[Verdict]:
        return [self(*pair) for pair in pairs][self.lose :]


@pytest.mark.parametrize(
    ("form", "text", "value", "content"),
    [
        ("think_answer", "<think> a </think> <answer> 7 </answer>", 1.1, "7"),
        ("think_answer", "<think> a </think> 7", 0.0, None),
        ("summary", "<think> a </think> 3 + 4 = 7 . <answer> 7 </answer> Done.", 1.1, "7"),
        ("summary", "<think> a </think> <answer> 7 </answer>", 1.1, "7"),
        ("summary", "<think> a </think> 7", 0.0, None),
        ("summary", "<think> a </think> <answer> 7 </answer> <answer> 8 </answer>", 0.0, None),
        ("think", "<think>\na\n</think>\n\n7", 1.1, "7"),
        ("think", "7", 0.0, None),
        ("think", "<think> 7 </think>", 0.0, None),
        ("think", "so <think> a </think> 7", 0.0, None),
    ],
)
def test_strict_forms(form: ReplyForm, text: str, value: float, content: str | None) -> None:
    (score,) = Grading(Equal(), form, 0.1)(GOOD, [text])
    assert score.value == pytest.approx(value)
    if content is not None:
        assert score.verdict.evidence == content


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        ("think_answer", "<answer> 7 </answer>", 1.0),
        ("think_answer", "so it is </think> 7", 1.0),
        ("summary", "it is <answer> 7 </answer> then", 1.0),
        ("think_answer", REPLY, 1.1),
        ("think", "7", 1.0),
    ],
)
def test_without_strictness_the_answer_counts_alone(form: ReplyForm, text: str, value: float) -> None:
    (score,) = Grading(Equal(), form, 0.1, strict=False)(GOOD, [text])
    assert score.value == pytest.approx(value)
    assert score.correct


def test_free_form() -> None:
    right, thought = Grading(Equal(), "free", 0.0)(GOOD, ["7", "<think>8</think>7"])
    assert (right.value, right.correct, thought.value) == (1.0, True, 1.0)


def test_together_is_one_by_one() -> None:
    texts = [REPLY, "<think> a </think> <answer> 8 </answer>", "7"]
    groups = [(GOOD, texts), (Problem("q", (), "8"), texts)]
    assert Grading(Together()).together(groups) == [Grading(Equal())(problem, replies) for problem, replies in groups]


def test_lost_verdicts_are_invalid() -> None:
    scores = Grading(Together(lose=1))(GOOD, [REPLY, REPLY])
    assert [s.verdict.outcome for s in scores] == [Outcome.INVALID] * 2
    assert [s.value for s in scores] == [None, None]


@pytest.mark.parametrize("found", [None, 1.0, "yes", Verdict(float("nan"), Outcome.GRADED), Verdict("1", "graded")])  # type: ignore[arg-type]
def test_nonsense_is_invalid(found: object) -> None:
    def verify(problem: Problem, reply: Message) -> Verdict:
        return found  # type: ignore[return-value]

    (score,) = Grading(verify)(GOOD, [REPLY])
    assert (score.value, score.verdict.outcome) == (None, Outcome.INVALID)


@pytest.mark.parametrize("fields", [{"form": "other"}, {"format_weight": -1.0}, {"form": "free", "format_weight": 0.1}])
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Grading(Equal(), **fields)
