"""One rollout token by token: what it says, how likely it was, and what the update did with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from longthought.evaluation.trace_source import Clipping
from longthought.text.tokenizer import Tokenizer

BROKEN = "\ufffd"
_LARGEST = 50.0  # of a log-ratio, so that its exponential is finite


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a completion.

    text: empty where it only completes a character that an earlier token began; the id where there is no tokenizer.
    sampled, learned: its probability under the policy that sampled and under the learner in the update.
    ratio: learned / sampled; of the whole reply where the objective says so.  state: clipped, capped, or why it was
    not trained on; empty for a token that was trained on as it is.  Numbers that were not recorded are None.
    """

    position: int
    id: int
    text: str
    sampled: float | None
    learned: float | None
    ratio: float | None
    advantage: float | None
    entropy: float | None
    state: str


def tokens_of(row: Mapping[str, Any], tokenizer: Tokenizer | None, clipping: Clipping | None) -> list[Token]:
    """The tokens of a rollout, as :func:`longthought.runs.traces.fetch` gives it."""
    ids = row["tokens"]
    old, new, entropies, advantages = (
        _column(row[name], len(ids)) for name in ("logprobs", "logprobs_new", "entropies", "advantages")
    )
    if row["advantages"] is None:
        advantages = _column([row["advantage"]] * len(ids), len(ids))
    ratios = _ratios(old, new, clipping is not None and clipping.per_reply)
    texts = spell(ids, tokenizer)
    return [
        Token(
            position,
            ids[position],
            texts[position],
            _probability(old[position]),
            _probability(new[position]),
            ratios[position],
            advantages[position],
            entropies[position],
            _state(row, ratios[position], advantages[position], clipping),
        )
        for position in range(len(ids))
    ]


def spell(ids: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    """The text of each token. Where several spell one character together, the first has it and the others nothing."""
    if tokenizer is None:
        return [f"[{token}]" for token in ids]

    @cache
    def alone(token: int) -> str:
        return tokenizer.decode([token]) if 0 <= token <= tokenizer.largest_id else f"[{token}]"

    texts = [alone(token) for token in ids]
    start = 0
    while start < len(ids):
        end = start
        while end < len(ids) and BROKEN in texts[end]:
            end += 1
        if end > start + 1:
            texts[start:end] = _joined(tokenizer, ids[start:end])
        start = end + 1
    return texts


def decoded(ids: Sequence[int], tokenizer: Tokenizer | None) -> str:
    """The text of token ids, or the ids themselves where there is no tokenizer."""
    return tokenizer.decode(ids) if tokenizer is not None else " ".join(f"[{token}]" for token in ids)


def _joined(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Texts of tokens none of which is whole: each character stands where its first token does."""
    texts: list[str] = []
    first = 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[first:end])
        if BROKEN not in text or end - first == 4 or end == len(ids):  # UTF-8 has at most four bytes
            texts += [text, *[""] * (end - first - 1)]
            first = end
    return texts


def _column(values: Sequence[float | None] | None, length: int) -> list[float | None]:
    """One number for each token; None for what is absent or NaN."""
    known = [None if value is None or math.isnan(value) else value for value in (values or ())[:length]]
    return known + [None] * (length - len(known))


def _ratios(old: Sequence[float | None], new: Sequence[float | None], per_reply: bool) -> list[float | None]:
    """exp(new - old) for each token that has both, or the geometric mean of these for all of them."""
    gaps = [None if a is None or b is None else max(-_LARGEST, min(_LARGEST, b - a)) for a, b in zip(old, new)]
    known = [gap for gap in gaps if gap is not None]
    if per_reply and known:
        mean = math.fsum(known) / len(known)
        gaps = [None if gap is None else mean for gap in gaps]
    return [None if gap is None else math.exp(gap) for gap in gaps]


def _probability(logprob: float | None) -> float | None:
    return None if logprob is None else math.exp(min(0.0, logprob))


def _state(row: Mapping[str, Any], ratio: float | None, advantage: float | None, clipping: Clipping | None) -> str:
    if row["left_out"]:
        return str(row["left_out"])
    if row["left_out"] is None:  # nothing was recorded: what the rule would do is all that can be said
        return clipping.bound(advantage or 0.0) if clipping is not None else ""
    if row["logprobs_new"] is not None and ratio is None:
        return "not trained on"
    if ratio is None or advantage is None or clipping is None:
        return ""
    return clipping.state(ratio, advantage)
