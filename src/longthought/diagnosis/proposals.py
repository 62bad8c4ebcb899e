"""Other values for a setting: what to turn a knob to, to see whether anything is connected to it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


def proposals(kind: Any, value: object) -> list[object]:
    """Values of the declared type that differ from ``value``, the likelier ones to be accepted first."""
    found = (one for one in _proposed(kind, value) if one != value or type(one) is not type(value))
    return list(dict.fromkeys(one for one in found if value is not None or one is not None))


def _proposed(kind: Any, value: object) -> Iterator[object]:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        yield from _unions(kind, value)
    elif origin is Literal:
        yield from get_args(kind)
    elif origin is tuple:
        yield from _tuples(kind, value)
    elif kind is bool or isinstance(value, bool):
        yield not value
    elif kind in (int, float):
        yield from _numbers(kind, value)
    elif kind is str:
        yield f"{value}x" if value else "doctor"
    elif kind is Path:
        yield Path(f"{value}-doctor")


def _unions(kind: Any, value: object) -> Iterator[object]:
    for part in get_args(kind):
        if part is not types.NoneType:
            if value is None:
                yield _blank(part)
            yield from _proposed(part, _blank(part) if value is None else value)
    yield None


def _numbers(kind: Any, value: object) -> Iterator[object]:
    given = value if isinstance(value, int | float) else 1
    if kind is int:
        yield from (given + 1, 2 * given, given - 1, given + 32, given // 2, 8 * given, 0, 1, 2)
    else:
        yield from (
            float(x)
            for x in (2 * given, given / 2, given + 0.25, given / 1e6, given / 10, 10 * given, 0.5, 0.0, 1.0, 2.0)
        )


def _tuples(kind: Any, value: object) -> Iterator[object]:
    given = value if isinstance(value, tuple) else ()
    inner = get_args(kind)
    kinds = [inner[0]] * len(given) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
    for place, (part, one) in enumerate(zip(kinds, given)):
        for other in proposals(part, one):
            yield (*given[:place], other, *given[place + 1 :])
    if len(inner) == 2 and inner[1] is Ellipsis:
        yield given[:-1] if given else (_blank(inner[0]),)


def _blank(kind: Any) -> object:
    return {int: 1, float: 0.5, bool: False, str: "", Path: Path("doctor")}.get(kind)
