"""A stage's folder: killed, truncated, altered and full disks; what comes back is right or refused."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longthought.core.errors import RunDamaged, RunError
from longthought.runs import files
from longthought.runs.logs import Log, read_log
from longthought.runs.place import Place
from longthought.runs.state import State

TENSORS = {
    "f32": torch.tensor([[1.5, -0.0], [float("nan"), float("inf")]]),
    "f64": torch.tensor([math.pi], dtype=torch.float64),
    "bf16": torch.tensor([1.0, 3.140625], dtype=torch.bfloat16),
    "i64": torch.tensor([2**62, -1]),
    "u8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
}


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def place_with(path: Path, *steps: int) -> Place:
    place = Place(path)
    place.load_state()
    for step in steps:
        place.log(step, {"loss": step / 3})
        place.time(step, {"seconds": 1.0})
        place.save_state(step, {"w": torch.full((4,), float(step))}, {"step": step})
    return place


def loaded(path: Path) -> tuple[State | None, list[str]]:
    warnings: list[str] = []
    with Place(path, warn=warnings.append) as place:
        return place.load_state(), warnings


# -- kills -----------------------------------------------------------------------------------------------------------


def test_killed_at_every_system_call_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_loop.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


def test_killed_while_a_folder_is_replaced(tmp_path: Path) -> None:
    place_with(tmp_path, 3)
    state = tmp_path / "state"
    os.rename(state / "step-000003", state / ".step-000003.77.older")
    (state / ".step-000003.77.partial").mkdir()
    (tmp_path / ".metrics.jsonl.77.partial").write_text("x")
    found, warnings = loaded(tmp_path)
    assert found is not None
    assert found.step == 3
    assert not warnings
    assert [entry.name for entry in state.iterdir()] == ["step-000003"]
    assert not list(tmp_path.glob(".*"))


# -- state -----------------------------------------------------------------------------------------------------------


def test_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    values = {"step": 5, "name": "试 \udcff", "nested": {"a": [1, 2.5, None, True]}, "tiny": 5e-324}
    with Place(tmp_path) as place:
        assert place.load_state() is None
        place.save_state(5, TENSORS, values)
    found, warnings = loaded(tmp_path)
    assert found is not None
    assert (found.step, found.values, warnings) == (5, values, [])
    assert bits(found.tensors) == bits(TENSORS)
    found.tensors["f32"].add_(1)  # and may be trained on


def test_tensors_may_share_memory_and_need_no_order(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    with Place(tmp_path) as place:
        place.save_state(0, {"a": base, "b": base, "t": base.T, "row": base[1], "p": torch.nn.Parameter(base)}, {})
    found, _ = loaded(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["t"], base.T)
    assert torch.equal(found.tensors["row"], torch.tensor([3.0, 4.0, 5.0]))
    assert all(torch.equal(found.tensors[name], base) for name in ("a", "b", "p"))


@pytest.mark.parametrize("value", [(1, 2), [(1,)], {1: 2}, math.nan, math.inf, {1}, b"x", torch.zeros(1)])
def test_values_that_json_would_change_are_refused(tmp_path: Path, value: object) -> None:
    with Place(tmp_path) as place, pytest.raises(ValueError, match="JSON"):
        place.save_state(1, {}, {"value": value})  # type: ignore[dict-item]
    assert not (tmp_path / "state" / "step-000001").exists()


def test_newest_two_states_are_kept(tmp_path: Path) -> None:
    place_with(tmp_path, 1, 2, 1000000, 1000001)
    assert sorted(entry.name for entry in (tmp_path / "state").iterdir()) == ["step-1000000", "step-1000001"]


def test_the_same_step_may_be_saved_again_but_no_earlier_one(tmp_path: Path) -> None:
    place = place_with(tmp_path, 2, 4)
    place.save_state(4, {}, {"again": True})
    with pytest.raises(ValueError, match="step 3 comes after that of step 4"):
        place.save_state(3, {}, {})
    found, _ = loaded(tmp_path)
    assert found is not None
    assert found.values == {"again": True}


def damage_of(data: bytes, where: int, bit: int | None) -> bytes:
    where %= len(data)
    return data[:where] if bit is None else data[:where] + bytes([data[where] ^ (1 << bit)]) + data[where + 1 :]


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("place")
    place_with(path, 1, 2)
    return path


def outcome(path: Path) -> tuple[int, list[float], object, int]:
    found, warnings = loaded(path)
    assert found is not None
    return found.step, found.tensors["w"].tolist(), found.values, len(warnings)


FILES = ("tensors.safetensors", "values.json", "manifest.json")
WHOLE = {step: [float(step)] * 4 for step in (1, 2)}


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.none() | st.integers(0, 7))
@settings(max_examples=80, deadline=None)
def test_one_damaged_file_gives_the_older_state(two_states: Path, name: str, where: int, bit: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "place")
        shutil.copytree(two_states, path)
        file = path / "state" / "step-000002" / name
        file.write_bytes(damage_of(file.read_bytes(), where, bit))
        step, weight, values, warnings = outcome(path)
        assert weight == WHOLE[step]
        assert values == {"step": step}
        assert warnings == 2 - step
        assert step == 1 or name == "manifest.json"  # white space of the manifest carries nothing
        assert [row["step"] for row in read_log(path / "metrics.jsonl")] == list(range(1, step + 1))


def test_every_truncation_of_the_manifest(two_states: Path, tmp_path: Path) -> None:
    shutil.copytree(two_states, tmp_path / "place")
    file = tmp_path / "place" / "state" / "step-000002" / "manifest.json"
    data = file.read_bytes()
    for length in range(len(data) - 1):
        file.write_bytes(data[:length])
        assert outcome(tmp_path / "place")[0] == 1


@given(st.sampled_from(FILES), st.sampled_from(FILES), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_two_damaged_states_are_refused(two_states: Path, one: str, two: str, a: int, b: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "place")
        shutil.copytree(two_states, path)
        for step, name, where in ((1, one, a), (2, two, b)):
            file = path / "state" / f"step-00000{step}" / name
            cut = where % (file.stat().st_size - 1)
            file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(RunDamaged, match="no state in"):
            loaded(path)
        assert len(read_log(path / "metrics.jsonl")) == 2  # nothing else was touched


def test_a_state_under_another_name_is_refused(tmp_path: Path) -> None:
    place_with(tmp_path, 1)
    os.rename(tmp_path / "state" / "step-000001", tmp_path / "state" / "step-000009")
    with pytest.raises(RunDamaged, match="manifest"):
        loaded(tmp_path)


def test_after_a_damaged_state_training_goes_on_from_the_older_one(tmp_path: Path) -> None:
    place_with(tmp_path, 1, 2)
    (tmp_path / "state" / "step-000002" / "values.json").unlink()
    with Place(tmp_path, warn=lambda _: None) as place:
        found = place.load_state()
        assert found is not None
        place.log(2, {"loss": 2 / 3})
        place.save_state(2, {"w": torch.full((4,), 2.0)}, {"step": 2})
    assert outcome(tmp_path) == (2, WHOLE[2], {"step": 2}, 0)
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 2 / 3}]


# -- logs ------------------------------------------------------------------------------------------------------------


def test_log_lines(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.log(1, {"z": 0.1, "a": float("nan"), "n": 3, "t": torch.tensor(0.5), "none": None, "yes": True})
        place.log(1, {"loss": 1e-17, "big": -math.inf})
    first = b'{"step": 1, "z": 0.1, "a": null, "n": 3, "t": 0.5, "none": null, "yes": true}\n'
    assert (tmp_path / "metrics.jsonl").read_bytes() == first + b'{"step": 1, "loss": 1e-17, "big": null}\n'


def test_a_log_before_the_last_state_is_refused(tmp_path: Path) -> None:
    place = place_with(tmp_path, 1)
    with pytest.raises(ValueError, match="save the state last"):
        place.log(1, {})
    with pytest.raises(ValueError, match="save the state last"):
        place.trace(1, [], rewards=[], advantages=[], shaping={})
    place.time(1, {"save": 0.01})
    place.log(3, {})
    with pytest.raises(ValueError, match="comes after step 3"):
        place.log(2, {})
    with pytest.raises(ValueError, match="named 'step'"):
        place.log(4, {"step": 1})


def test_logs_without_any_state_are_dropped(tmp_path: Path) -> None:
    for _ in range(2):
        with Place(tmp_path) as place:  # a stage that keeps no state, started twice
            place.log(1, {"loss": 1.0})
            place.time(1, {"s": 1.0})
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert len(read_log(tmp_path / "timings.jsonl")) == 1


def test_traces_after_the_state_are_dropped(tmp_path: Path) -> None:
    place = place_with(tmp_path, 1)
    for step in (2, 3):
        place.trace(step, [], rewards=[], advantages=[], shaping={})
        if step == 2:
            place.save_state(2, {}, {})
    assert len(list((tmp_path / "traces").iterdir())) == 2
    loaded(tmp_path)
    assert [file.name for file in (tmp_path / "traces").iterdir()] == ["step-000002.parquet"]


@given(st.integers(0, 42))
@settings(max_examples=30, deadline=None)
def test_a_half_written_line_is_dropped(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "metrics.jsonl")
        log = Log(file)
        for step in (1, 2, 2):
            log.append(step, {"loss": step / 3})
        log.close()
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"step": 2, "loss": 0.1234567890123456789}'[:cut])
        assert len(read_log(file)) == 3
        Log(file).rewind(2)
        assert file.read_bytes() == whole
        Log(file).rewind(1)
        assert file.read_bytes() == b'{"step": 1, "loss": 0.3333333333333333}\n'


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunDamaged, match="line 2"):
        read_log(tmp_path / "metrics.jsonl")
    assert read_log(tmp_path / "none.jsonl") == []


# -- full disks ------------------------------------------------------------------------------------------------------


def full_after(limit: int) -> Callable[[int, bytes], int]:
    """An ``os.write`` for a disk with room for ``limit`` more bytes."""
    real, left = os.write, limit

    def write(handle: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(handle, data[:left])
        left -= written
        return written

    return write


@pytest.mark.parametrize("room", [0, 1, 100, 200, 250, 500])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    place = place_with(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_after(room))
        with pytest.raises(RunError, match=r"no space left on .* nothing finished was lost; free space") as caught:
            place.save_state(2, {"w": torch.zeros(1000)}, {"step": 2})
        assert not isinstance(caught.value, RunDamaged)
        with pytest.raises(RunError, match="no space left"):
            deque(place.log(step, {"loss": 0.5}) for step in range(2, 100))
    assert [entry.name for entry in (tmp_path / "state").iterdir()] == ["step-000001"]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")  # no half line
    assert outcome(tmp_path) == (1, WHOLE[1], {"step": 1}, 0)
    place.close()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_fails_late_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file = tmp_path / "file"
    files.write_atomic(file, b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match="no space left"):
        files.write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_really_full_device(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.load_state()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunError, match="no space left"):
            place.log(1, {"loss": 0.5})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        Place(tmp_path / "file" / "place")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / ".a.12.partial").write_bytes(b"left over")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digests(tmp_path) == {"sub/a": abc}
    assert files.digests(tmp_path / "sub" / "a") == {".": abc}
    with pytest.raises(RunDamaged, match="nowhere"):
        files.digests(tmp_path / "nowhere")


def test_manifest_holds_the_digests(tmp_path: Path) -> None:
    place_with(tmp_path, 1)
    folder = tmp_path / "state" / "step-000001"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    names = ("tensors.safetensors", "values.json")
    assert manifest == {"step": 1, "files": {name: files.digest((folder / name).read_bytes()) for name in names}}
