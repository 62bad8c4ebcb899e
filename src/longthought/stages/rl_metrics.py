"""What a step of RL is judged by. Means over its rollouts; none of them is the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from longthought.algorithms.statistics import mean_interval
from longthought.core.types import CUT, Group
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import behaviour
from longthought.stages.earning import is_live


def rollout_metrics(groups: Sequence[Group], rewards: Tensor, lexicon: Lexicon) -> dict[str, float]:
    """Means over the rollouts of a step.

    ``live``: share of groups that hold both right and wrong answers. ``cut``: share ended by the token limit.
    ``ungraded``: share without a reward. ``accuracy_low`` … ``accuracy_high``: 95 %, clustered by problem.
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
        "reward": float(rewards.nanmean()),
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
        "ungraded": float(rewards.isnan().double().mean()),
        **{f"word/{word}": count / n for word, count in sorted(words.items())},
        **{f"outcome/{outcome}": count / n for outcome, count in sorted(outcomes.items())},
    }


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the progress line shows."""
    shown = {"reward": "reward", "pass@1": "accuracy", "length": "length", "live": "live", "cut": "cut"}
    return {label: round(metrics[name], 1 if name == "length" else 2) for label, name in shown.items()}
