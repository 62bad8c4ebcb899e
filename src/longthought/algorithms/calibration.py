"""Whether probabilities are right as often as they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longthought.core.errors import SettingsError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """The predictions from ``low`` to ``high``: how many, their mean, and the share that came true."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def reliability(predicted: Array, observed: Array, bins: int = 10, low: float = 0.0) -> list[Bin]:
    """Bins of equal width from ``low`` to 1 that hold anything; 1 itself belongs to the last.

    predicted: (N,) probabilities.  observed: (N,) what came true, from 0 to 1.
    Source: DeGroot & Fienberg 1983; Guo et al., arXiv:1706.04599, section 2.
    """
    if bins < 1 or predicted.shape != observed.shape or predicted.ndim != 1:
        raise SettingsError(f"reliability: {bins} bins of {predicted.shape} predictions and {observed.shape} outcomes")
    if not bool(((predicted >= low) & (predicted <= 1)).all()):
        raise SettingsError(f"reliability: a prediction does not lie between {low:g} and 1")
    place = np.minimum(((predicted - low) / (1 - low) * bins).astype(int), bins - 1)
    width = (1 - low) / bins
    found = []
    for number in np.unique(place).tolist():
        inside = place == number
        edges = (low + number * width, low + (number + 1) * width)
        found.append(Bin(*edges, int(inside.sum()), float(predicted[inside].mean()), float(observed[inside].mean())))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ_b n_b / n · |observed − predicted|; 0 for no predictions.

    Source: Naeini et al. 2015; Guo et al., arXiv:1706.04599, equation 3.
    """
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.observed - one.predicted) for one in bins) / max(1, total)
