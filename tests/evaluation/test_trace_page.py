"""The page of rollouts: hostile replies stay text, its script is the only one, what is left out is said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from longthought.core.errors import RunError
from longthought.core.types import Outcome
from longthought.evaluation.trace_page import Budget, write_page
from longthought.evaluation.trace_query import Query, look
from longthought.evaluation.trace_source import Source, source
from longthought.runs import traces
from longthought.runs.record import Record
from made_traces import HOSTILE, rollout, run_of, write

PLENTY = Budget()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags of a page, the text in its scripts, and its policy."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.feed(file.read_text(encoding="utf-8"))
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "script":
            self.scripts.append("")
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem is not None:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source(Record.read(run_of(tmp_path_factory.mktemp("page") / "run")))


def page_of(given: Source, file: Path, limit: int = 200, budget: Budget = PLENTY) -> tuple[str, Page]:
    told = write_page(given, look(given.folder, Query()), limit, file, budget)
    return told, Page(file)


def test_the_page_loads_nothing_and_runs_only_its_own_script(given: Source, tmp_path: Path) -> None:
    _, page = page_of(given, tmp_path / "deep" / "page.html")
    assert [tag for tag, _ in page.tags if tag in ("img", "link", "iframe", "object", "base")] == []
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.scripts) == 2
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert page.policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "innerHTML" not in page.scripts[1]


def test_hostile_replies_are_data(given: Source, tmp_path: Path) -> None:
    _, page = page_of(given, tmp_path / "page.html")
    replies = {one["id"]: one for one in page.data["rollouts"]}
    assert replies["2:1:0"]["answer"] == HOSTILE[0]
    assert replies["2:1:1"]["reasoning"] + replies["2:1:1"]["answer"] == HOSTILE[1].replace("\u2028", "<U+2028>")
    assert replies["2:1:2"]["answer"] == "abc <U+202E>gnp.exe<U+202C> \ufffd[31mred\ufffd \ufffd tail"
    assert replies["2:1:3"]["cut"] == len(HOSTILE[3]) - PLENTY.text
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search("[\u2028\u202e\x00\x1b]", raw)
    assert raw.count("</script>") == 2


def test_a_rollout_has_its_numbers_its_tokens_and_its_group(given: Source, tmp_path: Path) -> None:
    _, page = page_of(given, tmp_path / "page.html")
    first, cut = page.data["rollouts"][0], page.data["rollouts"][2]
    assert (first["id"], first["reward"], first["verdict"], first["update"]) == ("2:0:0", 1.0, "right", 1)
    assert (first["reasoning"], first["answer"], first["prompt"]) == (
        "try 33",
        "yes",
        "<|begin|> <|user|> 33 <|assistant|>",
    )
    tokens = first["tokens"]
    assert [page.data["words"][place] for place in tokens["word"]] == ["try", "wait", "<|end|>"]
    assert (tokens["sampled"], tokens["ratio"]) == (0.6065, [1.0, 1.492, 0.6703])
    assert [page.data["states"][place] for place in tokens["state"]] == ["", "clipped, ρ > 1.28", ""]
    assert [page.data["states"][place] for place in cut["tokens"]["state"]] == [cut["left_out"]] * 7
    assert tokens["entropy"] == [0.1, 0.2, 0.3]
    assert [one["sample"] for one in page.data["groups"]["2:0"]] == [0, 1, 2, 3]
    assert page.data["rule"].startswith("GRPO: ")


def test_what_is_left_out_is_said(given: Source, tmp_path: Path) -> None:
    told, page = page_of(given, tmp_path / "a.html", limit=3)
    assert told == "the page holds 3 of the 16 that match"
    assert len(page.data["groups"]["2:0"]) == 4
    budget = Budget(rollouts=8, tokens=10, tokens_each=5, text=4, sibling=2)
    told, page = page_of(given, tmp_path / "b.html", budget=budget)
    assert told.startswith("the page holds 8 of the 16 that match; 6 of them without all their tokens; ")
    assert [len(one["tokens"]["id"]) for one in page.data["rollouts"]] == [3, 3, 4, 0, 0, 0, 0, 0]
    assert all(len(one["reasoning"] + one["answer"]) <= 4 for one in page.data["rollouts"])
    assert told in page.data["notes"]
    told, page = page_of(given, tmp_path / "c.html", budget=Budget(characters=90, siblings=9))
    assert sum(len(one["prompt"] + one["reasoning"] + one["answer"]) for one in page.data["rollouts"]) <= 90
    assert told.endswith("; 2 groups left out")
    assert [len(group) for group in page.data["groups"].values()] == [4, 4]
    assert (tmp_path / "c.html").stat().st_size < 60_000


def test_equal_rollouts_give_equal_bytes_and_damage_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    given = source(Record.read(run))
    page_of(given, tmp_path / "a.html")
    page_of(given, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    listing = look(given.folder, Query())
    traces.file_of(given.folder, 2).write_bytes(b"PAR1")
    told = write_page(given, listing, 200, tmp_path / "a.html")
    assert told.startswith("the page holds 8 of the 16 that match")
    assert any("step-000002.parquet is truncated" in note for note in Page(tmp_path / "a.html").data["notes"])


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0)
    endless = [[traces.Trained(weight=float("inf"))]]
    infinite = rollout("x", float("inf"), logprobs=(float("-inf"), float("nan"), 0.0), outcome=Outcome.GRADED)
    write(run / "02-rl" / "traces", 1, [(infinite,)], endless)
    _, page = page_of(source(Record.read(run)), tmp_path / "p.html")
    (only,) = page.data["rollouts"]
    assert (only["reward"], only["weight"], only["tokens"]["sampled"]) == (None, None, [0.0, None, 1.0])


def test_a_page_that_cannot_be_written(given: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*; give another file"):
        page_of(given, tmp_path / "file" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        page_of(given, tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_rollout_of_the_address(given: Source, tmp_path: Path) -> None:
    page_of(given, tmp_path / "page.html")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom")
    address = f"file://{tmp_path}/page.html#2:1:0"
    done = subprocess.run([str(CHROMIUM), *options, address], capture_output=True, text=True, check=True, timeout=60)
    shown = done.stdout
    assert shown.count("<tr data-id=") == 16
    assert 'data-id="2:1:0" aria-selected="true"' in shown
    assert "16 of 16 on this page" in shown
    assert "<h2>Rollout 2:1:0</h2>" in shown
    assert "<img" not in shown
