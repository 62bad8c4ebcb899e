"""What a step of RL is judged by. Means over its rollouts; none of them is the loss."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite

from longthought.algorithms.statistics import mean_interval
from longthought.core.types import CUT, Group
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import behaviour
from longthought.stages.earning import Rewards, is_live

_SUMMED_UP = ("accuracy", "format")  # parts of a score that have a metric of their own


def rollout_metrics(
    groups: Sequence[Group], rewards: Rewards, lexicon: Lexicon, tasks: Sequence[str] = ()
) -> dict[str, float]:
    """Means over the rollouts of a step.

    ``live``: share of groups that hold both right and wrong answers. ``cut``: share ended by the token limit.
    ``ungraded``: share without a reward. ``accuracy_low`` … ``accuracy_high``: 95 %, clustered by problem.
    ``part/<name>``: a part of the task's score, over the rollouts that have it. ``shaping/<name>``: a summand of the
    reward beside the task's. tasks: the parts of a mixture, of which each has its own means behind a further /.
    """
    rollouts = [rollout for group in groups for rollout in group]
    behaviours = [behaviour(rollout, lexicon) for rollout in rollouts]
    n = len(rollouts)
    right = [[float(r.score.correct) for r in group] for group in groups]
    low, high = mean_interval(right) if len(groups) > 1 else (0.0, 1.0)
    shares = [b.consistency for b in behaviours if b.consistency is not None]
    outcomes = Counter(r.score.verdict.outcome for r in rollouts)
    words: Counter[str] = Counter()
    for one in behaviours:
        words.update(one.words)
    return {
        "reward": float(rewards.total.nanmean()),
        "accuracy": sum(map(sum, right)) / n,
        "accuracy_low": max(0.0, low),
        "accuracy_high": min(1.0, high),
        "length": sum(len(r.completion.token_ids) for r in rollouts) / n,
        "rejections": sum(b.rejected for b in behaviours) / n,
        "reflections": sum(b.reflections for b in behaviours) / n,
        "format_rate": sum(r.score.parts.get("format", 0.0) for r in rollouts) / n,
        "mixing": sum(b.mixed for b in behaviours) / n,
        "consistency": sum(shares) / len(shares) if shares else 0.0,
        "live": sum(map(is_live, groups)) / len(groups),
        "cut": sum(r.completion.finish in CUT for r in rollouts) / n,
        "ungraded": float(rewards.total.isnan().double().mean()),
        **_named_means(groups, rewards, tasks),
        **{f"word/{word}": count / n for word, count in sorted(words.items())},
        **{f"outcome/{outcome}": count / n for outcome, count in sorted(outcomes.items())},
    }


def _named_means(groups: Sequence[Group], rewards: Rewards, tasks: Sequence[str]) -> dict[str, float]:
    """Of the parts of scores and the summands of the reward, and what every task of a mixture adds."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    totals = iter(rewards.total.tolist())
    for number, group in enumerate(groups):
        task = group[0].problem.id.partition("/")[0]
        for i, rollout in enumerate(group):
            parts, reward = rollout.score.parts, next(totals)
            told = {f"part/{name}": value for name, value in parts.items() if name not in _SUMMED_UP}
            told |= {f"shaping/{name}": nested[number][i] for name, nested in rewards.shaping.items()}
            if task in tasks:
                own = {"reward": reward, "accuracy": float(rollout.score.correct)}
                own |= {"length": float(len(rollout.completion.token_ids)), "format_rate": parts.get("format", 0.0)}
                told |= {f"{name}/{task}": value for name, value in {**told, **own}.items()}
            for name, value in told.items():
                if isfinite(value):
                    values[name].append(value)
    return {name: sum(known) / len(known) for name, known in sorted(values.items())}


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the progress line shows."""
    shown = {"reward": "reward", "pass@1": "accuracy", "length": "length", "live": "live", "cut": "cut"}
    return {label: round(metrics[name], 1 if name == "length" else 2) for label, name in shown.items()}
