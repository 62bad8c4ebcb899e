"""Help comes at once: nothing heavy is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from longthought.cli.main import BROKEN_PIPE, COMMANDS

HEAVY = ("torch", "numpy", "pyarrow", "rich", "matplotlib", "tokenizers", "safetensors", "yaml")
SCRIPT = f"""
import sys
from longthought.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "longthought" in done.stdout


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "longthought", "-h"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_without_a_command_the_help_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-m", "longthought"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "quickstart" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "longthought", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


def test_chinese_is_written_where_the_locale_knows_only_ascii() -> None:
    script = r"from longthought.cli.main import main; main(['\u7528'])"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert "longthought: there is no command '用'" in done.stderr.decode("utf-8")
