"""What an optimizer step of a reward model learns from: judged replies as tokens, and what each counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from longthought.core.errors import DataError
from longthought.core.types import Batch, Pairs, TokenIds, rows_of
from longthought.runs.reward_folder import Reads, read_tokens
from longthought.stages.left_out import Left, LeftOut, gathered, refuse
from longthought.tasks.examples import Part
from longthought.tasks.preference_rows import Label, Preference
from longthought.tasks.preferences import Labels, Preferences
from longthought.text.folder import Renderer

Skip: TypeAlias = Literal["refuse", "skip"]
TOO_LONG, UNFIT = "longer than the context", "no reply in this chat format"

_ADVICE = {
    TOO_LONG: 'Raise the context, or leave them out with long="skip".',
    UNFIT: 'Mend them, choose another prompt template, or leave them out with unfit="skip".',
}


@dataclass(frozen=True)
class Reading:
    """How judged replies become tokens.

    reads: what of a reply is read.  context: the most tokens of one.  long, unfit: what becomes of the others.
    """

    renderer: Renderer
    reads: Reads
    context: int
    long: Skip = "refuse"
    unfit: Skip = "refuse"

    def item(self, judged: Preference | Label) -> list[tuple[TokenIds, int]]:
        """Of every reply all tokens, and how many of them are its own. Raises ``Left``."""
        found = []
        try:
            asked = len(self.renderer.prompt(judged.prompt))
            texts = [read_tokens(self.renderer, judged.prompt, reply, self.reads) for reply in judged.replies]
        except DataError as error:
            raise Left(UNFIT, str(error)) from None
        for ids in texts:
            if len(ids) > self.context:
                raise Left(TOO_LONG, f"{len(ids):,} tokens, of which {self.context:,} fit")
            found.append((ids, len(ids) - asked))
        if len(found) == 2 and found[0][0] == found[1][0]:
            raise Left(UNFIT, "the two replies are the same tokens: they differ in what is not read")
        return found


@dataclass(frozen=True, eq=False)
class Sheet:
    """N judgements of k replies each, as tokens.

    replies: (N) × (k), the better reply of a pair first.  lengths: (N, k) tokens of the replies alone.
    target: (N,) the margin of a pair, or 1 for a good reply and 0 for a bad one.  prompts: (N), a number for each.
    skipped: how many were left out, by reason.
    """

    replies: list[tuple[NDArray[np.int32], ...]]
    lengths: NDArray[np.int64]
    target: NDArray[np.float64]
    prompts: list[int]
    skipped: dict[str, int]

    @classmethod
    def of(cls, data: Preferences | Labels, part: Part, reading: Reading) -> Sheet:
        """A part of the judgements. Raises DataError, listing those that cannot be used, where that is refused."""
        bad: list[LeftOut] = []
        replies, lengths, target, prompts = [], [], [], []
        numbers: dict[object, int] = {}
        for index in range(data.size(part)):
            judged = data.item(part, index)
            try:
                read = reading.item(judged)
            except Left as left:
                bad.append(left.of(data.where(part, index)))
                continue
            replies.append(tuple(np.array(ids, np.int32) for ids, _ in read))
            lengths.append([own for _, own in read])
            target.append(_target(judged))
            prompts.append(numbers.setdefault(judged.prompt, len(numbers)))
        for reason, choice in ((UNFIT, reading.unfit), (TOO_LONG, reading.long)):
            if choice == "refuse":
                refuse(bad, reason, _ADVICE[reason])
        found = gathered(bad)
        if len(replies) < 2:
            raise found.refusal(f"Of the part {part!r} {len(replies)} are left; at least 2 are needed.")
        return cls(replies, np.array(lengths), np.array(target, np.float64), prompts, dict(found.counts))

    def __len__(self) -> int:
        return len(self.replies)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Of every judgement, (N,)."""
        return np.array([sum(map(len, some)) for some in self.replies])

    @property
    def flat(self) -> list[NDArray[np.int32]]:
        """All replies, (N · k)."""
        return [reply for some in self.replies for reply in some]

    def select(self, numbers: Sequence[int]) -> Sheet:
        """Some of them."""
        chosen = [self.replies[number] for number in numbers]
        index = np.array(numbers, np.int64)
        prompts = [self.prompts[number] for number in numbers]
        return Sheet(chosen, self.lengths[index], self.target[index], prompts, self.skipped)


def pairs_of(sheet: Sheet, numbers: Sequence[int], weights: NDArray[np.float64], margin: float) -> Pairs:
    """The batch of an optimizer step: the pair n counts ``weights[n]`` / the number of pairs.

    margin: factor of the margins.
    """
    rows = _rows(sheet, numbers, weights)
    target = torch.tensor(sheet.target[list(numbers)] * margin, dtype=torch.float32)
    return Pairs(rows.tokens, rows.lengths, rows.mask, rows.weight, margin=target)


def labels_of(sheet: Sheet, numbers: Sequence[int]) -> Batch:
    """The batch of an optimizer step: every reply counts the same, and ``returns`` holds the labels."""
    rows = _rows(sheet, numbers, np.ones(len(sheet)))
    label = torch.tensor(sheet.target[list(numbers)], dtype=torch.float32)[:, None]
    return Batch(rows.tokens, rows.lengths, rows.mask, rows.weight, returns=torch.where(rows.mask, label, 0.0))


def _rows(sheet: Sheet, numbers: Sequence[int], weights: NDArray[np.float64]) -> Batch:
    chosen = [sheet.replies[number] for number in numbers]
    rows = rows_of([tuple(np.concatenate(some).tolist()) for some in chosen])
    mask = torch.zeros_like(rows.tokens, dtype=torch.bool)
    for row, some in enumerate(chosen):
        mask[row, [end - 1 for end in accumulate(map(len, some))]] = True
    each = torch.tensor(weights[list(numbers)] / len(chosen), dtype=torch.float32)
    return Batch(rows.tokens, rows.lengths, mask, mask * (each[:, None] / mask.sum(1, keepdim=True)))


def _target(judged: Preference | Label) -> float:
    return float(judged.safe) if isinstance(judged, Label) else judged.margin or 0.0
