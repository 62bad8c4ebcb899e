"""A lineage for a terminal: a tree, from what everything comes from to what was made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from longthought.cli.cost_view import size
from longthought.evaluation.trace_query import count
from longthought.evaluation.trace_terminal import shown
from longthought.runs.lineage import Given, Lineage, Node
from longthought.runs.progress import clock

_DIGITS = 12  # of a fingerprint
_SHOWN = 6  # lines about what is wrong with one stage


def view(found: Lineage) -> RenderableType:
    """The run, its tree, and what is to be said of all of it."""
    launches = f"{found.launches:,} launch{'es' * (found.launches != 1)}, the first {_minute(found.started)}"
    head = f"{found.run}: recipe {found.recipe}, settings {found.settings[:_DIGITS]}, {launches}"
    parts: list[RenderableType] = [Text(shown(head), style="bold")]
    parts += _trees(found)
    if not found.nodes:
        parts.append(Text("no stage was started yet"))
    if found.to_come:
        parts.append(Text(shown(f"→ to be done: {', '.join(found.to_come)}"), style="yellow"))
    parts += [
        Text(shown(f"a launch now differs: {line} (refused without --accept-changes)")) for line in found.conditions
    ]
    parts += [Text(shown(f"cannot be read: {note}"), style="red") for note in found.notes]
    return Group(*parts, Text(), Text(_verdict(found)))


def _verdict(found: Lineage) -> str:
    """One line: whether all is as it was."""
    own = [node for node in found.nodes if node.run == found.run]
    touched = [node.name for node in found.nodes if node.faults or node.again]
    looked = "every file was hashed" if found.checked else "files were looked for, not hashed; --check hashes them"
    if touched:
        return shown(f"not all is finished and as it was: {', '.join(touched)} ({looked})")
    if not own:
        return "nothing is finished"
    return f"{count(len(own), 'stage')}, all finished and as they were: none would be done again ({looked})"


def _trees(found: Lineage) -> Iterator[Tree]:
    """A tree for everything that comes from nothing known; what stands in a circle hangs on its first node."""
    nodes = {node.key: node for node in found.nodes}
    children: dict[str, list[Node]] = {}
    roots = []
    for node in found.nodes:
        sources = _sources(node, nodes)
        if sources:
            children.setdefault(sources[0], []).append(node)
        else:
            roots.append(node)
    drawn: set[str] = set()
    for node in [*roots, *found.nodes]:
        if node.key not in drawn:
            yield _tree(node, children, nodes, drawn, found.run)


def _tree(root: Node, children: dict[str, list[Node]], nodes: dict[str, Node], drawn: set[str], run: str) -> Tree:
    tree = Tree(_label(root, nodes, run), guide_style="dim")
    drawn.add(root.key)
    todo = [(tree, child) for child in children.get(root.key, [])]
    while todo:
        above, node = todo.pop(0)
        if node.key in drawn:
            above.add(Text(shown(f"{node.name}, which stands above: a circle"), style="red"))
            continue
        drawn.add(node.key)
        branch = above.add(_label(node, nodes, run))
        todo += [(branch, child) for child in children.get(node.key, [])]
    return tree


def _sources(node: Node, nodes: dict[str, Node]) -> list[str]:
    return list(dict.fromkeys(one.source for one in node.given if one.source in nodes))


def _label(node: Node, nodes: dict[str, Node], run: str) -> Group:
    lines = [Text(shown(_title(node, run)), style="bold" if node.run == run else "")]
    lines += [Text(shown(line)) for line in _facts(node, nodes)]
    for sign, words, style in (("✗", node.faults, "red"), ("→", node.again, "yellow")):
        lines += [Text(shown(f"{sign} {word}"), style=style) for word in words[:_SHOWN]]
        if len(words) > _SHOWN:
            lines.append(Text(f"{sign} … and {len(words) - _SHOWN:,} more; --json prints them all", style=style))
    return Group(*lines)


def _title(node: Node, run: str) -> str:
    """``04-rl · RL · finished 2026-11-21 14:49, 0:12``."""
    if node.state == "model":
        return f"{node.key} · a model {node.kind}"
    name = Path(node.key).name if node.run == run else node.key
    done = (
        f"finished {_minute(node.ended)}" if node.state == "finished" else f"not finished, begun {_minute(node.began)}"
    )
    time = "" if node.seconds is None else f", {_duration(node.seconds)} of work"
    return f"{name} · {node.kind or '?'} · {done}{time}"


def _facts(node: Node, nodes: dict[str, Node]) -> Iterator[str]:
    made = []
    if node.settings:
        made.append(f"settings {node.settings[:_DIGITS]}")
    if node.artifact:
        files = f"{count(node.files, 'file')}, {size(node.bytes)}" if node.files else "not hashed"
        print_ = f" {node.fingerprint[:_DIGITS]}" if node.fingerprint else ""
        made.append(f"{node.artifact}{print_} ({files})")
    spent = [
        f"{what} {number:,} tokens"
        for what, number in (("sampled", node.sampled), ("trained on", node.trained))
        if number is not None
    ]
    yield " · ".join([*made, *spent])
    first = _sources(node, nodes)[:1]
    yield from (_given(one, nodes) for one in node.given if [one.source] != first)


def _given(given: Given, nodes: dict[str, Node]) -> str:
    """What a stage read that does not stand over it in the tree."""
    where = f", from {nodes[given.source].key}" if given.source in nodes else ""
    return f"given {given.where}: {given.kind} {given.fingerprint[:_DIGITS]}{where}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ") or "at an unknown time"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
