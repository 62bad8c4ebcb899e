"""The generators of reasoning-gym as tasks, and the audit that says which of their scorers can be trusted.

reasoning-gym is an extra: ``pip install "longthought[tasks]"``. Source: https://github.com/open-thought/reasoning-gym
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from importlib import import_module
from io import StringIO
from math import isfinite, sqrt
from typing import Any, Final, NamedTuple

import numpy as np

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem, Score, Verdict
from longthought.tasks.grading import grade_reply
from longthought.tasks.settings import check_format_weight
from longthought.tasks.splits import problem_random, proposals, split_of

MAX_CHARS = 20_000

_FINDINGS: Final = {
    "its scorer executes the reply": (
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
        *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
    ),
    "it stores no answer, so its scorer cannot be checked": (
        *("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
    ),
    "its scorer gives full marks to text that is no answer": ("complex_arithmetic", "game_of_life_halting"),
    "its scorer gives full marks to two answers at once": (
        *("advanced_geometry", "fraction_simplification", "gsm_symbolic", "letter_jumble", "polynomial_equations"),
        *("sokoban", "spell_backward", "time_intervals", "word_sorting"),
    ),
    "one fixed answer gets full marks at most problems": ("coin_flip", "syllogism"),
    "its scorer raises on text that is no answer": ("game_of_life", "prime_factorization"),
    "the same seed gives different problems in different processes": (
        *("isomorphic_strings", "knight_swap", "ransom_note", "word_ladder"),
    ),
}
REFUSED: Final[Mapping[str, str]] = {name: reason for reason, names in _FINDINGS.items() for name in names}
"""Generators that cannot be used, and why: what ``audit`` and ``digests`` found in reasoning-gym 0.1.25."""

PAYS_JUNK: Final = frozenset(
    (
        *("binary_alternation", "chain_sum", "codeio", "figlet_font", "gcd", "knights_knaves", "largest_island"),
        *("letter_counting", "list_functions", "manipulate_matrix", "maze", "number_sequence", "products"),
        *("rotate_matrix", "tsumego"),
    )
)
"""Generators whose partial marks for text that is no answer are more than 0.1: to be used with ``exact`` alone."""


class _Entry(NamedTuple):
    """One item of a generator, with the data set that scores it."""

    dataset: Any
    item: Mapping[str, Any]

    @property
    def answer(self) -> str | None:
        """The stored answer; None where the generator keeps none."""
        answer = self.item["answer"]
        return answer if isinstance(answer, str) else None

    def score(self, answer: str) -> float:
        """What the scorer makes of an answer; it sees a copy of the item, for some write into it."""
        with _confined(0):
            return float(self.dataset.score_answer(answer=answer, entry=deepcopy(self.item)))


@dataclass(frozen=True)
class GymTask:
    """One generator of reasoning-gym, ``options`` being its own settings.

    exact: an answer is worth 1 where the scorer gives full marks, else 0. If not, its partial marks are the accuracy.

    Splits are disjoint by question, whatever the seed and the options. Every problem is made from a seed of its own,
    which it carries. Questions are English. The reward is ``accuracy + format_weight · format``; an exception of a
    scorer gives the outcome ``CRASHED`` and no reward.

    Example: ``GymTask("leg_counting", {"min_animals": 2}).problem("train", 0)``

    Raises ``SettingsError`` on a generator that does not exist or that ``refused`` names, on options that it does not
    take, and where reasoning-gym is not installed; ``problem`` raises ``DataError`` on an unknown split or where the
    options allow too few problems.
    """

    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    seed: int = 0
    format_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be graded, and options that the generator does not take."""
        if reason := refused(self.dataset, self.exact):
            raise SettingsError(f"gym: {self.dataset} is refused: {reason}")
        if {"seed", "size"} & set(self.options):
            raise SettingsError(f"gym: {self.dataset}: seed and size are not options; use the task's own seed")
        check_format_weight(self.name, self.format_weight)
        _entry(self.dataset, self._options, 0)

    @property
    def name(self) -> str:
        """The name of the task, first part of every problem's id."""
        return f"gym-{self.dataset}"

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: a function of (settings, split, index) alone."""
        draw = problem_random(self.name, self.seed, split, index)
        seed = next(proposals(split, lambda: draw.getrandbits(31), self._split_of))
        entry = _entry(self.dataset, self._options, seed)
        return Problem(
            id=f"{self.name}/{_digest(self._options)}/{seed}",
            messages=(Message("user", entry.item["question"]),),
            answer=entry.answer or "",
            info={"dataset": self.dataset, "options": self._options, "seed": str(seed), "language": "en"},
        )

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Score every reply by the generator's scorer. Raises ``DataError`` when the problem is not of this task."""
        entry = self._of(problem)

        def verify(answer: str) -> Verdict:
            return _verdict(entry, answer, self.exact)

        return [grade_reply(reply, verify, self.format_weight) for reply in replies]

    def solve(self, problem: Problem) -> str:
        """The stored answer."""
        return self._of(problem).answer or ""

    @property
    def _options(self) -> str:
        try:
            return json.dumps(dict(self.options), sort_keys=True)
        except TypeError as error:
            raise SettingsError(f"gym: {self.dataset}: options must be plain values: {error}") from error

    def _split_of(self, seed: int) -> str:
        return split_of(self.name, _entry(self.dataset, self._options, seed).item["question"])

    def _of(self, problem: Problem) -> _Entry:
        info = problem.info
        if info.get("dataset") != self.dataset or not info.get("seed", "").isdecimal():
            raise DataError(f"problem {problem.id!r} is no problem of the generator {self.dataset}")
        return _entry(self.dataset, info.get("options", "{}"), int(info["seed"]))


def generators() -> tuple[str, ...]:
    """Names of all generators of the installed reasoning-gym. Raises ``SettingsError`` where it is missing."""
    return tuple(sorted(set(_gym("reasoning_gym.factory").DATASETS) - {"composite"}))


def refused(dataset: str, exact: bool = True) -> str | None:
    """Why a generator cannot be used; None when it can. Without ``exact``, those in ``PAYS_JUNK`` are out too."""
    if not exact and dataset in PAYS_JUNK:
        return "its partial marks pay for text that is no answer; use exact=True"
    return REFUSED.get(dataset)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit found of one generator. Shares are of the problems that were drawn.

    missing: share without a stored answer.  rejected: share whose stored answer does not get full marks.
    junk: most marks that a text which is no answer got.  hedged: most marks for two different answers in one text.
    foreign: share of problems at which the answer of another one, different from the stored, got full marks: where many
        answers are right some do.
    runs_code: the scorer executed a reply.  raised: what it raised, on what; empty when it did not.
    repeatable: the same seed gave the same problem twice (see ``digest`` for other processes).
    distinct: share of different questions.  fixed: share of problems at which the best of some short answers, the most
        common stored one included, got full marks.
    digest: of all questions and answers, to compare processes.
    """

    dataset: str
    problems: int
    missing: float
    rejected: float
    junk: float
    hedged: float
    foreign: float
    runs_code: bool
    raised: str
    repeatable: bool
    distinct: float
    fixed: float
    digest: str

    @property
    def is_guessed(self) -> bool:
        """Whether one fixed answer is right at more than 60 % of the problems, by two standard errors."""
        return self.fixed > 0.6 + 2 * sqrt(0.24 / self.problems)

    @property
    def reason(self) -> str | None:
        """Why the generator should be refused even with binary marks; None when nothing was found."""
        findings = (
            (self.runs_code, "its scorer executes the reply"),
            (self.missing > 0, "it stores no answer, so its scorer cannot be checked"),
            (self.rejected > 0, "its scorer rejects its own answer"),
            (self.junk >= 1, "its scorer gives full marks to text that is no answer"),
            (self.hedged >= 1, "its scorer gives full marks to two answers at once"),
            (self.foreign > 0.5, "its scorer gives full marks to answers of other problems"),
            (bool(self.raised), f"its scorer raises: {self.raised}"),
            (self.is_guessed, "one fixed answer gets full marks at most problems"),
            (not self.repeatable, "the same seed gives different problems"),
        )
        return next((reason for found, reason in findings if found), None)


_JUNK: Final = (
    *("", " ", "?", "-", "banana", "I do not know.", "[]", "{}", "[[]]", "null", "nan", "inf", "1/0", "1e999"),
    *("\\boxed{}", "<b>", "\n\n", "\x00", "( ) , ; : .", '{"a": [1, {}]}', "[" * 5000, "9" * 5000, "answer " * 50),
)
_SHORT: Final = ("0", "1", "-1", "2", "Yes", "No", "True", "False", "A")
_HEDGES: Final = ("{0} or {1}", "{1} or {0}", "{0}, {1}", "{1}\n{0}")
_CANARY: Final = "_longthought_canary"
_CODE: Final = f"__import__('sys').__dict__.__setitem__('{_CANARY}', 1)"


def audit(dataset: str, problems: int = 20, options: Mapping[str, Any] | None = None) -> AuditResult:
    """Try a generator's scorer with its own answers, with text that is no answer, and with code.

    What depends on the process shows in ``digest`` alone: compare it with those that ``digests`` gives. Raises
    ``SettingsError`` on a generator that does not exist or does not take the options.
    """
    plain = json.dumps(dict(options or {}), sort_keys=True)
    entries = [_make(dataset, plain, seed) for seed in range(problems)]
    digest = _digest_of(entries)
    trial, known = _Trial(), [entry.answer for entry in entries if entry.answer is not None]
    short = (*_SHORT, max(known, key=known.count, default=""))
    stored = [trial.marks(entry, entry.answer) for entry in entries if entry.answer is not None]
    junk = [trial.marks(e, text) for e in entries for text in (*_JUNK, e.item["question"]) if text != e.answer]
    others = [(entry, other) for entry in entries for other in dict.fromkeys(known) if other != entry.answer]
    foreign = {id(entry) for entry, other in others if trial.marks(entry, other) >= 1}
    hedges = [(entry, form.format(entry.answer, other)) for entry, other in others[::7] for form in _HEDGES]
    return AuditResult(
        dataset=dataset,
        problems=problems,
        missing=1 - len(known) / problems,
        rejected=sum(marks < 1 for marks in stored) / problems,
        junk=max(junk),
        hedged=max((trial.marks(entry, text) for entry, text in hedges), default=0.0),
        foreign=len(foreign) / problems,
        runs_code=any(_runs(entry, trial) for entry in entries[:3]),
        raised=trial.raised,
        repeatable=digest == _digest_of([_make(dataset, plain, seed) for seed in range(problems)]),
        distinct=len({entry.item["question"] for entry in entries}) / problems,
        fixed=max(sum(trial.marks(entry, text) >= 1 for entry in entries) for text in short) / problems,
        digest=digest,
    )


def digests(datasets: Sequence[str], hash_seed: int, problems: int = 20) -> dict[str, str]:
    """The digests of ``audit``, from a fresh process whose ``PYTHONHASHSEED`` is ``hash_seed``."""
    program = (
        "import json, sys; from longthought.tasks import gym; names, problems = json.loads(sys.argv[1]);"
        "print('\\n' + json.dumps({n: gym.digest_here(n, problems) for n in names}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", program, json.dumps([list(datasets), problems])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def digest_here(dataset: str, problems: int = 20) -> str:
    """Digest of the first problems of a generator, in this process."""
    return _digest_of([_make(dataset, "{}", seed) for seed in range(problems)])


class _Trial:
    """Scores answers and keeps the first exception."""

    def __init__(self) -> None:
        self.raised = ""

    def marks(self, entry: _Entry, answer: str) -> float:
        try:
            return entry.score(answer)
        except Exception as error:  # whatever a scorer raises is a finding
            self.raised = self.raised or f"{type(error).__name__} on {answer[:30]!r}"
            return 0.0


def _runs(entry: _Entry, trial: _Trial) -> bool:
    """Whether a reply that is code was executed: the code leaves a mark in ``sys``."""
    for text in (_CODE, f"[{_CODE}]", f"[[{_CODE}]]", f"({_CODE})", f"{{1: {_CODE}}}"):
        trial.marks(entry, text)
        if vars(sys).pop(_CANARY, None):
            return True
    return False


def _verdict(entry: _Entry, answer: str, exact: bool) -> Verdict:
    if len(answer) > MAX_CHARS:
        return Verdict(0.0, Outcome.UNPARSABLE, f"longer than {MAX_CHARS} characters")
    marks = entry.score(answer)
    if not isfinite(marks):
        return Verdict(None, Outcome.INVALID, f"the scorer gave {marks}")
    value = float(marks >= 1.0) if exact else min(max(marks, 0.0), 1.0)
    return Verdict(value, Outcome.GRADED, f"the scorer gives {marks:g}")


def _gym(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise SettingsError('gym: reasoning-gym is missing; run pip install "longthought[tasks]"') from error


@lru_cache(maxsize=256)
def _entry(dataset: str, options: str, seed: int) -> _Entry:
    return _make(dataset, options, seed)


def _make(dataset: str, options: str, seed: int) -> _Entry:
    """The item that a generator makes from a seed. ``options`` is JSON."""
    create: Callable[..., Any] = _gym("reasoning_gym").create_dataset
    if dataset not in generators():
        raise SettingsError(f"gym: there is no generator {dataset!r}; choose one of {', '.join(generators())}")
    try:
        with _confined(seed):
            made = create(dataset, size=1, seed=seed, **json.loads(options))
            return _Entry(made, made[0])
    except (TypeError, ValueError, AssertionError) as error:
        raise SettingsError(f"gym: {dataset} does not take the options {options}: {error}") from error


@contextmanager
def _confined(seed: int) -> Iterator[None]:
    """Some generators use the global sources of randomness, warn or print: none of it reaches the rest of a run."""
    plain, arrays = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


def _digest_of(entries: Sequence[_Entry]) -> str:
    return _digest(repr([(entry.item["question"], entry.item["answer"]) for entry in entries]))


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=6).hexdigest()
