"""Shapes of a decoder, in the names of Hugging Face configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longthought.core.errors import CheckpointError, SettingsError


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention.

    ``qk_norm`` normalises queries and keys per head (Qwen3); ``qkv_bias`` adds biases to their projections (Qwen2).
    Both together make a Qwen3 with ``attention_bias``, which has a bias on the output projection too.
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

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise SettingsError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise SettingsError(f"head_dim={self.head_dim}: rotary embeddings need an even head width")

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
        if self.qk_norm:
            return "qwen3"
        return "qwen2" if self.qkv_bias else "llama"

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias: in Qwen3 ``attention_bias`` covers all four."""
        return self.qk_norm and self.qkv_bias

    def parameters(self) -> int:
        """Number of trainable numbers."""
        d, c = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * c, self.num_key_value_heads * c
        attention = d * (q + 2 * kv) + q * d + (2 * c if self.qk_norm else 0)
        attention += (q + 2 * kv if self.qkv_bias else 0) + (d if self.output_bias else 0)
        layer = attention + 3 * d * self.intermediate_size + 2 * d
        heads = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return heads + self.num_hidden_layers * layer + d

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that ``transformers`` reads."""
        architecture = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
        known = {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("q")}
        config = {
            "architectures": [architecture[self.model_type]],
            "model_type": self.model_type,
            **known,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "float32",
        }
        if self.model_type != "qwen2":
            config["attention_bias"] = self.qkv_bias
        if self.model_type == "llama":
            config["mlp_bias"] = False
        return config

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a ``config.json``. Raises CheckpointError, with the reason, for a model that we cannot run."""
        kind = config.get("model_type")
        if kind not in ("qwen3", "qwen2", "llama"):
            raise CheckpointError(f"model_type {kind!r} cannot be run; known are qwen3, qwen2 and llama")
        _refuse_variants(config)
        try:
            heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
            rope = config.get("rope_parameters") or {}
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=width,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or width // heads),
                max_position_embeddings=int(config["max_position_embeddings"]),
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                qk_norm=kind == "qwen3",
                qkv_bias=True if kind == "qwen2" else bool(config.get("attention_bias", False)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"config.json lacks or garbles a needed entry: {error}") from error


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Settings of the same architectures that change the function and that we do not compute."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise CheckpointError(f"rotary embedding of type {kind!r} cannot be run")
    if config.get("use_sliding_window"):
        raise CheckpointError("sliding-window attention (use_sliding_window) cannot be run")
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"activation {config['hidden_act']!r} cannot be run; known is silu")
    if config.get("mlp_bias"):
        raise CheckpointError("biases in the feed-forward layers (mlp_bias) cannot be run")
    if config.get("model_type") == "llama" and config.get("attention_bias"):
        raise CheckpointError("a llama with attention_bias cannot be run")
