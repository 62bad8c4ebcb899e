"""Which parts of a recipe a run has: said at its start, and kept in its folder."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from longthought.core.errors import SettingsError
from longthought.runs.files import json_bytes, new_folder
from longthought.runs.place import Place
from longthought.stages.measure import Folder

PARTS: Final = "parts.json"


class Part(NamedTuple):
    """A part by name, what it is made of, and why it is left out; empty: it is not."""

    name: str
    made_of: str
    left_out: str = ""


@dataclass(frozen=True)
class Parts:
    """Writes down, and tells, which parts a run has and why others are left out. Makes ``parts.json``.

    keys: environment variables that later stages read. Raises SettingsError, before anything is computed, where one is
    not set.
    """

    parts: tuple[Part, ...]
    keys: tuple[str, ...] = ()
    quiet: bool = field(default=False, compare=False)

    def run(self, given: None, place: Place) -> Folder:
        del given
        with new_folder(place.path / "parts") as made:
            (made / PARTS).write_bytes(json_bytes([part._asdict() for part in self.parts], indent=1) + b"\n")
        return self.load(place)

    def load(self, place: Place) -> Folder:
        if absent := [key for key in self.keys if not os.environ.get(key, "").strip()]:
            raise SettingsError(
                f"the environment variable {absent[0]} is not set, which holds the key of a server that is asked: "
                "set it, or say that the server wants none (judge.key= or rewriter.key=)"
            )
        if not self.quiet:
            print(self.described, file=sys.stderr, flush=True)
        return Folder(place.path / "parts")

    @property
    def described(self) -> str:
        """For a person."""
        width = max(len(part.name) for part in self.parts)
        return "\n".join(
            f"  {part.name:<{width}}  {f'LEFT OUT: {part.left_out}' if part.left_out else part.made_of}"
            for part in self.parts
        )
