"""The pages of docs/algorithms: their code runs, their links lead somewhere, and the table knows every page."""

import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import longthought.algorithms
from longthought.algorithms import credit, objective, terms
from longthought.core.types import Batch

FOLDER = Path(__file__).parents[2] / "docs" / "algorithms"
PAGES = sorted(FOLDER.glob("*.md"))
NAMES = {
    name: value
    for module in pkgutil.iter_modules(longthought.algorithms.__path__)
    for name, value in vars(importlib.import_module(f"longthought.algorithms.{module.name}")).items()
} | {"partial": functools.partial, "max_tokens": 16}


def run(block):
    """The names that the block binds; where a comment starts with a value, the line must give that value."""
    bound = dict(NAMES)
    for line in block.splitlines():
        code, _, comment = line.partition("#")
        exec(code.strip(), bound)
        if re.fullmatch(r"\s*(\[.*\]|-?[\d.]+)(:.*)?", comment):
            expression = code.split("=", 1)[1] if re.match(r"\s*\w+ = ", code) else code
            expected = eval(comment.split(":")[0], {})
            assert eval(expression.strip(), bound) == pytest.approx(expected), line
    return bound


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        bound = run(block)
        if "objective" in bound and bound["objective"] is not objective:
            assert bound["objective"].reads <= set(Batch.__dataclass_fields__)
            assert callable(bound["weighting"])
            assert callable(bound["advantage"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), target
        headings = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target
    for path in re.findall(r"`(tests/[\w/.]+\.py)`", text):
        assert (FOLDER.parents[1] / path).exists(), path


def test_the_table_knows_every_page_and_every_name():
    text = (FOLDER / "README.md").read_text("utf-8")
    assert {f"{page.stem}.md" for page in PAGES} - {"README.md"} <= set(re.findall(r"\((\w+\.md)[)#]", text))
    for module in (objective, terms, credit):
        for name, value in vars(module).items():
            public = isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
            assert not public or name in {"TokenCredit", "LengthAdaptive"} or f"`{name}" in text, name
