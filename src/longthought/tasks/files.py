"""Problems from files: JSON Lines, JSON, Parquet, CSV, TSV, in the layouts that data sets of problems have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeAlias

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem, Score
from longthought.tasks.file_problems import Problems, Reading, Source, gather
from longthought.tasks.file_rows import check_files
from longthought.tasks.grading import Grading
from longthought.tasks.permutation import permuted
from longthought.tasks.splits import SPLITS

Files: TypeAlias = Path | str | Sequence[Path | str]

_PLAIN: Final = Reading()


@dataclass(frozen=True)
class FileTask:
    """Problems that files hold, each asked once per epoch, in an order that the seed and the epoch choose.

    Made by ``FileTask.read``. The order of dev and test does not depend on the seed, so that models are compared on the
    same problems. ``problem(split, index).id`` is ``name/id``, with the split between where file or column give it;
    without an id column it is a hash of prompt and answer. A run knows the problems by ``problems.fingerprint``.
    """

    name: str
    problems: Problems
    grading: Grading
    seed: int = 0
    instruction: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s/]{1,100}", self.name):
            raise SettingsError(f"a task is named {self.name!r}: 1 to 100 characters without space and / are needed")

    @classmethod
    def read(
        cls,
        *paths: Path | str,
        grading: Grading,
        reading: Reading = _PLAIN,
        train: Files = (),
        dev: Files = (),
        test: Files = (),
    ) -> FileTask:
        """Read and check files whole, before anything is trained on them.

        Problems of ``paths`` are divided by the column ``split``, if there is one, else by a hash of the prompt; files
        for ``train``, ``dev`` and ``test`` belong there whole. A split that neither gives is taken out of train by the
        hash.

        A prompt that comes again with the same answer is dropped; with another answer, the row is bad. Where splits are
        given, a problem of train that dev or test holds too (up to case, width, white space and system message) is
        removed from train, and from dev what test holds. ``describe`` tells what was understood and what was left out.

        Raises:
            DataError: a file cannot be read, its columns are ambiguous, no problem is left, or rows are bad (all are
                counted by reason, the first 20 listed with file and line) and ``reading.bad`` is ``refuse``.
            SettingsError: no file is named, or one twice.
        """
        named = {"": paths, "train": _listed(train), "dev": _listed(dev), "test": _listed(test)}
        sources = [Source(Path(path), split) for split, files in named.items() for path in files]
        check_files([source.path for source in sources], "problems")
        name = reading.name or re.sub(r"[\s/]+", "-", sources[0].path.stem)[:100]
        return cls(name, gather(sources, reading), grading, reading.seed, reading.instruction)

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many bad rows were left out, by reason."""
        return self.problems.skipped

    def describe(self) -> str:
        """For a person: which columns were taken for what, how many problems there are, and what was left out."""
        columns = dict.fromkeys(map(str, self.problems.columns.values()))
        counts = ", ".join(f"{split} {self.size(split):,}" for split in SPLITS)
        return "; ".join([*columns, f"{self._total:,} problems ({counts})", *self.problems.notes])

    def size(self, split: str) -> int:
        """How many problems a split holds."""
        if split not in SPLITS:
            raise DataError(f"{self.name}: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        return len(self.problems.splits[split])

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split, without limit: after the last one the next epoch begins.

        Raises ``DataError`` on an unknown or empty split, or a negative index.
        """
        size = self.size(split)
        if index < 0:
            raise DataError(f"{self.name}: problem {index} of {split!r} does not exist; problems are counted from 0")
        if not size:
            raise DataError(
                f"{self.name}: its {split} split holds none of {self._total:,} problems; "
                f"{'choose smaller shares' if split == 'train' else f'choose a larger {split}_share'}, "
                f"or name a file for it: FileTask.read(…, {split}=…), in settings problems.test=…"
            )
        epoch, place = divmod(index, size)
        seed = self.seed if split == "train" else 0
        key = blake2b(f"{seed}/{split}/{epoch}".encode(), digest_size=32).digest()
        found = self.problems[self.problems.splits[split][permuted(place, size, key)]]
        messages = [Message(role, content) for role, content in found.messages]  # type: ignore[arg-type]
        if self.instruction:
            messages[-1] = replace(messages[-1], content=f"{messages[-1].content}\n{self.instruction}")
        return Problem(f"{self.name}/{found.id}", tuple(messages), found.answer, dict(found.info))

    @property
    def _total(self) -> int:
        return sum(map(len, self.problems.splits.values()))

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply to a problem."""
        return self.grading(problem, replies)

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        """Score the replies to many problems, together where the verifier can."""
        return self.grading.together(groups)


def _listed(files: Files) -> list[Path | str]:
    return [files] if isinstance(files, str | Path) else list(files)
