"""Self-speculative decoding: the model's own modules of multi-token prediction say what will follow, the model checks
many tokens in one pass, and keeps those that it says itself (DeepSeek-V3, arXiv:2412.19437, section 2.2;
arXiv:2211.17192).

Replies do not change. The token of a position is always the one that the model's distribution gives with the random
number of that position; a draft is drawn from a module's distribution with the same number, and counts only if it is
that token. So there is no rule of acceptance, and what is drawn does not depend on the drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from longthought.core.types import SamplingParams, TokenIds, rows_of
from longthought.engine.processors import Custom, History, process
from longthought.engine.scheduler import Row, Scheduler
from longthought.engine.wave import Steps, TorchSteps, Wave
from longthought.models.cache import SlotCache
from longthought.models.transformer import Transformer

Choose = Callable[[int, Tensor], Tensor]
"""(k, logits (slots, V) of the k-th module) → the tokens it drafts (slots,)."""


@dataclass(frozen=True)
class Drafts:
    """Counts over all replies.

    proposed: drafts that were computed for places that their reply had room for.
    accepted: those of them that became tokens, which so needed no pass of their own. A draft behind a wrong one is not
    accepted, nor one behind the end of its reply.
    """

    proposed: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share that was accepted; 0 if there were none."""
        return self.accepted / self.proposed if self.proposed else 0.0

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(self.proposed + other.proposed, self.accepted + other.accepted)

    def __sub__(self, other: Drafts) -> Drafts:
        return Drafts(self.proposed - other.proposed, self.accepted - other.accepted)


class Drafter(Steps, Protocol):
    """Steps of several tokens for every slot: its next one, and drafts of those that follow."""

    def propose(self, tokens: Int64[Tensor, " r"], choose: Choose) -> Int64[Tensor, "r depth"]:
        """Draft what follows the next tokens; −1 where nothing is drafted."""
        ...

    def verify(self) -> Float[Tensor, "r new v"]:
        """Feed the next token and the drafts of every slot; the logits of what follows each of them."""
        ...

    def confirm(self, slots: Int64[Tensor, " n"]) -> None:
        """One more of the tokens that were fed was right."""
        ...


class DraftSteps(TorchSteps):
    """Steps of 1 + D tokens for every slot: its next one at position n, and drafts of those at n + 1 … n + D.

    ``cache`` holds positions 0 … n − 1 of the model, whose states h^0 are known. Module k has its own keys and values
    there, made of h^{k−1}_i and t_{i+k}, so that the last k − 1 of them rest on drafts. Every step therefore computes
    all modules again from position n′ − D + 1 on, where n′ was the position of the step before: at most 2 D positions,
    whose h^0 stay in ``hidden``, position i at place i mod 2 D.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int, routing: bool = False) -> None:
        config = model.config
        self.depth = config.num_nextn_predict_layers
        room = capacity + 3 * self.depth  # what is computed for nothing behind the last token
        super().__init__(model, slots, room, routing)
        modules = range(config.num_hidden_layers, config.num_hidden_layers + self.depth)
        self.ahead = SlotCache(config, slots, room, self.dtype, self.device, modules)
        wide = model.lm_head.weight.dtype
        self.hidden = torch.zeros(slots, 2 * self.depth, config.hidden_size, dtype=wide, device=self.device)
        self.tokens = torch.zeros(slots, room, dtype=torch.int64, device=self.device)

    def admit(self, prompts: Sequence[TokenIds], slots: Int64[Tensor, " n"], which: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        written = pad(rows_of(list(prompts)).tokens.to(self.device), (0, self.depth))
        self.tokens[slots, : written.shape[1]] = written[which]
        if max(map(len, prompts)) == 1:
            self.cache.length[slots] = 0
            return
        hidden, prefill = self._prefill(prompts, slots, which)
        prefill.stored.clear()
        following = torch.stack([prefill.pack(written[:, k : k + prefill.width]) for k in range(1, self.depth + 1)])
        self.model.ahead(hidden, following, prefill.positions, prefill)
        last = (prefill.sizes[:, None] - self.depth + self._numbers(self.depth)).clamp_(min=0)
        states = prefill.pad(hidden)[self._numbers(len(prompts))[:, None], last]
        self.hidden[slots[:, None], (last % self.hidden.shape[1])[which]] = states[which].to(self.hidden.dtype)
        prefill.sizes = (prefill.sizes - self.depth).clamp_(min=0)
        self.ahead.fill(slots, prefill, which)

    def propose(self, tokens: Int64[Tensor, " r"], choose: Choose) -> Int64[Tensor, "r depth"]:
        """Draft what follows the next tokens; −1 where no state is known to start from."""
        row, known, start = self._numbers(len(tokens)), self.cache.length, self.ahead.length
        self.tokens[row, known] = tokens
        drafts = self.tokens.new_full((len(tokens), self.depth), -1)
        width = int((known - start).max())
        if width > 0:
            places = start[:, None] + self._numbers(width)
            rope = self.model.rope(self._positions(places))
            hidden = self.hidden[row[:, None], places % self.hidden.shape[1]].flatten(0, 1)
            last = row * width + (known - start - 1).clamp_(min=0)
            self.ahead.begin_step(width)
            for k, module in enumerate(self.model.model.mtp, 1):
                following = self.model.model.embed_tokens(self.tokens[row[:, None], places + k].flatten())
                hidden = module(hidden, following, rope, self.ahead, None)
                chosen = choose(k, hidden[last] @ self.model.lm_head.weight.T)
                self.tokens[row, known + k] = chosen
                drafts[:, k - 1] = torch.where(known > 0, chosen, -1)
        self.ahead.length = (known - self.depth + 1).clamp_(min=0)  # of free slots, too: their 0 is known
        return drafts

    def verify(self) -> Float[Tensor, "r new v"]:
        """Feed the next token and the drafts of every slot; the logits of what follows each of them."""
        known = self.cache.length
        row, places = self._numbers(len(known))[:, None], known[:, None] + self._numbers(1 + self.depth)
        self.cache.begin_step(1 + self.depth)
        routing = self._routing()
        packed: Tensor = self.model(self.tokens[row, places].flatten(), self._positions(places), self.cache, routing)
        if routing is not None:
            self.choices = routing.choices().short().unflatten(0, places.shape)
        hidden = packed.unflatten(0, places.shape)
        self.hidden[row, places % self.hidden.shape[1]] = hidden.to(self.hidden.dtype)
        logits: Tensor = hidden @ self.model.lm_head.weight.T
        return logits

    def confirm(self, slots: Int64[Tensor, " n"]) -> None:
        """One more of the tokens that were fed was right."""
        self.cache.length[slots] += 1

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """See ``Steps``."""
        super().keep(rows)
        self.ahead.keep(rows)
        self.hidden, self.tokens = self.hidden[rows], self.tokens[rows]

    def _numbers(self, count: int) -> Int64[Tensor, " count"]:
        return torch.arange(count, device=self.device)

    def _positions(self, places: Int64[Tensor, "r w"]) -> Int64[Tensor, " s"]:
        """Packed; what lies behind the context is computed for nothing, at its last position."""
        return places.flatten().clamp(max=self.model.config.max_position_embeddings - 1)


class DraftingWave(Wave):
    """A wave that takes 1 … 1 + D tokens in every slot and step, one after the other, by the rules of all waves.

    Drafts are drawn by the same rules, but for a user's own processors, and the repetition penalty does not know the
    drafts before them: that makes some drafts wrong, and no reply.
    """

    def __init__(
        self, steps: Drafter, prompts: Sequence[TokenIds], params: SamplingParams, slots: int, capacity: int
    ) -> None:
        super().__init__(steps, prompts, params, slots, capacity)
        self._drafter, self.drafts = steps, Drafts()
        self._draft_rules = [rule for rule in self.rules if not isinstance(rule, Custom)]

    def step(self, scheduler: Scheduler) -> list[Row]:
        """See ``Wave``."""
        drafts = self._drafter.propose(self.next, self._choose)
        logits = self._drafter.verify()
        rows = [(slot, row) for slot, row in enumerate(scheduler.slots) if row is not None]
        proposed = (drafts >= 0).sum(1).tolist()
        room = sum(min(proposed[slot], row.limit - len(row.tokens) - 1) for slot, row in rows)
        going, finished, accepted = self._index([slot for slot, _ in rows]), list[Row](), 0
        for place in range(logits.shape[1]):
            if place:
                right = (self.next[going] == drafts[going, place - 1]).tolist()
                pairs = zip(going.tolist(), right)
                going = self._index([slot for slot, same in pairs if same and scheduler.slots[slot] is not None])
                accepted += len(going)
            if not len(going):
                break
            self._drafter.confirm(going)
            choices = None if self.steps.choices is None else self.steps.choices[going, place]
            finished += self._take(logits[going, place], going, scheduler, choices)
        self.drafts += Drafts(room, accepted)
        return finished

    def _choose(self, k: int, logits: Float[Tensor, "r v"]) -> Int64[Tensor, " r"]:
        scores = process(logits, History(self.count + (k - 1), self.seen), self._draft_rules)
        tokens, _ = self._draw(scores, self._everyone(), k - 1)
        return tokens
