"""The text half of a model folder: which tokenizer, which conversation format, which tokens end a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from longthought.core.errors import CheckpointError, DataError, SettingsError
from longthought.core.files import exists, json_object, read_json
from longthought.text.chat import ChatRenderer
from longthought.text.renderer import (
    ASSISTANT,
    BEGIN,
    CHAT_TEMPLATE,
    END,
    USER,
    PlainRenderer,
    TemplateRenderer,
    TokensOnly,
)
from longthought.text.sandbox import compiled
from longthought.text.templates import HOLE, TEMPLATES, Template
from longthought.text.tokenizer import Tokenizer
from longthought.text.tokenizer_files import settings_of

Renderer: TypeAlias = PlainRenderer | ChatRenderer | TemplateRenderer | TokensOnly
"""The renderers that a model folder may have."""

GENERATION = "generation_config.json"


def load(folder: Path, template: Template | None = None, variables: Mapping[str, Any] | None = None) -> Renderer:
    """The renderer of a model folder, one of ours or of Hugging Face.

    Args:
        template: a prompt for base models, to be used in place of the folder's chat template.
        variables: what the chat template is told beside the conversation, such as ``{"enable_thinking": False}``.

    Raises:
        CheckpointError: files are missing or damaged; the chat template cannot be run; or there is none, and no
            ``template``.
        SettingsError: ``variables`` for a format that reads none.
    """
    return _renderer(Tokenizer.load(folder), folder, template, variables)


def _renderer(
    tokenizer: Tokenizer, folder: Path, template: Template | None, variables: Mapping[str, Any] | None = None
) -> Renderer:
    text = chat_template(tokenizer) if template is None else None
    plain = text is not None and text.strip() == CHAT_TEMPLATE
    if variables and (template is not None or plain):
        raise SettingsError(f"{folder}: no chat template reads {', '.join(variables)} here; leave the variables out")
    if template is not None:
        return TemplateRenderer(tokenizer, template, _stops(folder, tokenizer))
    if text is None:
        names = ", ".join(known.name for known in TEMPLATES)
        raise CheckpointError(
            f"{folder} has no chat template, as a base model has none: choose a prompt for it with "
            f"template=NAME, one of {names} (--template NAME in `sample` and `eval`)"
        )
    if plain:
        if missing := [token for token in (BEGIN, USER, ASSISTANT, END) if not tokenizer.knows(token)]:
            raise CheckpointError(f"{folder}: the chat template writes {', '.join(missing)}, which is no token")
        return PlainRenderer(tokenizer)
    renderer = ChatRenderer(tokenizer, text, _stops(folder, tokenizer), dict(variables or {}))
    _try(renderer, folder)
    end = renderer.end_of_turn
    return renderer if end is None else replace(renderer, stop_tokens=_unique((*renderer.stop_tokens, end)))


def load_to_look(folder: Path, template: Template | None = None) -> Renderer:
    """As ``load``, for a person who looks at a model: without a chat template the prompt is the text itself, to be
    continued, and without a tokenizer there are token ids alone.

    Raises CheckpointError as ``load`` does for files that are damaged.
    """
    if not any(
        exists(folder, name) for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    ):
        return TokensOnly(_unique(tuple(_eos(folder, GENERATION) or _eos(folder, "config.json"))))
    tokenizer = Tokenizer.load(folder)
    if template is None and chat_template(tokenizer) is None:
        template = Template("text", HOLE, "the text itself")
    return _renderer(tokenizer, folder, template)


def save(renderer: Renderer, folder: Path) -> None:
    """Write the tokenizer and template files into an existing folder: those that were read, byte for byte, or new ones.
    A chat template other than the one that was read goes into ``chat_template.jinja``, which is read first.

    Raises:
        DataError: a tokenizer that was made here speaks another format than ``PlainRenderer``'s.
    """
    if isinstance(renderer, TokensOnly):
        return
    tokenizer = renderer.tokenizer
    if tokenizer.files:
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        if isinstance(renderer, ChatRenderer) and renderer.template != chat_template(tokenizer):
            (folder / "chat_template.jinja").write_bytes(renderer.template.encode())
    elif isinstance(renderer, PlainRenderer):
        tokenizer.save(folder, CHAT_TEMPLATE, end=END, begin=BEGIN)
    elif isinstance(renderer, ChatRenderer) and renderer.stop_tokens:
        tokenizer.save(folder, renderer.template, end=tokenizer.decode(renderer.stop_tokens[:1]))
    else:
        raise DataError("the tokenizer was made here and has neither a chat template nor an end token to be saved with")


def chat_template(tokenizer: Tokenizer) -> str | None:
    """The chat template of a folder's files: ``chat_template.jinja`` before the settings, of several the default one.

    Raises:
        CheckpointError: there are several and none is the default, or it is no text.
    """
    files = tokenizer.files
    if "chat_template.jinja" in files:
        return _decoded(files["chat_template.jinja"])
    found: object = None
    if "chat_template.json" in files:
        found = json_object(_decoded(files["chat_template.json"]), "chat_template.json").get("chat_template")
    found = found or settings_of(files, "the tokenizer").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        if "default" not in named:
            raise CheckpointError(f"of the chat templates {list(map(str, named))} none is the default")
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"the chat template is no text but a {type(found).__name__}")
    return found or None


def _try(renderer: ChatRenderer, folder: Path) -> None:
    """Refuse a template that cannot render a question."""
    try:
        compiled(renderer.template)
        renderer.opening  # noqa: B018
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a reply: those of the generation settings, then the tokenizer's."""
    ids = _eos(folder, GENERATION)
    end = tokenizer.roles.get("eos_token")
    return _unique((*ids, *([tokenizer.id_of(end)] if end else [])))


def _eos(folder: Path, name: str) -> list[int]:
    """The end tokens that a file of settings names."""
    listed = read_json(folder, name).get("eos_token_id") if exists(folder, name) else None
    ids = [] if listed is None else listed if isinstance(listed, list) else [listed]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise CheckpointError(f"{folder / name}: eos_token_id must be a token id or a list of them, not {listed!r}")
    return ids


def _unique(ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the chat template is not text in UTF-8: {error.reason} at byte {error.start}") from None
