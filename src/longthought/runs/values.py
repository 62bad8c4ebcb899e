"""Values of single settings: text, YAML or JSON in, a value of the declared type out, or what is needed instead."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml

_LARGEST = 2**63 - 1
_NONE = {"none", "null"}


class UnfitError(Exception):
    """A value does not fit its kind; the message says what is needed."""


def parse(kind: Any, text: str) -> object:
    """Text as a value of ``kind``: a type that settings know.

    Raises:
        UnfitError: the text does not fit.
        TypeError: settings cannot hold such a kind.
    """
    if kind is str:
        return text
    optional = _optional(kind)
    if optional is not None:
        return None if text.strip().lower() in _NONE else parse(optional, text)
    if get_origin(kind) is tuple:
        return _parse_tuple(kind, text.strip())
    if get_origin(kind) is Literal:
        return _parse_choice(kind, text)
    readers: dict[Any, Callable[[str], object]] = {
        int: _parse_integer,
        float: _parse_number,
        bool: _parse_boolean,
        Path: _fit_path,
    }
    if kind not in readers:
        raise TypeError(f"settings cannot hold a field of type {kind}")
    return readers[kind](text.strip())


def _parse_integer(text: str) -> int:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UnfitError("an integer is needed") from None
    if value.is_finite() and not -_LARGEST <= value <= _LARGEST:
        raise UnfitError("an integer of at most 63 bits is needed")
    if not value.is_finite() or value != value.to_integral_value():
        raise UnfitError("an integer is needed")
    return int(value)


def _parse_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UnfitError("a number is needed") from None
    if not math.isfinite(value):
        raise UnfitError("a finite number is needed")
    return value


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UnfitError("true or false is needed")
    return text.lower() == "true"


def _parse_choice(kind: Any, text: str) -> object:
    for option in get_args(kind):
        if str(option) == text.strip():
            return option
    _refuse_choice(kind, text.strip())


def _refuse_choice(kind: Any, given: object) -> NoReturn:
    options = [str(option) for option in get_args(kind)]
    near = difflib.get_close_matches(str(given), options, n=1)
    raise UnfitError(f"one of {', '.join(options)} is needed" + (f"; did you mean {near[0]}?" if near else ""))


def _parse_tuple(kind: Any, text: str) -> tuple[object, ...]:
    if text.startswith("["):
        try:
            return _fit_tuple(kind, yaml.load(text, Loader))
        except (yaml.YAMLError, ValueError):
            raise UnfitError("a list such as [a, b] is needed") from None
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip().removesuffix(",")
    parts = [part.strip() for part in text.split(",")] if text else []
    return tuple(parse(inner, part) for inner, part in zip(_members(kind, len(parts)), parts, strict=True))


def _fit_tuple(kind: Any, value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise UnfitError("a list is needed")
    return tuple(fit(inner, part) for inner, part in zip(_members(kind, len(value)), value, strict=True))


def _members(kind: Any, count: int) -> list[Any]:
    """Kinds of the members of a tuple of ``count``."""
    inner = get_args(kind)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return [inner[0]] * count
    if len(inner) != count:
        raise UnfitError(f"{len(inner)} values are needed, {count} were given")
    return list(inner)


def fit(kind: Any, value: object) -> object:
    """A value of YAML, JSON or code, checked; numbers may be text, since YAML 1.1 reads ``1e-4`` as text.

    Raises:
        UnfitError: the value does not fit.
        TypeError: settings cannot hold such a kind.
    """
    optional = _optional(kind)
    if optional is not None:
        return None if value is None else fit(optional, value)
    if get_origin(kind) is tuple:
        return _fit_tuple(kind, value)
    if get_origin(kind) is Literal:
        return _fit_choice(kind, value)
    if kind is Path:
        return _fit_path(value)
    if kind in (int, float):
        return _fit_number(kind, value)
    if kind not in (bool, str):
        raise TypeError(f"settings cannot hold a field of type {kind}")
    if not isinstance(value, kind):
        raise UnfitError("true or false is needed" if kind is bool else "a text is needed (put it in quotes)")
    return value


def _fit_choice(kind: Any, value: object) -> object:
    for option in get_args(kind):
        if type(option) is type(value) and option == value:
            return option
    _refuse_choice(kind, value)


def _fit_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise UnfitError("a path is needed")
    return Path(value)


def _fit_number(kind: Any, value: object) -> object:
    if isinstance(value, str):
        return parse(kind, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError("an integer is needed" if kind is int else "a number is needed")
    return _parse_integer(str(value)) if kind is int else _parse_number(repr(value))


def _optional(kind: Any) -> Any | None:
    """X of ``X | None``; None for every other kind."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    inner = [member for member in get_args(kind) if member is not types.NoneType]
    if len(inner) != 1 or len(get_args(kind)) != 2:
        raise TypeError(f"settings cannot hold a field of type {kind}")
    return inner[0]


class Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no name of a setting", node.start_mark)
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is set twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
