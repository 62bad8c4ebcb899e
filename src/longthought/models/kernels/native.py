"""A decoder that the native core computes, for training: called as a ``Transformer`` is, with gradients to its weights.

Numbers between the blocks are float32; inside them, and in the head, those of the core (float32 or bfloat16).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from longthought.core.errors import DataError
from longthought.models.attention import PackedAttention
from longthought.models.kernels import memory
from longthought.models.kernels.block import NativeBlock, Where, parameters
from longthought.models.kernels.core import Core, Matrix, numbers, zeros
from longthought.models.kernels.packed import pack
from longthought.models.transformer import Transformer


class NativeTransformer:
    """The weights of ``model`` as they are now. Make a new one after they have changed."""

    shares_prompts = True

    def __init__(self, model: Transformer, core: Core, backward: bool = True) -> None:
        memory.keep()
        self.model, self.config, self._core = model, model.config, core
        self._packed = pack(model, core, backward)

    def __call__(
        self, tokens: Int[Tensor, " s"], positions: Int[Tensor, " s"], attend: PackedAttention
    ) -> Float[Tensor, "s d"]:
        """Hidden states after the last norm, as ``Transformer.forward``."""
        x = self.model.model.embed_tokens(tokens).float()
        if int(positions.max()) >= self.config.max_position_embeddings:
            raise DataError(f"a sequence of {int(positions.max()) + 1} tokens is longer than the context of the model")
        where = Where(positions, attend.segments, self._packed.cos, self._packed.sin)
        for block, layer in zip(self.model.model.layers, self._packed.layers):
            x = NativeBlock.apply(self._core, self.config, layer, where, x, *parameters(block))
        return cast(Tensor, self.model.model.norm(x))

    def token_logprobs(
        self, hidden: Float[Tensor, "s d"], targets: Int[Tensor, " s"], temperature: float, chunk: int = 0
    ) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
        """As ``Transformer.token_logprobs``; logits exist a block at a time, whatever ``chunk`` says."""
        del chunk
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < self.config.vocab_size:
            raise DataError(
                f"a token is not in the model's vocabulary of {self.config.vocab_size}: was another tokenizer used?"
            )
        head = (self._core, self._packed.head, temperature)
        pair = _Head.apply(head, hidden, targets, self.model.lm_head.weight)
        return cast(tuple[Tensor, Tensor], pair)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: tuple[Core, Matrix, float], hidden: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        core, matrix, temperature = head
        h = core.to_rows(hidden).items
        logp, entropy, lse = (numbers(len(h)) for _ in range(3))
        core.call("head", matrix.panels, *weight.shape, 1 / temperature, h, targets, len(h), logp, entropy, lse)
        ctx.core, ctx.matrix, ctx.temperature, ctx.shape = core, matrix, temperature, weight.shape
        ctx.save_for_backward(h, targets, lse, entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logp: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        h, targets, lse, entropy = ctx.saved_tensors
        dh = zeros(*h.shape)
        dw = zeros(*ctx.shape) if ctx.needs_input_grad[3] else None
        ctx.core.call(
            "head_backward", ctx.matrix.panels, ctx.matrix.pairs, *ctx.shape, 1 / ctx.temperature, h, targets, lse,
            entropy, d_logp.contiguous(), d_entropy.contiguous(), len(h), dh, dw,
        )  # fmt: skip
        return None, dh, None, dw
