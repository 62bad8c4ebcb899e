"""What an optimizer step of fine-tuning learns from: examples as tokens, and in which order they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from random import Random
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Renderer, Weighting
from longthought.core.types import Batch
from longthought.stages.left_out import Left, LeftOut, gathered, refuse
from longthought.tasks.examples import Examples, Part
from longthought.training.batching import documents
from longthought.training.team import Team

Long: TypeAlias = Literal["refuse", "skip", "cut"]
Unfit: TypeAlias = Literal["refuse", "skip"]

TOO_LONG, UNFIT, EMPTIED = "longer than the context", "no example in this chat format", "no reply within the context"
"""Why an example is left out."""

_ADVICE = {
    TOO_LONG: 'Raise the context, leave them out with {stage}(…, long="skip"), or learn their beginnings with '
    'long="cut" (in the recipe sft: examples.long=skip, examples.long=cut).',
    UNFIT: 'Mend them, choose another prompt template, or leave them out with {stage}(…, unfit="skip") '
    "(in the recipe sft: examples.unfit=skip).",
}
_POOL = 2048  # examples sorted by length together, so that a step pads little


def check_choices(owner: str, long: str, unfit: str) -> None:
    """Raises SettingsError for anything that is neither ``Long`` nor ``Unfit``."""
    if long not in get_args(Long) or unfit not in get_args(Unfit):
        raise SettingsError(f"{owner}: long={long!r}, unfit={unfit!r}; choose refuse, skip or cut, and refuse or skip")


@dataclass(frozen=True)
class Rendering:
    """How examples become tokens: by the renderer, at most ``context`` of each.

    long: what is longer is refused, skipped, or cut.  unfit: so is what the chat format has no place for.
    stage: that offers this choice, for the advice of an error.
    """

    examples: Examples
    renderer: Renderer
    context: int
    long: Long = "refuse"
    unfit: Unfit = "refuse"
    stage: str = "SFT"

    def some(self, member: int, part: Part, numbers: range) -> _Piece:
        """For the members of a team: those examples."""
        del member
        tokens, trained = [np.zeros(0, np.int32)], [np.zeros(0, np.bool_)]
        bad: list[LeftOut] = []
        cut = 0
        for number in numbers:
            try:
                ids, mask = self._row(part, number)
            except Left as left:
                bad.append(left.of(self.examples.where(part, number)))
                continue
            cut += len(ids) > self.context
            tokens.append(np.array(ids[: self.context], np.int32))
            trained.append(np.array(mask[: self.context], np.bool_))
        return _Piece(np.concatenate(tokens), np.concatenate(trained), [len(row) for row in tokens[1:]], bad, cut)

    def _row(self, part: Part, number: int) -> tuple[Sequence[int], Sequence[bool]]:
        """Tokens up to the last one that is learned, and which of them are. Raises ``Left``."""
        try:
            ids, mask = self.renderer.example(self.examples.messages(part, number))
        except DataError as error:
            raise Left(UNFIT, str(error)) from None
        end = len(mask) - mask[::-1].index(True) if True in mask else 0
        if end > self.context and self.long != "cut":
            raise Left(TOO_LONG, f"{end:,} tokens, of which {self.context:,} fit")
        if not any(mask[1 : self.context]):
            raise Left(EMPTIED, f"the prompt alone has {mask.index(True) if end else len(ids):,} tokens")
        return ids[:end], mask[:end]


class _Piece(NamedTuple):
    """Some rows end to end, why others are none, and how many were cut."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: list[int]
    bad: list[LeftOut]
    cut: int


@dataclass(frozen=True, eq=False)
class Rendered:
    """Examples as rows of tokens, end to end.

    tokens, trained: (S,), the second True on what is learned.  ends: (N + 1,), where the rows begin and end.
    skipped: how many examples are none, by reason.  cut: how many lost their end.
    """

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    ends: NDArray[np.int64]
    skipped: dict[str, int]
    cut: int

    @classmethod
    def of(cls, rendering: Rendering, part: Part, team: Team, handler: str, most: int | None = None) -> Rendered:
        """The first ``most`` examples of a part, or all. The team's ``handler`` is ``rendering.some``.

        Raises DataError, listing what cannot be used, where that is to be refused.
        """
        size = rendering.examples.size(part)
        count = size if most is None else min(most, size)
        bounds = [member * count // team.size for member in range(team.size + 1)]
        pieces: list[_Piece] = team.call(handler, [(part, range(*ends)) for ends in pairwise(bounds)])
        bad = [one for piece in pieces for one in piece.bad]
        for reason, choice in ((UNFIT, rendering.unfit), (TOO_LONG, rendering.long)):
            if choice == "refuse":
                refuse(bad, reason, _ADVICE[reason].format(stage=rendering.stage))
        found = gathered(bad)
        lengths = np.array([0, *(length for piece in pieces for length in piece.lengths)], np.int64)
        if part == "train" and len(lengths) == 1:
            raise found.refusal("No example is left to train on.")
        return cls(
            np.concatenate([piece.tokens for piece in pieces]),
            np.concatenate([piece.trained for piece in pieces]),
            lengths.cumsum(),
            dict(found.counts),
            sum(piece.cut for piece in pieces),
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (N,)."""
        return np.diff(self.ends)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens and of which are learned."""
        found = sha256(self.tokens.tobytes())
        for part in (self.trained, self.ends):
            found.update(part.tobytes())
        return found.hexdigest()

    def batch(self, numbers: Sequence[int], weighting: Weighting) -> Batch:
        """Some rows, with the weights of an optimizer step."""
        spans = [slice(self.ends[number], self.ends[number + 1]) for number in numbers]
        laid = documents(
            [tuple(self.tokens[span].tolist()) for span in spans], [self.trained[span].tolist() for span in spans]
        )
        return replace(laid, weight=weighting(laid.mask))


def in_steps(
    lengths: NDArray[np.int64], epochs: int, seed: int, examples: int | None, tokens: int | None
) -> list[list[list[int]]]:
    """The rows of every step of every epoch; every epoch has each row once, in an order of its own.

    examples: at most so many in a step, in steps of equal size.  tokens: instead, at most so many in a step, of rows of
    similar lengths. An epoch is a function of its number, the seed and the lengths.
    """
    planned = []
    for epoch in range(epochs):
        chance = Random(f"{seed}/{epoch}")
        order = list(range(len(lengths)))
        chance.shuffle(order)
        if tokens is None:
            assert examples is not None
            count = -(-len(order) // examples)
            planned.append([order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)])
            continue
        cuts = _by_length(order, lengths, tokens)
        chance.shuffle(cuts)
        planned.append(cuts)
    return planned


def _by_length(order: list[int], lengths: NDArray[np.int64], tokens: int) -> list[list[int]]:
    """Steps of at most ``tokens`` tokens, or of one longer row."""
    cuts: list[list[int]] = []
    for start in range(0, len(order), _POOL):
        room = -1
        for row in sorted(order[start : start + _POOL], key=lambda row: int(lengths[row])):
            if room < lengths[row]:
                cuts.append([])
                room = tokens
            cuts[-1].append(row)
            room -= int(lengths[row])
    return cuts
