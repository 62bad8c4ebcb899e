"""The safetensors format: an eight-byte length, a JSON header, and the numbers of all tensors end to end.

The header of a file that somebody else made is read and checked here before anything of its size is allocated; the
numbers are then read from a map of the file, one tensor at a time.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longthought.core.errors import CheckpointError
from longthought.core.files import json_object, regular_file, shown

HEADER_LIMIT = 100 * 2**20
"""Largest header that is read, in bytes: what the format allows."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn}
_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""A file may be larger than the memory: none is set aside for pages that could be written to."""
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in a file: ``start`` counts bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header is sound. ``path`` has its links followed; ``name`` is how errors call it."""

    path: Path
    name: Path
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, folder: Path, name: str, float8: bool = False) -> TensorFile:
        """Read and check the header. ``float8``: tensors of eight bits (E4M3) will do.

        Raises:
            CheckpointError: there is no such regular file in the folder, it is truncated or damaged, or it holds
                tensors of other types than float32, float16 and bfloat16.
        """
        path, named = regular_file(folder, name), folder / name
        try:
            return cls(path, named, _entries(path, named, _DTYPES | (_FLOAT8 if float8 else {})))
        except OSError as error:
            raise CheckpointError(f"{named} cannot be read: {error.strerror or error}") from error

    def tensors(self) -> Mapping[str, Tensor]:
        """Name → tensor, read from the disk when it is used. Writing to one changes neither file nor other readers.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        try:
            with open(self.path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, flags=_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.name} cannot be read: {error}") from error
        if any(entry.start + entry.bytes > len(data) for entry in self.entries.values()):
            raise CheckpointError(f"{self.name} was cut short while it was read")
        return {name: _view(data, entry) for name, entry in self.entries.items()}


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype] | None = None,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a safetensors file, one tensor in memory at a time. ``dtypes``: what to store some of them as.

    read: gives the numbers of a tensor when they are written; ``tensors`` may then be on the meta device.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        CheckpointError: the numbers are of a type other than float32, float16 and bfloat16.
    """
    types = {name: (dtypes or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))  # keeps all aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        stored = types[name]
        if stored not in _CODES:
            raise CheckpointError(f"{name} is {stored}; model folders hold float32, float16 or bfloat16")
        start, end = end, end + tensors[name].numel() * stored.itemsize
        header[name] = {"dtype": _CODES[stored], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_raw(tensors[name] if read is None else read(name), types[name]))  # and forgotten


def _raw(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    numbers = tensor.detach().to("cpu", dtype).contiguous()
    return numbers.flatten().view(torch.uint8).numpy().data


def _entries(path: Path, name: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, Entry]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{name} is cut short: {size:,} bytes are no whole safetensors file")
        if length > HEADER_LIMIT:
            raise CheckpointError(f"{name}: a header of {length:,} bytes is larger than the format allows")
        text = file.read(length)
    try:
        header = json_object(text.decode("utf-8"), f"the header of {name}")
    except UnicodeDecodeError:
        raise CheckpointError(f"{name} is no safetensors file: its header is not text") from None
    header.pop("__metadata__", None)
    entries = {tensor: _entry(name, tensor, described, 8 + length, dtypes) for tensor, described in header.items()}
    _refuse_gaps(name, entries, 8 + length, size)
    return entries


def _entry(file: Path, name: str, described: object, origin: int, dtypes: Mapping[str, torch.dtype]) -> Entry:
    """One tensor as the header describes it. ``origin`` is where the numbers begin in the file."""
    if not isinstance(described, dict) or described.keys() != _FIELDS:
        raise CheckpointError(f"{file}: the header describes {shown(name)} by {shown(described)}")
    code, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(code, str) or code not in dtypes:
        raise CheckpointError(
            f"{file}: {shown(name)} is stored as {shown(code)}; what can be read: {', '.join(dtypes)}"
        )
    if not _counts(shape) or len(shape) > 8 or not _counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{file}: {shown(name)} has shape {shown(shape)} at {shown(offsets)}")
    entry = Entry(dtypes[code], tuple(shape), origin + offsets[0])
    if offsets[1] - offsets[0] != entry.bytes:
        raise CheckpointError(f"{file}: {shown(name)} of shape {shown(shape)} does not fit its place {shown(offsets)}")
    return entry


def _counts(value: object) -> bool:
    """Whether this is a list of whole numbers of at least 0 that fit into 63 bits."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _refuse_gaps(name: Path, entries: Mapping[str, Entry], origin: int, size: int) -> None:
    """The format wants every byte to belong to one tensor."""
    end = origin
    for tensor, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start != end:
            fault = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise CheckpointError(f"{name}: {shown(tensor)} {fault}")
        end += entry.bytes
    if end > size:
        raise CheckpointError(f"{name} is cut short: it has {size:,} bytes, and its header speaks of {end:,}")
    if end < size:
        raise CheckpointError(f"{name} has {size - end:,} bytes that belong to no tensor")


def _view(data: mmap.mmap, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if not count:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(data, dtype=entry.dtype, count=count, offset=entry.start).view(entry.shape)
