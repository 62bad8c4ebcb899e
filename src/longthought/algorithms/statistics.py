"""Estimates from n samples of a problem, and intervals over problems.

Estimators are unbiased: the mean over all subsets of k of the n samples, in closed form. Fewer than k samples is an
error, never 1.0. Intervals treat the *problems* as the independent draws; samples of one problem are not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from longthought.core.errors import SettingsError

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], float]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is right, from c right ones among n: 1 - C(n-c, k) / C(n, k).

    Raises SettingsError unless 0 <= c <= n and 1 <= k <= n.  Source: Chen et al., arXiv:2107.03374, section 2.1.
    """
    _check_draw(n, k)
    _check_correct(n, c)
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def g_pass_at_k(n: int, c: int, k: int, tau: float) -> float:
    """Probability that at least ⌈τk⌉ of k samples are right: Σⱼ C(c, j) C(n-c, k-j) / C(n, k).

    τ = 1 is pass^k (all right); τ → 0 is pass@k. Raises SettingsError as ``pass_at_k`` does, and unless 0 < τ <= 1.
    Source: Liu et al., arXiv:2412.13147.
    """
    _check_draw(n, k)
    _check_correct(n, c)
    if not 0.0 < tau <= 1.0:
        raise SettingsError(f"g_pass_at_k: tau must be in (0, 1], got {tau}")
    least = max(1, math.ceil(tau * k - 1e-9))  # 0.55 · 100 is 55.00000000000001 in floats; the threshold is 55
    hits = sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(least, k + 1))
    return hits / math.comb(n, k)


def best_of_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Probability that the best-scored of k samples is right; equal scores are drawn between.

    With samples sorted by rising score: Σᵢ yᵢ C(i-1, k-1) / C(n, k), y the share of right ones among equal scores.
    Raises SettingsError when the two do not match, a score is NaN, or k is not in [1, n].
    """
    n = len(scores)
    _check_match("scores", n, len(correct))
    _check_draw(n, k)
    if any(math.isnan(score) for score in scores):
        raise SettingsError("best_of_k: a score is NaN; give every sample a score, or leave the sample out")
    right: dict[float, list[bool]] = {}
    for score, good in zip(scores, correct, strict=True):
        right.setdefault(score, []).append(bool(good))
    hits, below = Fraction(0), 0
    for score in sorted(right):
        block = right[score]
        won = math.comb(below + len(block), k) - math.comb(below, k)  # subsets whose best lies in this block
        hits += Fraction(sum(block), len(block)) * won
        below += len(block)
    return float(hits / math.comb(n, k))


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer of k samples is right, exactly (cons@k, maj@k).

    A missing answer (None) never wins; equal counts are drawn between, which is the mean of "first appearance wins"
    over the orders. An answer is right when any sample that gave it was graded right.
    Exact by counting subsets, class by class; O(classes · k²) for every number of votes.
    Raises SettingsError when the two do not match, or k is not in [1, n].
    """
    n = len(answers)
    _check_match("answers", n, len(correct))
    _check_draw(n, k)
    votes = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, good in zip(answers, correct, strict=True) if good and answer is not None}
    missing = n - votes.total()
    hits = sum((_subsets_won(votes, answer, missing, k) for answer in right), start=Fraction(0))
    return float(hits / math.comb(n, k))


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion: n independent trials. Raises SettingsError unless 0 <= s <= n.

    Source: Wilson 1927; Brown, Cai & DasGupta 2001 recommend it for small n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise SettingsError(f"wilson: need n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    z = _quantile(level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mean_interval(values_by_problem: Sequence[Sequence[float]] | Array, level: float = 0.95) -> tuple[float, float]:
    """Normal interval (low, high) of the mean, standard error clustered by problem. values: (P, n), P >= 2.

    se = std of the P problem means (division by P - 1) / √P. Not cut to [0, 1]; for a few problems prefer ``wilson`` or
    ``cluster_bootstrap``.  Source: Miller, "Adding error bars to evals", arXiv:2411.00640, section 2.2.
    """
    means = _table(values_by_problem).mean(axis=1)
    half = _quantile(level) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return float(means.mean()) - half, float(means.mean()) + half


def cluster_bootstrap(
    values_by_problem: Sequence[Sequence[float]] | Array,
    statistic: Statistic = np.mean,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of ``statistic``, resampling problems, each with all its samples.

    values: (P, n), P >= 2; ``statistic`` gets such a table. Same arguments, same result.
    Source: Efron & Tibshirani 1993, chapter 13.
    """
    table = _table(values_by_problem)
    if resamples < 100:
        raise SettingsError(f"cluster_bootstrap: need at least 100 resamples, got {resamples}")
    _quantile(level)  # refuses a level outside (0, 1)
    tail = (1 - level) / 2
    draws = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    seen = [float(statistic(table[rows])) for rows in draws]
    low, high = np.quantile(seen, [tail, 1 - tail])
    return float(low), float(high)


def _subsets_won(votes: Counter[Hashable], winner: Hashable, missing: int, k: int) -> Fraction:
    """How many of the k-subsets ``winner`` wins, a tie of m + 1 answers counted 1 / (m + 1)."""
    rivals = [count for answer, count in votes.items() if answer != winner]
    won = Fraction(0)
    for j in range(1, min(votes[winner], k) + 1):
        rest = k - j
        ways = {(size, 0): math.comb(missing, size) for size in range(min(missing, rest) + 1)}
        for count in rivals:
            ways = _with_rival(ways, count, j, rest)
        share = sum((Fraction(number, ties + 1) for (size, ties), number in ways.items() if size == rest), Fraction(0))
        won += math.comb(votes[winner], j) * share
    return won


def _with_rival(ways: dict[tuple[int, int], int], count: int, most: int, limit: int) -> dict[tuple[int, int], int]:
    """Extend the ways to pick (size, ties) by a rival with ``count`` samples of which at most ``most`` are picked."""
    extended: Counter[tuple[int, int]] = Counter()
    for (size, ties), number in ways.items():
        for picked in range(min(count, most, limit - size) + 1):
            extended[size + picked, ties + (picked == most)] += number * math.comb(count, picked)
    return dict(extended)


def _table(values: Sequence[Sequence[float]] | Array) -> Array:
    try:
        table = np.asarray(values, dtype=np.float64)
    except ValueError as error:
        raise SettingsError("every problem must have the same number of samples, (P, n)") from error
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 1:
        raise SettingsError(f"an interval over problems needs values (P, n) with P >= 2, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise SettingsError("every value must be finite; leave out what could not be graded")
    return table


def _quantile(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise SettingsError(f"level must be in (0, 1), got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_draw(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise SettingsError(f"cannot estimate a choice among k = {k} from n = {n} samples: need 1 <= k <= n")


def _check_correct(n: int, c: int) -> None:
    if not 0 <= c <= n:
        raise SettingsError(f"c = {c} right among n = {n} samples: need 0 <= c <= n")


def _check_match(what: str, n: int, grades: int) -> None:
    if n != grades:
        raise SettingsError(f"{n} {what}, but {grades} grades")
