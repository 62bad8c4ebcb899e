"""The tokenizer files of a model folder that somebody else made: read, checked, and made into a backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from longthought.core.errors import CheckpointError, DataError
from longthought.core.files import exists, json_object, regular_file

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES: Final = (
    TOKENIZER,
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
"""The files of a model folder that make up its tokenizer."""

TOKENIZER_LIMIT = 128 * 2**20
"""Largest tokenizer file that is read, in bytes; Gemma's has 33 million."""

REMEDY = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers writes it"

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OLD = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt", "spiece.model")

Result = TypeVar("Result")


def read_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer files of a folder, by name.

    Raises:
        CheckpointError: one of the two that are needed is missing; or one is no regular file, too large or unreadable.
    """
    if not exists(folder, TOKENIZER) and (others := [name for name in _OLD if exists(folder, name)]):
        raise CheckpointError(f"{folder} has {', '.join(others)} but no {TOKENIZER}; {REMEDY}")
    files = {name: _bytes(folder, name) for name in FILES if exists(folder, name)}
    if missing := [name for name in (TOKENIZER, CONFIG) if name not in files]:
        raise CheckpointError(f"{folder} has no {' and no '.join(missing)}; {REMEDY}")
    return files


def ran(step: Callable[[], Result]) -> Result:
    """What the backend gives. It panics, outside Python's ``Exception``, when a pattern of a tokenizer backtracks
    without end or its parts do not fit."""
    try:
        return step()
    except (KeyboardInterrupt, SystemExit):
        raise
    except DataError:
        raise
    except BaseException as error:
        raise DataError(f"the tokenizer fails on this text: {error}") from error


def settings_of(files: Mapping[str, bytes], origin: object) -> dict[str, Any]:
    """The settings of a tokenizer; an old ``special_tokens_map.json`` tells what they leave out.

    Raises:
        CheckpointError, ValueError: they are no JSON objects in UTF-8.
    """
    names = [name for name in ("special_tokens_map.json", CONFIG) if name in files]
    return {
        key: value
        for name in names
        for key, value in json_object(files[name].decode(), f"{origin}: {name}").items()
        if value is not None
    }


def _bytes(folder: Path, name: str) -> bytes:
    file = regular_file(folder, name)
    try:
        if file.stat().st_size > TOKENIZER_LIMIT:
            raise CheckpointError(f"{folder / name} is larger than {TOKENIZER_LIMIT:,} bytes; no tokenizer needs to be")
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}") from error


def backend_of(state: dict[str, Any], settings: Mapping[str, Any], origin: Path) -> Backend:
    """A backend that encodes alike every time, with the tokens that only the settings add."""
    if isinstance(model := state.get("model"), dict) and model.get("dropout"):
        state = {**state, "model": {**model, "dropout": None}}
    try:
        backend = Backend.from_str(json.dumps(state))
        known = backend.get_added_tokens_decoder()
        for i, token in sorted(_added(settings).items()):
            if i not in known or known[i].content != token.content:
                backend.add_tokens([token])
                if backend.token_to_id(token.content) != i:
                    raise CheckpointError(f"{origin} has no room for {token.content!r} as token {i}, as {CONFIG} says")
        names = [content_of(settings.get(role)) for role in ROLES] + extra_special(settings)
        backend.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in _unmarked(names, backend)]
        )
        ran(lambda: backend.encode("a 1\n<|", add_special_tokens=True))
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # the backend raises bare Exception, or panics
        raise CheckpointError(f"{origin.parent}: the tokenizer cannot be read: {error}") from error
    return backend


def _unmarked(names: Iterable[str | None], backend: Backend) -> list[str]:
    """Special tokens that the vocabulary has, but not as added tokens."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    return [name for name in names if name and name not in added and backend.token_to_id(name) is not None]


def _added(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    found = {}
    for i, entry in (settings.get("added_tokens_decoder") or {}).items():
        flags = {flag: bool(entry.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        found[int(i)] = AddedToken(entry["content"], **flags)
    return found


def extra_special(settings: Mapping[str, Any]) -> list[str]:
    """Special tokens beside the named ones; a list, or by name as newer folders have them."""
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        found += [
            name for token in (listed.values() if isinstance(listed, dict) else listed) if (name := content_of(token))
        ]
    return found


def content_of(token: object) -> str | None:
    """A token as settings name it: a string, or an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and not isinstance(token, str):
        raise ValueError(f"a token must be a string, not {token!r}")
    return token or None
