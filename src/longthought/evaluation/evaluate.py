"""Evaluate a sampler on a task: the same problems and samples for every model, every number with its interval."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from longthought.algorithms.statistics import mean_interval, pass_at_k
from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import CUT, Group, Message, Problem, Rollout, SamplingParams
from longthought.evaluation.behaviours import Behaviour, Lexicon, count
from longthought.evaluation.report_data import Estimate, EvaluationSummary
from longthought.rollout.collect import collect

_warn = logging.getLogger(__name__).warning

_PER_CALL = 25  # problems sampled in one call; results do not depend on it


@dataclass(frozen=True)
class EvaluationSettings:
    """What is asked, and how often.

    problems: number of problems.
    samples: replies to each problem.
    max_tokens: longest reply, in tokens.
    temperature: that of training unless changed (1: the model's own distribution); 0: the most likely token.
    top_p: only the most likely tokens that together have this probability; 1: all.
    top_k: only so many most likely tokens; 0: all.
    split: train, dev or test.
    seed: of the samples.
    """

    problems: int = 200
    samples: int = 64
    max_tokens: int = 192
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    split: Literal["train", "dev", "test"] = "test"
    seed: int = 1_000_003

    def __post_init__(self) -> None:
        if self.problems < 2 or self.samples < 1 or self.max_tokens < 1:
            raise SettingsError("evaluation: problems must be at least 2, samples and max_tokens at least 1")
        if self.temperature < 0:
            raise SettingsError(f"evaluation: temperature={self.temperature}: must be 0 or positive")
        if self.temperature == 0 and self.samples > 1:
            raise SettingsError("evaluation: at temperature 0 all samples of a problem are equal; set samples=1")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SettingsError(f"evaluation: top_p={self.top_p} must be in (0, 1], top_k={self.top_k} at least 0")
        if self.temperature == 0 and (self.top_p, self.top_k) != (1.0, 0):
            raise SettingsError("evaluation: top_p and top_k change nothing at temperature 0")


def evaluate(
    task: Task,
    sampler: Sampler,
    renderer: Renderer,
    settings: EvaluationSettings,
    progress: Callable[[int, float], None] | None = None,
) -> list[Group]:
    """Graded replies to the first ``problems`` of a split that differ. ``progress`` is told (done, accuracy so far).

    Replies on which the verifier failed are counted in a warning.
    """
    params = SamplingParams(
        settings.samples,
        settings.max_tokens,
        settings.temperature,
        settings.seed,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    problems = distinct(task, settings.split, settings.problems)
    groups: list[Group] = []
    for start in range(0, len(problems), _PER_CALL):
        groups += collect(task, problems[start : start + _PER_CALL], sampler, renderer, params)
        if progress is not None:
            progress(len(groups), _mean([[float(r.score.correct) for r in g] for g in groups]))
    _tell_ungraded([rollout for group in groups for rollout in group])
    return groups


def _tell_ungraded(rollouts: Sequence[Rollout]) -> None:
    failed = [rollout.score.verdict for rollout in rollouts if rollout.score.value is None]
    if failed:
        first = f"{failed[0].outcome}: {failed[0].evidence}" if failed[0].evidence else str(failed[0].outcome)
        _warn(f"{len(failed):,} of {len(rollouts):,} replies could not be graded, and count as wrong ({first})")


def distinct(task: Task, split: str, count: int) -> list[Problem]:
    """The first ``count`` problems of a split that are stated differently: one asked twice would count twice.

    Raises DataError when the split seems to hold fewer.
    """
    found: dict[tuple[Message, ...], Problem] = {}
    for index in range(20 * count + 1000):
        problem = task.problem(split, index)
        found.setdefault(problem.messages, problem)
        if len(found) == count:
            return list(found.values())
    raise DataError(
        f"the {split} split of {task.name} holds only about {len(found)} problems, not {count}: ask for "
        f"fewer (evaluation.problems=…, or --problems of `eval`), or hold out more"
    )


def summarize(groups: Sequence[Group], lexicon: Lexicon, step: int | None = None) -> EvaluationSummary:
    """Means over problems and samples with intervals clustered by problem, and pass@k at powers of two."""
    behaviours = [[behaviour(r, lexicon) for r in g] for g in groups]
    samples = min(len(g) for g in groups)
    return EvaluationSummary(
        problems=len(groups),
        samples=samples,
        accuracy=_share([[float(r.score.correct) for r in g] for g in groups]),
        length=_estimate([[float(len(r.completion.token_ids)) for r in g] for g in groups]),
        rejections=_estimate([[float(b.rejected) for b in g] for g in behaviours]),
        reflections=_estimate([[float(b.reflections) for b in g] for g in behaviours]),
        format_rate=_share([[r.score.parts.get("format", 0.0) for r in g] for g in groups]),
        mixing=_share([[float(b.mixed) for b in g] for g in behaviours]),
        cut=_share([[float(r.completion.finish in CUT) for r in g] for g in groups]),
        pass_at_k=tuple((k, _pass_at(groups, k)) for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= samples),
        step=step,
        parts={name: _part(list(means.values())) for name, means in part_means(groups).items()},
    )


def part_means(groups: Sequence[Group]) -> dict[str, dict[int, float]]:
    """Mean of every named part of the score, by the number of the problem; problems whose replies lack it have none."""
    names = sorted({name for group in groups for rollout in group for name in rollout.score.parts})
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for number, group in enumerate(groups):
        for name in names:
            known = [r.score.parts[name] for r in group if name in r.score.parts]
            if known:
                found[name][number] = sum(known) / len(known)
    return found


def behaviour(rollout: Rollout, lexicon: Lexicon) -> Behaviour:
    """What a reply does while it thinks, judged by the language of its problem."""
    return count(rollout.text, lexicon, rollout.problem.info.get("language", "en"))


def paired_difference(base: Sequence[Group], trained: Sequence[Group]) -> Estimate:
    """Trained − base in pass@1, problem by problem. Raises SettingsError unless the problems are the same."""
    if [g[0].problem.id for g in base] != [g[0].problem.id for g in trained]:
        raise SettingsError("two evaluations can be compared only on the same problems in the same order")
    gaps = [[_accuracy(after) - _accuracy(before)] for before, after in zip(base, trained)]
    return _estimate(gaps)


def _pass_at(groups: Sequence[Group], k: int) -> Estimate:
    return _share([[pass_at_k(len(g), sum(r.score.correct for r in g), k)] for g in groups])


def _estimate(values: Sequence[Sequence[float]]) -> Estimate:
    low, high = mean_interval(values)
    return Estimate(_mean(values), low, high)


def _part(means: Sequence[float]) -> Estimate:
    """Without an interval where a single problem has the part."""
    return _estimate([[mean] for mean in means]) if len(means) > 1 else Estimate(means[0])


def _share(values: Sequence[Sequence[float]]) -> Estimate:
    """A share: its interval ends where shares do."""
    low, high = mean_interval(values)
    return Estimate(_mean(values), max(0.0, low), min(1.0, high))


def _mean(values: Sequence[Sequence[float]]) -> float:
    return sum(sum(row) / len(row) for row in values) / len(values)


def _accuracy(group: Group) -> float:
    return sum(r.score.correct for r in group) / len(group)
