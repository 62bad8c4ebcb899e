"""Shapes of a decoder, in the names of Hugging Face configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.files import CONFIG_LIMIT, read_json
from longthought.models import hf_config, hf_parts, hf_rope
from longthought.models.parts import Experts, Latent
from longthought.models.rope import RopeScaling, YarnScaling

TABLE = 2**29
"""The largest table of angles, positions × head width: it is made when a model is, whatever of it is used."""

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention; and what the DeepSeek-V3 architecture puts in place.

    latent: multi-head latent attention instead; then ``head_dim`` is d_h + d_h^R and every head has keys of its own.
    experts: routed experts in place of the nets of all layers but the first few.
    num_nextn_predict_layers: D, modules that predict further tokens, each one after the last.

    ``qk_norm`` normalises queries and keys per head (Qwen3); ``qkv_bias`` adds biases to their projections (Qwen2), and
    ``output_bias`` one to the projection of the output (Llama with ``attention_bias``). In Qwen3 the two biases come
    together, so that there ``qkv_bias`` implies ``output_bias``. ``mlp_bias`` is Llama's alone.
    """

    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 176
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tie_word_embeddings: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    num_nextn_predict_layers: int = 0

    def __post_init__(self) -> None:
        if self.latent is not None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
            object.__setattr__(self, "head_dim", self.latent.qk_head_dim)
        for name in _SIZES:
            if not (type(getattr(self, name)) is int and getattr(self, name) >= 1):
                raise SettingsError(f"{name}={getattr(self, name)!r}: must be a whole number, at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise SettingsError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise SettingsError(f"head_dim={self.head_dim}: rotary embeddings need an even head width")
        if self.max_position_embeddings * self.head_dim > TABLE:
            raise SettingsError(
                f"max_position_embeddings={self.max_position_embeddings}: at most {TABLE // self.head_dim:,} positions "
                f"are possible with head_dim={self.head_dim}"
            )
        for name in ("rope_theta", "rms_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name}={getattr(self, name)}: must be above 0 and finite")
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
            raise SettingsError(f"rope_theta={self.rope_theta}: must be above 1 for YaRN, whose ramp counts its powers")
        self._settle_biases()
        self._check_parts()

    def _check_parts(self) -> None:
        """Latent attention, experts and further tokens: what some architecture of Hugging Face has together."""
        latent, experts, ahead = self.latent, self.experts, self.num_nextn_predict_layers
        if not (type(ahead) is int and ahead >= 0):
            raise SettingsError(f"num_nextn_predict_layers={ahead!r}: must be a whole number, at least 0")
        if ahead and latent is None:
            raise SettingsError("num_nextn_predict_layers needs latent attention: only deepseek_v3 has both")
        if latent is not None and (self.qk_norm or self.qkv_bias or self.mlp_bias):
            raise SettingsError("latent attention has neither qk_norm nor qkv_bias, and its nets have no mlp_bias")
        if experts is None:
            return
        wanted = "sigmoid" if latent is not None else "softmax"
        if experts.score != wanted or (latent is None and not self.qk_norm):
            raise SettingsError(
                "experts need latent attention and score='sigmoid' (deepseek_v3), or qk_norm and score='softmax' "
                "(qwen3_moe): no other architecture has them"
            )
        if (experts.n_shared_experts > 0) != (latent is not None):
            raise SettingsError("shared experts belong to deepseek_v3, which has at least one; qwen3_moe has none")
        beyond = [layer for layer in experts.dense_layers if layer >= self.num_hidden_layers]
        if beyond:
            raise SettingsError(f"dense_layers names layer {beyond[0]}; the model has {self.num_hidden_layers}")
        if latent is not None and experts.dense_layers != tuple(range(len(experts.dense_layers))):
            raise SettingsError("dense_layers: the dense layers of deepseek_v3 are its first ones")

    def is_routed(self, layer: int) -> bool:
        """Whether a layer has routed experts; those that predict further tokens, from L on, do if any does."""
        return self.experts is not None and layer not in self.experts.dense_layers

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """The layers with routed experts, those that predict further tokens included, from L on."""
        return tuple(i for i in range(self.num_hidden_layers + self.num_nextn_predict_layers) if self.is_routed(i))

    @property
    def rope_dim(self) -> int:
        """Numbers of a query or key that are rotated."""
        return self.head_dim if self.latent is None else self.latent.qk_rope_head_dim

    @property
    def cached(self) -> tuple[int, int, int]:
        """What one layer keeps of a token: key heads, numbers of a key, numbers of a value that the key does not hold.

        Latent attention keeps c^KV and k^R, of which c^KV is the value, too.
        """
        if self.latent is not None:
            return 1, self.latent.kv_lora_rank + self.latent.qk_rope_head_dim, 0
        return self.num_key_value_heads, self.head_dim, self.head_dim

    @property
    def cache_numbers(self) -> int:
        """Numbers that all layers together keep of a token."""
        heads, key, value = self.cached
        return self.num_hidden_layers * heads * (key + value)

    def _settle_biases(self) -> None:
        if self.qk_norm and self.qkv_bias:
            object.__setattr__(self, "output_bias", True)
        if self.output_bias and not self.qkv_bias:
            raise SettingsError("output_bias needs qkv_bias: no architecture has the one without the other")
        if self.mlp_bias and self.model_type != "llama":
            raise SettingsError(f"mlp_bias: a {self.model_type} has no biases in its feed-forward layers")

    @classmethod
    def sized(cls, width: int, vocab_size: int, max_position_embeddings: int = 512) -> ModelConfig:
        """One dial: everything follows from the width (64 and 96 → 3 layers, 128 → 4, 256 → 5, …)."""
        if width < 32 or width % 32:
            raise SettingsError(f"width={width}: must be a multiple of 32, at least 32")
        head_dim = 16 if width < 128 else 64 if width >= 512 and width % 64 == 0 else 32
        heads = width // head_dim
        return cls(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=-(-width * 8 // 3 // 16) * 16,
            num_hidden_layers=max(2, 3 + (width // 64).bit_length() - 1),
            num_attention_heads=heads,
            num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
        )

    @property
    def model_type(self) -> str:
        """The Hugging Face architecture that computes the same function."""
        if self.latent is not None:
            return "deepseek_v3"
        if self.qk_norm:
            return "qwen3" if self.experts is None else "qwen3_moe"
        return "qwen2" if self.qkv_bias and not self.output_bias else "llama"

    def parameters(self) -> int:
        """Number of trainable numbers, all modules included."""
        experts = 0 if self.experts is None else self.experts.n_routed_experts
        return self._parameters(experts, self.num_nextn_predict_layers)

    def active_parameters(self) -> int:
        """Those that compute one token: of the routed experts the chosen ones, and nothing that predicts further."""
        return self._parameters(0 if self.experts is None else self.experts.num_experts_per_tok, 0)

    def _parameters(self, experts: int, ahead: int) -> int:
        """With so many routed experts in a layer, and modules that predict further tokens."""
        d, depth = self.hidden_size, self.num_hidden_layers
        heads = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        attention = self._attention_parameters() + 2 * d
        dense = depth if self.experts is None else len(self.experts.dense_layers)  # no loop: a config may say anything
        nets = dense * self._net_parameters() + (depth + ahead - dense) * self._routed_parameters(experts)
        return heads + (depth + ahead) * attention + nets + d + ahead * (2 * d * d + 3 * d)

    def _attention_parameters(self) -> int:
        d, c = self.hidden_size, self.head_dim
        if self.latent is not None:
            return self.latent.parameters(d, self.num_attention_heads)
        q, kv = self.num_attention_heads * c, self.num_key_value_heads * c
        biases = (q + 2 * kv if self.qkv_bias else 0) + (d if self.output_bias else 0)
        return d * (q + 2 * kv) + q * d + (2 * c if self.qk_norm else 0) + biases

    def _net_parameters(self) -> int:
        d, f = self.hidden_size, self.intermediate_size
        return 3 * d * f + (2 * f + d if self.mlp_bias else 0)

    def _routed_parameters(self, experts: int) -> int:
        if self.experts is None:
            return self._net_parameters()  # of what predicts further
        d, wide = self.hidden_size, self.experts.moe_intermediate_size
        noise = 2 if self.experts.noisy else 1
        return 3 * d * wide * (experts + self.experts.n_shared_experts) + noise * d * self.experts.n_routed_experts

    def to_hf(self, base: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """The ``config.json`` that ``transformers`` reads, of version 4 or 5.

        base: the config.json that the model came with; what it says of tokens, generation and the like is kept.
        dtype: of the weights beside it.
        """
        kind, depth = self._family(base), self.num_hidden_layers + self.num_nextn_predict_layers
        optional: dict[str, Any] = {"hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02}
        config = {
            **optional,
            "use_cache": True,
            **hf_config.kept(base or {}),
            "architectures": [_ARCHITECTURES[kind]],
            "model_type": kind,
            **{name: getattr(self, name) for name in (*_SIZES, "rms_norm_eps", "tie_word_embeddings")},
            **hf_rope.written(self.rope_theta, self.rope_scaling),
            "dtype": str(dtype).removeprefix("torch."),
        }
        if kind in ("llama", "qwen3", "qwen3_moe"):
            config["attention_bias"] = self.qkv_bias
        if kind == "llama":
            config["mlp_bias"] = self.mlp_bias
        if kind == "mistral":
            config["sliding_window"] = None
        if self.latent is not None:
            del config["head_dim"]  # others call the rotated part so, and take it from this entry
            config |= hf_parts.written_latent(self.latent)
            config["num_nextn_predict_layers"] = self.num_nextn_predict_layers
            config |= hf_parts.WITHOUT_EXPERTS | {"first_k_dense_replace": depth}
        if self.experts is not None:
            config |= hf_parts.written_experts(self.experts)
        return config

    def _family(self, base: Mapping[str, Any] | None) -> str:
        """The ``model_type`` to be written: a Llama without biases that came as a Mistral stays one."""
        kind, came = self.model_type, None if base is None else base.get("model_type")
        if came == "mistral" and kind == "llama" and not self.qkv_bias and not self.mlp_bias:
            return "mistral"
        if base is not None and came != kind:
            raise SettingsError(f"the config to be kept is of a {came!r}, the model is a {kind}")
        return kind

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], origin: object = "config.json") -> ModelConfig:
        """What ``transformers`` would make of a ``config.json``; ``origin`` names it in errors.

        Raises:
            CheckpointError: it is damaged, or of a model that we cannot run; with the reason.
        """
        try:
            return cls(**hf_config.settings(config))
        except (CheckpointError, SettingsError) as error:
            raise CheckpointError(f"{origin}: {error}") from None

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """The shape of the model in a Hugging Face folder.

        Raises:
            CheckpointError: its ``config.json`` is missing, damaged, or of a model that we cannot run.
        """
        return cls.from_hf(read_json(folder, "config.json", CONFIG_LIMIT), folder / "config.json")
