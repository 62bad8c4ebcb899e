"""The decoder: a function of packed tokens, their positions, and a way to attend. Module names are Hugging Face's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from longthought.core.errors import DataError
from longthought.models.attention import Attention, PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.heads import token_logprobs
from longthought.models.rope import angles, rotate


class RMSNorm(nn.Module):
    """x / rms(x) · g.  Zhang and Sennrich, arXiv:1910.07467, equation 4."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*s d"]) -> Float[Tensor, "*s d"]:
        return rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c = config.hidden_size, config.head_dim
        h, k = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = c
        self.q_proj = nn.Linear(d, h * c, bias=config.qkv_bias)
        self.k_proj = nn.Linear(d, k * c, bias=config.qkv_bias)
        self.v_proj = nn.Linear(d, k * c, bias=config.qkv_bias)
        self.o_proj = nn.Linear(h * c, d, bias=config.output_bias)
        self.q_norm: nn.Module = RMSNorm(c, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(c, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        layer: int,
        x: Float[Tensor, "s d"],
        cos: Float[Tensor, "s 1 c"],
        sin: Float[Tensor, "s 1 c"],
        attend: Attention,
    ) -> Float[Tensor, "s d"]:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        out: Tensor = self.o_proj(attend(layer, q, k, v).flatten(-2))
        return out


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ⊙ W_up x).  Shazeer, arXiv:2002.05202, equation 6, with biases if the config says so."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, f, bias=config.mlp_bias)
        self.up_proj = nn.Linear(d, f, bias=config.mlp_bias)
        self.down_proj = nn.Linear(f, d, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        layer: int,
        x: Float[Tensor, "s d"],
        cos: Float[Tensor, "s 1 c"],
        sin: Float[Tensor, "s 1 c"],
        attend: Attention,
    ) -> Float[Tensor, "s d"]:
        x = x + self.self_attn(layer, self.input_layernorm(x), cos, sin, attend)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm (Hugging Face's ``model.``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # not drawn at random here: on the meta device that would import a compiler, which takes seconds
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.zeros(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """The language model.

    Tokens come packed, (S,): prompts, whole sequences and single decoding steps are all rows of one ragged batch, and
    only ``attend`` knows which token may look at which.
    """

    cos: Float[Tensor, "t c"]
    sin: Float[Tensor, "t c"]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = angles(config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, tokens: Int[Tensor, "*s"], positions: Int[Tensor, " s"] | None = None, attend: Attention | None = None
    ) -> Float[Tensor, "*s d"]:
        """Hidden states after the last norm.  tokens, positions: (S,) int64 → (S, D).

        With tokens alone: ``logits``.
        """
        if positions is None or attend is None:
            return self.logits(tokens)
        x = self.model.embed_tokens(tokens)
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        for number, block in enumerate(self.model.layers):
            x = block(number, x, cos, sin, attend)
        out: Tensor = self.model.norm(x)
        return out

    def token_logprobs(
        self, hidden: Float[Tensor, "s d"], targets: Int[Tensor, " s"], temperature: float, chunk: int = 1024
    ) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
        """log-probs of ``targets`` and entropies after ``hidden``, see ``heads.token_logprobs``."""
        return token_logprobs(hidden, self.lm_head.weight, targets, temperature, chunk)

    def logits(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        """Logits of the next token after every prefix of N sequences of equal length, (N, T) → (N, T, V) float32.

        To look at a model; training and sampling never hold them all. Raises DataError for another shape.
        """
        if tokens.dim() != 2 or not tokens.shape[1]:
            raise DataError(
                f"logits need tokens of shape (N, T), such as tensor([[1, 2, 3]]), not {tuple(tokens.shape)}"
            )
        attend = PackedAttention([tokens.shape[1]] * tokens.shape[0], tokens.device)
        hidden: Tensor = self(tokens.flatten(), attend.positions, attend)
        return self.lm_head(hidden).float().view(*tokens.shape, -1)  # type: ignore[no-any-return]


def initialize(model: Transformer, seed: int) -> None:
    """Matrices N(0, 1/fan-in), output projections and head zero, embeddings N(0, 1); biases zero, norms one.

    A zero head starts at the uniform distribution and unit embeddings keep the residual stream at the scale the
    blocks write to; with tied embeddings the shared matrix is N(0, 1/D) instead.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif "embed_tokens" in name:
                scale = config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0
                parameter.normal_(0.0, scale, generator=generator)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
