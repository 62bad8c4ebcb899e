"""A whole decoder as the native core decodes with it: packed matrices, and the C structures that point to them.

The structures are those of ``csrc/decoder.h``, ``csrc/latent.h`` and ``csrc/routed.h``, field by field.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p
from typing import TypeAlias

import torch
from torch import Tensor, nn

from longthought.models.config import ModelConfig
from longthought.models.experts import MixtureOfExperts, Router
from longthought.models.kernels.core import Core, at
from longthought.models.kernels.core import core as core_of
from longthought.models.kernels.packed import (
    PackedExperts,
    PackedHeads,
    PackedLatent,
    PackedNet,
    gain,
    pack_layer,
    weight,
)
from longthought.models.latent import LatentAttention
from longthought.models.transformer import Block, Prediction, Transformer

Named: TypeAlias = dict[str, Tensor | None]
"""What the pointers of a C structure, by their names, point to."""


class _LatentShape(Structure):
    _fields_ = [*((name, c_int64) for name in ("q_rank", "kv_rank", "plain", "turned", "value")), ("scale", c_double)]


class _RoutedShape(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("experts", "chosen", "ffn", "shared", "groups", "best_groups")),
        *((name, c_int32) for name in ("softmax", "normed")),
        ("factor", c_double),
    ]


class _LatentLayer(Structure):
    _fields_ = [
        (name, c_void_p) for name in ("down", "queries", "absorbed", "expanded", "down_bias", "q_norm", "kv_norm")
    ]


class _RoutedLayer(Structure):
    _fields_ = [(name, c_void_p) for name in ("router", "correction", "gate_up", "down")]


class _Layer(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("qkv_bias", "out_bias", "gate_up_bias", "down_bias")),
        *((name, c_void_p) for name in ("attention_norm", "ffn_norm", "q_gain", "k_gain")),
        ("latent", _LatentLayer),
        ("routed", _RoutedLayer),
    ]


class _Module(Structure):
    _fields_ = [(name, c_void_p) for name in ("joined", "embedding_norm", "state_norm", "norm")]


class _Decoder(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("vocabulary", "width", "ffn", "layers", "ahead")),
        *((name, c_int64) for name in ("queries", "keys", "head_width", "positions")),
        ("latent", _LatentShape),
        ("routed", _RoutedShape),
        ("eps", c_float),
        ("narrow_embedding", c_int32),
        *((name, c_void_p) for name in ("embedding", "head", "norm", "cos", "sin", "layer", "module")),
    ]


class PackedDecoder:
    """The weights of a model as they are now, a LoRA merged: a C structure, and the tensors that it points to.

    ahead: whether its modules of multi-token prediction are there, too.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, core: Core, ahead: bool = False) -> None:
        self.config: ModelConfig = model.config
        self._kept: list[Tensor | None] = []
        config, embedding = model.config, model.model.embed_tokens.weight.detach()
        modules = [module for module in model.model.mtp if isinstance(module, Prediction)] if ahead else []
        blocks = [*model.model.layers, *(module.block for module in modules)]
        self._layers = (_Layer * len(blocks))(*(self._layer(block, core) for block in blocks))
        self._modules = (_Module * len(modules))(*(self._module(module, core) for module in modules))
        tensors: Named = {
            "embedding": embedding,
            "head": core.matrix([model.lm_head.weight], backward=False).panels,
            "norm": gain(model.model.norm),
            "cos": _wide(model.cos),
            "sin": _wide(model.sin),
        }
        self._struct = _Decoder(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            ffn=config.intermediate_size,
            layers=config.num_hidden_layers,
            ahead=len(modules),
            queries=config.num_attention_heads,
            keys=config.num_key_value_heads,
            head_width=config.head_dim,
            positions=config.max_position_embeddings,
            latent=_latent_shape(model),
            routed=_routed_shape(config),
            eps=config.rms_norm_eps,
            narrow_embedding=int(embedding.dtype == torch.bfloat16),
            layer=ctypes.cast(self._layers, c_void_p),
            module=ctypes.cast(self._modules, c_void_p),
            **self._pointers(tensors),
        )

    @property
    def address(self) -> int:
        """Of the C structure."""
        return ctypes.addressof(self._struct)

    def _layer(self, block: nn.Module, core: Core) -> _Layer:
        assert isinstance(block, Block)
        packed = pack_layer(block, core, backward=False)
        attention, net = packed.attention, packed.net
        tensors: Named = {"attention_norm": packed.attention_norm, "ffn_norm": packed.ffn_norm}
        latent: Named = {}
        routed: Named = {}
        if isinstance(attention, PackedHeads):
            tensors |= _heads(attention)
        else:
            assert isinstance(block.self_attn, LatentAttention)
            tensors |= {"out": attention.out.panels, "out_bias": attention.out_bias}
            latent = _latent(attention, block.self_attn, core)
        if isinstance(net, PackedNet):
            tensors |= _net(net)
        else:
            assert isinstance(block.mlp, MixtureOfExperts)
            routed = _routed(net, block.mlp.gate, core)
            tensors |= {} if net.shared is None else _net(net.shared)
        return _Layer(
            latent=_LatentLayer(**self._pointers(latent)),
            routed=_RoutedLayer(**self._pointers(routed)),
            **self._pointers(tensors),
        )

    def _module(self, module: Prediction, core: Core) -> _Module:
        tensors: Named = {
            "joined": _matrix(module.eh_proj, core),
            "embedding_norm": gain(module.enorm),
            "state_norm": gain(module.hnorm),
            "norm": gain(module.norm),
        }
        return _Module(**self._pointers(tensors))

    def _pointers(self, tensors: Named) -> dict[str, int | None]:
        self._kept += tensors.values()
        return {name: at(tensor) for name, tensor in tensors.items()}


def _latent_shape(model: Transformer) -> _LatentShape:
    shape, attention = model.config.latent, model.model.layers[0].self_attn
    if shape is None:
        return _LatentShape()
    assert isinstance(attention, LatentAttention)
    return _LatentShape(
        shape.q_lora_rank or 0,
        shape.kv_lora_rank,
        shape.qk_nope_head_dim,
        shape.qk_rope_head_dim,
        shape.v_head_dim,
        attention.scale,
    )


def _routed_shape(config: ModelConfig) -> _RoutedShape:
    shape = config.experts
    if shape is None:
        return _RoutedShape()
    return _RoutedShape(
        shape.n_routed_experts,
        shape.num_experts_per_tok,
        shape.moe_intermediate_size,
        shape.n_shared_experts * shape.moe_intermediate_size,
        shape.n_group,
        shape.topk_group,
        int(shape.score == "softmax"),
        int(shape.norm_topk_prob),
        shape.routed_scaling_factor,
    )


def _heads(packed: PackedHeads) -> Named:
    return {
        "qkv": packed.qkv.panels,
        "out": packed.out.panels,
        "qkv_bias": packed.qkv_bias,
        "out_bias": packed.out_bias,
        "q_gain": packed.q_gain,
        "k_gain": packed.k_gain,
    }


def _net(packed: PackedNet) -> Named:
    return {
        "gate_up": packed.gate_up.panels,
        "down": packed.down.panels,
        "gate_up_bias": packed.gate_up_bias,
        "down_bias": packed.down_bias,
    }


def _latent(packed: PackedLatent, attention: LatentAttention, core: Core) -> Named:
    shape = attention.shape
    up = weight(attention.kv_b_proj).unflatten(0, (attention.heads, shape.qk_nope_head_dim + shape.v_head_dim))
    w_uk = up[:, : shape.qk_nope_head_dim]
    return {
        "down": packed.qkv.panels,
        "queries": None if packed.q_up is None else packed.q_up.panels,
        "absorbed": core.matrix([w_uk.transpose(1, 2).flatten(0, 1)], backward=False).panels,
        "expanded": packed.kv_up.panels,
        "down_bias": packed.qkv_bias,
        "q_norm": packed.q_gain,
        "kv_norm": packed.kv_gain,
    }


def _routed(packed: PackedExperts, router: Router, core: Core) -> Named:
    exact = core_of(core.library, torch.float32)
    return {
        "router": exact.matrix([router.weight], backward=False).panels,
        "correction": _wide(router.e_score_correction_bias) if router.shape.corrects else None,
        "gate_up": packed.gate_up.panels,
        "down": packed.down.panels,
    }


def _matrix(linear: nn.Linear, core: Core) -> Tensor:
    return core.matrix([weight(linear)], backward=False).panels


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()
