"""Graded replies of a round in the trace store, and back: what stages share that make examples of replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from longthought.core.errors import RunDamaged
from longthought.core.protocols import Verifier
from longthought.core.types import Completion, Finish, Group, Message, Outcome, Problem, Rollout, Score, Verdict
from longthought.rollout.filters import Correct, Screen
from longthought.runs import traces
from longthought.runs.place import Place
from longthought.runs.traces import Trained
from longthought.tasks.grading import verify_all
from longthought.text.reasoning import split

JUDGE: Final = "judge"
"""The part of a score that a judge gave."""


def judged(judge: Verifier | None, groups: list[Group]) -> list[Group]:
    """The judge's word where the task has none."""
    if judge is None:
        return groups
    pairs = [(one.problem, message_of(one)) for group in groups for one in group if one.score.value is None]
    verdicts = iter(verify_all(judge, pairs))
    return [tuple(_with(one, next(verdicts)) if one.score.value is None else one for one in g) for g in groups]


def left_out(groups: Sequence[Group], screen: Screen) -> list[list[str]]:
    """Which filter refuses each reply, rightness being the first; empty where none does."""
    whole = Screen((Correct(), *screen.filters))
    refusals = [[whole.refusal(one) for one in group] for group in groups]
    return [["" if why is None else why[0] for why in row] for row in refusals]


def record(step: int, groups: Sequence[Group], refused: list[list[str]], place: Place) -> dict[str, float]:
    """Keep a round in the trace store, with why replies are left out.

    Logs and returns the shares of right and good replies, and the mean length.
    """
    place.trace(
        step,
        groups,
        rewards=[[one.score.value for one in group] for group in groups],
        advantages=[[None] * len(group) for group in groups],
        shaping={},
        trained=[[Trained(left_out=why) for why in row] for row in refused],
    )
    rollouts = [one for group in groups for one in group]
    metrics = {
        "right": sum(one.score.correct for one in rollouts) / len(rollouts),
        "good": sum(not why for row in refused for why in row) / len(rollouts),
        "length": sum(len(one.completion.token_ids) for one in rollouts) / len(rollouts),
    }
    place.log(step, metrics)
    return metrics


def by_problem(
    problems: Sequence[Problem], size: int, folder: Path, before: int = 0
) -> Iterator[tuple[Problem, list[dict[str, Any]]]]:
    """Every problem with the rows of its replies, from the rounds of ``size`` problems after round ``before``.

    Raises RunDamaged where the traces are not those of the problems.
    """
    for step, start in enumerate(range(0, len(problems), size), before + 1):
        chosen = problems[start : start + size]
        rows = traces.rows(traces.file_of(folder, step))
        groups = [(number, list(group)) for number, group in groupby(rows, key=lambda row: row["group"])]
        if [row[0]["problem"] for _, row in groups] != [problem.id for problem in chosen]:
            raise RunDamaged(f"{traces.file_of(folder, step)} holds other problems than round {step} asked")
        yield from zip(chosen, (group for _, group in groups), strict=True)


def rollout_of(problem: Problem, row: dict[str, Any]) -> Rollout:
    """A rollout as the trace store keeps it."""
    ids, logprobs = tuple(row["tokens"]), tuple(row["logprobs"])
    verdict = Verdict(row["value"], Outcome(row["outcome"]), row["evidence"])
    score = Score(row["value"], row["correct"], row["parts"], verdict)
    completion = Completion(ids, logprobs, Finish(row["finish"]), row["version"])
    return Rollout(problem, tuple(row["prompt"]), completion, row["text"], score)


def count(row: dict[str, Any], counts: Counter[str], screened: Counter[str]) -> None:
    """Add a row to the counts of replies, and to those that are left out for not being right."""
    by_judge = JUDGE in row["parts"]
    counts["sampled"] += 1
    counts["tokens"] += row["length"]
    counts["right" if row["correct"] else "ungraded" if row["value"] is None else "wrong"] += 1
    counts["judged"] += by_judge
    counts["judged_right"] += by_judge and row["correct"]
    if row["left_out"] and not row["correct"]:
        screened[row["left_out"]] += 1


def message_of(rollout: Rollout) -> Message:
    """What a reply says, its thought apart."""
    thought, content = split(rollout.text)
    return Message("assistant", content.strip(), thought.strip())


def _with(rollout: Rollout, verdict: Verdict) -> Rollout:
    value = verdict.value
    return replace(rollout, score=Score(value, value is not None and value >= 1, {JUDGE: value or 0.0}, verdict))
