"""What a rater of pairs likes beside the better reply: the place in which it is shown, and its length."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from longthought.core.types import Message
from longthought.verifiers.judge import LABELS, Preference


class Rated(NamedTuple):
    """A pair, and what was said of it."""

    first: Message
    second: Message
    preference: Preference


@dataclass(frozen=True, slots=True)
class RaterBias:
    """Measured on pairs of which both orders were judged; None where nothing can be said.

    judged: such pairs.
    order_dependent: share in which the two orders disagree.
    shown_first: share of the single judgements with a winner that the reply shown first wins; without bias 0.5, since
    each reply is shown first once.
    longer_wins: share of the margins other than 0 that are the longer reply's, where the lengths differ.
    length_pull: correlation about 0 of margin and difference in length (characters of the content), −1 … 1. It does not
    depend on which reply is called the first. A rater without bias has one, too, where longer replies are better.
    """

    judged: int
    order_dependent: float | None
    shown_first: float | None
    longer_wins: float | None
    length_pull: float | None


def rater_bias(rated: Iterable[Rated]) -> RaterBias:
    """Position and length bias of whoever gave the preferences."""
    found = [(one, margin) for one in rated if (margin := one.preference.margin) is not None]
    labels = [LABELS[label] for one, _ in found for label in (one.preference.forward, one.preference.backward) if label]
    apart = [(len(one.first.content) - len(one.second.content), margin) for one, margin in found]
    return RaterBias(
        len(found),
        _share([one.preference.order_dependent for one, _ in found]),
        _share([label > 0 for label in labels if label]),
        _share([longer * margin > 0 for longer, margin in apart if longer * margin]),
        _cosine(apart),
    )


def _share(found: list[bool]) -> float | None:
    return sum(found) / len(found) if found else None


def _cosine(pairs: list[tuple[int, float]]) -> float | None:
    """Σxy / √(Σx² Σy²)."""
    scale = math.sqrt(sum(x * x for x, _ in pairs)) * math.sqrt(sum(y * y for _, y in pairs))
    return sum(x * y for x, y in pairs) / scale if scale else None
