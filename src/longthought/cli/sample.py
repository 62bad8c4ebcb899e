"""``longthought sample``: ask a model, and read how it thinks."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from longthought.cli.parser import Parser, add_model, at_least, share, temperature
from longthought.core.errors import DataError, LongthoughtError, SettingsError

if TYPE_CHECKING:
    from longthought.cli.conversation import Conversation


def parser() -> Parser:
    """The command line of ``sample``."""
    made = Parser(
        "sample",
        "Let a model answer. Its reasoning and its answer are shown apart; if the prompt is a problem of the model's\n"
        "task, so is the verdict. Without --prompt, prompts are read from standard input, one on each line.",
    )
    add_model(made)
    made.add_argument("--prompt", metavar="TEXT", help="what to ask")
    made.add_argument("--count", type=at_least(1), default=1, metavar="N", help="answers to each prompt (default: 1)")
    made.add_argument("--max-tokens", type=at_least(1), metavar="N", help="longest answer, in tokens")
    made.add_argument(
        "--temperature", type=temperature, default=1.0, metavar="T", help="0: the most likely (default: 1)"
    )
    made.add_argument("--top-p", type=share, default=1.0, metavar="P", help="the likeliest tokens of probability P")
    made.add_argument("--top-k", type=at_least(0), default=0, metavar="K", help="the K likeliest tokens (0: all)")
    made.add_argument("--min-p", type=share, default=0.0, metavar="P", help="tokens of at least P × the likeliest's")
    made.add_argument(
        "--repetition-penalty", type=temperature, default=1.0, metavar="R", help="above 1: repeat less (default: 1)"
    )
    made.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be given again")
    made.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="equal seeds give equal answers")
    return made


def execute(arguments: Namespace) -> int:
    """Answer one prompt, or every line of standard input."""
    if arguments.temperature == 0 and arguments.count > 1:
        raise SettingsError("at --temperature 0 all answers are equal: leave out --count, or raise the temperature")
    from longthought.cli.conversation import Conversation
    from longthought.cli.subject import subject
    from longthought.cli.threads import set_threads
    from longthought.core.types import SamplingParams

    params = SamplingParams(
        count=arguments.count,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        stop=tuple(arguments.stop),
    )
    if arguments.temperature == 0 and params.truncates:
        raise SettingsError("--top-p, --top-k and --min-p change nothing at --temperature 0, which takes the likeliest")
    model = subject(arguments.path, arguments.stage, arguments.recipe, arguments.template)
    set_threads(arguments.threads or model.threads)
    talk = Conversation(model, params, arguments.max_tokens)
    if arguments.prompt is not None:
        print(talk.answer(arguments.prompt, arguments.seed))
        return 0
    return _answer_lines(talk, arguments.seed)


def _answer_lines(talk: Conversation, seed: int) -> int:
    """Answer line after line; a line that cannot be asked is told and passed over. Returns 2 if there was one."""
    failed = 0
    for number, line in enumerate(_lines(talk)):
        try:
            print(talk.answer(line, seed + number), end="\n\n", flush=True)
        except DataError as error:
            print(f"longthought: {error}", file=sys.stderr, flush=True)
            failed = 2
    return 0 if sys.stdin.isatty() else failed


def _lines(talk: Conversation) -> Iterator[str]:
    """Lines of standard input that are not blank."""
    if sys.stdin.isatty():
        print(f"Ask, for example: {talk.example or '…'}    (end with Ctrl-D)")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        try:
            line = sys.stdin.readline()
        except OSError as error:
            raise LongthoughtError(f"standard input cannot be read: {error.strerror}") from error
        if not line:
            return
        if line.strip():
            yield line.strip()
