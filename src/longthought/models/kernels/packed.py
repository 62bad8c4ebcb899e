"""The weights of a decoder as the native core reads them: packed once, for many passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longthought.models.config import ModelConfig
from longthought.models.kernels.core import PANEL, Core, Matrix
from longthought.models.lora import AdaptedLinear
from longthought.models.net import SwiGLU
from longthought.models.norm import RMSNorm
from longthought.models.transformer import Block, SelfAttention, Transformer

_WIDEST_HEAD = 1024


def unsupported(model: nn.Module) -> str:
    """Why the native core cannot run a model, in words; empty if it can."""
    if not isinstance(model, Transformer):
        return f"a {type(model).__name__} has no native kernels"
    for weight in model.parameters():
        if weight.device.type != "cpu":
            return f"the weights are on {weight.device}, and the core runs on the CPU"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"the weights are of {weight.dtype}, and the core reads float32 and bfloat16"
    return unfit(model.config)


def unfit(config: ModelConfig) -> str:
    """Why the native core cannot run a model of these shapes; empty if it can."""
    if config.latent is not None or config.experts is not None:
        return "latent attention and routed experts have no native kernels yet"
    for name in ("hidden_size", "intermediate_size", "head_dim"):
        size = getattr(config, name)
        if size % PANEL:
            return f"{name}={size} is not a multiple of {PANEL}"
    if config.head_dim > _WIDEST_HEAD:
        return f"head_dim={config.head_dim} is above {_WIDEST_HEAD}"
    return ""


@dataclass(frozen=True)
class PackedHeads:
    """Grouped-query attention. Gains are the model's own tensors; they and ``*_bias`` may be missing."""

    qkv: Matrix
    out: Matrix
    qkv_bias: Tensor | None
    out_bias: Tensor | None
    q_gain: Tensor | None
    k_gain: Tensor | None


@dataclass(frozen=True)
class PackedNet:
    """The gated net; the panels of gate and up take turns."""

    gate_up: Matrix
    down: Matrix
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


@dataclass(frozen=True)
class PackedLayer:
    """One block. Norms are the model's own tensors."""

    attention: PackedHeads
    net: PackedNet
    attention_norm: Tensor
    ffn_norm: Tensor


@dataclass(frozen=True)
class Packed:
    """A decoder."""

    config: ModelConfig
    layers: tuple[PackedLayer, ...]
    head: Matrix
    norm: Tensor
    embedding: Tensor
    cos: Tensor
    sin: Tensor


@torch.no_grad()
def pack(model: Transformer, core: Core, backward: bool = False) -> Packed:
    """The weights as they are now; a LoRA is merged. backward: also the layouts that a backward pass reads."""
    return Packed(
        model.config,
        tuple(_layer(block, core, backward) for block in model.model.layers),
        core.matrix([model.lm_head.weight], backward),
        _float(model.model.norm.weight),
        model.model.embed_tokens.weight.detach(),
        _float(model.cos),
        _float(model.sin),
    )


def _layer(block: nn.Module, core: Core, backward: bool) -> PackedLayer:
    assert isinstance(block, Block)
    assert isinstance(block.self_attn, SelfAttention)
    assert isinstance(block.mlp, SwiGLU)
    return PackedLayer(
        pack_heads(block.self_attn, core, backward),
        pack_net(block.mlp, core, backward),
        _float(block.input_layernorm.weight),
        _float(block.post_attention_layernorm.weight),
    )


def pack_heads(attention: SelfAttention, core: Core, backward: bool) -> PackedHeads:
    """The matrices of grouped-query attention."""
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return PackedHeads(
        core.matrix([weight(one) for one in qkv], backward),
        core.matrix([weight(attention.o_proj)], backward),
        None if qkv[0].bias is None else torch.cat([_float(one.bias) for one in qkv]),
        _bias(attention.o_proj),
        gain(attention.q_norm),
        gain(attention.k_norm),
    )


def pack_net(net: SwiGLU, core: Core, backward: bool) -> PackedNet:
    """The matrices of a gated net."""
    both = (net.gate_proj, net.up_proj)
    return PackedNet(
        core.matrix([weight(one) for one in both], backward, alternate=True),
        core.matrix([weight(net.down_proj)], backward),
        None if both[0].bias is None else alternating([_float(one.bias) for one in both]),
        _bias(net.down_proj),
    )


def weight(linear: nn.Linear) -> Tensor:
    """The matrix that a layer multiplies by, with gradients to what it is made of."""
    return linear.effective() if isinstance(linear, AdaptedLinear) else linear.weight


def gain(norm: nn.Module) -> Tensor | None:
    """The gain of a norm; None where there is no norm."""
    return _float(norm.weight) if isinstance(norm, RMSNorm) else None


def alternating(parts: list[Tensor]) -> Tensor:
    """Vectors (F,) cut into pieces of 16 that take turns, (2 F,)."""
    return torch.stack([part.view(-1, PANEL) for part in parts], 1).flatten()


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else _float(linear.bias)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()
