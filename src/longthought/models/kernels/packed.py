"""The weights of a decoder as the native core reads them: packed once, for many passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longthought.models.config import ModelConfig
from longthought.models.experts import MixtureOfExperts
from longthought.models.kernels.core import PANEL, Core, Matrix
from longthought.models.latent import LatentAttention
from longthought.models.lora import AdaptedLinear
from longthought.models.net import SwiGLU
from longthought.models.norm import RMSNorm
from longthought.models.parts import Latent
from longthought.models.transformer import Block, SelfAttention, Transformer

_WIDEST_HEAD = 1024


def unsupported(model: nn.Module) -> str:
    """Why the native core cannot compute a model, in words; empty if it can."""
    if not isinstance(model, Transformer):
        return f"a {type(model).__name__} has no native kernels"
    for weight in model.parameters():
        if weight.device.type != "cpu":
            return f"the weights are on {weight.device}, and the core runs on the CPU"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"the weights are of {weight.dtype}, and the core reads float32 and bfloat16"
    return unfit(model.config)


def unfit(config: ModelConfig) -> str:
    """Why the native core cannot compute a model of these shapes; empty if it can."""
    latent, experts = config.latent, config.experts
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    if latent is None:
        sizes["head_dim"] = config.head_dim
    else:
        for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            sizes[name] = getattr(latent, name) or 0
    if experts is not None:
        sizes["moe_intermediate_size"] = experts.moe_intermediate_size
    for name, size in sizes.items():
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
class PackedLatent:
    """Multi-head latent attention, expanded. Numbers that are rotated stand in halves, whatever the model says.

    qkv: W^Q, or W^DQ where queries are compressed; behind it W^DKV and W^KR.  q_up: W^UQ and W^QR by heads.
    kv_up: W^UK and W^UV by heads.  order: which row of the model's matrix every row of the queries is, and
    ``latent_order`` those behind them; None: as they are.
    """

    qkv: Matrix
    q_up: Matrix | None
    kv_up: Matrix
    out: Matrix
    qkv_bias: Tensor | None
    out_bias: Tensor | None
    q_gain: Tensor | None
    kv_gain: Tensor
    order: Tensor | None
    latent_order: Tensor | None
    shape: Latent
    heads: int
    scale: float
    eps: float

    @property
    def queries(self) -> int:
        """Rows of ``qkv`` before W^DKV."""
        return self.shape.q_lora_rank or self.heads * self.shape.qk_head_dim


@dataclass(frozen=True)
class PackedExperts:
    """Routed experts, one behind the other, each as a net; and the shared ones, which are one net.

    count: of the routed experts.  wide: hidden width of one.
    """

    gate_up: Matrix
    down: Matrix
    shared: PackedNet | None
    count: int
    wide: int


@dataclass(frozen=True)
class PackedLayer:
    """One block. Norms are the model's own tensors."""

    attention: PackedHeads | PackedLatent
    net: PackedNet | PackedExperts
    attention_norm: Tensor
    ffn_norm: Tensor


@dataclass(frozen=True)
class Packed:
    """A decoder."""

    layers: tuple[PackedLayer, ...]
    head: Matrix
    cos: Tensor
    sin: Tensor


@torch.no_grad()
def pack(model: Transformer, core: Core, backward: bool = False) -> Packed:
    """The weights as they are now; a LoRA is merged. backward: also the layouts that a backward pass reads."""
    return Packed(
        tuple(pack_layer(block, core, backward) for block in model.model.layers),
        core.matrix([model.lm_head.weight], backward),
        _float(model.cos),
        _float(model.sin),
    )


@torch.no_grad()
def pack_layer(block: nn.Module, core: Core, backward: bool) -> PackedLayer:
    """The matrices of a block."""
    assert isinstance(block, Block)
    a, net = block.self_attn, block.mlp
    return PackedLayer(
        pack_heads(a, core, backward) if isinstance(a, SelfAttention) else pack_latent(a, core, backward),
        pack_net(net, core, backward) if isinstance(net, SwiGLU) else pack_experts(net, core, backward),
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


def pack_latent(attention: LatentAttention, core: Core, backward: bool) -> PackedLatent:
    """The matrices of latent attention."""
    shape, heads = attention.shape, attention.heads
    compressed = shape.q_lora_rank is not None
    order = _halves(heads, shape.qk_nope_head_dim, shape) if shape.rope_interleave else None
    latent_order = _halves(1, shape.kv_lora_rank, shape) if shape.rope_interleave else None
    down = attention.kv_a_proj_with_mqa
    queries = weight(attention.q_a_proj) if compressed else _ordered(weight(attention.q_proj), order)
    bias = None
    if down.bias is not None:
        before = _float(attention.q_a_proj.bias) if compressed else torch.zeros(len(queries), device="cpu")
        bias = torch.cat((before, _ordered(_float(down.bias), latent_order)))
    return PackedLatent(
        core.matrix([queries, _ordered(weight(down), latent_order)], backward),
        core.matrix([_ordered(weight(attention.q_b_proj), order)], backward) if compressed else None,
        core.matrix([weight(attention.kv_b_proj)], backward),
        core.matrix([weight(attention.o_proj)], backward),
        bias,
        _bias(attention.o_proj),
        gain(attention.q_a_layernorm) if compressed else None,
        _float(attention.kv_a_layernorm.weight),
        order,
        latent_order,
        shape,
        heads,
        attention.scale,
        attention.kv_a_layernorm.eps,
    )


def pack_experts(mixture: MixtureOfExperts, core: Core, backward: bool) -> PackedExperts:
    """The matrices of routed and shared experts."""
    routed, shared = mixture.experts, mixture.shared_experts
    both = [one.detach().flatten(0, 1) for one in (routed.gate_proj, routed.up_proj)]
    return PackedExperts(
        core.matrix(both, backward, alternate=True),
        core.matrix([routed.down_proj.detach().flatten(0, 1)], backward),
        None if shared is None else pack_net(shared, core, backward),
        *routed.gate_proj.shape[:2],
    )


def _halves(heads: int, plain: int, shape: Latent) -> Tensor:
    """The rows of some heads, their ``plain`` ones as they are, those to be rotated in halves instead of in pairs."""
    rows = torch.arange(heads * (plain + shape.qk_rope_head_dim), device="cpu").view(heads, -1)
    turned = rows[:, plain:].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
    return torch.cat((rows[:, :plain], turned), 1).flatten()


def _ordered(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.index_select(0, order)


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
