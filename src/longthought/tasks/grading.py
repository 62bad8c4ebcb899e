"""What every task with a checkable answer does to a reply: format first, then the answer, by rule."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from longthought.core.errors import DataError
from longthought.core.types import Outcome, Problem, Score, Verdict
from longthought.verifiers.exact import integer
from longthought.verifiers.format import extract_answer, think_answer


def grade_reply(text: str, verify: Callable[[str], Verdict], format_weight: float) -> Score:
    """Grade a raw reply of the form ``<think>…</think> <answer>…</answer>``.

    ``verify`` sees the answer alone, and only when the format is kept; a reply without the format earns nothing.
    ``value = accuracy + format_weight · format``; ``correct`` needs the format and a verdict of 1. Where the verifier
    gave no value (timed out, crashed) the score has none either, and its parts count the accuracy as 0. An exception of
    ``verify`` becomes ``Outcome.CRASHED``.

    Source: accuracy and format rewards of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2).
    """
    form = think_answer(text)
    if form.value != 1.0:
        return Score(0.0, False, {"accuracy": 0.0, "format": 0.0}, form)
    verdict = _guarded(verify, extract_answer(text) or "")
    accuracy = verdict.value
    parts = {"accuracy": accuracy or 0.0, "format": 1.0}
    value = None if accuracy is None else accuracy + format_weight
    return Score(value, accuracy == 1.0, parts, verdict)


def grade_integers(problem: Problem, replies: Sequence[str], format_weight: float) -> list[Score]:
    """Grade replies to a problem whose answer is one integer. Raises ``DataError`` when its answer is none."""
    try:
        gold = int(problem.answer)
    except ValueError as error:
        raise DataError(f"problem {problem.id!r}: its answer {problem.answer!r} is no integer") from error
    return [grade_reply(reply, lambda answer: integer(answer, gold), format_weight) for reply in replies]


def _guarded(verify: Callable[[str], Verdict], answer: str) -> Verdict:
    try:
        return verify(answer)
    except Exception as error:  # a verifier of a user may raise anything, and one reply must not end a run
        evidence = "".join(traceback.format_exception_only(error)).strip()
        return Verdict(None, Outcome.CRASHED, f"the verifier crashed: {evidence}")
