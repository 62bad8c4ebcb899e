"""Shapes that run: what the tests call is checked against its annotation. Nothing of this happens outside the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import beartype

CHECKED = ("longthought.algorithms", "longthought.engine", "longthought.models", "longthought.training")
"""Packages whose shapes are checked."""

Function = TypeVar("Function", bound=Callable[..., Any])


def install() -> None:
    """Check what is imported from now on."""
    jaxtyping.install_import_hook(CHECKED, f"{__name__}.shapes")


def shapes(function: Function) -> Function:
    """beartype for the tensors alone: other types are for mypy, and hostile values for the package's own refusals."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint if _names_tensor(hint) else Any for name, hint in hints.items()}
    return beartype(function)


@contextmanager
def unchecked() -> Iterator[None]:
    """Shapes are not checked, as outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _names_tensor(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_names_tensor, get_args(hint)))
