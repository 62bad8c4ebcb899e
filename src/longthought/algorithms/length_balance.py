"""Pairs of replies in which the better one is as often the longer as the shorter, so that length tells nothing.

Pairs are balanced inside strata of similar |length of the better − length of the worse|: [1, 2), [2, 4), [4, 8), …
tokens. So not only the sign of the difference is even, but also how large it is for either sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def balanced_weights(difference: Numbers) -> Array:
    """Weights under which both signs count the same in every stratum, (N,) → (N,).

    A stratum keeps its number of pairs: of n₊ and n₋ pairs those of a sign weigh (n₊ + n₋) / 2 n±. Where one sign is
    missing nothing can be balanced, and the pairs weigh 0; pairs of equal length weigh 1.

    difference: length of the better reply minus that of the worse.
    """
    weights = np.ones(len(difference))
    for longer, shorter in _strata(difference):
        count = len(longer) + len(shorter)
        for side in (longer, shorter):
            weights[side] = count / (2 * len(side)) if len(longer) and len(shorter) else 0.0
    return weights


def balanced_subset(difference: Numbers, seed: int) -> Numbers:
    """Indices of as many pairs of either sign in every stratum, in order, and of all pairs of equal length.

    Of the more frequent sign as many as there are of the other are drawn.
    """
    kept = np.flatnonzero(difference == 0).tolist()
    chance = Random(f"length balance {seed}")
    for longer, shorter in _strata(difference):
        count = min(len(longer), len(shorter))
        for side in (longer, shorter):
            kept += chance.sample(side.tolist(), count)
    return np.array(sorted(kept), dtype=np.int64)


def effective_size(weights: Array) -> float:
    """(Σ w)² / Σ w²: so many equal weights would have as small a variance.  Source: Kish 1965."""
    square = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / square if square else 0.0


def _strata(difference: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Of every stratum the pairs whose better reply is longer, and those whose better reply is shorter."""
    strata = np.frexp(np.abs(difference).astype(np.float64))[1]
    for stratum in np.unique(strata[difference != 0]).tolist():
        inside = (strata == stratum) & (difference != 0)
        yield np.flatnonzero(inside & (difference > 0)), np.flatnonzero(inside & (difference < 0))
