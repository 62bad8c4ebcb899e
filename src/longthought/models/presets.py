"""Shapes of small models by one dial, their width: dense, and with the parts of DeepSeek-V3."""

from __future__ import annotations

from typing import Literal

from longthought.core.errors import SettingsError
from longthought.models.config import ModelConfig
from longthought.models.parts import Experts, Latent

Architecture = Literal["dense", "deepseek_v3"]

_STEP = 16  # what widths are multiples of, for the native core
_EXPERTS, _CHOSEN, _SHARED = 8, 2, 1


def sized(
    arch: Architecture, width: int, vocab_size: int, max_position_embeddings: int = 512, ahead: int = 1
) -> ModelConfig:
    """A model of this width.

    deepseek_v3: latent attention, a first layer with an ordinary net, experts in the others, and ``ahead`` modules that
    predict further tokens. A token passes through nearly as many parameters as in the dense model of the same width.
    """
    dense = ModelConfig.sized(width, vocab_size, max_position_embeddings)
    if arch == "dense":
        return dense
    if arch != "deepseek_v3":
        raise SettingsError(f"arch={arch!r}: must be dense or deepseek_v3")
    head = dense.head_dim
    latent = Latent(
        kv_lora_rank=_rounded(width / 3),
        qk_nope_head_dim=head,
        qk_rope_head_dim=16,
        v_head_dim=head,
    )
    attention = dense.hidden_size * (2 * dense.num_attention_heads + 2 * dense.num_key_value_heads) * head
    room = attention + 3 * width * dense.intermediate_size - latent.parameters(width, dense.num_attention_heads)
    wide = _rounded((room - width * _EXPERTS) / (3 * width * (_CHOSEN + _SHARED)))
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=dense.intermediate_size,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        qk_norm=False,
        latent=latent,
        experts=Experts(_EXPERTS, _CHOSEN, wide, _SHARED, dense_layers=(0,)),
        num_nextn_predict_layers=ahead,
    )


def _rounded(numbers: float) -> int:
    return max(_STEP, round(numbers / _STEP) * _STEP)
