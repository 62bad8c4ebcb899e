"""What became of replies that were to be rewritten: graded and screened anew, and kept as lines, a file a round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from longthought.core.errors import DataError, RunDamaged
from longthought.core.protocols import Renderer, Task, Verifier
from longthought.core.types import Completion, Finish, Message, Problem, Rollout, TokenIds
from longthought.rollout.collect import grade_all
from longthought.rollout.filters import Correct, Screen
from longthought.runs.files import json_bytes, write_atomic
from longthought.stages.graded import judged, message_of
from longthought.stages.rewriting import Rewriter, rewrite_all


class Written(NamedTuple):
    """A reply, by problem and sample, as it was rewritten; ``dropped``: why it cannot be used, empty if it can."""

    problem: str
    sample: int
    text: str = ""
    tokens: int = 0
    dropped: str = ""
    detail: str = ""


class _Said(NamedTuple):
    """A rewritten reply as a model would say it."""

    prompt: TokenIds
    reply: Completion


@dataclass(frozen=True)
class Desk:
    """Where replies are rewritten, and what comes back is judged like anything that a model says.

    What is graded are the tokens that will be learned, decoded.
    """

    task: Task
    rewriter: Rewriter
    screen: Screen
    judge: Verifier | None = None

    def __call__(self, chosen: Sequence[tuple[int, Rollout]], renderer: Renderer) -> list[Written]:
        """What becomes of each reply, given with its number among those to its problem."""
        pairs = [(rollout.problem, message_of(rollout)) for _, rollout in chosen]
        said = [
            one if isinstance(one, str) else _said(renderer, problem, one)
            for (problem, _), one in zip(pairs, rewrite_all(self.rewriter, pairs), strict=True)
        ]
        asked = [(problem, one) for (problem, _), one in zip(pairs, said) if not isinstance(one, str)]
        played = [(one.prompt, [one.reply]) for _, one in asked]
        groups = judged(self.judge, grade_all(self.task, [problem for problem, _ in asked], played, renderer))
        graded = iter(group[0] for group in groups)
        return [
            _refused(rollout.problem, sample, one)
            if isinstance(one, str)
            else self._screened(rollout.problem, sample, next(graded))
            for (sample, rollout), one in zip(chosen, said)
        ]

    def _screened(self, problem: Problem, sample: int, rewritten: Rollout) -> Written:
        refusal = Screen((Correct(), *self.screen.filters)).refusal(rewritten)
        tokens = len(rewritten.completion.token_ids)
        if refusal is None:
            return Written(problem.id, sample, rewritten.text, tokens)
        name, detail = refusal
        return Written(problem.id, sample, rewritten.text, tokens, f"rewritten, but {name}", detail)


def save(file: Path, written: Sequence[Written]) -> None:
    """Write the lines of a round, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, b"".join(json_bytes(one._asdict()) + b"\n" for one in written))


def load(file: Path) -> list[Written]:
    """The lines of a round. Raises RunDamaged."""
    try:
        return [Written(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise RunDamaged(f"{file} cannot be read: delete the stage's folder to make it anew") from error


def _refused(problem: Problem, sample: int, why: str) -> Written:
    name, _, detail = why.partition(":")
    return Written(problem.id, sample, dropped=f"not rewritten: {name}", detail=detail.strip())


def _said(renderer: Renderer, problem: Problem, message: Message) -> _Said | str:
    try:
        ids, learned = renderer.example((*problem.messages, message))
    except DataError as error:
        return f"the chat format has no place for it: {error}"
    prompt = tuple(token for token, mine in zip(ids, learned) if not mine)
    reply = tuple(token for token, mine in zip(ids, learned) if mine)
    return _Said(prompt, Completion(reply, (0.0,) * len(reply), Finish.STOP))
