"""``longthought report``: the report of a run, finished or not."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from longthought.cli.parser import Parser


def parser() -> Parser:
    """The command line of ``report``."""
    made = Parser(
        "report",
        "Write the report of a run from what is in its folder. The run may be finished, stopped or still going on:\n"
        "what is missing is shown as not measured yet.",
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    made.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: RUN/report.html)")
    made.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="draw the four main curves into one picture, too"
    )
    return made


def execute(arguments: Namespace) -> int:
    """Write the file and say where it is."""
    from longthought.cli.reporting import write
    from longthought.evaluation.headline import sentence
    from longthought.evaluation.report import picture
    from longthought.runs.files import plain_errors
    from longthought.runs.record import Record

    record = Record.read(arguments.run)
    file = arguments.out or record.path / "report.html"
    data = write(record, file)
    print(sentence(data))
    print(f"Report: {file}")
    if arguments.picture:
        with plain_errors(arguments.picture):
            picture(data, arguments.picture)
        print(f"Picture: {arguments.picture}")
    return 0
