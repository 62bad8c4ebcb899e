"""What every task with a checkable answer does to a reply: its form first, then the answer, by rule."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import BatchVerifier, Verifier
from longthought.core.types import Message, Outcome, Problem, Score, Verdict
from longthought.text.reasoning import split
from longthought.verifiers.exact import integer
from longthought.verifiers.format import extract_answer, think_answer, think_first, think_summary

ReplyForm: TypeAlias = Literal["think_answer", "summary", "think", "free"]
TaggedForm: TypeAlias = Literal["think_answer", "summary"]
"""Those in which the answer stands in a tag."""

_FORMS: dict[str, Callable[[str], Verdict]] = {
    "think_answer": think_answer,
    "summary": think_summary,
    "think": think_first,
    "free": lambda text: Verdict(1.0, Outcome.GRADED, "any form will do"),
}


@dataclass(frozen=True)
class Grading:
    """How a raw reply becomes a score.

    verifier: grades the answer; one with a method ``many`` gets all replies of a step at once.
    form: ``think_answer``: ``<think>…</think> <answer>…</answer>``, the answer stands in its tag; ``summary``: the
    same, with a summary around ``<answer>…</answer>``; ``think``: ``<think>…</think>`` and then the answer; ``free``:
    any text, whose answer is what follows the reasoning, if any.
    format_weight: reward of the form alone.
    strict: a reply without the form earns nothing. If not, its answer is looked for and graded all the same.

    ``value = accuracy + format_weight · format``, the accuracy being the value of the verdict; ``correct`` needs an
    accuracy of at least 1. Where the verifier gave no value (timed out, crashed, no gold answer) the score has none
    either, and its parts count the accuracy as 0. An exception of the verifier becomes ``Outcome.CRASHED``.

    Source: accuracy and format rewards of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2).
    """

    verifier: Verifier
    form: ReplyForm = "think_answer"
    format_weight: float = 0.1
    strict: bool = True

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise SettingsError(f"grading: form is {self.form!r}; choose one of {', '.join(_FORMS)}")
        if not (isfinite(self.format_weight) and self.format_weight >= 0):
            raise SettingsError(f"grading: format_weight is {self.format_weight}; it must be 0 or more")
        if self.form == "free" and self.format_weight:
            raise SettingsError(
                f"grading: format_weight={self.format_weight} changes nothing with form='free', which every reply has"
            )

    def __call__(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Grade the replies to one problem."""
        return self.together([(problem, replies)])[0]

    def together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        """Grade the replies to many problems: one call of a verifier that grades many at once."""
        read = [[self._read(text) for text in replies] for _, replies in groups]
        asked = [(problem, reply) for (problem, _), row in zip(groups, read) for _, reply in row if reply is not None]
        verdicts = iter(verify_all(self.verifier, asked))
        return [
            [scored(form, form if reply is None else next(verdicts), self.format_weight, reply) for form, reply in row]
            for row in read
        ]

    def _read(self, text: str) -> tuple[Verdict, Message | None]:
        """The verdict on the form, and reasoning and answer where there is something to grade."""
        form = _FORMS[self.form](text)
        if form.value != 1.0 and self.strict:
            return form, None
        reasoning, content = split(text)
        if self.form in ("think_answer", "summary"):
            found = extract_answer(text)
            content = content if found is None else found
        return form, Message("assistant", content.strip(), reasoning.strip())


def scored(form: Verdict, verdict: Verdict, format_weight: float, reply: Message | None) -> Score:
    """The score of a reply whose form and answer were judged; ``reply`` None: it earns nothing for want of form."""
    if reply is None:
        return Score(0.0, False, {"accuracy": 0.0, "format": 0.0}, form)
    kept = 1.0 if form.value == 1.0 else 0.0
    accuracy = verdict.value
    parts = {"accuracy": accuracy or 0.0, "format": kept}
    value = None if accuracy is None else accuracy + format_weight * kept
    return Score(value, accuracy is not None and accuracy >= 1.0, parts, verdict)


def grade_reply(
    text: str, verify: Callable[[str], Verdict], format_weight: float, form: TaggedForm = "think_answer"
) -> Score:
    """Grade a raw reply whose answer stands in ``<answer>…</answer>`` as a strict ``Grading`` does.

    ``verify`` sees the answer alone, and only when the form is kept.
    """
    kept = _FORMS[form](text)
    if kept.value != 1.0:
        return scored(kept, kept, format_weight, None)
    answer = extract_answer(text) or ""
    return scored(kept, _guarded(lambda: verify(answer)), format_weight, Message("assistant", answer))


def grade_integers(problem: Problem, replies: Sequence[str], format_weight: float) -> list[Score]:
    """Grade replies to a problem whose answer is one integer. Raises ``DataError`` when its answer is none."""
    try:
        gold = int(problem.answer)
    except ValueError as error:
        raise DataError(f"problem {problem.id!r}: its answer {problem.answer!r} is no integer") from error
    return [grade_reply(reply, lambda answer: integer(answer, gold), format_weight) for reply in replies]


def verify_all(verifier: Verifier, pairs: Sequence[tuple[Problem, Message]]) -> list[Verdict]:
    """A verdict for every pair, in order; together where the verifier can. What it raises becomes CRASHED."""
    if isinstance(verifier, BatchVerifier):
        return _together(verifier, pairs)
    return [_guarded(lambda pair=pair: verifier(*pair)) for pair in pairs]  # type: ignore[misc]


def _together(verifier: BatchVerifier, pairs: Sequence[tuple[Problem, Message]]) -> list[Verdict]:
    try:
        verdicts: object = list(verifier.many(pairs)) if pairs else []
    except Exception as error:  # a verifier of a user may raise anything, and one call must not end a run
        return [_crashed(error)] * len(pairs)
    assert isinstance(verdicts, list)
    if len(verdicts) != len(pairs):
        lost = Verdict(None, Outcome.INVALID, f"{len(verdicts)} verdicts for {len(pairs)} replies")
        return [lost] * len(pairs)
    return [_checked(verdict) for verdict in verdicts]


def _guarded(verify: Callable[[], Verdict]) -> Verdict:
    try:
        return _checked(verify())
    except Exception as error:
        return _crashed(error)


def _checked(found: object) -> Verdict:
    """Only finite numbers may become rewards."""
    if not isinstance(found, Verdict):
        return Verdict(None, Outcome.INVALID, f"the verifier returned {type(found).__name__}, which is no Verdict")
    if found.value is not None and not (isinstance(found.value, int | float) and isfinite(found.value)):
        return Verdict(None, Outcome.INVALID, f"the verifier returned the value {found.value!r}")
    return found


def _crashed(error: Exception) -> Verdict:
    evidence = "".join(traceback.format_exception_only(error)).strip()
    return Verdict(None, Outcome.CRASHED, f"the verifier crashed: {evidence}")
