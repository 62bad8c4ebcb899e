"""``longthought traces``: look at the rollouts of a run."""

from __future__ import annotations

import json
import math
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longthought.cli.parser import Parser, at_least
from longthought.core.errors import RunError, SettingsError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from longthought.evaluation.trace_query import Id, Listing, Query
    from longthought.evaluation.trace_source import Source
    from longthought.runs.record import Record

_NUMBERS = ("reward", "advantage", "length")
_IN_TABLE, _ON_PAGE = 20, 200
_EPILOG = """conditions on numbers: '>0.5', '<=1', '=0', '0..1', or none (nothing was recorded)

  longthought traces runs/quickstart --step last --reward '>0.5' --sort length
  longthought traces runs/quickstart --outcome crashed,unparsable --text 'wait.*wait'
  longthought traces runs/quickstart --id 40:3:1 --tokens
  longthought traces runs/quickstart --step 30..40 --html traces.html
  longthought traces runs/quickstart --correct yes --finish stop --export right.jsonl"""
_FILTERS = ("step", *_NUMBERS, "outcome", "finish", "correct", "trained", "problem", "text")


def parser() -> Parser:
    """The command line of ``traces``."""
    made = Parser(
        "traces",
        "Look at rollouts of a run: many in a table, one in full, one token by token, or all on a page that opens\n"
        "offline. The run may still be going on.",
        _EPILOG,
    )
    add = made.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run")
    add("--stage", metavar="NAME", help="stage of the run (default: the last that trained on rollouts)")
    choice = made.add_argument_group("which rollouts")
    add = choice.add_argument
    add("--step", metavar="STEPS", help="40, 30..40, 30.. or last (default: all)")
    for name in _NUMBERS:
        add(f"--{name}", metavar="COND", help=f"condition on the {name}{' in tokens' * (name == 'length')}")
    add("--outcome", metavar="NAMES", help="what became of the grading: graded, unparsable, timed_out, crashed, …")
    add("--finish", metavar="NAMES", help="why the reply ended: stop, length, budget, stop_string")
    add("--correct", choices=("yes", "no"), help="whether the answer is right")
    add("--trained", choices=("yes", "no"), help="whether the step's updates trained on it")
    add("--problem", metavar="ID", help="id of the problem; * stands for anything")
    add("--text", metavar="REGEX", help="a regular expression (RE2) that is found in what the model wrote")
    add("--sort", default="step", metavar="BY", help="step, reward, advantage or length, the highest first")
    add("--reverse", action="store_true", help="the lowest first")
    add("--limit", type=at_least(1), metavar="N", help=f"most rollouts (default: {_IN_TABLE}, {_ON_PAGE} on a page)")
    one = made.add_argument_group("one of them, and other forms")
    add = one.add_argument
    add("--show", type=at_least(1), metavar="N", help="number N of the table in full")
    add("--id", metavar="ID", help="this one in full: step:group:sample, for example 40:3:1")
    add(
        "--tokens",
        action="store_true",
        help="its tokens, too: probability, ratio, clipping; in Parquet, ids and log-probs",
    )
    add("--html", type=Path, metavar="FILE", help="write them to one page that needs no network")
    add("--json", action="store_true", help="print JSON")
    file = made.add_argument_group("a file of conversations, for training or other tools")
    add = file.add_argument
    add("--export", type=Path, metavar="FILE", help="write all that match: .jsonl or .parquet, told by the name")
    add("--format", choices=("messages", "sharegpt"), help="of a .jsonl file (default: messages)")
    add("--force", action="store_true", help="replace a file that is there")
    return made


def execute(arguments: Namespace) -> int:
    """Print a table, one rollout, or JSON; or write a page."""
    _refuse_idle(arguments)
    from longthought.evaluation.trace_query import Id, look
    from longthought.evaluation.trace_source import source
    from longthought.runs.record import Record

    query = _query(arguments)
    wanted = Id.parse(arguments.id) if arguments.id is not None else None
    record = Record.read(arguments.run)
    given = source(record, arguments.stage)
    if wanted is not None:
        return _one(given, wanted, arguments)
    listing = look(given.folder, query)
    for damage in listing.damaged:
        _warn(damage)
    if arguments.export:
        return _file(given, record, listing, arguments)
    if arguments.html:
        return _page(given, listing, arguments)
    if arguments.show:
        found = listing.ids(arguments.show - 1, 1)
        if not found:
            raise RunError(f"--show {arguments.show}: only {listing.facts['rollouts']:,} rollouts match")
        return _one(given, found[0][0], arguments)
    return _many(given, listing, arguments)


def _query(arguments: Namespace) -> Query:
    from longthought.evaluation.trace_query import Bound, Query, Steps

    def names(text: str | None) -> tuple[str, ...]:
        return tuple(name.strip() for name in (text or "").split(",") if name.strip())

    numbers = {name: getattr(arguments, name) for name in _NUMBERS}
    return Query(
        steps=Steps.parse(arguments.step) if arguments.step is not None else Steps(),
        numbers=tuple((name, Bound.parse(text, f"--{name}")) for name, text in numbers.items() if text is not None),
        outcomes=names(arguments.outcome),
        finishes=names(arguments.finish),
        correct=None if arguments.correct is None else arguments.correct == "yes",
        trained=None if arguments.trained is None else arguments.trained == "yes",
        problem=arguments.problem or "",
        text=arguments.text or "",
        sort=arguments.sort,
        reverse=arguments.reverse,
    )


def _refuse_idle(arguments: Namespace) -> None:
    """Raise SettingsError for an option that would change nothing."""
    given = {
        name
        for name, value in vars(arguments).items()
        if value not in (None, False) and (name, value) != ("sort", "step")
    }
    filters = {*_FILTERS, "sort", "reverse"}
    if empty := sorted(name for name in given if not str(getattr(arguments, name)).strip(" ,")):
        raise SettingsError(f"--{empty[0]} is empty: give a value, or leave it out")
    clashes = [
        ("id", filters | {"show", "limit", "html", "export"}),
        ("show", {"limit", "html", "export"}),
        ("export", {"html", "json"}),
        ("html", {"json", "tokens"}),
        ("json", {"tokens"}),
    ]
    for name, others in clashes:
        if name in given and (idle := sorted(given & others)):
            raise SettingsError(f"--{idle[0]} changes nothing beside --{name}: leave one of them out")
    if "export" not in given and (idle := sorted(given & {"format", "force"})):
        raise SettingsError(f"--{idle[0]} changes nothing without --export FILE: leave it out")
    if "tokens" in given and not given & {"show", "id", "export"}:
        raise SettingsError("--tokens shows one rollout: say which with --show N or --id step:group:sample")


def _many(given: Source, listing: Listing, arguments: Namespace) -> int:
    from longthought.evaluation.trace_query import LISTED, rows_of

    ids = listing.ids(0, arguments.limit or _IN_TABLE)
    rows = rows_of(given.folder, ids, (*LISTED, "problem", "text"), _warn)
    if arguments.json:
        about = {"stage": given.stage, "looked_at": listing.looked_at, "damaged": listing.damaged}
        _print_json({**about, "matching": listing.facts, "rollouts": rows})
        return 0
    from longthought.evaluation.trace_terminal import table_of

    _print(table_of(listing, rows, given))
    left = listing.facts["rollouts"] - len(ids)
    if left > 0:
        print(f"\n{left:,} more match; --limit N shows more of them, --show N or --id ID one in full")
    return 0


def _one(given: Source, wanted: Id, arguments: Namespace) -> int:
    from longthought.evaluation.trace_query import whole
    from longthought.evaluation.trace_terminal import rollout, token_table
    from longthought.evaluation.trace_tokens import tokens_of

    row, siblings = whole(given.folder, wanted)
    if arguments.json:
        _print_json(row)
        return 0
    for note in given.notes:
        _warn(note)
    _print(rollout(row, siblings, given))
    if arguments.tokens:
        print()
        _print(token_table(tokens_of(row, given.tokenizer, given.clipping), row, given))
    return 0


def _page(given: Source, listing: Listing, arguments: Namespace) -> int:
    from longthought.evaluation.trace_page import write_page

    told = write_page(given, listing, arguments.limit or _ON_PAGE, arguments.html)
    print(f"{told}\nPage: {arguments.html}")
    return 0


def _file(given: Source, record: Record, listing: Listing, arguments: Namespace) -> int:
    from longthought.evaluation.trace_export import Export, chosen_format, export

    words = [(f"--{name}", str(value)) for name in _FILTERS if (value := getattr(arguments, name)) is not None]
    asked = Export(
        arguments.export,
        chosen_format(arguments.export, arguments.format),
        arguments.tokens,
        shlex.join(word for pair in words for word in pair),
        arguments.limit,
        arguments.force,
    )
    for line in export(given, record, listing, asked, _warn).lines:
        print(line)
    print(f"File: {arguments.export}")
    return 0


def _warn(what: object) -> None:
    print(f"longthought: warning: {what}", file=sys.stderr)


def _print(what: RenderableType) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=100)
    console.print(what)


def _print_json(content: Any) -> None:
    print(json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, indent=1))


def _plain(content: Any) -> Any:
    """What JSON can hold: NaN and infinities become null, as in ``metrics.jsonl``."""
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
