"""Rollouts as conversations in one file, for training or for other tools: messages or ShareGPT as JSON Lines, Parquet.

Every row says where it comes from: ``run``, ``stage``, ``id`` (step:group:sample) and its three numbers; ``problem``;
``model`` (SHA-256 of what the stage started from, as it noted it) and ``version`` (optimizer steps since);
``template`` and ``seed`` of the stage; ``task`` (SHA-256 of its description) and ``verifier``; ``reward``, ``value``,
``correct``, ``parts``, ``shaping``, ``advantage``, ``outcome``, ``evidence``, ``finish``, ``length`` in tokens,
``left_out``; and ``filters``, the conditions that it met. None where nothing is stored.

The traces hold the tokens of a prompt. The question is read back out of them (``text.asked``), and only taken where it
renders to the same tokens. A row is only written as a conversation if ``Examples.read`` gives that very conversation
back. In JSON Lines other rows are left out and counted; Parquet keeps them, with null ``messages`` and the reason in
``unfit``.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from longthought.core.errors import LongthoughtError, RunError, SettingsError
from longthought.core.types import Message
from longthought.evaluation.trace_query import Id, Listing, rows_of
from longthought.evaluation.trace_source import Source
from longthought.runs import traces
from longthought.runs.files import json_bytes, plain_errors, sync, temporary
from longthought.runs.record import Record
from longthought.runs.run import STAGE
from longthought.runs.settings import fingerprint_of
from longthought.runs.shelf import Shelf, json_in, nested
from longthought.tasks.cells import UnfitRow
from longthought.tasks.example_rows import ExampleColumns, conversation
from longthought.tasks.file_rows import MAX_ROW
from longthought.text import folder as text_folder
from longthought.text.asked import Asked
from longthought.text.reasoning import CLOSE, OPEN, split
from longthought.text.templates import Template

Format: TypeAlias = Literal["messages", "sharegpt", "parquet"]
FORMATS: Final = ("messages", "sharegpt")
PARQUET, LINES = ".parquet", (".jsonl", ".ndjson")

_CHUNK = 256  # rollouts in memory at once
_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
_PER_TOKEN = ("prompt", "tokens", "logprobs", "logprobs_new", "advantages", "entropies")
_STORED = (
    *("step", "group", "sample", "problem", "version", "reward", "value", "correct", "parts", "shaping", "advantage"),
    *("outcome", "evidence", "finish", "length", "left_out"),
)
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
_TEXT = ("run", "stage", "id", "model", "template", "task", "verifier", "filters")


def chosen_format(file: Path, asked: str | None) -> Format:
    """Told by the name of the file, and by ``asked`` for JSON Lines. Raises SettingsError for what is no such file."""
    kind = file.suffix.lower()
    if kind not in (PARQUET, *LINES):
        raise SettingsError(f"--export {file}: a file of conversations ends in .jsonl or .parquet, not in {kind!r}")
    if kind == PARQUET and asked is not None:
        raise SettingsError(f"--format {asked} changes nothing beside a Parquet file: leave it out, or write .jsonl")
    return "parquet" if kind == PARQUET else "sharegpt" if asked == "sharegpt" else "messages"


@dataclass(frozen=True, slots=True)
class Export:
    """What to write. ``tokens``: Parquet also gets token ids, log-probs, advantages and entropies.

    filters: the conditions that the rollouts met, in words, for every row.  limit: most rollouts.
    force: a file that is there is replaced.
    """

    file: Path
    format: Format = "messages"
    tokens: bool = False
    filters: str = ""
    limit: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.tokens and self.format != "parquet":
            raise SettingsError("--tokens needs a Parquet file: give --export a name that ends in .parquet")


@dataclass
class Told:
    """What became of the rollouts. ``left_out``: how many are no conversation, by reason; in Parquet they are rows."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    @property
    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"{self.written:,} rollouts written"]
        lines += [f"{count:,} without a conversation: {reason}" for reason, count in self.left_out.most_common()]
        return lines + ([f"{self.lost:,} could not be read"] if self.lost else [])


def export(source: Source, record: Record, listing: Listing, asked: Export, missed: Callable[[RunError], None]) -> Told:
    """Write the rollouts that match, in their order, a few hundred in memory at once; all of the file, or nothing.

    What is damaged, or gone since it was listed, is told to ``missed``.

    Raises:
        RunError: nothing matches, or nothing that matches can be written; the file is there already, lies in a stage of
            the run, or cannot be written; or no chat format was found to read the prompts with, and the rows have to be
            conversations.
    """
    _refuse(asked, record, listing)
    rows = _Rows(source, record, asked)
    if not rows.readers and asked.format != "parquet":
        raise RunError(
            f"no model with a tokenizer and a chat format was found for {record.path}, so that its prompts cannot be "
            "read as questions; write Parquet (.parquet), which holds them as they are"
        )
    told = Told()
    with _replacing(asked.file, asked.force) as partial:
        with _writer(partial, asked) as write:
            for start in range(0, min(listing.table.num_rows, asked.limit or listing.table.num_rows), _CHUNK):
                count = min(_CHUNK, (asked.limit or listing.table.num_rows) - start)
                write(list(rows.of(listing.ids(start, count), told, missed)))
        if not told.written:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in told.left_out.most_common())
            raise RunError(f"nothing was written: of the rollouts that match none is a conversation ({reasons})")
    return told


def _refuse(asked: Export, record: Record, listing: Listing) -> None:
    """Raises RunError where the file may not be written, or nothing would stand in it."""
    place = asked.file.resolve()
    inside = [stage.path for stage in record.stages() if stage.path.resolve() in place.parents]
    if inside:
        raise RunError(f"{asked.file} lies in {inside[0]}, a stage of the run: choose another folder")
    if place.is_dir():
        raise RunError(f"{asked.file} is a folder: give the name of a file")
    if os.path.lexists(asked.file) and not asked.force:
        raise RunError(f"{asked.file} is there already: choose another name, or replace it with --force")
    if not listing.table.num_rows:
        raise RunError(f"no rollout of {listing.looked_at:,} matches: nothing was written")


class _Rows:
    """Rollouts of one stage as rows of a file."""

    def __init__(self, source: Source, record: Record, asked: Export) -> None:
        self._source, self._asked = source, asked
        self._about = about(source, record, asked.filters)
        self.readers = list(_readers(record, source.stage))
        lists = _PER_TOKEN if asked.tokens else ("prompt",)
        self._columns = (*_STORED, "text", *lists)

    def of(
        self, ids: Sequence[tuple[Id, int]], told: Told, missed: Callable[[RunError], None]
    ) -> Iterator[dict[str, Any]]:
        """The rows of these rollouts that belong into the file; what becomes of them is counted in ``told``."""
        found = rows_of(self._source.folder, ids, self._columns, missed)
        told.lost += len(ids) - len(found)
        for rollout in found:
            messages, unfit = self._conversation(rollout)
            row = self._row(rollout, messages)
            if not unfit and self._asked.format != "parquet" and len(json_bytes(row)) >= MAX_ROW:
                unfit = f"longer than the {MAX_ROW:,} bytes that are read as one line"
            if unfit:
                told.left_out[unfit] += 1
            if self._asked.format == "parquet":
                lists = {name: rollout[name] for name in _PER_TOKEN if self._asked.tokens}
                yield {
                    **row,
                    "unfit": unfit or None,
                    "text": rollout["text"],
                    "prompt_text": self._prompt(rollout),
                    **lists,
                }
            elif not unfit:
                yield row
            told.written += not unfit or self._asked.format == "parquet"

    def _row(self, rollout: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
        name = str(Id(rollout["step"], rollout["group"], rollout["sample"]))
        about = {**self._about, "id": name, **{column: rollout[column] for column in _STORED}}
        if self._asked.format == "sharegpt":
            return {"conversations": [_turn(message) for message in messages], **_finite(about)}
        if self._asked.format == "messages":
            return {"messages": [_message(message) for message in messages], **_finite(about)}
        pairs = {name: list(rollout[name].items()) for name in ("parts", "shaping")}
        told = [{**_message(message), "reasoning_content": message.reasoning or None} for message in messages]
        return {"messages": told or None, **about, **pairs}

    def _conversation(self, rollout: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
        """The conversation, or none and the reason why the row holds none."""
        asked = next((found for reader in self.readers if (found := reader.messages(rollout["prompt"]))), None)
        if asked is None:
            return (), "the prompt is not read as a question in the model's chat format"
        reply = reply_of(rollout["text"], (self._prompt(rollout) or "").rstrip().endswith(OPEN))
        if not reply.content.strip():
            return (), "nothing after the reasoning" if reply.reasoning else "the reply is empty"
        messages = (*asked, reply)
        for form, column in ((_message, "messages"), (_turn, "conversations")):
            row = {column: [form(message) for message in messages]}
            try:
                if conversation(row, ExampleColumns(messages=column)) != messages:
                    return (), "the reply holds tags that would be read in another way"
            except UnfitRow as unfit:
                return (), unfit.reason
        return messages, ""

    def _prompt(self, rollout: Mapping[str, Any]) -> str | None:
        """The text of the prompt; None without a tokenizer."""
        if self.readers:
            return self.readers[0].text(rollout["prompt"])
        tokenizer = self._source.tokenizer
        return None if tokenizer is None else tokenizer.decode(rollout["prompt"])


def reply_of(text: str, opened: bool = False) -> Message:
    """What the model wrote, as files are read: a thought at its beginning apart, without the white space around it.

    opened: the prompt ends with ``<think>``.
    """
    late = not text.lstrip().startswith(OPEN) and OPEN in text.partition(CLOSE)[0]
    reasoning, content = split(text, opened)
    if not reasoning.strip() or (late and not opened):
        return Message("assistant", text)
    return Message("assistant", content.lstrip(), reasoning.strip())


def about(source: Source, record: Record, filters: str) -> dict[str, Any]:
    """What holds for all rollouts of a stage, as its ``stage.json`` tells; None where it does not."""
    asked: Mapping[str, Any] = {}
    with suppress(LongthoughtError):
        asked = json_in(record.stage(source.stage).path / STAGE)
    stage, given = (part if isinstance(part := asked.get(name), Mapping) else {} for name in ("stage", "given"))
    settings, template, task = stage.get("settings"), given.get("template"), stage.get("task")
    models = [
        value["files"] for _, value in nested(asked.get("given")) if isinstance(value, Mapping) and "files" in value
    ]
    seed = stage.get("seed", settings.get("seed") if isinstance(settings, Mapping) else None)
    return {
        "run": source.run,
        "stage": source.stage,
        "model": _text(models[0]) if len(models) == 1 else None,
        "template": _text(template.get("name")) if isinstance(template, Mapping) else None,
        "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) and abs(seed) < 2**63 else None,
        "task": None if task is None else fingerprint_of({"task": task}),
        "verifier": _verifier(task),
        "filters": filters or None,
    }


def _verifier(task: Any) -> str | None:
    """Names of the verifiers in a task's description; that of the task itself where it names none: it grades."""
    found = [value for where, value in nested(task) if where.rpartition(".")[2] == "verifier"]
    names = [str(one.get("is")) if isinstance(one, Mapping) else str(one) for one in found if one]
    if not names and isinstance(task, Mapping) and task.get("is"):
        names = [str(task["is"])]
    return ", ".join(dict.fromkeys(names)) or None


class _Known(NamedTuple):
    """A model folder that may have rendered the prompts."""

    folder: Path
    template: Any


def _readers(record: Record, stage: str) -> Iterator[Asked]:
    """Readers of prompts: in the format of the model that the stage was given, then in that of others of the run."""
    seen = set()
    for known in _formats(record, stage):
        key = (known.folder.resolve(), json.dumps(known.template, sort_keys=True, default=str))
        if key in seen:
            continue
        seen.add(key)
        with suppress(LongthoughtError, OSError):
            yield Asked(text_folder.load(known.folder, _template(known.template)))


def _formats(record: Record, stage: str) -> Iterator[_Known]:
    given: Any = None
    with suppress(LongthoughtError):
        given = json_in(record.stage(stage).path / STAGE).get("given")
    shelf = Shelf(record)
    for _, value in nested(given):
        if isinstance(value, Mapping) and isinstance(value.get("files"), str):
            found = shelf.find(value["files"])
            if found is not None and found.path.is_dir():
                yield from _speaking(found.path, value.get("template"))
    for one in reversed(record.stages()):
        for file in sorted(one.path.glob("*/tokenizer_config.json")):
            yield from _speaking(file.parent, None)
    template = given.get("template") if isinstance(given, Mapping) else None
    for model in shelf.named.get(str(record.path), []):
        yield from _speaking(model.path, template)


def _speaking(folder: Path, template: Any) -> Iterator[_Known]:
    """A folder with the template that was asked for, else with the one that it was trained with, else with its own."""
    if template is None:
        with suppress(LongthoughtError):
            template = json_in(folder / "provenance.json").get("template")
    yield _Known(folder, template)


def _template(stated: Any) -> Template | None:
    """Raises LongthoughtError for what is no template."""
    if stated is None:
        return None
    try:
        return Template(stated["name"], stated["text"], stated["source"], tuple(stated["stop"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError("a template that cannot be read") from error


def _message(message: Message) -> dict[str, str]:
    told = {"role": str(message.role), "content": message.content}
    return {**told, "reasoning_content": message.reasoning} if message.reasoning else told


def _turn(message: Message) -> dict[str, str]:
    thought = f"{OPEN}\n{message.reasoning}\n{CLOSE}\n\n" if message.reasoning else ""
    return {"from": _NAMES[message.role], "value": thought + message.content}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _finite(value: Any) -> Any:
    """What JSON can hold: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _replacing(file: Path, force: bool) -> Iterator[Path]:
    """A temporary name to write under; it becomes ``file`` at the end of the block, and vanishes if the block fails."""
    partial = temporary(file)
    with plain_errors(file):
        try:
            yield partial
            sync(partial)
            if not force and os.path.lexists(file):
                raise RunError(f"{file} has come up meanwhile: choose another name, or replace it with --force")
            os.rename(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        sync(file.parent)


@contextmanager
def _writer(partial: Path, asked: Export) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Takes rows, a few hundred at once."""
    with open(partial, "wb") as out:
        if asked.format != "parquet":
            yield lambda rows: _write_lines(out, rows)
            return
        schema = _schema(asked.tokens)
        with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as parquet:
            yield lambda rows: parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema))


def _write_lines(out: BinaryIO, rows: Sequence[Mapping[str, Any]]) -> None:
    out.writelines(json_bytes(row) + b"\n" for row in rows)


def _schema(tokens: bool) -> pa.Schema:
    """As in the traces, all but the keys nullable."""
    stored = [traces.SCHEMA.field(name) for name in (*_STORED, "text", *(_PER_TOKEN if tokens else ()))]
    mine = [pa.field(name, pa.string()) for name in (*_TEXT, "unfit", "prompt_text")]
    return pa.schema([pa.field("messages", pa.list_(_MESSAGE)), *mine, pa.field("seed", pa.int64()), *stored])
