"""Settings of a recipe: nested frozen dataclasses, changed by ``key=value`` words and YAML files, never by magic.

A leaf is an int, float, bool, str, Path, ``Literal[...]``, a tuple of leafs, or ``X | None``. Everything that is
unknown, ill-typed, given twice or not finite is refused with the key, what is needed there and what was given.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

import yaml

from longthought.core.errors import SettingsError
from longthought.runs.files import digest
from longthought.runs.values import Loader, UnfitError, fit, parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")


def override(settings: S, assignments: Sequence[str]) -> S:
    """Settings changed by words such as ``"rl.steps=10"``, ``"rl.lr=1e-4"``, ``"tags=a,b"``, ``"rl.cap=none"``.

    Text is read as the type of its key asks: ``1e3`` is an integer where one is needed (1000), ``true`` and ``false``
    are the booleans, a tuple is separated by commas or written as a YAML list in brackets.

    Raises:
        SettingsError: an unknown key (the nearest right ones are named), a key set twice, a whole section, a value of
            the wrong type, or one that the settings themselves refuse.
    """
    texts: dict[str, object] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        key = key.strip()
        if not sign or not key:
            raise SettingsError(f"{assignment!r} is no setting: write key=value, for example {_example(settings)}")
        if key in texts:
            raise SettingsError(f"{key} is set twice: to {texts[key]} and to {text}; leave one of them out")
        texts[key] = text
    return _assign(settings, texts, lambda kind, text: parse(kind, str(text)))


def from_yaml(settings: S, path: Path) -> S:
    """Settings changed by a YAML file of nested (or dotted) keys; what the file does not name stays.

    Raises:
        SettingsError: the file cannot be read, is no YAML mapping, or holds a key or value as in :func:`override`.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"the settings file {path} is no valid YAML: {error}") from error
    if values is None:
        return settings
    if not isinstance(values, dict):
        raise SettingsError(f"the settings file {path} must hold lines of the form `key: value`")
    try:
        return from_dict(settings, values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def from_dict(settings: S, values: Mapping[str, Any]) -> S:
    """Settings changed by nested values; ``from_dict(anything, to_dict(settings)) == settings``.

    Raises:
        SettingsError: as in :func:`override`.
    """
    flat: dict[str, object] = {}
    for key, value in _walk(values):
        if key in flat:
            raise SettingsError(f"{key} is set twice; leave one of them out")
        flat[key] = value
    return _assign(settings, flat, fit)


def to_dict(settings: DataclassInstance) -> dict[str, Any]:
    """Settings as nested plain values that JSON and YAML know (tuples as lists, paths as text).

    Raises:
        SettingsError: a value that was put in by code does not fit its declared type.
    """
    return _plain_section(settings, "")


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leafs of nested plain values (of :func:`to_dict`) by their dotted keys, in order."""
    return {key: value for key, value in _walk(values) if value != {}}


def fingerprint(settings: DataclassInstance) -> str:
    """SHA-256 (hexadecimal) of the settings: equal on every machine and Python for equal values.

    Raises:
        SettingsError: as in :func:`to_dict`.
    """
    return fingerprint_of(to_dict(settings))


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of nested plain values; the order of keys does not matter."""
    return digest(json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":")).encode())


def _kinds(cls: type) -> dict[str, Any]:
    """Declared types of the fields of a section, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def _kind_of(settings: DataclassInstance, key: str) -> Any:
    """The declared type of a dotted key."""
    node: Any = settings
    parts = key.split(".")
    for depth, part in enumerate(parts):
        here = ".".join(parts[: depth + 1])
        kinds = _kinds(type(node))
        if part not in kinds:
            _refuse_unknown(settings, node, here)
        if not is_dataclass(kinds[part]) and depth + 1 < len(parts):
            raise SettingsError(f"{here} is a single value, it holds no {'.'.join(parts[depth + 1 :])!r}")
        node = getattr(node, part)
    return kinds[part]


def _refuse_unknown(settings: DataclassInstance, section: Any, key: str) -> NoReturn:
    prefix, _, name = key.rpartition(".")
    prefix = f"{prefix}." if prefix else ""
    known = list(_kinds(type(section)))
    near = [prefix + found for found in difflib.get_close_matches(name, known, n=1)]
    near += [full for full, _ in _leafs(settings) if full.rpartition(".")[2] == name and full not in near]
    hint = f"did you mean {' or '.join(near[:3])}? " if near else ""
    raise SettingsError(f"there is no setting {key}: {hint}Valid here: {', '.join(prefix + other for other in known)}")


def _leafs(settings: DataclassInstance, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if is_dataclass(kind):
            yield from _leafs(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _example(settings: DataclassInstance) -> str:
    return next((f"{key}={value}" for key, value in _leafs(settings)), "key=value")


def _walk(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and leafs of nested mappings; an empty mapping counts as a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _assign(settings: S, values: Mapping[str, object], read: Callable[[Any, object], object]) -> S:
    """Check every key and value first, then build every changed section once, so that its own checks see all of it."""
    typed: dict[str, object] = {}
    for key, value in values.items():
        kind = _kind_of(settings, key)
        if is_dataclass(kind):
            if value == {}:
                continue
            inside = ", ".join(f"{key}.{name}" for name in _kinds(kind))  # type: ignore[arg-type]
            raise SettingsError(f"{key} is a group of settings and takes no value itself; set one of {inside}")
        try:
            typed[key] = read(kind, value)
        except UnfitError as error:
            shown = value if isinstance(value, str) else repr(value)
            raise SettingsError(f"{key}={shown}: {error}") from None
    return _build(settings, typed, "")


def _build(settings: S, values: Mapping[str, object], section: str) -> S:
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        head, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, part in inner.items():
        changes[head] = _build(getattr(settings, head), part, f"{section}.{head}" if section else head)
    try:
        return replace(settings, **changes)
    except (SettingsError, ValueError) as error:
        raise SettingsError(f"{section}: {error}" if section else str(error)) from error


def _plain_section(settings: DataclassInstance, prefix: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if is_dataclass(kind):
            plain[name] = _plain_section(value, f"{prefix}{name}.")
            continue
        try:
            plain[name] = _plain(fit(kind, value))
        except UnfitError as error:
            raise SettingsError(f"{prefix}{name}={value!r}: {error}") from None
    return plain


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
