"""Every rollout of every step, one Parquet file per step: what the model wrote, how it was graded, what it was worth.

Columns, one row per rollout:

=========== =================== ====================================================================
step        int64               the optimizer step that the rollouts were made for
problem     string              id of the problem
group       int32               number of the group within the step
sample      int32               number of the rollout within its group
prompt      list<int32>         token ids of the prompt
tokens      list<int32>         token ids of the completion, the stop token included
logprobs    list<float32>       of ``tokens``, under the policy that sampled
text        string              what the model wrote
finish      string              stop, length, budget or stop_string
version     int64               optimizer steps of the weights that sampled
value       double, nullable    task reward; null where nothing could be graded
correct     bool                whether the answer is right
parts       map<string, double> named summands of ``value``
outcome     string              graded, unparsable, timed_out or crashed
evidence    string              what the verifier saw
shaping     map<string, double> named summands beside the task reward
reward      double, nullable    what the advantage was computed from
advantage   double, nullable    null where the rollout was left out of the loss
=========== =================== ====================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from longthought.core.errors import RunDamaged, RunError
from longthought.core.types import Group, Rollout
from longthought.runs.files import write_atomic

PerRollout: TypeAlias = Sequence[Sequence[SupportsFloat | None]]
"""One value, or None, for every rollout of every group."""

_NAME = re.compile(r"step-(\d{6,})\.parquet")

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
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
    ]
)


def file_of(folder: Path, step: int) -> Path:
    """Where the trace of a step is kept."""
    return folder / f"step-{step:06d}.parquet"


def write(
    folder: Path,
    step: int,
    groups: Sequence[Group],
    *,
    rewards: PerRollout,
    advantages: PerRollout,
    shaping: Mapping[str, PerRollout],
) -> Path:
    """Write the trace of one step atomically. Equal rollouts and values give equal bytes.

    ``rewards``, ``advantages`` and every entry of ``shaping`` are nested as ``groups`` are; tensors of shape (G,) will
    do for a group, and NaN is written as null.

    Raises:
        RunError: the disk is full or cannot be written.
        ValueError: a nested sequence is not of the shape of ``groups``.
    """
    sizes = [len(group) for group in groups]
    for name, values in {"rewards": rewards, "advantages": advantages, **shaping}.items():
        if [len(row) for row in values] != sizes:
            raise ValueError(f"{name} must hold one value per rollout of each group")
    rows = [
        _row(rollout)
        | {"step": step, "group": number, "sample": sample}
        | {"reward": _number(rewards[number][sample]), "advantage": _number(advantages[number][sample])}
        | {"shaping": [(name, _number(values[number][sample])) for name, values in shaping.items()]}
        for number, group in enumerate(groups)
        for sample, rollout in enumerate(group)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
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
        for row in _read(file).to_pylist():
            yield row | {"parts": dict(row["parts"]), "shaping": dict(row["shaping"])}


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
    try:
        return pq.read_table(pa.BufferReader(file.read_bytes()), schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise RunDamaged(f"{file} is truncated or altered: {error}") from error
