"""Finds the native core: the library for the best instruction set that this CPU has, or the reason why there is none.

``hatch_build.py`` makes the libraries, ``built/core_<name>.so``. Each says from which sources it was made,
``lt_sources()``; in a checkout, one that was made from others than those in ``csrc/`` is never used. ``core_plain``
runs on every CPU, and says what else this one has: ``lt_supported()``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longthought.core.errors import SettingsError
from longthought.models.kernels.sources import digest

VARIABLE = "LONGTHOUGHT_NATIVE"
"""The environment variable that forces an instruction set, or turns the core off: PyTorch computes alone then."""

OFF = "off"
NAMES = ("avx512", "avx2", "plain")
"""The instruction sets, the best first."""

_BITS = {"avx512": 2, "avx2": 1, "plain": 0}  # of lt_supported()
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_AGAIN = "run `pip install -e .` again"
_LONGEST = 2000  # characters of a reason


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library, by the name of its instruction set."""

    name: str
    handle: ctypes.CDLL

    def bind(self, function: str, argtypes: Sequence[Any], restype: Any) -> Callable[..., Any]:
        """The C function of this name, with its types. The global lock of Python is free while it runs.

        Raises:
            SettingsError: the library has no such function.
        """
        try:
            found = self.handle[function]
        except AttributeError:
            raise SettingsError(f"{self.handle._name} has no function {function}: {_AGAIN}") from None
        found.argtypes, found.restype = list(argtypes), restype
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where the libraries are, and their sources; these exist in a checkout only."""

    built: Path
    sources: Path

    def file(self, name: str) -> Path:
        return self.built / f"core_{name}{_SUFFIX}"

    def missing(self, name: str) -> str:
        """Why a library could not be made, as the build wrote it down."""
        try:
            text = (self.built / "why_not.txt").read_text(encoding="utf-8", errors="replace")[:_LONGEST]
        except OSError:
            text = ""
        lines = text.splitlines() or [f"it was not compiled when longthought was installed: {_AGAIN}"]
        own = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
        return "; ".join(own or lines)


_HERE = Path(__file__).resolve().parent
PLACE = Place(_HERE / "built", _HERE.parents[3] / "csrc")


def available() -> Library | None:
    """The library that serves: the one that LONGTHOUGHT_NATIVE names, else the best for this CPU; None without one.

    A library that is there and cannot be used is warned of, once.

    Raises:
        SettingsError: LONGTHOUGHT_NATIVE has a value that it cannot have, or names a library that cannot be used.
    """
    library, reason = _served(PLACE, wish())
    if library is None and wish() != OFF and PLACE.file("plain").exists():
        _warn(reason)
    return library


def why_not() -> str:
    """Why no library serves, in words; empty if one does. Raises SettingsError as :func:`available` does."""
    return _served(PLACE, wish())[1]


def load(name: str | None = None) -> Library:
    """The library of this instruction set, whatever LONGTHOUGHT_NATIVE says; without a name, the one that serves.

    Raises:
        SettingsError: no such name; not compiled, or from other sources than those of the checkout; not for this CPU.
    """
    if name is not None:
        return _load(PLACE, name)
    library = available()
    if library is None:
        raise SettingsError(f"the native core does not serve: {why_not()}")
    return library


def usable() -> tuple[str, ...]:
    """The libraries that are there and that this CPU can run, the best first.

    Raises:
        SettingsError: they are from other sources, or damaged.
    """
    return tuple(name for name in supported() if PLACE.file(name).exists()) if PLACE.file("plain").exists() else ()


def supported() -> tuple[str, ...]:
    """The instruction sets that this CPU has, the best first. Raises SettingsError: core_plain cannot be used."""
    return _supported(PLACE)


def wish() -> str:
    """What LONGTHOUGHT_NATIVE says: ``off``, the name of an instruction set, or nothing."""
    return os.environ.get(VARIABLE, "")


@cache
def _served(place: Place, wanted: str) -> tuple[Library | None, str]:
    """The library, or the reason."""
    if wanted == OFF:
        return None, f"{VARIABLE}={OFF} turns it off"
    if wanted:
        if wanted not in NAMES:
            raise SettingsError(f"{VARIABLE}={wanted}: it can be {', '.join((OFF, *NAMES))}, or not be set")
        return _load(place, wanted), ""
    if not place.file("plain").exists():
        return None, place.missing("plain")
    try:
        best = next(name for name in _supported(place) if place.file(name).exists())
        return _load(place, best), ""
    except SettingsError as error:
        return None, str(error)


@cache
def _warn(reason: str) -> None:
    logging.getLogger(__name__).warning("the native core does not serve: %s", reason)


@cache
def _supported(place: Place) -> tuple[str, ...]:
    bits = _load(place, "plain").bind("lt_supported", (), ctypes.c_int)()
    return tuple(name for name in NAMES if bits & _BITS[name] == _BITS[name])


@cache
def _load(place: Place, name: str) -> Library:
    file = place.file(name) if name in NAMES else None
    if file is None:
        raise SettingsError(f"there is no native core {name!r}; there are {', '.join(NAMES)}")
    if not file.exists():
        raise SettingsError(f"the native core {name} is not there: {place.missing(name)}")
    if name != "plain" and name not in _supported(place):  # before it is loaded: that may run code of its own
        raise SettingsError(f"the native core {name} is not for this CPU, which has {', '.join(_supported(place))}")
    try:
        library = Library(name, ctypes.CDLL(str(file), mode=ctypes.RTLD_LOCAL))
    except OSError as error:
        raise SettingsError(f"{file} cannot be loaded ({error}): {_AGAIN}") from error
    made_from = (library.bind("lt_sources", (), ctypes.c_char_p)() or b"").decode("ascii", "replace")
    if (place.sources / "core.cpp").is_file() and made_from != digest(place.sources):
        raise SettingsError(f"{file} was compiled from other sources than those in {place.sources}: {_AGAIN}")
    return library
