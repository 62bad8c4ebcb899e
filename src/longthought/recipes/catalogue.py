"""Recipes by name, and a user's own by file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from longthought.core.errors import SettingsError
from longthought.core.user_code import import_file
from longthought.runs.run import Run

SHIPPED = {
    "tiny": "longthought.recipes.tiny:tiny",
    "r1": "longthought.recipes.r1:r1",
    "r1_model": "longthought.recipes.r1_model:r1_model",
    "findings": "longthought.recipes.findings:findings",
    "r1_zero": "longthought.recipes.r1_zero:r1_zero",
    "pretrain": "longthought.recipes.pretrain:pretrain",
    "sft": "longthought.recipes.sft:sft",
    "flywheel": "longthought.recipes.flywheel:flywheel",
}


@dataclass(frozen=True)
class Recipe:
    """A function ``(settings, run)`` and the default of its settings, a frozen dataclass."""

    name: str
    function: Callable[[Any, Run], Any]
    settings: Any

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


def find(name: str) -> Recipe:
    """A shipped recipe by name, or the function ``recipe`` of a Python file (``mine.py``, or ``mine.py:function``).

    Raises SettingsError when there is none, or when it is no function of (settings, run).
    """
    if name in SHIPPED:
        module, _, function = SHIPPED[name].partition(":")
        return _recipe(name, getattr(importlib.import_module(module), function))
    file, _, function = name.partition(":")
    if not file.endswith(".py"):
        near = get_close_matches(name, SHIPPED, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SettingsError(f"no recipe is called {name!r}.{hint} Shipped: {', '.join(SHIPPED)}; or give a .py file")
    path = Path(file)
    if not path.is_file():
        raise SettingsError(f"the recipe file {file} does not exist")
    module_ = import_file(path, "longthought_recipe_")
    found = getattr(module_, function or "recipe", None)
    if not callable(found):
        raise SettingsError(f"{file} has no function {function or 'recipe'}(settings, run)")
    return _recipe(str(path.resolve()) + (f":{function}" if function else ""), found)


def _recipe(name: str, function: Callable[[Any, Run], Any]) -> Recipe:
    try:
        first = next(iter(inspect.signature(function).parameters))
        kind = typing.get_type_hints(function)[first]
    except (StopIteration, KeyError, NameError, TypeError, ValueError) as error:
        raise SettingsError(f"{name}: a recipe is a function (settings: Settings, run: Run), annotated") from error
    if not (isinstance(kind, type) and is_dataclass(kind) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise SettingsError(f"{name}: the settings of a recipe must be a frozen dataclass, not {kind}")
    try:
        return Recipe(name, function, kind())
    except TypeError as error:
        raise SettingsError(f"{name}: every field of {kind.__name__} needs a default: {error}") from error
