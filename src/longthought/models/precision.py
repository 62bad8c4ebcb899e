"""What computes a decoder, and in which precision: the native core where it can, PyTorch elsewhere.

    auto        the fastest that this machine has: bfloat16 on a GPU and on CPUs with AVX512-BF16, else float32
    float32     products of float32 numbers
    bfloat16    products of bfloat16 numbers, summed in float32

Weights, gradients, norms, the residual stream and log-probs are float32 in all of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from longthought.core.errors import SettingsError
from longthought.models.kernels.core import Core, core
from longthought.models.kernels.library import Library, available, wish
from longthought.models.kernels.native import NativeTransformer
from longthought.models.kernels.packed import unsupported

Precision = Literal["auto", "float32", "bfloat16"]


def check_precision(owner: str, precision: str) -> None:
    """Raises SettingsError for anything else."""
    if precision not in get_args(Precision):
        raise SettingsError(f"{owner}: precision={precision!r}: must be one of {', '.join(get_args(Precision))}")


def native(model: nn.Module, precision: Precision) -> Core | None:
    """The functions of the native core that compute this model; None where PyTorch does. See ``native_choice``."""
    chosen = native_choice(model, precision)
    return None if chosen is None else core(*chosen)


def native_choice(model: nn.Module, precision: Precision) -> tuple[Library, torch.dtype] | None:
    """The library that computes this model, and its type of numbers; None where PyTorch computes it."""
    library = available()
    if library is None or unsupported(model):
        return None
    if library.name == "plain" and wish() != "plain":
        return None  # slower than PyTorch's own products
    narrow = precision == "bfloat16" or (precision == "auto" and library.name == "avx512")
    return library, torch.bfloat16 if narrow else torch.float32


def products(model: nn.Module, precision: Precision) -> torch.dtype:
    """The type of the numbers that are multiplied, by whoever computes the model."""
    chosen = native_choice(model, precision)
    return _by_pytorch(model, precision) if chosen is None else chosen[1]


def _by_pytorch(model: nn.Module, precision: Precision) -> torch.dtype:
    weight = next(model.parameters())
    wide = precision == "float32" or (precision == "auto" and weight.device.type == "cpu")
    return weight.dtype if wide else torch.bfloat16


def computed(model: nn.Module, core: Core | None, backward: bool) -> Any:
    """``model`` as it is now, in a form that is called as a ``Transformer`` is; itself where PyTorch computes it.

    core: what ``native`` said.  backward: whether gradients will be asked for.
    """
    return model if core is None else NativeTransformer(model, core, backward)  # type: ignore[arg-type]


def autocast(model: nn.Module, precision: Precision) -> AbstractContextManager[Any]:
    """Where PyTorch computes: products in bfloat16, if that is the precision."""
    weight = next(model.parameters())
    wanted = _by_pytorch(model, precision)
    return nullcontext() if wanted == weight.dtype else torch.autocast(weight.device.type, wanted)
