"""A critic: the policy's trunk, copied, with one number per state on top."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longthought.core.types import PolicyOutput, Rows
from longthought.models.attention import Attention
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer
from longthought.training.learner import hidden_before, spread


class ValueModel(nn.Module):
    """V of the state after every token. It starts as a copy of the policy's trunk, with a head that says 0.

    Its experts are its own, and chosen by routers of its own; what predicts further tokens is left out. It has room for
    one token more than the policy, so that the state after a full context has a value too.
    """

    def __init__(self, policy: Transformer) -> None:
        super().__init__()
        config = policy.config
        longer = config.max_position_embeddings + 1
        self.trunk = Transformer(replace(config, max_position_embeddings=longer, num_nextn_predict_layers=0))
        told = policy.state_dict()
        self.trunk.load_state_dict({name: told[name] for name in self.trunk.state_dict()})
        self.trunk.to(policy.lm_head.weight.device)
        self.trunk.lm_head = nn.Identity()  # type: ignore[assignment]  # no logits, and nothing that never moves
        self.value_head = nn.Linear(config.hidden_size, 1).to(policy.lm_head.weight)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Int[Tensor, " s"], positions: Int[Tensor, " s"], attend: Attention, routing: Routing | None = None
    ) -> Float[Tensor, "s d"]:
        """Hidden states; tokens, positions: (S,) int64 → (S, D)."""
        out: Tensor = self.trunk(tokens, positions, attend, routing)
        return out


@dataclass(frozen=True)
class ValueHead:
    """V of the state *before* every needed token. A temperature never touches it."""

    def __call__(self, model: ValueModel, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput:
        states, where = hidden_before(model, rows, needed)
        values = model.value_head(states).squeeze(-1)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        blank = wide.new_zeros(needed.shape)
        return PolicyOutput(blank, blank, spread(wide, where, needed))


def with_end(rows: Rows) -> Rows:
    """The rows with one more token each, so that what stands *before* it is the state after the last one."""
    tokens = torch.cat((rows.tokens, rows.tokens.new_zeros(len(rows.tokens), 1)), 1)
    tokens[torch.arange(len(tokens)), rows.lengths] = 0
    return Rows(tokens, rows.lengths + 1)
