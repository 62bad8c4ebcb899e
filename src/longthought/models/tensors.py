"""Every tensor of a model folder, in Hugging Face's names: its shape, and which numbers of the model it holds.

The experts of a layer are one tensor in memory and one file entry each. A module that predicts further tokens is stored
as a layer after the last, as in the folder of DeepSeek-V3, with copies of the matrices that it shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longthought.models.config import ModelConfig

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BIAS = "e_score_correction_bias"
_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a folder.

    place: the name of its numbers in ``Transformer.state_dict()``.
    expert: which of the matrices that are stacked there; None: all that is there.
    copy: whether the numbers are stored under another name already; then a folder need not have it.
    """

    name: str
    shape: tuple[int, ...]
    place: str
    expert: int | None = None
    copy: bool = False

    def dtype(self, others: torch.dtype) -> torch.dtype:
        """Of its numbers, in memory and on the disk: a bias that balances is float32 in a model of any type."""
        return torch.float32 if self.place.endswith(_BIAS) else others

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Its numbers, a view."""
        whole = state[self.place]
        return whole if self.expert is None else whole[self.expert]


def tensors(config: ModelConfig) -> Iterator[Stored]:
    """Every tensor of the model, lazily: a config may speak of more layers than there is memory for."""
    words = (config.vocab_size, config.hidden_size)
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    yield Stored(EMBEDDING, words, EMBEDDING)
    for layer in range(config.num_hidden_layers):
        yield from _block(config, layer, f"model.layers.{layer}")
    yield Stored("model.norm.weight", (config.hidden_size,), "model.norm.weight")
    yield Stored(HEAD, words, head, copy=config.tie_word_embeddings)
    for k in range(config.num_nextn_predict_layers):
        layer = config.num_hidden_layers + k
        stored, place, d = f"model.layers.{layer}", f"model.mtp.{k}", config.hidden_size
        yield Stored(f"{stored}.enorm.weight", (d,), f"{place}.enorm.weight")
        yield Stored(f"{stored}.hnorm.weight", (d,), f"{place}.hnorm.weight")
        yield Stored(f"{stored}.eh_proj.weight", (d, 2 * d), f"{place}.eh_proj.weight")
        yield from _block(config, layer, f"{place}.block")
        yield Stored(f"{stored}.shared_head.norm.weight", (d,), f"{place}.norm.weight")
        yield Stored(f"{stored}.shared_head.head.weight", words, head, copy=True)
        yield Stored(f"{stored}.embed_tokens.weight", words, EMBEDDING, copy=True)


def _block(config: ModelConfig, layer: int, place: str) -> Iterator[Stored]:
    """One layer, whose module in memory is called ``place``."""
    d = config.hidden_size
    parts: _Shapes = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    parts |= _grouped(config) if config.latent is None else _latent(config)
    if not config.is_routed(layer):
        parts |= _net("mlp", d, config.intermediate_size, config.mlp_bias)
    for name, shape in parts.items():
        yield Stored(f"model.layers.{layer}.{name}", shape, f"{place}.{name}")
    if config.is_routed(layer):
        yield from _experts(config, f"model.layers.{layer}.mlp", f"{place}.mlp")


def _grouped(config: ModelConfig) -> _Shapes:
    """Grouped-query attention: name → shape."""
    d, c = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * c, config.num_key_value_heads * c
    parts = _linear("self_attn.q_proj", q, d, config.qkv_bias) | _linear("self_attn.k_proj", kv, d, config.qkv_bias)
    parts |= _linear("self_attn.v_proj", kv, d, config.qkv_bias) | _linear("self_attn.o_proj", d, q, config.output_bias)
    return parts | ({"self_attn.q_norm.weight": (c,), "self_attn.k_norm.weight": (c,)} if config.qk_norm else {})


def _latent(config: ModelConfig) -> _Shapes:
    """Multi-head latent attention: name → shape."""
    assert config.latent is not None
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.latent
    bias, rank, down = latent.attention_bias, latent.q_lora_rank, latent.kv_lora_rank
    if rank is None:
        parts = _linear("self_attn.q_proj", heads * latent.qk_head_dim, d)
    else:
        parts = _linear("self_attn.q_a_proj", rank, d, bias) | {"self_attn.q_a_layernorm.weight": (rank,)}
        parts |= _linear("self_attn.q_b_proj", heads * latent.qk_head_dim, rank)
    parts |= _linear("self_attn.kv_a_proj_with_mqa", down + latent.qk_rope_head_dim, d, bias)
    parts["self_attn.kv_a_layernorm.weight"] = (down,)
    parts |= _linear("self_attn.kv_b_proj", heads * (latent.qk_nope_head_dim + latent.v_head_dim), down)
    return parts | _linear("self_attn.o_proj", d, heads * latent.v_head_dim, bias)


def _experts(config: ModelConfig, stored: str, place: str) -> Iterator[Stored]:
    """The router, the shared experts as one net, and every routed expert."""
    assert config.experts is not None
    d, shape = config.hidden_size, config.experts
    count, wide = shape.n_routed_experts, shape.moe_intermediate_size
    yield Stored(f"{stored}.gate.weight", (count, d), f"{place}.gate.weight")
    if shape.corrects:
        yield Stored(f"{stored}.gate.{_BIAS}", (count,), f"{place}.gate.{_BIAS}")
    if shape.noisy:
        yield Stored(f"{stored}.gate.noise.weight", (count, d), f"{place}.gate.noise")
    if shape.n_shared_experts:
        for name, size in _net("shared_experts", d, shape.n_shared_experts * wide).items():
            yield Stored(f"{stored}.{name}", size, f"{place}.{name}")
    sizes = {"gate_proj": (wide, d), "up_proj": (wide, d), "down_proj": (d, wide)}
    for expert in range(count):
        for name, size in sizes.items():
            yield Stored(f"{stored}.experts.{expert}.{name}.weight", size, f"{place}.experts.{name}", expert)


def _net(name: str, width: int, hidden: int, bias: bool = False) -> _Shapes:
    parts = _linear(f"{name}.gate_proj", hidden, width, bias) | _linear(f"{name}.up_proj", hidden, width, bias)
    return parts | _linear(f"{name}.down_proj", width, hidden, bias)


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> _Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})
