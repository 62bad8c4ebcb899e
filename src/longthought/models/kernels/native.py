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
from longthought.models.kernels.block import run
from longthought.models.kernels.core import Core, Matrix, Panels, numbers, zeros
from longthought.models.kernels.packed import PackedLayer, pack, pack_layer
from longthought.models.kernels.stream import Pass
from longthought.models.routing import Routing
from longthought.models.transformer import Prediction, Transformer


class NativeTransformer:
    """The weights of ``model`` as they are now. Make a new one after they have changed."""

    shares_prompts = True

    def __init__(self, model: Transformer, core: Core, backward: bool = True) -> None:
        memory.keep()
        self.model, self.config, self._core, self._backward = model, model.config, core, backward
        self._packed = pack(model, core, backward)
        self._ahead: list[tuple[PackedLayer, Matrix]] = []  # of the modules that predict further, once they are asked

    def __call__(
        self,
        tokens: Int[Tensor, " s"],
        positions: Int[Tensor, " s"],
        attend: PackedAttention,
        routing: Routing | None = None,
    ) -> Float[Tensor, "s d"]:
        """Hidden states after the last norm, as ``Transformer.forward``."""
        x = self.model.model.embed_tokens(tokens).float()
        at = self._pass(positions, attend)
        for number, (block, layer) in enumerate(zip(self.model.model.layers, self._packed.layers)):
            x = run(at, block, layer, x, number, routing)
        return cast(Tensor, self.model.model.norm(x))

    def ahead(
        self,
        hidden: Float[Tensor, "s d"],
        following: Int[Tensor, "depth s"],
        positions: Int[Tensor, " s"],
        attend: PackedAttention,
        routing: Routing | None = None,
    ) -> list[Float[Tensor, "s d"]]:
        """The states that predict further tokens, as ``Transformer.ahead``."""
        modules = [module for module in self.model.model.mtp if isinstance(module, Prediction)][: len(following)]
        for module in modules[len(self._ahead) :]:
            joined = self._core.matrix([module.eh_proj.weight.detach()], self._backward)
            self._ahead.append((pack_layer(module.block, self._core, self._backward), joined))
        at, states = self._pass(positions, attend), []
        for module, (layer, matrix), tokens in zip(modules, self._ahead, following):
            embedded = self.model.model.embed_tokens(tokens).float()
            both = torch.cat((module.enorm(embedded), module.hnorm(hidden)), -1)
            x = NativeLinear.apply(self._core, matrix, both, module.eh_proj.weight)
            hidden = module.norm(run(at, module.block, layer, x, module.layer, routing))
            states.append(hidden)
        return states

    def _pass(self, positions: Tensor, attend: PackedAttention) -> Pass:
        if int(positions.max()) >= self.config.max_position_embeddings:
            raise DataError(f"a sequence of {int(positions.max()) + 1} tokens is longer than the context of the model")
        return Pass(self._core, self.config, positions, attend.segments, self._packed.cos, self._packed.sin)

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


class NativeLinear(torch.autograd.Function):
    """x Wᵀ.  x: (S, in) float32."""

    @staticmethod
    def forward(ctx: Any, core: Core, matrix: Matrix, x: Tensor, weight: Tensor) -> Tensor:
        ctx.core, ctx.matrix, ctx.shape = core, matrix, weight.shape
        ctx.save_for_backward(x)
        return core.put(core.to_rows(x), Panels(matrix.panels), numbers(len(x), len(weight)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        core, (x,) = ctx.core, ctx.saved_tensors
        dx = core.put(core.to_rows(grad), ctx.matrix.back, numbers(*x.shape))
        wanted = ctx.needs_input_grad[3]
        return None, None, dx, core.put(core.to_pairs(grad), core.to_pairs(x), numbers(*ctx.shape)) if wanted else None


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
