"""A set of examples as an artifact: conversations with what made them, ready for supervised fine-tuning.

::

    examples/
    ├── examples.jsonl    {"messages": [{"role", "content", "reasoning"}, …], "source": {…}}, one a line
    ├── prompts.jsonl     how often every prompt was answered rightly
    ├── dropped.jsonl     what else was right, and why it is not kept
    ├── report.json       counts
    ├── report.txt        the same for a person
    └── provenance.json   what made them, and the SHA-256 of every other file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from longthought.core.errors import DataError
from longthought.core.files import read_json
from longthought.core.types import Message
from longthought.core.version import __version__
from longthought.runs.files import digests, json_bytes, new_folder
from longthought.tasks.cells import UnfitRow
from longthought.tasks.example_rows import ExampleColumns, conversation
from longthought.tasks.examples import Examples, Turns

EXAMPLES, REPORT, TEXT, PROVENANCE = "examples.jsonl", "report.json", "report.txt", "provenance.json"
_COLUMNS: Final = ExampleColumns(messages="messages")


@dataclass(frozen=True)
class SetFolder:
    """The folder of a set that a stage made, of examples or of something else."""

    path: Path

    def report(self) -> dict[str, Any]:
        """What ``report.json`` tells."""
        return read_json(self.path, REPORT)

    def provenance(self) -> dict[str, Any]:
        """What made the set."""
        return read_json(self.path, PROVENANCE)

    def verify(self) -> None:
        """Compare the files with their digests. Raises DataError."""
        found = digests(self.path)
        for name, expected in self.provenance().get("files", {}).items():
            if found.get(name) != expected:
                raise DataError(f"{self.path / name} was altered or removed since it was written; make it again")


@dataclass(frozen=True)
class ExampleSet(SetFolder):
    """The folder of a set of examples. ``Examples.read(made.file)`` reads it as any file of conversations, too."""

    @property
    def file(self) -> Path:
        """The conversations."""
        return self.path / EXAMPLES

    def examples(self, held_out: float = 0.05, turns: Turns = "last") -> Examples:
        """What ``SFT`` learns from. Raises DataError where a file was altered since it was written."""
        self.verify()
        return Examples.read(self.file, held_out=held_out, turns=turns)


def said(made: Path) -> str:
    """The fingerprint of the conversations in a folder, by which a stage that learned them knows them."""
    return Examples.read(made / EXAMPLES).conversations.fingerprint


@contextmanager
def writing(path: Path, provenance: Mapping[str, Any], contents: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """A folder to fill with the files of a set; it is there, with its provenance, when the block ends.

    contents: the fingerprint of what it holds, which the provenance is to state for ``longthought lineage``.
    """
    with new_folder(path) as made:
        yield made
        told = {"longthought": __version__, **provenance}
        if contents is not None:
            told["contents"] = contents(made)
        told["files"] = digests(made)
        (made / PROVENANCE).write_bytes(json_bytes(told, indent=1) + b"\n")


def write_report(made: Path, report: Mapping[str, Any], text: str) -> None:
    """The report into the folder of a set, as JSON and for a person."""
    (made / REPORT).write_bytes(json_bytes(report, indent=1) + b"\n")
    (made / TEXT).write_text(text + "\n", encoding="utf-8")


def row(messages: Sequence[Message], source: Mapping[str, Any]) -> bytes | None:
    """A conversation as a line; None where it would be read back as another one, such as with tags in its content."""
    said = [
        {"role": one.role, "content": one.content} | ({"reasoning": one.reasoning} if one.reasoning else {})
        for one in messages
    ]
    line = json_bytes({"messages": said, "source": dict(source)}) + b"\n"
    try:
        back = conversation(json.loads(line), _COLUMNS)
    except (UnfitRow, ValueError):
        return None
    return line if back == tuple(messages) else None
