"""Routed experts in training: what the routers of a pass do, and what keeps them even.

    Watch      one pass: what was chosen, for which sequence, and whether the sampler had chosen the same
    Balancing  the bias that moves after an optimizer step, and the losses
    Routed     sums over passes, and the metrics that they make

A token counts where a router has computed it. Rows are packed, so there is no padding, and computed up to the token
before their last trained one. A prompt that several replies share counts once where it is computed once; under
``Balancing`` it never is, so that any split into passes gives the same loads and the same sequence-wise loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Rows
from longthought.models import balance
from longthought.models.attention import Attention
from longthought.models.experts import MixtureOfExperts, Router
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer
from longthought.training.packing import Layout


class Note(NamedTuple):
    """What one router did in a pass, without the tokens behind which nothing is predicted.

    s: (S, E) affinities, with gradients.  chosen: (S, K).  sequence: (S,) of every token, the number of its row.
    evenness: Σ_i f_i P_i summed over the rows, with gradients.
    """

    router: Router
    s: Tensor
    chosen: Tensor
    sequence: Tensor
    evenness: Tensor


@dataclass(frozen=True)
class Balancing:
    """How the load of the experts is kept even. Under it noisy gates have their noise, which is there for the same end.

    rate: γ, by which the bias of every expert moves after an optimizer step, by the loads of the whole step.
    alpha: α of the sequence-wise loss, the mean over all sequences of the step, summed over the routed layers
    (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20).
    importance: w of CV(importance)², the loss of the classic softmax gate (arXiv:1701.06538, equation 7), summed over
    the layers. It is defined on what is computed together: every pass counts by its share of the step's rows, so that
    it depends on ``micro_tokens`` and on the number of workers.
    """

    rate: float = 1e-3
    alpha: float = 1e-4
    importance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate", "alpha", "importance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise SettingsError(f"balancing: {name}={value!r} must be at least 0 and finite")
        if not (self.rate or self.alpha or self.importance):
            raise SettingsError("balancing changes nothing with rate, alpha and importance 0; leave it out")

    def check(self, routers: Mapping[int, Router]) -> None:
        """Raises SettingsError where nothing would be balanced."""
        if not routers:
            raise SettingsError("balancing changes nothing: the model has no routed experts; leave it out")
        if not any(router.weight.requires_grad for router in routers.values()):
            raise SettingsError("balancing: the routers are frozen, as under an adapter; leave it out, or train them")
        if self.rate and not any(router.shape.corrects for router in routers.values()):
            raise SettingsError(
                f"balancing: rate={self.rate} changes nothing: a softmax gate has no bias; set rate=0, and alpha or "
                "importance"
            )

    def loss(self, notes: Iterable[Note], rows: int, sequences: int) -> Float[Tensor, ""]:
        """What a pass over ``rows`` of the step's ``sequences`` adds to the loss. Those of all passes add up."""
        total = torch.zeros(())
        for router, s, chosen, _, evenness in notes:
            if self.alpha:
                total = total + self.alpha / sequences * evenness
            if self.importance:
                given = balance.importance(s, chosen, router.gates(s, chosen))
                total = total + self.importance * rows / sequences * balance.squared_variation(given)
        return total

    def move(self, routers: Mapping[int, Router], seen: Routed) -> None:
        """b_i ± γ by the loads of an optimizer step. A router that saw no token keeps its bias."""
        if self.rate:
            for router, load in zip(routers.values(), seen.loads, strict=True):
                if router.shape.corrects:
                    bias = router.e_score_correction_bias
                    balance.update_bias(bias, load.to(bias.device), self.rate)


@dataclass(frozen=True)
class Routed:
    """Sums over passes, on the CPU.

    loads: (L, E) pairs of a token and an expert that it chose.  evenness: (L,) Σ_i f_i P_i summed over sequences, of
    which there were ``sequences`` (L,).  differing, of ``compared`` pairs: not what the sampler had chosen.
    """

    loads: Tensor
    evenness: Tensor
    sequences: Tensor
    differing: int = 0
    compared: int = 0

    def __add__(self, other: Routed) -> Routed:
        return Routed(
            self.loads + other.loads,
            self.evenness + other.evenness,
            self.sequences + other.sequences,
            self.differing + other.differing,
            self.compared + other.compared,
        )

    def metrics(self) -> dict[str, float]:
        """``max_violation``: the heaviest load over the mean one, minus 1, the mean over layers; and the worst layer's.
        ``balance_loss``: Σ_i f_i P_i, the mean over sequences and layers, without α: 1 where all is even.
        ``routing_disagreement``: the share of the pairs that the sampler had not chosen."""
        ran = self.sequences > 0
        found: dict[str, float] = {}
        if ran.any():
            violation = balance.maximal_violation(self.loads[ran])
            found["max_violation"], found["max_violation_worst"] = float(violation.mean()), float(violation.max())
            found["balance_loss"] = float((self.evenness[ran] / self.sequences[ran]).mean())
        if self.compared:
            found["routing_disagreement"] = self.differing / self.compared
        return found


class Watch:
    """What the routers of one pass are told, and what they do.

    replay: whether tokens choose again what they chose when they were sampled, where the rows tell; otherwise that is
    compared only.  seed: of the noise of noisy gates; None: none.
    """

    def __init__(self, routers: Mapping[int, Router], depth: int, replay: bool, seed: int | None = None) -> None:
        self._routers, self._depth, self._replay, self._seed = routers, depth, replay, seed
        self._main = sum(layer < depth for layer in routers)
        self.routing: Routing | None = None

    def begin(self, rows: Rows, laid: Layout) -> None:
        """The tokens that come next."""
        self._laid, self._rows = laid, len(rows.tokens)
        self._sequence = laid.tokens // rows.tokens.shape[1]
        self._sampled = None if rows.routing is None else self._known(rows.routing)[laid.tokens]
        self.routing = Routing(tuple(self._routers), self._sampled if self._replay else None, self._seed)

    def _known(self, routing: Int[Tensor, "n t l k"]) -> Int[Tensor, "s l k"]:
        chosen = next(iter(self._routers.values())).shape.num_experts_per_tok
        if routing.shape[2:] != (self._main, chosen):
            raise DataError(
                f"the rows tell {routing.shape[3]} experts of {routing.shape[2]} layers for every token, but the model "
                f"has {self._main} routed layers of which a token chooses {chosen}: another model sampled them"
            )
        return routing.flatten(0, 1).long()

    def notes(self) -> dict[int, Note]:
        """Layer → what its router did; of the layers that have run."""
        if self.routing is None:
            raise SettingsError(
                "the head did not say which rows it computes, so nothing is known of the experts; let it ask the model "
                "through longthought.training.learner.hidden_before"
            )
        found: dict[int, Note] = {}
        for layer, s in self.routing.affinities.items():
            chosen, sequence = self.routing.chosen[layer], self._sequence
            if layer >= self._depth:
                alive = self._laid.left >= layer - self._depth + 1
                s, chosen, sequence = s[alive], chosen[alive], sequence[alive]
            evenness = balance.sequence_balance(s, chosen, sequence, self._rows).sum()
            found[layer] = Note(self._routers[layer], s, chosen, sequence, evenness)
        return found

    @torch.no_grad()
    def sums(self, notes: Mapping[int, Note]) -> Routed:
        """What the metrics are made of."""
        experts = next(iter(self._routers.values())).shape.n_routed_experts
        loads = torch.zeros(len(self._routers), experts, dtype=torch.float64)
        evenness, sequences = torch.zeros(2, len(self._routers), dtype=torch.float64)
        differing = compared = 0
        for place, layer in enumerate(self._routers):
            if layer in notes:
                router, s, chosen, sequence, even = notes[layer]
                loads[place], evenness[place] = balance.loads(chosen, experts).cpu(), even.cpu()
                sequences[place] = len(sequence.unique())
                if self._sampled is not None and layer < self._depth:
                    own = router.select(s) if self._replay else chosen
                    pairs = _disagreement(own, self._sampled[:, place])
                    differing, compared = differing + pairs[0], compared + pairs[1]
        return Routed(loads, evenness, sequences, differing, compared)


class Watched:
    """A model as a head sees it while its routers are watched."""

    def __init__(self, model: Any, watch: Watch, share: bool) -> None:
        self._model, self._watch = model, watch
        self.shares_prompts = share and getattr(model, "shares_prompts", False)

    def begin(self, rows: Rows, laid: Layout) -> None:
        """The tokens that come next."""
        self._watch.begin(rows, laid)

    def __call__(
        self, tokens: Int[Tensor, " s"], positions: Int[Tensor, " s"], attend: Attention
    ) -> Float[Tensor, "s d"]:
        out: Tensor = self._model(tokens, positions, attend, self._watch.routing)
        return out

    def ahead(
        self,
        hidden: Float[Tensor, "s d"],
        following: Int[Tensor, "depth s"],
        positions: Int[Tensor, " s"],
        attend: Attention,
    ) -> list[Float[Tensor, "s d"]]:
        """As ``Transformer.ahead``."""
        out: list[Tensor] = self._model.ahead(hidden, following, positions, attend, self._watch.routing)
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def routers_of(model: nn.Module) -> tuple[dict[int, Router], int]:
    """The routers of the decoder in a model by their layers, and the number of layers before those that predict
    further."""
    decoder = next((module for module in model.modules() if isinstance(module, Transformer)), None)
    if decoder is None:
        return {}, 0
    blocks = list(enumerate(decoder.model.layers))
    if decoder.config.num_nextn_predict_layers:
        blocks += [(module.layer, module.block) for module in decoder.model.mtp]  # type: ignore[misc]
    found = {layer: block.mlp.gate for layer, block in blocks if isinstance(block.mlp, MixtureOfExperts)}
    return found, decoder.config.num_hidden_layers


def bias_spread(routers: Mapping[int, Router]) -> dict[str, float]:
    """``bias_spread``: the largest bias minus the smallest, the mean over layers; empty where there is no bias."""
    biases = [router.e_score_correction_bias for router in routers.values() if router.shape.corrects]
    spreads = [float(bias.max() - bias.min()) for bias in biases]
    return {"bias_spread": sum(spreads) / len(spreads)} if spreads else {}


def _disagreement(own: Int[Tensor, "s k"], sampled: Int[Tensor, "s k"]) -> tuple[int, int]:
    """Of the sampler's known choices, how many are not among the own ones; and how many are known."""
    known: Bool[Tensor, "s k"] = sampled >= 0
    missing = ~(sampled.unsqueeze(-1) == own.unsqueeze(-2)).any(-1) & known
    return int(missing.sum()), int(known.sum())
