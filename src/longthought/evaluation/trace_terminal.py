"""Rollouts for a terminal: a table of many, one in full, and one token by token. Model output cannot act here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longthought.evaluation.terminal import printable
from longthought.evaluation.trace_query import Id, Listing, count, spans
from longthought.evaluation.trace_source import Source
from longthought.evaluation.trace_tokens import Token, decoded
from longthought.text.reasoning import OPEN, split

_WIDTH = 100
_LONGEST = 20_000  # characters of one text
_FIRST_WORDS = 400
_END = 44
_TOKEN_WIDTH = 24
_WORDS = ("finish", "verdict", "token")
_DIRECTION = re.compile("[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_SHADES = ((0.9, "green"), (0.5, "cyan"), (0.1, "yellow"), (0.0, "red"))


def shown(text: str) -> str:
    """Printable text in which characters that turn the direction or cannot be seen are spelled: ``<U+202E>``."""
    return _DIRECTION.sub(lambda found: f"<U+{ord(found[0]):04X}>", printable(text))


def one_line(text: str, longest: int = _FIRST_WORDS) -> str:
    """The first words of a text."""
    return " ".join(shown(text[:longest]).split())


def number(value: float | None, digits: int = 2) -> str:
    """``1.25``, ``-0.50``; ``–`` for what is not there."""
    return "–" if value is None else f"{value:.{digits}f}"


def verdict(row: Mapping[str, Any]) -> str:
    """``right``, ``wrong``, or what came in the way of a grade."""
    if row["outcome"] != "graded":
        return str(row["outcome"])
    return "right" if row["correct"] else "wrong"


def table_of(listing: Listing, rows: Sequence[Mapping[str, Any]], source: Source) -> RenderableType:
    """The counts, what the matching rollouts have in common, and the first of them."""
    heads = ("#", "id", "reward", "adv.", "tokens", "finish", "verdict", "first words")
    body = [
        (
            Text(str(place), style="dim"),
            Text(str(_id(row))),
            Text(number(row["reward"])),
            Text(number(row["advantage"])),
            Text(f"{row['length']:,}"),
            Text(shown(row["finish"])),
            Text(shown(verdict(row)), style=_colour(row)),
            Text(one_line(row["text"])),
        )
        for place, row in enumerate(rows, 1)
    ]
    counts = Group(*map(Text, summary(listing, source)))
    return Group(counts, Text(), _table(heads, body)) if rows else counts


def summary(listing: Listing, source: Source) -> list[str]:
    """``412 of 30,720 rollouts match``, and the means and counts of those that do."""
    facts = listing.facts
    where = f"step{'s' if len(listing.steps) > 1 else ''} {spans(listing.steps)}"
    lines = [f"{facts['rollouts']:,} of {count(listing.looked_at, 'rollout')} match · {source.stage}, {where}"]
    if facts["rollouts"]:
        share = f"{100 * facts['correct']:.1f} % right"
        means = [f"reward {number(facts['reward'], 3)}", share, f"{facts['length']:,.1f} tokens"]
        if facts["advantage"] is not None:
            means.insert(1, f"advantage {number(facts['advantage'], 3)}")
        lines.append(f"mean: {' · '.join(means)}")
        lines += [f"{name}: {tally}" for name in ("outcome", "finish") if (tally := _tally(facts[name]))]
        if any(facts["left_out"]):
            lines.append(f"trained on: {_tally({reason or 'yes': n for reason, n in facts['left_out'].items()})}")
    return [shown(line) for line in lines]


def rollout(row: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]], source: Source) -> RenderableType:
    """One rollout in full: prompt, reasoning, answer, verdict, reward, and the others of its group."""
    prompt = decoded(row["prompt"], source.tokenizer)
    reasoning, answer = split(row["text"], opened=prompt.rstrip().endswith(OPEN))
    facts = [f"{row['length']:,} tokens", f"ended by {row['finish']}", f"weights after {row['version']} updates"]
    lines = [
        *_paragraph("rollout", f"{_id(row)} of {row['problem']}"),
        *_paragraph("", " · ".join(facts)),
        *_paragraph("prompt", prompt),
        *(_paragraph("thinking", reasoning.strip()) if reasoning.strip() else ()),
        *_paragraph("answer", answer.strip() or "(none)"),
        *_paragraph("verdict", f"{verdict(row)}: {row['evidence']}" if row["evidence"] else verdict(row)),
        *_paragraph("reward", _reward(row)),
        *_paragraph("training", _training(row)),
    ]
    return Group(*lines, Text(), _group(row, siblings))


def token_table(tokens: Sequence[Token], row: Mapping[str, Any], source: Source) -> RenderableType:
    """A line for each token: text, probabilities, ratio, advantage, entropy, and what the update did with it."""
    rule = str(source.clipping) if source.clipping is not None else "no rule that clips is known for this stage"
    if row["logprobs_new"] is None:
        rule += "; the learner's probabilities were not recorded"
    heads = ("#", "sampled", "learner", "ratio", "adv.", "entropy", "token", "in the update")
    body = [
        (
            Text(str(token.position), style="dim"),
            Text(_probability(token.sampled), style=_shade(token.sampled)),
            Text(_probability(token.learned), style=_shade(token.learned)),
            Text(number(token.ratio, 3), style="bold" if token.state.startswith(("clip", "cap")) else ""),
            Text(number(token.advantage)),
            Text(number(token.entropy)),
            Text(visible(token.text[:_FIRST_WORDS]), style=_shade(token.sampled)),
            Text(shown(token.state), style="magenta"),
        )
        for token in tokens
    ]
    for cells in body:
        cells[6].truncate(_TOKEN_WIDTH, overflow="ellipsis")
    return Group(Text(shown(rule)), Text(), _table(heads, body))


def visible(text: str) -> str:
    """A token's text with its spaces, tabs and line ends to be seen; ``‥`` for the rest of a character."""
    if not text:
        return "‥"
    plain = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return shown(plain)


def _group(row: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> RenderableType:
    heads = ("", "sample", "reward", "adv.", "tokens", "finish", "verdict", "last words")
    body = [
        (
            Text("▸" if one["sample"] == row["sample"] else ""),
            Text(str(one["sample"])),
            Text(number(one["reward"])),
            Text(number(one["advantage"])),
            Text(f"{one['length']:,}"),
            Text(shown(one["finish"])),
            Text(shown(verdict(one)), style=_colour(one)),
            Text(_last_words(one["text"])),
        )
        for one in siblings
    ]
    return Group(Text(f"group of {len(siblings)}", style="bold"), _table(heads, body))


def _table(heads: Sequence[str], body: Sequence[Sequence[Text]]) -> Table:
    """Columns as wide as they need, words to the left and numbers to the right; the last takes what is left."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, expand=True)
    for place, name in enumerate(heads[:-1]):
        width = max([len(name), *(row[place].cell_len for row in body)])
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True, width=width)
    table.add_column(heads[-1], no_wrap=True, overflow="ellipsis", ratio=1)
    for row in body:
        table.add_row(*row)
    return table


def _last_words(text: str) -> str:
    words = " ".join(shown(text[-_FIRST_WORDS:]).split())
    return words if len(words) <= _END else f"…{words[-_END:]}"


def _reward(row: Mapping[str, Any]) -> str:
    parts = [f"{name} {number(value)}" for name, value in row["parts"].items()]
    parts += [f"{name} {number(value)} (shaping)" for name, value in row["shaping"].items()]
    told = f" ({', '.join(parts)})" if parts else ""
    return f"{number(row['reward'])}{told} · advantage {number(row['advantage'])}"


def _training(row: Mapping[str, Any]) -> str:
    if row["left_out"] is None:
        return "not recorded"
    if row["left_out"]:
        return f"left out: {row['left_out']}"
    update = "" if row["update"] is None else f"in update {row['update']} of the step"
    weight = "" if row["weight"] is None else f"weight {row['weight']:.4g} in its loss"
    return ", ".join(part for part in (update, weight) if part) or "trained on"


def _paragraph(label: str, text: str) -> Iterator[Text]:
    margin = 10
    kept = shown(text[:_LONGEST])
    if len(text) > _LONGEST:
        kept += f"\n… ({len(text) - _LONGEST:,} more characters; --json prints them all)"
    wrapped = [line for part in kept.splitlines() or [""] for line in textwrap.wrap(part, _WIDTH - margin) or [""]]
    for place, line in enumerate(wrapped):
        shown_line = Text(f"{label if not place else '':<{margin}}", style="bold")
        shown_line.append(line, style="default")
        yield shown_line


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def _id(row: Mapping[str, Any]) -> Id:
    return Id(row["step"], row["group"], row["sample"])


def _colour(row: Mapping[str, Any]) -> str:
    return {"right": "green", "wrong": "red"}.get(verdict(row), "yellow")


def _probability(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %" if value >= 1e-3 else f"{value:.0e}"


def _shade(value: float | None) -> str:
    return "" if value is None else next(style for least, style in _SHADES if value >= least)
