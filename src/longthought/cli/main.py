"""The command ``longthought``: find the command, run it, and tell what went wrong in plain words.

Exit codes: 0 done, 2 an error that the message explains, 3 the base is not ready for reinforcement learning,
130 stopped by the keyboard. An unexpected exception keeps its traceback.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

from longthought.cli.parser import program
from longthought.core.errors import LongthoughtError, NotReady, SettingsError
from longthought.core.version import __version__

COMMANDS = {
    "quickstart": "from nothing to a small model that taught itself to think, with a report",
    "run": "run a recipe, or go on with a run that was stopped",
    "findings": "test the papers' findings at laptop scale, over several seeds",
    "eval": "measure a model on held-out problems",
    "sample": "ask a model, and read how it thinks",
    "report": "write the report of a run, finished or not",
    "traces": "look at the rollouts of a run: what was written, how it was graded, token by token",
    "lineage": "where the artifacts of a run come from, and whether all of that still holds",
    "verify": "grade a file of answers, and show where two verifiers differ",
    "inspect": "what a model folder holds, and what the model costs: parameters, cache, FLOPs, memory",
    "convert": "write a model folder anew: another type of numbers, other shards, a LoRA merged",
    "plan": "what a run will take, before it starts",
    "doctor": "check a configuration before a long run: gradients, rewards, settings, memory",
    "lab": "bias and variance of the gradient estimators, against an exact gradient",
    "replay": "compute a recorded step of RL again, with another method",
}
RESUMABLE = frozenset({"quickstart", "run", "findings"})
FAILED, NOT_READY, STOPPED, BROKEN_PIPE = 2, 3, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (those of the process unless given); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _speak_utf8()
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except LongthoughtError as error:
        _tell(str(error))
        return NOT_READY if isinstance(error, NotReady) else FAILED
    except KeyboardInterrupt:
        again = shlex.join([program(), *words])
        resumable = bool(words) and words[0] in RESUMABLE
        _tell(f"stopped; run the same command again to go on: {again}" if resumable else "stopped")
        return STOPPED
    except BrokenPipeError:
        return _reader_left()


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_help(), end="", file=sys.stderr)
        return FAILED
    name, rest = words[0], words[1:]
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name == "--version":
        print(f"longthought {__version__}\n{_native()}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, (*COMMANDS, "--help", "--version"), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        what = "option" if name.startswith("-") else "command"
        raise SettingsError(f"there is no {what} {name!r}: {hint}Commands: {', '.join(COMMANDS)}")
    command = import_module(f"longthought.cli.{name}")
    parsed = command.parser().parse_intermixed_args(rest)
    _show_warnings()
    execute: Callable[[object], int] = command.execute
    return execute(parsed)


def _native() -> str:
    from longthought.models.kernels.library import load, why_not

    reason = why_not()
    return f"native core: none ({reason})" if reason else f"native core: {load().name}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: longthought COMMAND …\n\n"
        "Turn a base language model into a reasoning model, and let it think.\n\n"
        + "\n".join(lines)
        + "\n\nlongthought COMMAND --help says more about a command; longthought --version names the version\n"
        "and the native core that serves.\n"
    )


def _speak_utf8() -> None:
    """Write and read UTF-8 whatever the locale says: models write Chinese, and replies may hold anything."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _show_warnings() -> None:
    import logging

    logging.basicConfig(format="longthought: warning: %(message)s", level=logging.WARNING)


def _tell(message: str) -> None:
    try:
        sys.stdout.flush()
        print(f"longthought: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _reader_left()


def _reader_left() -> int:
    """Whoever read our output is gone (``longthought … | head``): say nothing more, not even when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            os.dup2(nowhere, stream.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
