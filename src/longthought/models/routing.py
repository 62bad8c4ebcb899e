"""What the routers of one pass do: told beforehand, or noted for those who balance, replay and measure."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longthought.models.parts import Experts


class Routing:
    """The choices of all routed layers in one pass over S tokens.

    replay: (S, L_r, K_r), the experts that the tokens chose when they were sampled, in the order of the routed layers;
    gates and gradients are then of these, too, so that sampler and learner run the same net. Negative: no choice is
    known, and the router's own is taken for that token.
    layers: the numbers of the routed layers.  seed: of the noise of noisy gates; None: none.
    """

    def __init__(
        self, layers: tuple[int, ...], replay: Int[Tensor, "s l k"] | None = None, seed: int | None = None
    ) -> None:
        self._place = {layer: place for place, layer in enumerate(layers)}
        self._replay, self._seed = replay, seed
        self.affinities: dict[int, Tensor] = {}
        """Layer → (S, E), with gradients."""
        self.chosen: dict[int, Tensor] = {}
        """Layer → (S, K)."""

    def prescribed(self, layer: int) -> Int[Tensor, "s k"] | None:
        """What the tokens have to choose; None: what they like."""
        place = self._place[layer]
        if self._replay is None or place >= self._replay.shape[1]:  # what predicts further is not sampled from
            return None
        return self._replay[:, place]

    def noise(self, layer: int, tokens: int, shape: Experts) -> Float[Tensor, "s e"] | None:
        """Standard normal numbers for a noisy gate."""
        if self._seed is None or not shape.noisy:
            return None
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + layer) % 2**63)
        return torch.randn(tokens, shape.n_routed_experts, generator=generator)

    def note(self, layer: int, s: Float[Tensor, "s e"], chosen: Int[Tensor, "s k"]) -> None:
        """What a router has found and chosen."""
        self.affinities[layer], self.chosen[layer] = s, chosen

    def choices(self) -> Int[Tensor, "s l k"]:
        """All choices, (S, L_r, K_r), as ``replay`` takes them."""
        return torch.stack([self.chosen[layer] for layer in self._place if layer in self.chosen], 1)
