"""What a decoder costs, by its config alone: parameters, cache, FLOPs, and what fits into a memory.

A multiplication and its addition are two FLOPs. Products of matrices are counted; norms, activations, softmaxes and
rotations are not. Symbols: L layers, d width, h heads, n keys that a token attends to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from longthought.core.errors import SettingsError
from longthought.models.config import ModelConfig

GROUPS = 8
"""Key heads of the grouped-query attention that others are compared with."""


class Parts(NamedTuple):
    """Numbers in each part of the model, modules that predict further tokens left out.

    A tied head is the matrix of the embeddings, so that ``head`` is 0. ``vectors`` are norms and biases.
    """

    embeddings: int
    head: int
    attention: int
    dense_nets: int
    shared_experts: int
    routed_experts: int
    routers: int
    vectors: int


class Cache(NamedTuple):
    """A kind of attention, its key heads, and the numbers that all layers keep of one token."""

    kind: str
    heads: int
    numbers: int


@dataclass(frozen=True)
class Fit:
    """What goes into ``memory`` bytes: the weights, and caches of sequences of ``context`` tokens.

    width: bytes of a number.  weights, cache: bytes of all weights, and of the cache of one sequence. Activations are
    not counted.
    """

    memory: int
    context: int
    width: int
    weights: int
    cache: int

    @property
    def left(self) -> int:
        """Bytes beside the weights; negative where these do not fit."""
        return self.memory - self.weights

    @property
    def sequences(self) -> int:
        """How many can be in work at a time."""
        return max(0, self.left // self.cache)


def main_parameters(config: ModelConfig) -> int:
    """Embeddings, layers and head; modules that predict further tokens left out, as published sizes do."""
    return replace(config, num_nextn_predict_layers=0).parameters()


def parts(config: ModelConfig) -> Parts:
    """Where the parameters are; their sum is :func:`main_parameters`."""
    d, table, experts = config.hidden_size, config.vocab_size * config.hidden_size, config.experts
    layers, dense = config.num_hidden_layers, _dense_layers(config)
    routed, shared, chosen, routers = layers - dense, 0, 0, 0
    if experts is not None:
        shared = routed * _net(d, experts.n_shared_experts * experts.moe_intermediate_size)
        chosen = routed * _net(d, experts.n_routed_experts * experts.moe_intermediate_size)
        routers = routed * d * experts.n_routed_experts * (2 if experts.noisy else 1)
    matrices = (
        table,
        0 if config.tie_word_embeddings else table,
        layers * attention_matrices(config),
        dense * _net(d, config.intermediate_size),
        shared,
        chosen,
        routers,
    )
    return Parts(*matrices, vectors=main_parameters(config) - sum(matrices))


def attention_matrices(config: ModelConfig) -> int:
    """Numbers in the projections of one layer's attention, biases and norms left out.

    d h d_h + 2 d h_kv d_h + h d_h d, or with latents, where W^DQ and W^UQ may be one matrix,
    d d_c' + d_c' h (d_h + d_h^R) + d (d_c + d_h^R) + d_c h (d_h + d_v) + h d_v d.
    """
    d, h, latent = config.hidden_size, config.num_attention_heads, config.latent
    if latent is None:
        return 2 * d * (h + config.num_key_value_heads) * config.head_dim
    width, rank = h * latent.qk_head_dim, latent.q_lora_rank
    queries = d * width if rank is None else (d + width) * rank
    down = d * (latent.kv_lora_rank + latent.qk_rope_head_dim)
    up = latent.kv_lora_rank * h * (latent.qk_nope_head_dim + latent.v_head_dim)
    return queries + down + up + h * latent.v_head_dim * d


def expert_matrices(config: ModelConfig) -> int:
    """Numbers of a layer with experts that a token is multiplied with: 3 d f_e (N_s + K_r) and the router's d N_r."""
    experts, d = config.experts, config.hidden_size
    if experts is None:
        return 0
    seen = experts.n_shared_experts + experts.num_experts_per_tok
    return _net(d, seen * experts.moe_intermediate_size) + d * experts.n_routed_experts


def active_matrices(config: ModelConfig) -> int:
    """Numbers that one token is multiplied with: layers and head. A row of the embeddings is only looked up."""
    layers, dense = config.num_hidden_layers, _dense_layers(config)
    nets = dense * _net(config.hidden_size, config.intermediate_size) + (layers - dense) * expert_matrices(config)
    return layers * attention_matrices(config) + nets + _head(config)


def flops_per_key(config: ModelConfig, absorbed: bool = False) -> int:
    """2 h (d_k + d_v) in one layer: a key's product with a query, and its value's with a probability.

    absorbed: latent attention as decoding computes it, where the key is (c^KV, k^R) and the value c^KV.
    """
    latent = config.latent
    if absorbed and latent is None:
        raise SettingsError("absorbed: only latent attention has this form")
    if latent is None:
        key, value = config.head_dim, config.head_dim
    elif absorbed:
        key, value = latent.kv_lora_rank + latent.qk_rope_head_dim, latent.kv_lora_rank
    else:
        key, value = latent.qk_head_dim, latent.v_head_dim
    return 2 * config.num_attention_heads * (key + value)


def forward_flops(config: ModelConfig, keys: int, absorbed: bool = False) -> int:
    """2 (active matrices) + L n 2 h (d_k + d_v): one token that attends to n = ``keys`` of them, itself included.

    Both forms of latent attention multiply a token with the same matrices: absorbed, W^UK meets its query and W^UV its
    result, in place of its latent.
    """
    return 2 * active_matrices(config) + config.num_hidden_layers * keys * flops_per_key(config, absorbed)


def prefill_flops(config: ModelConfig, context: int) -> int:
    """2 (active matrices) + L (n + 1) / 2 · 2 h (d_k + d_v): a token of a sequence of n = ``context`` that is read at
    once, on average, for the t-th attends to t keys."""
    return 2 * active_matrices(config) + config.num_hidden_layers * _mean_attention(config, context)


def training_flops(config: ModelConfig, context: int) -> int:
    """3 × forward: for each product two more backward. Nothing is computed twice, nothing predicts further tokens."""
    return 3 * prefill_flops(config, context)


def prediction_flops(config: ModelConfig, context: int) -> int:
    """Forward of all modules that predict further tokens, for a token of a sequence of ``context`` on average.

    Each joins two vectors by M_k, d × 2 d, and has a layer, and the head of the model.
    """
    d = config.hidden_size
    net = expert_matrices(config) or _net(d, config.intermediate_size)
    matrices = 2 * d * d + attention_matrices(config) + net + _head(config)
    return config.num_nextn_predict_layers * (2 * matrices + _mean_attention(config, context))


def attention_kind(config: ModelConfig) -> str:
    """MLA, MHA, MQA or GQA."""
    if config.latent is not None:
        return "MLA"
    if config.num_key_value_heads == config.num_attention_heads:
        return "MHA"
    return "MQA" if config.num_key_value_heads == 1 else "GQA"


def own_cache(config: ModelConfig) -> Cache:
    """What this model keeps of a token."""
    return Cache(attention_kind(config), config.cached[0], config.cache_numbers)


def other_caches(config: ModelConfig) -> tuple[Cache, Cache, Cache]:
    """What MHA, GQA and MQA with the same layers, heads and head widths would keep: L h_kv (d_k + d_v).

    Instead of latent attention, heads are taken without the rotated part that MLA adds to them, as DeepSeek-V2 compares
    (arXiv:2405.04434, table 1). GQA has the divisor of h that is nearest to 8 key heads, of two the smaller.
    """
    h, latent = config.num_attention_heads, config.latent
    each = 2 * config.head_dim if latent is None else latent.qk_nope_head_dim + latent.v_head_dim
    divisors = (n for n in range(1, 2 * GROUPS) if h % n == 0)  # 1 is one, so that none beyond is nearer
    groups = min(divisors, key=lambda n: (abs(n - GROUPS), n))
    mha, gqa, mqa = (
        Cache(kind, heads, config.num_hidden_layers * heads * each)
        for kind, heads in (("MHA", h), ("GQA", groups), ("MQA", 1))
    )
    return mha, gqa, mqa


def fit(config: ModelConfig, memory: int, context: int, width: int) -> Fit:
    """See :class:`Fit`; modules that predict further tokens are left out."""
    weights, cache = width * main_parameters(config), width * config.cache_numbers * context
    return Fit(memory, context, width, weights, cache)


def _mean_attention(config: ModelConfig, context: int) -> int:
    """FLOPs of one layer's products with keys and values, for the tokens of a sequence on average."""
    return (context + 1) * flops_per_key(config) // 2  # exact: the latter is even


def _dense_layers(config: ModelConfig) -> int:
    """How many layers have an ordinary net."""
    return config.num_hidden_layers if config.experts is None else len(config.experts.dense_layers)


def _net(width: int, hidden: int) -> int:
    """The three matrices of SwiGLU."""
    return 3 * width * hidden


def _head(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size
