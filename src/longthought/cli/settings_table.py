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
_WIDE, _WIDEST = 40, 24  # columns of the settings and of the types; what is longer pushes only its own line


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
    widths = (len(f"{key}={value}") for key, value in shown.items())
    width = max((width for width in widths if width <= _WIDE), default=0)
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
    """What the docstring says of a field: the sentence that holds ````name````, or that begins with ``name:``, up to
    the next full stop or field."""
    text = inspect.getdoc(section) or ""
    if text.startswith(f"{section.__name__}("):
        return ""  # what dataclass writes where there is none
    others = "|".join(re.escape(field.name) for field in fields(section))
    for paragraph in re.split(r"\n\s*\n", text):
        parts = [part.strip() for part in re.split(r"(?<=[.;:]) {2,}|(?<=[.;])\s", paragraph.replace("\n", " "))]
        for first, part in enumerate(parts):
            if re.search(rf"``{name}``|^{name}:", part):
                last = first
                while parts[last].endswith(";") and not re.match(rf"({others}):", parts[last + 1]):
                    last += 1
                whole = " ".join(parts[first : last + 1])
                plain = whole.replace("``", "").removeprefix(f"{name}: ").rstrip(".;")
                return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"
    return ""


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join("none" if part is types.NoneType else _kind(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        parts = ("…" if part is Ellipsis else _kind(part) for part in get_args(kind))
        return ", ".join(f"[{part}]" if ", " in part else part for part in parts)
    return str(getattr(kind, "__name__", kind))


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list):
        nested = any(isinstance(one, list) for one in value)
        return f"[{','.join(f'[{_value(one)}]' for one in value)}]" if nested else ",".join(map(_value, value))
    return str(value)
