"""Shapes that run: what the tests call is checked against its annotation. Nothing of this happens outside the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import beartype

CHECKED = (
    "longthought.algorithms",
    "longthought.engine",
    "longthought.models.heads",
    "longthought.models.rope",
    "longthought.training",
)
"""What all tests check. Checking the decoder, too, whose parts are called for every token, costs as much again as all
tests of the learner and the engine; ``tests/architecture/test_shapes.py`` does it once."""

Function = TypeVar("Function", bound=Callable[..., Any])


def install(packages: Sequence[str] = CHECKED) -> None:
    """Check the modules of ``packages`` that are imported from now on."""
    jaxtyping.install_import_hook(packages, f"{__name__}.shapes")


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
