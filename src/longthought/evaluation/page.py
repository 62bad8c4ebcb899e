"""What a report page is built of: its frame and style, tables, figures, replies. Every text in it is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template

from longthought.evaluation.headline import NOT_MEASURED
from longthought.evaluation.report_data import Reply
from longthought.evaluation.terminal import marked, printable, verdict

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #59636e; --page: #ffffff; --card: #f6f8fa; --line: #d1d9e0;
  --mark: #ffe3b3; --right: #1a7f37; --wrong: #c0352b; --link: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; --quiet: #9aa4b0; --page: #14171b; --card: #1c2127;
  --line: #343b44; --mark: #6b4a12; --right: #57c27a; --wrong: #ff8a7a; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 1180px; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0.5rem 0 0; } h2 { font-size: 1.3rem; margin: 2.6rem 0 0.6rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.5rem; } h4 { font-size: 0.95rem; margin: 0.5rem 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin-top: 0.8rem; font-size: 0.9rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.task, .quiet, .reading, figcaption { color: var(--quiet); font-weight: normal; } .task { margin: 0.2rem 0 0; }
.reading, figcaption, .quiet { font-size: 0.87rem; } .headline { font-size: 1.15rem; max-width: 60rem; }
.missing { color: var(--quiet); font-style: italic; margin: 0.6rem 0; } .chart-title { font-weight: bold; margin: 0; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .ungraded { color: var(--quiet); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.32rem 1.4rem 0.32rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; } tbody th { font-weight: normal; } td { overflow-wrap: anywhere; }
.examples td:last-child, .settings td { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.82rem; }
.numbers td, .examples td:nth-child(-n+2) { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.4rem 2rem; }
figure { margin: 0; } figure svg { display: block; width: 100%; height: auto; } .wide { max-width: 860px; }
details { margin: 0.8rem 0; border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.9rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.4rem; }
.sides > div { min-width: 0; }
.road td, .road th { font-size: 0.86rem; padding-right: 1.1rem; } .road tbody th { font-weight: 600; }
.road div, .road.numbers th { white-space: nowrap; } .road .used { min-width: 14rem; max-width: 26rem; }
 .road .up { color: var(--right); } .road .down { color: var(--wrong); }
figure.strip svg { max-width: 1100px; }
pre { margin: 0.3rem 0; padding: 0.7rem 0.9rem; background: var(--card); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; unicode-bidi: isolate;
  font: 0.84rem/1.6 ui-monospace, "DejaVu Sans Mono", monospace; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 0.15em; }
@media print { details { break-inside: avoid; } pre { max-height: none; } }
"""

PAGE = Template(
    f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>$title</h1>$task<nav>$links</nav></header>
$body</body>
</html>
"""
)


def table(head: Sequence[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; nothing in it counts as not measured."""
    lines = ["".join(cell(text) for text in row) for row in body]
    if not lines:
        return missing()
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head) if any(head) else ""
    content = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{content}</tbody></table></div>'
    )


def cell(text: str) -> str:
    """One cell of a table."""
    return f'<td class="quiet">{safe(text)}</td>' if text == NOT_MEASURED else f"<td>{safe(text)}</td>"


def figure(content: str, reading: str, kind: str = "") -> str:
    """A chart with how to read it."""
    return f'<figure class="{kind}">{content}<figcaption>How to read it: {safe(reading)}</figcaption></figure>\n'


def missing() -> str:
    """In the place of what was not measured."""
    return f'<p class="missing">{NOT_MEASURED}</p>'


def safe(text: str) -> str:
    """Text that is nothing but text."""
    return html.escape(printable(text))


def spoken(name: str, reply: Reply | None, words: frozenset[str]) -> str:
    """One reply of the model of this name; ``words`` are marked in its reasoning."""
    if reply is None:
        return f"<div><h4>{safe(name)}</h4>{missing()}</div>"
    colour = {True: "right", False: "wrong", None: "ungraded"}[reply.correct]
    evidence = f'<p class="quiet">{safe(reply.evidence)}</p>' if reply.evidence else ""
    pieces = marked(printable(reply.text), words)
    text = "".join(f"<mark>{safe(piece)}</mark>" if rejected else safe(piece) for piece, rejected in pieces)
    return (
        f'<div><h4>{safe(name)} <span class="{colour}">{verdict(reply)}</span> '
        f'<span class="quiet">{reply.tokens:,} tokens · {safe(reply.finish)}</span></h4>'
        f"<pre>{text}</pre>{evidence}</div>"
    )
