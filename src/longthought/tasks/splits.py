"""Splits that are disjoint by construction: a problem's content, hashed, says where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from random import Random
from typing import Final, TypeVar

from longthought.core.errors import DataError

SPLITS: Final = ("train", "dev", "test")

_DEV, _TEST = 0.05, 0.10
_MAX_DRAWS = 10_000

Proposed = TypeVar("Proposed")


def split_of(task: str, content: str) -> str:
    """The split of a problem's canonical content: 5 % of all contents are "dev", 10 % "test", the rest "train".

    Keyed by the task's name and by nothing else, so that no seed or level moves a problem to another split.
    """
    digest = blake2b(content.encode(), digest_size=8, key=task.encode()[:64]).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < _DEV:
        return "dev"
    return "test" if share < _DEV + _TEST else "train"


def problem_random(task: str, seed: int, split: str, index: int) -> Random:
    """The source of randomness of one problem. Raises ``DataError`` on an unknown split or a negative index."""
    if split not in SPLITS:
        raise DataError(f"{task}: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    if index < 0:
        raise DataError(f"{task}: problem {index} of {split!r} does not exist; problems are counted from 0")
    return Random(f"{task}/{seed}/{split}/{index}")


def proposals(split: str, propose: Callable[[], Proposed], belongs: Callable[[Proposed], str]) -> Iterator[Proposed]:
    """Proposals that belong to a split, in order. Raises ``DataError`` when the draws give out."""
    for _ in range(_MAX_DRAWS):
        proposed = propose()
        if belongs(proposed) == split:
            yield proposed
    raise DataError(f"no problem of split {split!r} in {_MAX_DRAWS} draws: these settings allow too few problems")
