"""The parts of the DeepSeek-V3 architecture (arXiv:2412.19437, section 2.1), in the names of its config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from longthought.core.errors import SettingsError


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values are made of a latent c^KV; positions have numbers of their own.

    kv_lora_rank: d_c, the width of c^KV.  q_lora_rank: d_c', that of c^Q; None: queries are not compressed.
    qk_nope_head_dim: d_h of queries and keys.  qk_rope_head_dim: d_h^R, the rotated part.  v_head_dim: d_h of values.
    rope_interleave: whether neighbours are rotated, (0, 1), (2, 3), …, or halves.
    attention_bias: biases on what makes latents and on the projection of the output.
    """

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    rope_interleave: bool = True
    attention_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"):
            if not (name == "q_lora_rank" and self.q_lora_rank is None):
                _whole(name, getattr(self, name))
        if self.qk_rope_head_dim % 2:
            raise SettingsError(f"qk_rope_head_dim={self.qk_rope_head_dim}: rotary embeddings need an even width")

    @property
    def qk_head_dim(self) -> int:
        """d_h + d_h^R, numbers of a query."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def parameters(self, width: int, heads: int) -> int:
        """Numbers in the matrices and norms of one layer."""
        q, rank, v = heads * self.qk_head_dim, self.q_lora_rank, heads * self.v_head_dim
        queries = width * q if rank is None else width * rank + rank + rank * q
        down = width * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank
        biases = (rank or 0) + self.kv_lora_rank + self.qk_rope_head_dim + width if self.attention_bias else 0
        return queries + down + self.kv_lora_rank * (heads * self.qk_nope_head_dim + v) + v * width + biases


@dataclass(frozen=True)
class Experts:
    """DeepSeekMoE: shared experts that see every token, and routed ones of which each token chooses a few.

    n_routed_experts: N_r.  num_experts_per_tok: K_r.  moe_intermediate_size: hidden width of one expert.
    n_shared_experts: N_s.  score: the affinity: sigmoid (V3, equation 15) or softmax over all experts.
    norm_topk_prob: whether the gates of the chosen ones are divided by their sum (equation 13).
    routed_scaling_factor: what the gates are multiplied with.
    n_group, topk_group: experts are chosen inside the best ``topk_group`` of ``n_group`` groups; a group is as good as
    its two best experts.
    dense_layers: layers that have an ordinary net.
    noisy: noise of a learned size on the logits in training (Shazeer et al., arXiv:1701.06538, equation 4).
    """

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int = 0
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    dense_layers: tuple[int, ...] = ()
    noisy: bool = False

    def __post_init__(self) -> None:
        for name in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group"):
            _whole(name, getattr(self, name))
        _whole("n_shared_experts", self.n_shared_experts, least=0)
        if not 0 < self.routed_scaling_factor < math.inf:
            raise SettingsError(f"routed_scaling_factor={self.routed_scaling_factor}: must be above 0 and finite")
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise SettingsError(
                f"n_group={self.n_group} must divide n_routed_experts={self.n_routed_experts}, and topk_group="
                f"{self.topk_group} be at most n_group"
            )
        size = self.n_routed_experts // self.n_group
        if self.num_experts_per_tok > self.topk_group * size:
            raise SettingsError(
                f"num_experts_per_tok={self.num_experts_per_tok}: only {self.topk_group * size} experts can be chosen"
            )
        if self.n_group > 1 and size < 2:
            raise SettingsError(f"n_group={self.n_group}: a group needs two experts, its two best are its score")
        if self.score == "softmax" and (self.n_group > 1 or self.routed_scaling_factor != 1):
            raise SettingsError("n_group and routed_scaling_factor belong to score='sigmoid'")
        if self.noisy and not (self.score == "softmax" and self.norm_topk_prob):
            raise SettingsError("noisy: the classic gate is a softmax over the chosen experts (norm_topk_prob)")
        if tuple(sorted(set(self.dense_layers))) != self.dense_layers or any(n < 0 for n in self.dense_layers):
            raise SettingsError(f"dense_layers={self.dense_layers}: must be numbers of layers, in order")

    @property
    def corrects(self) -> bool:
        """Whether a bias on the affinities balances the choice (equation 16)."""
        return self.score == "sigmoid"


def _whole(name: str, value: object, least: int = 1) -> None:
    if not (type(value) is int and value >= least):
        raise SettingsError(f"{name}={value!r}: must be a whole number, at least {least}")
