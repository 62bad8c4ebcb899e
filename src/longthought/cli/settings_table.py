"""All settings of a recipe as text."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from longthought.recipes.catalogue import Recipe
from longthought.runs.settings import flatten, to_dict

_LONGEST = 160
_WIDEST = 24  # columns of the types; a longer one stands before its help


class _Leaf(NamedTuple):
    key: str
    kind: str
    told: str


def table(recipe: Recipe, settings: Any) -> str:
    """Every setting with its value, its type and a line of help; ``*`` marks what is not the default.

    The help is ``metadata["help"]`` of the field, or else the sentence of its class's docstring that names it.
    """
    values, default = flatten(to_dict(settings)), flatten(to_dict(recipe.settings))
    leafs = list(_leafs(type(settings)))
    shown = {leaf.key: _value(values.get(leaf.key)) for leaf in leafs}
    width = max(len(f"{key}={value}") for key, value in shown.items())
    kinds = max((len(leaf.kind) for leaf in leafs if len(leaf.kind) <= _WIDEST), default=0)
    lines = [f"{recipe.name}: {recipe.summary}", ""]
    for leaf in leafs:
        mark = " " if values.get(leaf.key) == default.get(leaf.key) else "*"
        lines.append(f"{mark} {f'{leaf.key}={shown[leaf.key]}':<{width}}  {leaf.kind:<{kinds}}  {leaf.told}".rstrip())
    return "\n".join(lines)


def _leafs(section: type, prefix: str = "") -> Iterator[_Leaf]:
    hints = get_type_hints(section)
    for field in fields(section):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _leafs(kind, f"{prefix}{field.name}.")
        else:
            told = str(field.metadata.get("help") or _told(section, field.name))
            yield _Leaf(prefix + field.name, _kind(kind), told)


def _told(section: type, name: str) -> str:
    """The sentence of the docstring that speaks of a field: it holds ````name````, or begins with ``name:``."""
    text = inspect.getdoc(section) or ""
    if text.startswith(f"{section.__name__}("):
        return ""  # what dataclass writes where there is none
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.;:]) {2,}|(?<=[.;])\s", paragraph.replace("\n", " ")):
            if re.search(rf"``{name}``|^{name}:", sentence.strip()):
                plain = sentence.strip().replace("``", "").removeprefix(f"{name}: ").rstrip(".;")
                return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"
    return ""


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join("none" if part is types.NoneType else _kind(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return ", ".join("…" if part is Ellipsis else _kind(part) for part in get_args(kind))
    return str(getattr(kind, "__name__", kind))


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(_value, value)) if isinstance(value, list) else str(value)
