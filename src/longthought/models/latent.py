"""Multi-head latent attention (DeepSeek-V3, arXiv:2412.19437, section 2.1.1), in two forms that compute the same.

expanded   keys and values are made of the latents for every head: what training does
absorbed   W^UK goes to the queries and W^UV to the results; what is attended is (c^KV, k^R), one head for all
           queries: what decoding does, whose cache holds nothing else (DeepSeek-V2, arXiv:2405.04434, appendix B)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longthought.models.attention import Attention
from longthought.models.config import ModelConfig
from longthought.models.norm import RMSNorm
from longthought.models.rope import YarnScaling, deinterleaved, rotate

_EPS = 1e-6
"""ε of the norms on latents: a constant in the official code, whatever ``rms_norm_eps`` says."""


class LatentAttention(nn.Module):
    """h_t → u_t.  Modules have Hugging Face's names: ``q_a`` is W^DQ, ``q_b`` is (W^UQ, W^QR) by heads, ``kv_a`` is
    (W^DKV, W^KR), ``kv_b`` is (W^UK, W^UV) by heads, ``o`` is W^O."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.latent is not None
        self.shape, self.heads = config.latent, config.num_attention_heads
        d, latent, bias = config.hidden_size, config.latent, config.latent.attention_bias
        queries = self.heads * latent.qk_head_dim
        if latent.q_lora_rank is None:
            self.q_proj = nn.Linear(d, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(d, latent.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(latent.q_lora_rank, _EPS)
            self.q_b_proj = nn.Linear(latent.q_lora_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d, latent.kv_lora_rank + latent.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(latent.kv_lora_rank, _EPS)
        self.kv_b_proj = nn.Linear(
            latent.kv_lora_rank, self.heads * (latent.qk_nope_head_dim + latent.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(self.heads * latent.v_head_dim, d, bias=bias)
        scaling = config.rope_scaling
        self.scale = latent.qk_head_dim**-0.5 * (scaling.sharpness if isinstance(scaling, YarnScaling) else 1.0)

    def forward(
        self,
        layer: int,
        x: Float[Tensor, "s d"],
        cos: Float[Tensor, "s 1 c"],
        sin: Float[Tensor, "s 1 c"],
        attend: Attention,
    ) -> Float[Tensor, "s d"]:
        shape = self.shape
        q_c, q_r = self._queries(x).split((shape.qk_nope_head_dim, shape.qk_rope_head_dim), -1)  # equations 6 to 8
        c_kv, k_r = self.kv_a_proj_with_mqa(x).split((shape.kv_lora_rank, shape.qk_rope_head_dim), -1)  # 1 and 3
        c_kv = self.kv_a_layernorm(c_kv)
        q_r, k_r = self._rotated(q_r, cos, sin), self._rotated(k_r.unsqueeze(1), cos, sin)
        form = self._absorbed if attend.keeps else self._expanded
        out: Tensor = self.o_proj(form(layer, q_c, q_r, c_kv, k_r, attend).flatten(-2))  # equation 11
        return out

    def _queries(self, x: Float[Tensor, "s d"]) -> Float[Tensor, "s h c"]:
        """(q^C, q before its rotation) of every head."""
        if self.shape.q_lora_rank is None:
            flat: Tensor = self.q_proj(x)
        else:
            flat = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        by_head: Tensor = flat.unflatten(-1, (self.heads, -1))
        return by_head

    def _rotated(
        self, x: Float[Tensor, "s h c"], cos: Float[Tensor, "s 1 c"], sin: Float[Tensor, "s 1 c"]
    ) -> Float[Tensor, "s h c"]:
        return rotate(deinterleaved(x) if self.shape.rope_interleave else x, cos, sin)

    def _expanded(
        self,
        layer: int,
        q_c: Float[Tensor, "s h n"],
        q_r: Float[Tensor, "s h r"],
        c_kv: Float[Tensor, "s l"],
        k_r: Float[Tensor, "s 1 r"],
        attend: Attention,
    ) -> Float[Tensor, "s h v"]:
        """Equations 2, 4, 5, 9 and 10: k = (W^UK c^KV, k^R), v = W^UV c^KV."""
        kv: Tensor = self.kv_b_proj(c_kv).unflatten(-1, (self.heads, -1))
        k_c, v = kv.split((self.shape.qk_nope_head_dim, self.shape.v_head_dim), -1)
        k = torch.cat((k_c, k_r.expand(-1, self.heads, -1)), -1)
        return attend(layer, torch.cat((q_c, q_r), -1), k, v, self.scale)

    def _absorbed(
        self,
        layer: int,
        q_c: Float[Tensor, "s h n"],
        q_r: Float[Tensor, "s h r"],
        c_kv: Float[Tensor, "s l"],
        k_r: Float[Tensor, "s 1 r"],
        attend: Attention,
    ) -> Float[Tensor, "s h v"]:
        """q^C · W^UK c^KV = (W^UKᵀ q^C) · c^KV, and Σ p W^UV c^KV = W^UV Σ p c^KV."""
        w_uk, w_uv = self._up()
        q = torch.cat((torch.einsum("shn,hnl->shl", q_c, w_uk), q_r), -1)
        latents = c_kv.unsqueeze(1)
        summed = attend(layer, q, torch.cat((latents, k_r), -1), latents, self.scale)
        return torch.einsum("shl,hvl->shv", summed, w_uv)

    def _up(self) -> tuple[Float[Tensor, "h n l"], Float[Tensor, "h v l"]]:
        """W^UK and W^UV of every head."""
        adapted = getattr(self.kv_b_proj, "effective", None)  # with a LoRA, which is part of what is absorbed
        weight = self.kv_b_proj.weight if adapted is None else adapted()
        by_head = weight.unflatten(0, (self.heads, -1))
        w_uk, w_uv = by_head.split((self.shape.qk_nope_head_dim, self.shape.v_head_dim), 1)
        return w_uk, w_uv
