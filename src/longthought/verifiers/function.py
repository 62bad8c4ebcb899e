"""A user's own function as a verifier: five lines of Python, run where it can do no harm to the run."""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.core.user_code import import_file
from longthought.verifiers.batch import Pair
from longthought.verifiers.pool import MEMORY, Answer, Pool

PARAMETERS: dict[str, str] = {
    "problem": "the Problem",
    "reply": "the reply, a Message",
    "answer": "the problem's own answer, text",
    "gold": "the same",
    "content": "the reply's text after its thinking",
    "text": "the same",
    "reasoning": "the reply's thinking, text",
    "info": "what else the problem holds, names to texts",
}
"""What a function may ask for, by the names of its parameters."""
MODULE = "longthought_verifier_"


@dataclass(frozen=True)
class Function:
    """A function as a verifier, each call in a worker process that is killed after ``deadline`` seconds.

    The function takes any of :data:`PARAMETERS`, by name::

        def verify(content, answer):
            return content.strip() == answer

    It returns a bool, a finite number, ``(value, evidence)``, or a :class:`Verdict`. None is no grade (absent, not 0),
    and so is anything else: ``INVALID``. What it raises is ``CRASHED``, with its line; too slow is ``TIMED_OUT``. What
    it prints is kept as evidence. It may be a closure or come from a notebook. ``fingerprint`` follows its source, so
    that a run notices when it has changed.

    Raises SettingsError when it is no function or asks for what does not exist.
    """

    function: Callable[..., Any]
    deadline: float = 5.0
    workers: int = 2
    memory: int | None = MEMORY

    def __post_init__(self) -> None:
        _asked(self.function)
        Pool(self.function, self.workers, self.deadline)  # refuses settings that cannot be

    @classmethod
    def from_file(cls, place: str, deadline: float = 5.0, workers: int = 2) -> Function:
        """The function of a file: ``mine.py:verify``, or ``mine.py`` for its function ``verify``.

        Raises SettingsError when the file cannot be imported or has no such function.
        """
        file, _, name = place.partition(":")
        path = Path(file)
        if path.suffix != ".py" or not path.is_file():
            raise SettingsError(f"{file!r} is no Python file; a verifier is given as mine.py:verify")
        found = getattr(import_file(path, MODULE), name or "verify", None)
        if found is None:
            raise SettingsError(f"{file} has no function {name or 'verify'}")
        return cls(found, deadline, workers)

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict:
        return self.many([(problem, reply)])[0]

    def many(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        """The verdicts of all pairs, several at once."""
        return [_verdict(answer) for answer in self._pool.map(list(pairs))]

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    @property
    def name(self) -> str:
        """What the function is called."""
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    @cached_property
    def fingerprint(self) -> str:
        """The function's name, a hash of its source and of the values that it closes over, and the deadline."""
        content = "\n".join((_source(self.function), *_closed_over(self.function)))
        digest = hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]
        return f"{self.name} {digest} deadline={self.deadline:g}"

    @cached_property
    def _pool(self) -> Pool:
        call = _Call(self.function)
        return Pool(call, self.workers, self.deadline, self.memory, label=f"verifier {self.name}")


class _Call:
    """The function as a worker calls it: arguments by name, and a result that JSON can hold."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._asked = function, _asked(function)
        code = getattr(inspect.unwrap(function), "__code__", None)
        self.source_file = code.co_filename if code else None

    def __call__(self, problem: Problem, reply: Message) -> dict[str, Any]:
        given = {
            "problem": problem,
            "reply": reply,
            "answer": problem.answer,
            "gold": problem.answer,
            "content": reply.content,
            "text": reply.content,
            "reasoning": reply.reasoning,
            "info": problem.info,
        }
        return _plain(self._function(**{name: given[name] for name in self._asked}))


def _asked(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names that a function wants to be called with."""
    if not callable(function):
        raise SettingsError(f"a verifier is a function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise SettingsError("a verifier is a plain function: no async, no yield")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the parameters of {function!r} cannot be read: wrap it in a def") from error
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if any(p.kind is p.POSITIONAL_ONLY for p in named):
        raise SettingsError("a verifier is called with its parameters by name: remove the / from its signature")
    unknown = [p.name for p in named if p.name not in PARAMETERS and p.default is p.empty]
    if unknown:
        known = ", ".join(PARAMETERS)
        raise SettingsError(f"a verifier has no parameter {', '.join(unknown)}; it may ask for: {known}")
    return tuple(p.name for p in named if p.name in PARAMETERS)


def _plain(returned: object) -> dict[str, Any]:
    """What the function returned, as JSON can hold it. ``problem`` says what is wrong with it."""
    if isinstance(returned, Verdict):
        told = {"value": None} if returned.value is None else _plain(returned.value)
        return told | {"outcome": str(returned.outcome), "evidence": str(returned.evidence)}
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], str):
        return _plain(returned[0]) | {"evidence": returned[1]}
    if returned is None:
        return {"problem": "returned None: no grade"}
    if type(returned).__name__ in ("bool", "bool_"):  # numpy's is no int
        return {"value": float(bool(returned))}
    if isinstance(returned, numbers.Real):
        return _number(returned)
    return {"problem": f"returned {_shown(returned)}: give a bool, a finite number, (value, evidence) or None"}


def _number(returned: numbers.Real) -> dict[str, Any]:
    try:
        value = float(returned)
    except (OverflowError, ValueError, TypeError):
        value = math.inf
    if not math.isfinite(value):
        return {"problem": f"returned {_shown(returned)}, which is no finite number"}
    return {"value": value}


def _shown(returned: object) -> str:
    try:
        return f"{repr(returned)[:100]} ({type(returned).__name__})"
    except Exception:
        return f"an object of type {type(returned).__name__}"


def _verdict(answer: Answer) -> Verdict:
    printed = f"printed: {answer.output}" if answer.output else ""
    if answer.outcome is not Outcome.GRADED:
        return Verdict(None, answer.outcome, "; ".join(filter(None, (answer.evidence, printed))))
    told = answer.value
    evidence = "; ".join(filter(None, (told.get("evidence", ""), printed)))
    if "problem" in told:
        return Verdict(None, Outcome.INVALID, "; ".join(filter(None, (told["problem"], printed))))
    value = told["value"]
    named = told.get("outcome", "graded")
    if named not in list(Outcome) or (value is None) == (named in (Outcome.GRADED, Outcome.UNPARSABLE)):
        return Verdict(None, Outcome.INVALID, f"returned a verdict with value {value} and outcome {named}")
    return Verdict(value, Outcome(named), evidence)


def _source(function: Callable[..., Any]) -> str:
    """The source (of a user's file, all of it), or the compiled code where there is none (typed at a prompt)."""
    target: Any = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    if (getattr(target, "__module__", None) or "").startswith(MODULE):
        target = sys.modules[target.__module__]
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        return repr(_code(getattr(function, "__code__", None)))


def _code(code: CodeType | None) -> object:
    if code is None:
        return None
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants


def _closed_over(function: Callable[..., Any]) -> list[str]:
    """Plain values that the function takes from around it and from its defaults."""
    try:
        around = inspect.getclosurevars(function).nonlocals
    except (TypeError, ValueError):
        around = {}
    defaults = getattr(function, "__defaults__", None) or ()
    plain = (str, int, float, bool, bytes, type(None), tuple, frozenset)
    values = {**{str(number): value for number, value in enumerate(defaults)}, **around}
    return [f"{name}={value!r}" for name, value in sorted(values.items()) if isinstance(value, plain)]
