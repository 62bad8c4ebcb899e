"""Length and repetition: summands of a reward beside the task's. Lengths in tokens, numbers in, numbers out.

Filters of degenerate groups must look at the task reward *before* these are added: a shaped group is never all equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from longthought.core.errors import SettingsError


def length_reward(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """Kimi k1.5: λᵢ = ½ - (lenᵢ - min len) / (max len - min len) for right replies, min(0, λᵢ) for wrong ones.

    One value in [-½, ½] for each reply to *one* problem; all 0 when the lengths are equal. Add it with a weight that
    is 0 in the first phase of training (section 2.3.3). Raises SettingsError when the two do not match.
    Source: arXiv:2501.12599, section 2.3.3.
    """
    if len(lengths) != len(correct):
        raise SettingsError(f"length_reward: {len(lengths)} lengths, but {len(correct)} grades")
    if len(lengths) == 0:
        return []
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    shares = [0.5 - float(length - shortest) / float(longest - shortest) for length in lengths]
    return [share if right else min(0.0, share) for share, right in zip(shares, correct, strict=True)]


def cosine_reward(
    length: int,
    correct: bool,
    maximum: int = 1000,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    exceed: tuple[int, float] | None = None,
) -> float:
    """Half a cosine from the value at length 0 to the value at ``maximum``: r_L + ½ (r_0 - r_L) (1 + cos(π L / L_max)).

    right, wrong: (r_0, r_L) of right and of wrong replies; with the defaults a right reply should be short and a wrong
    one long.  exceed: (length from which, reward) of replies that hit the limit.  Beyond ``maximum`` the value stays at
    r_L; a bare cosine would turn up again.  Raises SettingsError when length < 0 or maximum < 1.
    Source: Demystifying Long CoT, arXiv:2502.03373, section 4; defaults of open-r1.
    """
    if length < 0 or maximum < 1:
        raise SettingsError(f"cosine_reward: need length >= 0 and maximum >= 1, got {length} and {maximum}")
    if exceed is not None and length >= exceed[0]:
        return exceed[1]
    start, end = right if correct else wrong
    progress = min(length / maximum, 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def repetition_penalty(ids: Sequence[Hashable], n: int, penalty: float) -> float:
    """penalty · (1 - distinct n-grams / all n-grams); 0 for a sequence shorter than n.

    ids: tokens, or anything that can be compared.  penalty: the value for endless repetition, at most 0.
    Raises SettingsError when n < 1 or penalty > 0.
    Source: Demystifying Long CoT, arXiv:2502.03373, section 4; open-r1's form.
    """
    _check_repetition("repetition_penalty", n, penalty)
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(ids[start : start + n]) for start in range(total)})
    return penalty * (1.0 - distinct / total)


def repetition_penalties(ids: Sequence[Hashable], n: int, penalty: float) -> list[float]:
    """``penalty`` for every token inside an n-gram that has occurred before, 0 for the others: one value per token.

    The first occurrence is free, and overlapping repeats do not add up. As a stream of ``credit.Discounted`` with
    γ < 1 the penalty stays near the repetition.  Raises SettingsError when n < 1 or penalty > 0.
    Source: Demystifying Long CoT, arXiv:2502.03373 (n = 40, penalty = -0.05, γ = 0.99).
    """
    _check_repetition("repetition_penalties", n, penalty)
    values: list[float] = [0.0] * len(ids)
    seen: set[tuple[Hashable, ...]] = set()
    for start in range(len(ids) - n + 1):
        gram = tuple(ids[start : start + n])
        if gram in seen:
            values[start : start + n] = [penalty] * n
        seen.add(gram)
    return values


def target_length_penalty(length: int, target: int, alpha: float) -> float:
    """- alpha · |target - length|: the reply should be as long as its prompt asked for.

    Raises SettingsError when a length or alpha is negative.
    Source: L1, arXiv:2503.04697; INTELLECT-2, arXiv:2505.07291.
    """
    if length < 0 or target < 0 or not 0.0 <= alpha < math.inf:
        raise SettingsError(f"target_length_penalty: need values of at least 0, got {length}, {target} and {alpha}")
    return -alpha * abs(target - length)


def overlong_penalty(length: int, maximum: int, cache: int) -> float:
    """DAPO's soft overlong punishment: 0 up to maximum - cache, then linear to -1 at ``maximum``, -1 beyond.

    With cache 0 it is a step after ``maximum``. Raises SettingsError when cache is not in [0, maximum].
    Source: arXiv:2503.14476, equation 13.
    """
    if not 0 <= cache <= maximum:
        raise SettingsError(f"overlong_penalty: cache must be in [0, maximum = {maximum}], got {cache}")
    over = length - (maximum - cache)
    if over <= 0:
        return 0.0
    return -1.0 if over >= cache else -over / cache


def _check_repetition(name: str, n: int, penalty: float) -> None:
    if n < 1 or not -math.inf < penalty <= 0.0:
        raise SettingsError(f"{name}: need n >= 1 and a finite penalty <= 0, got n={n}, penalty={penalty}")
