"""Run folders from what their files are to hold, and what they hold spoiled."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from longthought.runs.record import Record

LEAFS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})


def write_run(record: Record, files: dict[str, Any]) -> Record:
    """The run with these files by name: JSON, or lines of it."""
    for name, content in files.items():
        file = record.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record.write()
    return Record.read(record.path)


def misfits(files: dict[str, Any], data: st.DataObject, most: int) -> dict[str, Any]:
    """The same with up to ``most`` values, somewhere within, of another kind."""
    files = copy.deepcopy(files)
    for _ in range(data.draw(st.integers(1, most))):
        node: Any = files
        while True:
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            inner = node[key]
            if not isinstance(inner, dict | list) or not inner or (node is not files and data.draw(st.booleans())):
                node[key] = data.draw(LEAFS)
                break
            node = inner
    return files


def remove_files(folder: Path) -> None:
    """What another example of a property has left."""
    for file in folder.rglob("*.json*"):
        file.unlink()
