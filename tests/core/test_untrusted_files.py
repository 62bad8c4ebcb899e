"""Files of folders that others made: what is read is a plain, small, regular file of the folder, or nothing."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import CheckpointError
from longthought.core.files import exists, json_object, read_json, read_text, regular_file, shown


def test_what_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"语": [1, null, 2.5]}', encoding="utf-8")
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_json(tmp_path, "a.json") == read_json(tmp_path, "link.json") == {"语": [1, None, 2.5]}
    assert regular_file(tmp_path, "link.json") == (tmp_path / "a.json").resolve()
    assert read_text(tmp_path, "a.json", limit=23).startswith("{")
    with pytest.raises(CheckpointError, match="larger than 22 bytes"):
        read_text(tmp_path, "a.json", limit=22)


def test_a_link_to_the_folder_itself_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    assert read_json(tmp_path / "link", "a.json") == {}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "\ud800", "a" * 256]
)
def test_a_path_is_no_name(name: str, tmp_path: Path) -> None:
    assert not exists(tmp_path, name)
    with pytest.raises(CheckpointError, match="no file name") as caught:
        regular_file(tmp_path, name)
    assert str(caught.value).isprintable()


@given(name=st.text(max_size=300))
def test_no_name_gives_another_error(name: str) -> None:
    with pytest.raises(CheckpointError):
        regular_file(Path("/nowhere"), name)


def test_what_is_no_regular_file_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder, beside = tmp_path / "folder", tmp_path / "folder-2"
    folder.mkdir()
    beside.mkdir()
    (beside / "a").write_text("{}")
    os.mkfifo(folder / "fifo")
    (folder / "sub").mkdir()
    for name, target in {"out": "../folder-2/a", "device": "/dev/null", "gone": "x", "self": "self"}.items():
        (folder / name).symlink_to(target)
    said = {
        "fifo": "regular",
        "sub": "regular",
        "out": "out of",
        "device": "out of",
        "gone": "nothing",
        "self": "cannot",
    }
    for name, reason in said.items():
        assert exists(folder, name)
        with pytest.raises(CheckpointError, match=reason):
            read_json(folder, name)
    assert not exists(folder, "other")
    with pytest.raises(CheckpointError, match="other is missing"):
        read_json(folder, "other")


def test_blobs_belong_to_a_snapshot_and_to_nothing_else(tmp_path: Path) -> None:
    for folder, fine in (("snapshots/abc", True), ("shots/abc", False)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / "1").write_text("{}")
        (tmp_path / folder / "config.json").symlink_to("../../blobs/1")
        if fine:
            assert read_json(tmp_path / folder, "config.json") == {}
        else:
            with pytest.raises(CheckpointError, match="out of its folder"):
                read_json(tmp_path / folder, "config.json")
    (tmp_path / "blobs" / "2").symlink_to("/etc/passwd")
    (tmp_path / "snapshots" / "abc" / "a").symlink_to("../../blobs/2")
    with pytest.raises(CheckpointError, match="out of its folder"):
        read_text(tmp_path / "snapshots" / "abc", "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSON"),
        ("[]", "list"),
        ("null", "NoneType"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e400}', "1e400"),
        ('{"a": ' + "1" * 5000 + "}", "JSON"),
        ('{"a": 1, "a": 1}', "'a' stands there twice"),
        ('{"a":' * 10**5, "nested"),
        ("[" * 10**6, "nested"),
        ("{" + '"a":0,' * 10**5 + '"b":0}', "twice"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_plain_json_object_is_refused(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"here.*{said}"):
        json_object(text, "here")


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_what_is_shown_is_short_and_printable(value: object) -> None:
    assert len(shown(value)) < 10_000
    assert shown(value).isprintable()
    assert len(shown("x" * 10**6)) <= 80
