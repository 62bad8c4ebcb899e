"""How well a reward model judges what it has not seen: accuracy, calibration, and whether length is what it likes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longthought.algorithms.calibration import Bin, expected_calibration_error, reliability
from longthought.algorithms.statistics import wilson

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairMeasures:
    """Of pairs that were held out. Shares are None where there is nothing to share.

    accuracy: of the pairs, those in which the better reply has the higher reward; a tie counts one half.
    interval: 95 %, Wilson, as many trials as there are prompts: pairs of one prompt are not independent.
    calibration_error, bins: of σ(|r_w − r_l|), the probability that the reply with the higher reward is the better one.
    length_correlation: of reward and length over all replies.
    length_pull: of r_w − r_l and the difference of the lengths, about 0: inside the prompts, so that hard prompts with
    long replies do not enter.
    longer_is_better: share of the pairs in which the better reply is the longer one, of those whose lengths differ;
    longer_is_preferred: share in which the longer one has the higher reward. The second above the first is length bias.
    accuracy_longer, accuracy_shorter: where the better reply is the longer, and the shorter one.
    """

    pairs: int
    prompts: int
    accuracy: float
    interval: tuple[float, float]
    margin: float
    calibration_error: float
    bins: tuple[Bin, ...]
    length_correlation: float | None
    length_pull: float | None
    longer_is_better: float | None
    longer_is_preferred: float | None
    accuracy_longer: float | None
    accuracy_shorter: float | None


@dataclass(frozen=True)
class LabelMeasures:
    """Of labelled replies that were held out.

    accuracy, interval, calibration_error, bins: of σ(r) as the probability of a good reply.
    area: share of the pairs of a good and a bad reply in which the good one has the higher reward (ROC AUC).
    recall: of the good replies, and of the bad ones, the share that is told right.
    length_correlation: of reward and length over all replies.
    """

    replies: int
    prompts: int
    accuracy: float
    interval: tuple[float, float]
    calibration_error: float
    bins: tuple[Bin, ...]
    area: float
    recall: tuple[float, float]
    length_correlation: float | None


def measure_pairs(rewards: Array, lengths: Numbers, prompts: Sequence[Hashable]) -> PairMeasures:
    """rewards, lengths: (N, 2), the better reply first.  prompts: of every pair, what tells its prompt."""
    gap, longer = rewards[:, 0] - rewards[:, 1], lengths[:, 0] - lengths[:, 1]
    right = (np.sign(gap) + 1) / 2
    bins = reliability(_sigmoid(np.abs(gap)), right, low=0.5)
    clusters = len(set(prompts))
    accuracy = float(right.mean())
    uneven = longer != 0
    liked = np.where(longer > 0, right, 1 - right)
    return PairMeasures(
        len(gap),
        clusters,
        accuracy,
        wilson(accuracy * clusters, clusters),
        float(gap.mean()),
        expected_calibration_error(bins),
        tuple(bins),
        correlation(rewards.ravel(), lengths.ravel().astype(np.float64)),
        _cosine(gap, longer.astype(np.float64)),
        _mean((longer > 0)[uneven]),
        _mean(liked[uneven]),
        _mean(right[longer > 0]),
        _mean(right[longer < 0]),
    )


def measure_labels(rewards: Array, labels: Array, lengths: Numbers, prompts: Sequence[Hashable]) -> LabelMeasures:
    """rewards, labels, lengths: (N,), a label is 1 for a good reply and 0 for a bad one, and both occur."""
    right = (rewards > 0) == (labels > 0.5)
    bins = reliability(_sigmoid(rewards), labels)
    clusters = len(set(prompts))
    accuracy = float(right.mean())
    good, bad = rewards[labels > 0.5], rewards[labels <= 0.5]
    ahead = (np.searchsorted(np.sort(bad), good) + np.searchsorted(np.sort(bad), good, side="right")) / 2
    return LabelMeasures(
        len(rewards),
        clusters,
        accuracy,
        wilson(accuracy * clusters, clusters),
        expected_calibration_error(bins),
        tuple(bins),
        float(ahead.mean() / len(bad)),
        (float(right[labels > 0.5].mean()), float(right[labels <= 0.5].mean())),
        correlation(rewards, lengths.astype(np.float64)),
    )


def correlation(x: Array, y: Array) -> float | None:
    """Pearson's, of two columns (N,); None where one of them is constant."""
    return _cosine(x - x.mean(), y - y.mean())


def _cosine(x: Array, y: Array) -> float | None:
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else None


def _mean(values: npt.NDArray[np.generic]) -> float | None:
    return float(values.astype(np.float64).mean()) if len(values) else None


def _sigmoid(x: Array) -> Array:
    """σ without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))
