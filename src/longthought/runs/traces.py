"""Every rollout of every step, one Parquet file per step: what the model wrote, how it was graded, what it was worth.

Columns, one row per rollout:

============ =================== ===================================================================
step         int64               the optimizer step that the rollouts were made for
problem      string              id of the problem
group        int32               number of the group within the step
sample       int32               number of the rollout within its group
prompt       list<int32>         token ids of the prompt
tokens       list<int32>         token ids of the completion, the stop token included
length       int32               how many ``tokens`` there are
logprobs     list<float32>       of ``tokens``, under the policy that sampled
text         string              what the model wrote
finish       string              stop, length, budget or stop_string
version      int64               optimizer steps of the weights that sampled
value        double, nullable    task reward; null where nothing could be graded
correct      bool                whether the answer is right
parts        map<string, double> named summands of ``value``
outcome      string              graded, unparsable, no_gold, timed_out, crashed or invalid
evidence     string              what the verifier saw
shaping      map<string, double> named summands beside the task reward
reward       double, nullable    what the advantage was computed from
advantage    double, nullable    null where it has none of its own: tokens have each theirs, or its group was dropped
update       int32, nullable     which optimizer update of the step trained on it, from 0
weight       double, nullable    sum of the weights of its tokens in the loss of that update
left_out     string, nullable    why it was not trained on; empty if it was, null where nothing was recorded
logprobs_new list<float32>       of ``tokens``, under the learner in the forward pass of that update
advantages   list<float32>       of ``tokens``; null where ``advantage`` holds for all of them
entropies    list<float32>       of the learner's distribution at ``tokens``, nats
============ =================== ===================================================================

The last six, and single elements of the last three lists, may be null. In files of older versions they and ``length``
are absent; reading fills them (``length`` by counting).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longthought.core.errors import RunDamaged, RunError
from longthought.core.types import Group, Rollout
from longthought.runs.files import write_atomic

PerRollout: TypeAlias = Sequence[Sequence[SupportsFloat | None]]
"""One value, or None, for every rollout of every group."""

_ROW_GROUP = 64  # rollouts; one of them is found without reading the tokens of a whole step
_THREADS = 4
_NAME = re.compile(r"step-(\d{6,})\.parquet")

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("parts", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),
        pa.field("shaping", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("advantage", pa.float64()),
        pa.field("update", pa.int32()),
        pa.field("weight", pa.float64()),
        pa.field("left_out", pa.string()),
        pa.field("logprobs_new", pa.list_(pa.float32())),
        pa.field("advantages", pa.list_(pa.float32())),
        pa.field("entropies", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class Trained:
    """What the learner made of one rollout.

    logprobs, advantages, entropies: one number, or None, for each token of the completion; None where none was
    computed, and for ``advantages`` where one advantage holds for all tokens.
    update: which optimizer update of the step, from 0.  weight: sum of the weights of its tokens in that update's loss.
    left_out: why it was not trained on, in a few words; empty if it was.
    """

    logprobs: Sequence[float | None] | None = None
    advantages: Sequence[float | None] | None = None
    entropies: Sequence[float | None] | None = None
    update: int | None = None
    weight: float | None = None
    left_out: str = ""


PerTrained: TypeAlias = Sequence[Sequence[Trained | None]]
"""What the learner made of every rollout of every group; None where nothing is known."""


_ADDED = frozenset({"length", "update", "weight", "left_out", "logprobs_new", "advantages", "entropies"})


def file_of(folder: Path, step: int) -> Path:
    """Where the trace of a step is kept."""
    return folder / f"step-{step:06d}.parquet"


def write(  # noqa: PLR0913  six columns of one table, each under its name
    folder: Path,
    step: int,
    groups: Sequence[Group],
    *,
    rewards: PerRollout,
    advantages: PerRollout,
    shaping: Mapping[str, PerRollout],
    trained: PerTrained | None = None,
) -> Path:
    """Write the trace of one step atomically. Equal rollouts and values give equal bytes.

    ``rewards``, ``advantages``, ``trained`` and every entry of ``shaping`` are nested as ``groups`` are; tensors of
    shape (G,) will do for a group of numbers, and NaN is written as null.

    Raises:
        RunError: the disk is full or cannot be written.
        ValueError: a nested sequence is not of the shape of ``groups``, or a list of ``trained`` not of its tokens.
    """
    sizes = [len(group) for group in groups]
    learned = trained if trained is not None else [[None] * size for size in sizes]
    for name, values in {"rewards": rewards, "advantages": advantages, "trained": learned, **shaping}.items():
        if [len(row) for row in values] != sizes:
            raise ValueError(f"{name} must hold one value per rollout of each group")
    rows = [
        _row(rollout)
        | {"step": step, "group": number, "sample": sample}
        | {"reward": _number(rewards[number][sample]), "advantage": _number(advantages[number][sample])}
        | {"shaping": [(name, _number(values[number][sample])) for name, values in shaping.items()]}
        | _learned(learned[number][sample], len(rollout.completion.token_ids))
        for number, group in enumerate(groups)
        for sample, rollout in enumerate(group)
    ]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file_of(folder, step), sink.getvalue().to_pybytes())
    return file_of(folder, step)


def read(path: Path) -> pa.Table:
    """The trace of one step (a file) or of all steps (their folder), in order.

    Raises:
        RunError: there is no trace at ``path``.
        RunDamaged: a file cannot be read.
    """
    return pa.concat_tables([_read(file) for file in _files(path)])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of :func:`read` one by one, a file at a time, maps as dictionaries.

    Raises:
        RunError: there is no trace at ``path``.
        RunDamaged: a file cannot be read.
    """
    for file in _files(path):
        yield from map(_with_dictionaries, _read(file).to_pylist())


def steps(folder: Path) -> list[int]:
    """The steps that have a trace in ``folder``, in order."""
    return [step for step, _ in _numbered(folder)]


def scan(
    folder: Path,
    steps: Iterable[int],
    columns: Sequence[str],
    keep: Callable[[pa.Table], pa.Table],
    damaged: Callable[[RunDamaged], None],
) -> Iterator[pa.Table]:
    """What ``keep`` leaves of each step's trace, in order; only ``columns`` are read from the disk.

    ``keep`` gets the columns and ``row``, the number of the rollout within its file; it runs in several threads. A
    file that cannot be read is told to ``damaged`` and passed over; one that a resumed run has deleted is none.
    """

    def kept(step: int) -> pa.Table | RunDamaged | None:
        try:
            table = _columns(file_of(folder, step), columns)
        except FileNotFoundError:
            return None
        except RunDamaged as error:
            return error
        return keep(table.append_column("row", pa.array(range(table.num_rows), pa.int32())))

    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(kept, steps):
            if isinstance(found, RunDamaged):
                damaged(found)
            elif found is not None:
                yield found


def fetch(
    folder: Path, step: int, numbers: Sequence[int], columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rollouts of a step with these ``row`` numbers, in their order, as :func:`rows` gives them.

    Only the row groups that hold them are read. ``columns`` None: all.

    Raises:
        RunError: there is no such step, or no such row.
        RunDamaged: the file cannot be read.
    """
    file = file_of(folder, step)
    try:
        table, first = _groups_of(file, numbers, columns or SCHEMA.names)
    except FileNotFoundError:
        raise RunError(f"there is no trace of step {step} in {folder}") from None
    return [_with_dictionaries(row) for row in table.take([first[number] for number in numbers]).to_pylist()]


def drop_after(folder: Path, step: int | None) -> None:
    """Delete the traces of the steps after ``step``, and all for None."""
    for number, file in _numbered(folder):
        if step is None or number > step:
            file.unlink()


def _row(rollout: Rollout) -> dict[str, Any]:
    completion, score = rollout.completion, rollout.score
    return {
        "problem": rollout.problem.id,
        "prompt": rollout.prompt,
        "tokens": completion.token_ids,
        "length": len(completion.token_ids),
        "logprobs": completion.logprobs,
        "text": _storable(rollout.text),
        "finish": str(completion.finish),
        "version": completion.version,
        "value": score.value,
        "correct": score.correct,
        "parts": list(score.parts.items()),
        "outcome": str(score.verdict.outcome),
        "evidence": _storable(score.verdict.evidence),
    }


def _learned(trained: Trained | None, length: int) -> dict[str, Any]:
    if trained is None:
        return {}
    lists = {
        "logprobs_new": trained.logprobs,
        "advantages": trained.advantages,
        "entropies": trained.entropies,
    }
    for name, values in lists.items():
        if values is not None and len(values) != length:
            raise ValueError(f"{name} must hold one value per token: {length}, not {len(values)}")
    numbers = {name: None if values is None else [_number(v) for v in values] for name, values in lists.items()}
    known = {"update": trained.update, "weight": _number(trained.weight), "left_out": _storable(trained.left_out)}
    return numbers | known


def _storable(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number(value: SupportsFloat | None) -> float | None:
    number = math.nan if value is None else float(value)
    return None if math.isnan(number) else number


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    names = ((_NAME.fullmatch(file.name), file) for file in folder.iterdir())
    return sorted((int(name[1]), file) for name, file in names if name)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for _, file in _numbered(path)]
    if not files:
        raise RunError(f"there are no traces in {path}")
    return files


def _read(file: Path) -> pa.Table:
    with _opened(file) as parquet:
        return _completed(parquet, SCHEMA.names, None)


def _columns(file: Path, columns: Sequence[str]) -> pa.Table:
    with _opened(file) as parquet:
        return _completed(parquet, columns, None)


def _groups_of(file: Path, numbers: Sequence[int], columns: Sequence[str]) -> tuple[pa.Table, dict[int, int]]:
    """The row groups that hold the rows, and where in them each row of the file now stands."""
    with _opened(file) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        if not all(0 <= number < sum(sizes) for number in numbers):
            raise RunError(f"{file} holds {sum(sizes)} rollouts, not rows {', '.join(map(str, numbers))}")
        places: dict[int, int] = {}
        groups, start = [], 0
        for group, size in enumerate(sizes):
            if any(start <= number < start + size for number in numbers):
                groups.append(group)
                places |= {start + i: len(places) + i for i in range(size)}
            start += size
        return _completed(parquet, columns, groups), places


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """Raises RunDamaged: it cannot be read. FileNotFoundError: it is not there."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunDamaged(f"{file} is truncated or altered: {error}") from error


def _completed(parquet: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None) -> pa.Table:
    """The columns by SCHEMA; those that an older version did not write are null, and ``length`` is counted."""
    there = set(parquet.schema_arrow.names)
    counted = "length" in columns and "length" not in there
    wanted = [name for name in columns if name in there or name not in _ADDED]
    read = [*wanted, "tokens"] if counted and "tokens" not in wanted else wanted
    if missing := set(read) - there:
        raise ValueError(f"it has no column {min(missing)}")
    table = parquet.read(read, use_threads=False) if groups is None else parquet.read_row_groups(groups, read)
    if counted:
        table = table.append_column("length", pc.list_value_length(table["tokens"]))
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
    table = table.select(list(columns)).cast(pa.schema([SCHEMA.field(name) for name in columns]))
    table.validate(full=True)  # text that is no UTF-8, nulls where there may be none
    return table


def _with_dictionaries(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: dict(row[name]) for name in ("parts", "shaping") if name in row}
