"""Weights of eight bits with a scale for every block, as DeepSeek-V3 is published (arXiv:2412.19437, section 3.3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from longthought.core.errors import CheckpointError
from longthought.core.files import shown

DTYPE = torch.float8_e4m3fn
SCALE = "_scale_inv"
"""What the name of a matrix is followed by in the name of its scales: w = stored · scale, whatever the name says."""

_KNOWN = {
    "fmt": (None, "e4m3"),
    "activation_scheme": (None, "dynamic"),
    "scale_fmt": (None, "float", "ue8m0"),
    "expert_dtype": (None, "fp8"),
}
_HARMLESS = {"quant_method", "weight_block_size", "modules_to_not_convert", "modules_to_convert", "ignored_layers"}


@dataclass(frozen=True)
class Blocks:
    """Rows and columns that share a scale."""

    rows: int
    columns: int

    @classmethod
    def of(cls, quantization: object) -> Blocks:
        """From ``quantization_config``. Which matrices have eight bits is told by the files.

        Raises:
            CheckpointError: the weights are quantized in another way.
        """
        if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "fp8":
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
            raise CheckpointError(
                f"weights quantized by {shown(method)} (quantization_config) cannot be run; known is fp8 in blocks, "
                "as DeepSeek-V3 has it; use the unquantized model"
            )
        for name, value in quantization.items():
            if name in _KNOWN and value in _KNOWN[name]:
                continue
            if name not in _HARMLESS and value not in (None, False):
                raise CheckpointError(
                    f"quantized weights with {name}={shown(value)} (quantization_config) cannot be run"
                )
        size = quantization.get("weight_block_size")
        if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n >= 1 for n in size)):
            raise CheckpointError(
                f"quantized weights (quantization_config) need weight_block_size, rows and columns, not {shown(size)}"
            )
        return cls(*size)

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a matrix."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def dequantize(self, stored: Tensor, scale: Float[Tensor, "m n"], out: Float[Tensor, "r c"]) -> None:
        """out = w · the scale of its block, multiplied in float32; one row of blocks at a time."""
        height, width = min(self.rows, stored.shape[0]), min(self.columns, stored.shape[1])
        for block, factors in enumerate(scale.float()):
            rows = slice(block * height, (block + 1) * height)
            out[rows] = stored[rows].float() * factors.repeat_interleave(width)[: stored.shape[1]]
