"""Prompts in, replies out, as text for a person."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from longthought.cli.rehearsal import Testing
from longthought.cli.subject import Subject
from longthought.core.errors import DataError, LongthoughtError
from longthought.core.protocols import Task
from longthought.core.types import Completion, Message, Problem, SamplingParams
from longthought.engine.engine import Engine
from longthought.evaluation.terminal import printable
from longthought.text.reasoning import split

_WIDTH = 100
_MAX_TOKENS = 224
_LABELS = ("thinking", "answer")

_warn = logging.getLogger(__name__).warning


class Conversation:
    """A model that is asked one prompt at a time, sampled as ``params`` say. ``max_tokens`` None: as in the evaluation
    of its recipe.

    Raises CheckpointError when the model cannot be loaded.
    """

    def __init__(self, subject: Subject, params: SamplingParams, max_tokens: int | None) -> None:
        self._policy = subject.checkpoint.load()
        self._renderer = self._policy.renderer
        self._testing = _testing(subject)
        usual = self._testing.settings.max_tokens if self._testing else _MAX_TOKENS
        self._params = replace(params, max_tokens=max_tokens or usual, stop_tokens=self._renderer.stop_tokens)

    @property
    def example(self) -> str:
        """A prompt of the model's task; empty where the task is not known."""
        return example_of(self._testing.task) if self._testing else ""

    def answer(self, prompt: str, seed: int) -> str:
        """The replies to a prompt, with their verdicts if it is a problem of the task.

        Raises DataError, with an example of a prompt, when it is empty, too long, or has unknown words.
        """
        text = prompt.encode("utf-8", "replace").decode("utf-8").strip()  # a terminal may send what is no text
        hint = f". A prompt of this model's task: {self.example}" if self.example else ""
        if not text:
            raise DataError(f"the prompt is empty{hint}")
        params = replace(self._params, seed=seed)
        try:
            tokens = self._renderer.prompt((Message("user", text),))
            (completions,) = Engine(self._policy).sample([tokens], params)
        except DataError as error:
            raise DataError(f"{error}{hint}") from error
        problem = self._problem(text)
        return "\n\n".join(self._shown(completion, problem) for completion in completions)

    def _problem(self, text: str) -> Problem | None:
        """The prompt as a problem, by the task's own reader (``parse(text) -> Problem | None``), where it has one."""
        reader: Callable[[str], Problem | None] | None = getattr(self._testing and self._testing.task, "parse", None)
        return reader(text) if reader is not None else None

    def _shown(self, completion: Completion, problem: Problem | None) -> str:
        text = self._renderer.text(completion.token_ids)
        parts = zip(_LABELS, split(text))
        lines = [_paragraph(label, part.strip()) for label, part in parts if part.strip()]
        facts = [f"{len(completion.token_ids)} tokens", f"ended by {completion.finish}"]
        if problem is not None and self._testing is not None:
            (score,) = self._testing.task.grade(problem, [text])
            graded = "not graded" if score.value is None else "correct" if score.correct else "wrong"
            facts.append(f"{graded}: {score.verdict.evidence}" if score.verdict.evidence else graded)
        return "\n".join([*lines, _paragraph("", " · ".join(facts))])


def example_of(task: Task) -> str:
    """A prompt of a task, of a split that has one."""
    for name in ("dev", "test", "train"):
        with suppress(DataError):
            return task.problem(name, 0).messages[-1].content
    return ""


def _testing(subject: Subject) -> Testing | None:
    if not subject.recipe:
        return None
    try:
        return subject.testing()
    except LongthoughtError as error:
        _warn(f"the task of this model is not known, so that nothing is graded: {error}")
        return None


def _paragraph(label: str, text: str) -> str:
    margin = max(map(len, _LABELS)) + 2
    lines = [line for part in printable(text).splitlines() for line in textwrap.wrap(part, _WIDTH - margin) or [""]]
    return "\n".join(f"{label if not number else '':<{margin}}{line}" for number, line in enumerate(lines))
