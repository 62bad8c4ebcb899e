"""Rollouts on one page that opens offline: filters, a sorted table, a rollout token by token, its group side by side.

The page loads nothing. Its data are JSON in an element that is no script, its one script puts text into the page as
text only, and a content security policy allows that script by its digest and no other.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from longthought.core.errors import RunError
from longthought.evaluation.page import PAGE
from longthought.evaluation.trace_query import Id, Listing, count, groups_of, rows_of
from longthought.evaluation.trace_source import Source
from longthought.evaluation.trace_terminal import shown, summary, verdict, visible
from longthought.evaluation.trace_tokens import decoded, tokens_of
from longthought.runs.files import temporary
from longthought.text.reasoning import OPEN, split

_AT_ONCE = 256
_LONGEST_ID = 500
_POLICY = "style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one page may hold, so that a browser opens it.

    rollouts: rows of the table.  tokens: on the page, and of one rollout.  text: characters of one reply.
    sibling: characters of a reply beside another of its group.  siblings: such replies.  characters: of all texts.
    """

    rollouts: int = 5_000
    tokens: int = 300_000
    tokens_each: int = 20_000
    text: int = 50_000
    sibling: int = 2_000
    siblings: int = 20_000
    characters: int = 12_000_000


def write_page(source: Source, listing: Listing, limit: int, path: Path, budget: Budget = Budget()) -> str:
    """Write the first ``limit`` rollouts of a listing, atomically. Returns what was left out, in one sentence.

    What cannot be read is named on the page. Raises RunError when the file cannot be written.
    """
    page = _Page(source, budget)
    page.fill(listing.ids(0, min(limit, budget.rollouts)))
    told = page.told(listing)
    content = {
        "stage": source.stage,
        "rule": str(source.clipping) if source.clipping else "",
        "notes": [
            *summary(listing, source),
            told,
            *map(shown, source.notes),
            *map(shown, [*listing.damaged, *page.damaged]),
        ],
        "rollouts": page.rollouts,
        "groups": page.groups,
        "words": [*page.words],
        "states": [*page.states],
    }
    _write(path, _html(f"Rollouts of {source.run}, stage {source.stage}", content))
    return told


class _Page:
    """What goes into the page, and what has been spent of its budget."""

    def __init__(self, source: Source, budget: Budget) -> None:
        self.source, self.budget = source, budget
        self.rollouts: list[dict[str, Any]] = []
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.words: dict[str, int] = {}
        self.states: dict[str, int] = {"": 0}
        self.damaged: list[str] = []
        self.tokens = self.characters = self.without_tokens = self.without_group = self.cut = 0

    def fill(self, ids: Sequence[tuple[Id, int]]) -> None:
        """Add rollouts, and the groups that they are of."""
        for start in range(0, len(ids), _AT_ONCE):
            rows = rows_of(self.source.folder, ids[start : start + _AT_ONCE], None, self._miss)
            self.rollouts += map(self._rollout, rows)
        wanted: dict[int, set[int]] = {}
        for rollout in self.rollouts:
            wanted.setdefault(rollout["step"], set()).add(rollout["group"])
        left = self.budget.siblings
        for step, numbers in wanted.items():
            try:
                found = groups_of(self.source.folder, step, numbers)
            except RunError as error:
                self._miss(error)
                continue
            for number in numbers:
                group = [row for row in found if row["group"] == number]
                if len(group) <= left:
                    self.groups[f"{step}:{number}"] = [self._sibling(row) for row in group]
                    left -= len(group)
                else:
                    self.without_group += 1

    def _miss(self, error: RunError) -> None:
        if str(error) not in self.damaged:
            self.damaged.append(str(error))

    def told(self, listing: Listing) -> str:
        matching = listing.facts["rollouts"]
        parts = [f"the page holds {len(self.rollouts):,} of the {matching:,} that match"]
        if self.without_tokens:
            parts.append(f"{self.without_tokens:,} of them without all their tokens")
        if self.cut:
            parts.append(f"{self.cut:,} with their text cut")
        if self.without_group:
            parts.append(f"{count(self.without_group, 'group')} left out")
        return "; ".join(parts)

    def _rollout(self, row: Mapping[str, Any]) -> dict[str, Any]:
        whole = decoded(row["prompt"], self.source.tokenizer)
        prompt, _ = self._text(whole, self.budget.text)
        evidence, _ = self._text(row["evidence"], self.budget.sibling)
        text, cut = self._text(row["text"], self.budget.text)
        reasoning, answer = split(text, opened=whole.rstrip().endswith(OPEN))
        self.cut += bool(cut)
        return {
            **{key: row[key] for key in ("step", "group", "sample", "length", "version", "update")},
            **_common(row),
            "id": str(Id(row["step"], row["group"], row["sample"])),
            "problem": shown(row["problem"][:_LONGEST_ID]),
            "evidence": shown(evidence),
            "weight": _finite(row["weight"]),
            "left_out": None if row["left_out"] is None else shown(row["left_out"]),
            "parts": _pairs(row["parts"]),
            "shaping": _pairs(row["shaping"]),
            "prompt": shown(prompt),
            "reasoning": shown(reasoning),
            "answer": shown(answer),
            "cut": cut,
            "tokens": self._tokens(row),
        }

    def _sibling(self, row: Mapping[str, Any]) -> dict[str, Any]:
        text, cut = self._text(row["text"], self.budget.sibling)
        return {"sample": row["sample"], "length": row["length"], **_common(row), "text": shown(text), "cut": cut}

    def _text(self, text: str, most: int) -> tuple[str, int]:
        """What there is room for, and how many characters there is none for."""
        kept = text[: max(0, min(most, self.budget.characters - self.characters))]
        self.characters += len(kept)
        return kept, len(text) - len(kept)

    def _tokens(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns, one entry per token: ids, number of the text, numbers, number of the state."""
        room = min(self.budget.tokens_each, self.budget.tokens - self.tokens)
        tokens = tokens_of(row, self.source.tokenizer, self.source.clipping)[: max(0, room)]
        self.tokens += len(tokens)
        self.without_tokens += len(tokens) < row["length"]
        return {
            "id": [token.id for token in tokens],
            "word": [self.words.setdefault(visible(token.text), len(self.words)) for token in tokens],
            "state": [self.states.setdefault(shown(token.state), len(self.states)) for token in tokens],
            **{
                key: _short([getattr(token, key) for token in tokens])
                for key in ("sampled", "learned", "ratio", "advantage", "entropy")
            },
        }


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reward": _finite(row["reward"]),
        "advantage": _finite(row["advantage"]),
        "finish": shown(row["finish"]),
        "verdict": shown(verdict(row)),
    }


def _pairs(parts: Mapping[str, float | None]) -> list[tuple[str, float | None]]:
    return [(shown(name), _finite(value)) for name, value in parts.items()]


def _short(values: Sequence[float | None]) -> list[float | None] | float | None:
    """Four digits of each; one number where all are equal, and nothing where nothing was recorded."""
    rounded = [None if (value := _finite(one)) is None else float(f"{value:.4g}") for one in values]
    return rounded[0] if rounded and len(set(rounded)) == 1 else rounded or None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise RunError(f"cannot write {path}: {error.strerror}; give another file") from error


def _html(title: str, content: Mapping[str, Any]) -> str:
    """The page. No text of the content can end the element that it stands in."""
    script, style, body = (
        files("longthought.evaluation").joinpath(f"trace_page.{kind}").read_text(encoding="utf-8")
        for kind in ("js", "css", "html")
    )
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    frame = PAGE.substitute(
        title=html.escape(shown(title)),
        task="",
        links="",
        body=f'<style>{style}</style>{body}<script type="application/json" id="data">{data}</script>\n'
        f"<script>{script}</script>\n",
    )
    return frame.replace(_POLICY, f"{_POLICY}; script-src 'sha256-{digest}'", 1)
