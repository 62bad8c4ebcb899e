"""The decoder: a function of packed tokens, their positions, and a way to attend. Module names are Hugging Face's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from longthought.core.errors import DataError
from longthought.models.attention import Attention, PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.experts import MixtureOfExperts
from longthought.models.heads import token_logprobs
from longthought.models.latent import LatentAttention
from longthought.models.net import SwiGLU
from longthought.models.norm import RMSNorm
from longthought.models.rope import angles, rotate
from longthought.models.routing import Routing


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


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config) if config.latent is None else LatentAttention(config)
        self.mlp: SwiGLU | MixtureOfExperts
        if config.is_routed(layer):
            self.mlp = MixtureOfExperts(config)
        else:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        layer: int,
        x: Float[Tensor, "s d"],
        rope: tuple[Float[Tensor, "s 1 c"], Float[Tensor, "s 1 c"]],
        attend: Attention,
        routing: Routing | None,
    ) -> Float[Tensor, "s d"]:
        x = x + self.self_attn(layer, self.input_layernorm(x), *rope, attend)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MixtureOfExperts):
            return x + self.mlp(layer, normed, routing)  # type: ignore[no-any-return]
        return x + self.mlp(normed)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm (Hugging Face's ``model.``); ``mtp`` predicts further tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # not drawn at random here: on the meta device that would import a compiler, which takes seconds
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.zeros(config.vocab_size, config.hidden_size), freeze=False
        )
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.num_nextn_predict_layers:
            self.mtp = nn.ModuleList(Prediction(config, depth + k) for k in range(config.num_nextn_predict_layers))


class Prediction(nn.Module):
    """One module of multi-token prediction (DeepSeek-V3, section 2.2): a token further than the state it starts from.

    It shares embeddings and head with the model. Checkpoints hold it as layer L + k − 1, with Hugging Face's names.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.layer = layer
        self.enorm, self.hnorm = RMSNorm(d, config.rms_norm_eps), RMSNorm(d, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.block = Block(config, layer)
        self.norm = RMSNorm(d, config.rms_norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "s d"],
        embedded: Float[Tensor, "s d"],
        rope: tuple[Float[Tensor, "s 1 c"], Float[Tensor, "s 1 c"]],
        attend: Attention,
        routing: Routing | None,
    ) -> Float[Tensor, "s d"]:
        """h^k from h^{k−1} (after the norm of the model, or of the module before) and Emb(t_{i+k}).

        Equations 21 and 22; the halves of M_k stand in the order of the checkpoints, the embedding first.
        """
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        stream = joined.to(hidden.dtype)  # as wide as the model's, whatever products are computed in
        out: Tensor = self.norm(self.block(self.layer, stream, rope, attend, routing))
        return out


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
        cos, sin = angles(config.rope_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        tokens: Int[Tensor, "*s"],
        positions: Int[Tensor, " s"] | None = None,
        attend: Attention | None = None,
        routing: Routing | None = None,
    ) -> Float[Tensor, "*s d"]:
        """Hidden states after the last norm.  tokens, positions: (S,) int64 → (S, D).

        With tokens alone: ``logits``.  routing: is told what the routers choose, and may prescribe it.
        """
        if positions is None or attend is None:
            return self.logits(tokens)
        x = self.model.embed_tokens(tokens)
        rope = self.rope(positions)
        for number, block in enumerate(self.model.layers):
            x = block(number, x, rope, attend, routing)
        out: Tensor = self.model.norm(x)
        return out

    def ahead(
        self,
        hidden: Float[Tensor, "s d"],
        following: Int[Tensor, "depth s"],
        positions: Int[Tensor, " s"],
        attend: Attention,
        routing: Routing | None = None,
    ) -> list[Float[Tensor, "s d"]]:
        """The states h^1 … h^depth that predict the 2nd, 3rd, … token after each one; the head reads them as it reads
        h^0 (DeepSeek-V3, section 2.2).

        hidden: (S, D) h^0, what ``forward`` gave.  following: (depth, S), row k − 1 the k-th token after each one;
        where a sequence has ended any token will do: nothing before depends on it.
        """
        rope = self.rope(positions)
        states: list[Tensor] = []
        for module, tokens in zip(self.model.mtp, following):
            hidden = module(hidden, self.model.embed_tokens(tokens), rope, attend, routing)
            states.append(hidden)
        return states

    def rope(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s 1 c"], Float[Tensor, "s 1 c"]]:
        """Cosines and sines of the angles of these positions, as ``Block`` takes them."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)

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
            if name.endswith(("bias", "gate.noise")):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif "embed_tokens" in name:
                scale = config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0
                parameter.normal_(0.0, scale, generator=generator)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight", "experts.down_proj")):
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
