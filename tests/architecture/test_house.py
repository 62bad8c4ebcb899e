"""The rules of the house: who imports whom, how long things are, what they are called, what they say of themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "longthought"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FUNCTION, LONGEST_MODULE = 60, 420
FORBIDDEN_MODULES = re.compile(r"^_*(utils?|common|helpers?|misc|tools?)$")
FORBIDDEN_CLASSES = re.compile(r"(Manager|Trainer|Helper|Utils?)$")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.fixture(scope="module", params=FILES, ids=_name)
def module(request: pytest.FixtureRequest) -> tuple[Path, ast.Module]:
    """A module of the package, parsed."""
    path: Path = request.param
    return path, ast.parse(path.read_text(encoding="utf-8"))


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    return (node for node in ast.walk(tree) if isinstance(node, Definition))


def test_imports_point_down() -> None:
    """The contract of ``pyproject.toml``."""
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_are_short_and_say_what_they_are(module: tuple[Path, ast.Module]) -> None:
    path, tree = module
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    assert ast.get_docstring(tree)


def test_functions_are_short(module: tuple[Path, ast.Module]) -> None:
    functions = (node for node in _definitions(module[1]) if not isinstance(node, ast.ClassDef))
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_names_say_something(module: tuple[Path, ast.Module]) -> None:
    path, tree = module
    assert not any(FORBIDDEN_MODULES.match(part) for part in (*path.relative_to(SOURCE).parts[:-1], path.stem))
    names = [node.name for node in _definitions(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in names if FORBIDDEN_CLASSES.search(name)] == []


def test_public_functions_and_classes_have_a_docstring(module: tuple[Path, ast.Module]) -> None:
    """Methods may go without: many only fill in what a protocol or a base class has described."""
    public = (node for node in module[1].body if isinstance(node, Definition) and not node.name.startswith("_"))
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_the_rules_have_something_to_judge() -> None:
    assert len(FILES) > 80
    assert FORBIDDEN_MODULES.match("utils")
    assert FORBIDDEN_CLASSES.search("RunManager")
    assert not FORBIDDEN_MODULES.match("settings")
