"""Checks of the settings that every generated task has."""

from __future__ import annotations

from collections.abc import Collection
from math import isfinite

from longthought.core.errors import SettingsError


def check_languages(task: str, languages: Collection[str], known: Collection[str]) -> None:
    """Raise ``SettingsError`` unless there is a language and a prompt for each."""
    if not languages or not set(languages) <= set(known):
        raise SettingsError(f"{task}: languages is {tuple(languages)}; choose from {', '.join(known)}")


def check_format_weight(task: str, weight: float) -> None:
    """Raise ``SettingsError`` unless the weight of the format reward is finite and not negative."""
    if not (isfinite(weight) and weight >= 0):
        raise SettingsError(f"{task}: format_weight is {weight}; it must be 0 or more")


def check_operations(task: str, operations: str) -> None:
    """Raise ``SettingsError`` unless the operations are some of ``+-*/``, each once."""
    if not operations or len(set(operations) & set("+-*/")) != len(operations):
        raise SettingsError(f"{task}: operations is {operations!r}; choose from '+-*/', each once")
