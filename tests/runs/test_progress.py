"""Progress on terminals and in log files, and trackers."""

from __future__ import annotations

import importlib.util
import io
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from longthought.core.errors import SettingsError
from longthought.runs.progress import Lines, clock, describe, progress, rate
from longthought.runs.tracking import TensorBoard


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_for_a_file_hold_no_control_codes() -> None:
    stream = io.StringIO()
    with progress("rl", total=30, start=10, stream=stream) as bar:
        for step in range(11, 31):
            bar.update(step, {"reward": step / 30, "pass@1": None, "[red]": 7})
    first, last = stream.getvalue().splitlines()
    assert first.startswith("rl 11/30  ")
    assert first.endswith("reward 0.367  pass@1 -  [red] 7")
    assert last.startswith("rl 30/30  ")
    assert "0:00 left" in last
    assert stream.getvalue().isprintable() is False  # for its line ends alone
    assert all(line.isprintable() for line in (first, last))


def test_lines_come_every_ten_seconds_and_count_this_process_alone() -> None:
    stream, now = io.StringIO(), [0.0]
    lines = Lines("rl", 100, 40, stream, clock=lambda: now[0])
    for step in range(41, 71):
        now[0] += 0.5
        lines.update(step, {})
    lines.finish()
    lines.finish()
    assert stream.getvalue().splitlines() == [
        "rl 41/100  2.0 steps/s, 0:30 left",
        "rl 61/100  2.0 steps/s, 0:20 left",
        "rl 70/100  2.0 steps/s, 0:15 left",
    ]


def test_the_last_line_is_printed_when_the_stage_fails() -> None:
    stream = io.StringIO()
    with suppress(KeyboardInterrupt), progress("rl", total=3, stream=stream) as bar:
        bar.update(1, {})
        bar.update(2, {})
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1].startswith("rl 2/3")


def test_a_terminal_shows_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    with progress("rl", total=2, stream=stream) as bar:
        bar.update(2, {"reward": 0.25, "[red]": 7})
    assert "\x1b[" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "reward 0.25  [red] 7" in stream.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress("rl", total=2, stream=stream) as bar:
        bar.update(1, {"reward": 0.25})
    assert "\x1b" not in stream.getvalue()


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with progress("rl", total=2, quiet=True, stream=stream) as bar:
        bar.update(1, {"reward": 0.25})
    assert stream.getvalue() == ""


def test_words() -> None:
    assert describe({"a": 1234.5, "b": 0.000012345, "c": 71, "d": 71.23, "e": "x"}) == [
        "a 1234", "b 1.23e-05", "c 71", "d 71.2", "e x",
    ]  # fmt: skip
    assert (rate(2.5), rate(0.25)) == ("2.5 steps/s", "4.0 s/step")
    assert (clock(64.6), clock(7209)) == ("1:05", "2:00:09")


def test_missing_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match=r"pip install 'longthought\[tensorboard\]'"):
        TensorBoard(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_a_folder_per_stage(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.log("01-rl", 1, {"loss": 0.5, "none": None})
    board.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["01-rl"]
    assert list((tmp_path / "01-rl").iterdir())
