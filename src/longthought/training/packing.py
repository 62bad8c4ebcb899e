"""How rows become passes: micro-batches of bounded size, and inside each only the tokens that something depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from longthought.core.types import Batch, Rows
from longthought.models.attention import PackedAttention

_PROMPTS = 4  # for every shard, at least, where prompts are not cut
_WORTH = 8  # tokens of a prompt below which sharing it costs more than it saves


@dataclass(frozen=True)
class Layout:
    """The tokens of some rows that are computed, laid end to end.

    tokens: (S,) their places in the flattened (N · T).  attend: which of them see which.
    before: (M,) of every needed token, the packed token just before it, whose state predicts it.
    where: (M,) the places of the needed tokens in (N · T).
    """

    tokens: Tensor
    attend: PackedAttention
    before: Tensor
    where: Tensor

    @property
    def left(self) -> Int[Tensor, " s"]:
        """How many tokens of its sequence are laid behind every token, where no prompt is shared."""
        start, sizes, _ = self.attend.segments
        return torch.repeat_interleave(start + sizes, sizes) - 1 - torch.arange(len(self.tokens), device=start.device)


def layout(rows: Rows, needed: Bool[Tensor, "n t"], share: bool) -> Layout:
    """What must be computed to predict the ``needed`` tokens: nothing behind the last of a row.

    share: the tokens before the first needed one are computed once for all rows that have the same ones. That is
    exact, since nothing before a token depends on what follows.

    rows: N sequences; needed: (N, T) bool, never true at t = 0.
    """
    width = rows.tokens.shape[1]
    first, last = _spans(needed)
    owner = _same_prompt(rows.tokens.tolist(), first) if share else list(range(len(first)))
    starts: list[int] = []  # of the rows' own tokens
    prompts: list[int] = []  # of the tokens before them: where the prompt's first one lies
    pieces: list[Tensor] = []
    lengths: list[int] = []
    parents: list[int] = []
    segment: dict[int, tuple[int, int]] = {}  # of a shared prompt: its number and its start
    shared = {of for row, one in enumerate(owner) if one != row for of in (row, one)}
    place = 0

    def lay(row: int, start: int, end: int, parent: int) -> None:
        nonlocal place
        pieces.append(torch.arange(row * width + start, row * width + end))
        lengths.append(end - start)
        parents.append(parent)
        place += end - start

    for row, (begin, end) in enumerate(zip(first, last)):
        if row not in shared:
            prompts.append(place)
            starts.append(place + begin)
            lay(row, 0, end, -1)
            continue
        if owner[row] not in segment:
            segment[owner[row]] = (len(lengths), place)
            lay(row, 0, begin, -1)
        number, at = segment[owner[row]]
        prompts.append(at)
        starts.append(place)
        if end > begin:
            lay(row, begin, end, number)
    device = rows.tokens.device
    where = needed.flatten().nonzero().squeeze(-1)
    row_of, time = where // width, where % width - 1
    begins, own, prompt = (torch.tensor(x, dtype=torch.int64, device=device) for x in (first, starts, prompts))
    before = torch.where(time < begins[row_of], prompt[row_of] + time, own[row_of] + time - begins[row_of])
    attend = PackedAttention(lengths, device, parents if segment else None)
    return Layout(torch.cat(pieces).to(device), attend, before, where)


def _spans(needed: Bool[Tensor, "n t"]) -> tuple[list[int], list[int]]:
    """First and last needed token of every row; 1 and 1 where none is, so that no row is empty."""
    if not needed.numel():
        return [1] * len(needed), [1] * len(needed)
    place = torch.arange(needed.shape[1], device=needed.device)
    some = needed.any(1)
    last = torch.where(some, torch.where(needed, place, 0).amax(1), 1)
    first = torch.where(some, torch.where(needed, place, needed.shape[1]).amin(1), 1)
    return first.tolist(), last.tolist()


def _same_prompt(tokens: list[list[int]], first: Sequence[int]) -> list[int]:
    """For every row the first one that has the same tokens before its first needed one; itself for a short prompt."""
    seen: dict[tuple[int, ...], int] = {}
    return [
        number if end < _WORTH else seen.setdefault(tuple(row[:end]), number)
        for number, (row, end) in enumerate(zip(tokens, first))
    ]


def micro_batches(
    lengths: Int[Tensor, " n"], tokens: int, prompts: Sequence[tuple[int, int]] | None = None
) -> list[Int[Tensor, " _"]]:
    """Row indices of micro-batches of at most ``tokens`` real tokens each (a longer row stands alone).

    Rows are sorted by length, longest first, so that attention pads little; the order is a function of the lengths
    alone.  prompts: for every row the number of its prompt and that prompt's length, where prompts are computed once;
    then the rows of a prompt stand together, and the prompt counts once in a micro-batch.

    lengths: (N,) → index tensors that partition 0 … N−1.
    """
    order = torch.argsort(lengths, descending=True, stable=True).tolist()
    if prompts is not None:
        rank = {prompt: place for place, prompt in reversed(list(enumerate(prompts[row][0] for row in order)))}
        order.sort(key=lambda row: rank[prompts[row][0]])
    cuts: list[list[int]] = []
    room, inside = 0, -1
    for row in order:
        size = int(lengths[row])
        number, prompt = prompts[row] if prompts is not None else (row, 0)
        cost = size - prompt if number == inside else size
        if not cuts or cost > room:
            cuts.append([])
            room, cost = tokens, size
        cuts[-1].append(row)
        room, inside = room - cost, number
    return [torch.tensor(cut) for cut in cuts]


def shards(
    lengths: Int[Tensor, " n"], count: int, prompts: Sequence[tuple[int, int]] | None = None
) -> list[Int[Tensor, " _"]]:
    """Row indices of ``count`` shards with nearly equal numbers of tokens; empty ones are left out.

    The longest row goes to the lightest shard, and so on: a function of the lengths alone. With ``prompts`` (see
    ``micro_batches``) the rows of a prompt stay together, if there are prompts enough for the shards to be even.
    """
    sizes: list[int] = lengths.tolist()
    units: dict[int, list[int]] = {}
    for row in range(len(sizes)):
        units.setdefault(prompts[row][0] if prompts is not None else row, []).append(row)
    if prompts is not None and len(units) < _PROMPTS * count:
        return shards(lengths, count)
    shared = [0 if prompts is None else prompts[rows[0]][1] * (len(rows) - 1) for rows in units.values()]
    weights = [sum(sizes[row] for row in rows) - less for rows, less in zip(units.values(), shared)]
    heaps: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for weight, rows in sorted(zip(weights, units.values()), key=lambda pair: -pair[0]):
        lightest = loads.index(min(loads))
        heaps[lightest] += rows
        loads[lightest] += weight
    return [torch.tensor(sorted(heap)) for heap in heaps if heap]


def prompts_of(batch: Batch) -> list[tuple[int, int]]:
    """For every row the number of its prompt, what stands before the first token of the reply, and its length."""
    first, _ = _spans(batch.mask)
    owner = _same_prompt(batch.tokens.tolist(), first)
    return list(zip(owner, first))
