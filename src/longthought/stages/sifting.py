"""From graded replies to a set of examples: how many of a prompt, no duplicates, nothing of an evaluation, a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from longthought.core.errors import SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Message, Problem
from longthought.evaluation.evaluate import distinct
from longthought.runs.files import json_bytes
from longthought.stages.example_set import row
from longthought.tasks.examples import Examples
from longthought.tasks.files import FileTask
from longthought.text.decontaminate import Duplicates, Evaluations, Reference, units
from longthought.text.reasoning import split

Prefer: TypeAlias = Literal["random", "shortest", "longest", "first"]

DUPLICATE, CONTAMINATED, SURPLUS, UNFIT = (
    "duplicate",
    "contaminated",
    "more than are kept of a prompt",
    "no conversation",
)
_SOLUTIONS: Final = ("solution", "demonstration", "reference")
_LONG = 50  # units of a reply that is compared with those to other questions, too
_BARS = 40


@dataclass(frozen=True)
class Against:
    """Problems of an evaluation that no example may hold.

    problems: so many that differ, the first ones of the split, as an evaluation asks them; None: all, of a task that
    has an end.
    """

    task: Task
    split: Literal["train", "dev", "test"] = "test"
    problems: int | None = None

    def __post_init__(self) -> None:
        if self.problems is None and not isinstance(self.task, FileTask):
            raise SettingsError(
                f"against: {self.task.name} has problems without end; say how many are evaluated: "
                "Against(task, problems=…)"
            )

    def references(self) -> Iterator[Reference]:
        """Questions and reference answers."""
        for problem in self._problems():
            solutions = (problem.answer, *(problem.info[name] for name in _SOLUTIONS if name in problem.info))
            yield Reference(f"{self.split}: {problem.id}", asked(problem.messages), solutions)

    def _problems(self) -> Iterable[Problem]:
        if self.problems is not None:
            return distinct(self.task, self.split, self.problems)
        assert isinstance(self.task, FileTask)
        return (self.task.problem(self.split, index) for index in range(self.task.size(self.split)))


@dataclass(frozen=True)
class General:
    """Examples of other things than reasoning, as ``share`` of all that is kept (DeepSeek-R1: 200k of 800k)."""

    examples: Examples
    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SettingsError(f"general: share={self.share}: must be between 0 and 1")


class Candidate(NamedTuple):
    """A reply that passed the filters. ``tokens``: how many it has. ``origin``: its source, where there are several."""

    problem: Problem
    sample: int
    text: str
    tokens: int
    source: Mapping[str, Any]
    origin: str = ""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return f"{self.problem.id}#{self.origin}{self.sample}"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question and the reply."""
        thought, content = (part.strip() for part in split(self.text))
        return (*self.problem.messages, Message("assistant", content, thought))


def evaluations(against: Sequence[Against], n: int) -> Evaluations:
    """What the evaluations ask; the instruction that a task adds to every question is no part of them."""
    tasks = (one.task for one in against)
    found = Evaluations(n, [task.instruction for task in tasks if isinstance(task, FileTask) and task.instruction])
    for one in against:
        found.add(one.references())
    return found


def asked(messages: Sequence[Message]) -> str:
    """What the user says."""
    return "\n".join(message.content for message in messages if message.role == "user")


def check_choice(stage: str, keep_per_prompt: int | None, prefer: Prefer) -> None:
    """Raises SettingsError on a choice among the right replies to a prompt that makes no sense."""
    if keep_per_prompt is not None and keep_per_prompt < 1:
        raise SettingsError(f"{stage}: keep_per_prompt={keep_per_prompt} must be at least 1")
    if prefer not in get_args(Prefer):
        raise SettingsError(f"{stage}: prefer={prefer!r}; choose one of {', '.join(get_args(Prefer))}")
    if prefer != "random" and keep_per_prompt is None:
        raise SettingsError(
            f"{stage}: prefer={prefer!r} changes nothing: all right replies are kept; set keep_per_prompt"
        )


def ordered(candidates: Sequence[Candidate], prefer: Prefer, seed: int) -> list[Candidate]:
    """The right replies to one prompt, the one to keep first in front."""
    if prefer == "shortest":
        return sorted(candidates, key=lambda one: (one.tokens, one.sample))
    if prefer == "longest":
        return sorted(candidates, key=lambda one: (-one.tokens, one.sample))
    if prefer == "random":
        return sorted(candidates, key=lambda one: lot(seed, one.problem.id, f"{one.origin}{one.sample}"))
    return list(candidates)


def lot(seed: int, *what: object) -> bytes:
    """A number by lot that depends on nothing else than these."""
    return blake2b(json.dumps([seed, *map(str, what)]).encode(), digest_size=8).digest()


@dataclass
class Sieve:
    """Writes what is kept and what is dropped, one after the other.

    most: of one prompt; None: all.
    """

    evaluated: Evaluations
    duplicates: Duplicates
    kept_file: IO[bytes]
    dropped_file: IO[bytes]
    most: int | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    def prompt(self, candidates: Sequence[Candidate]) -> int:
        """Keep replies to one prompt, the first ones first; how many were kept."""
        kept = 0
        for one in candidates:
            if kept == self.most:
                self.drop(one.name, SURPLUS, "")
            else:
                kept += self.take(one.name, one.messages, one.source)
        return kept

    def take(self, name: str, messages: Sequence[Message], source: Mapping[str, Any]) -> bool:
        """Keep a conversation, unless it is a duplicate, contaminated, or cannot be written."""
        line = row(messages, source)
        if line is None:
            return self.drop(name, UNFIT, "tags or characters that would be read back as something else")
        said = [text for one in messages if one.role == "assistant" for text in (one.reasoning, one.content)]
        if (found := self.evaluated.overlap(asked(messages), *said)) is not None:
            return self.drop(name, CONTAMINATED, f"{found.part} of {found.problem}: {found.words}")
        reply = "\n".join((messages[-1].reasoning, messages[-1].content))
        scope = "" if len(units(reply)) >= _LONG else asked(messages)
        if (same := self.duplicates.add(name, reply, scope)) is not None:
            return self.drop(name, DUPLICATE, f"says what {same} says")
        self.kept_file.write(line)
        return True

    def drop(self, name: str, why: str, detail: str) -> Literal[False]:
        """Count and note a sample that is not kept."""
        self.dropped[why] += 1
        self.dropped_file.write(json_bytes({"sample": name, "dropped": why, "detail": detail}) + b"\n")
        return False


def add_general(sieve: Sieve, general: General, reasoning: int, seed: int) -> dict[str, Any]:
    """Take general examples, by lot, until they are their share of all; what became of them."""
    examples = general.examples
    wanted = round(reasoning * general.share / (1 - general.share))
    order = sorted(range(examples.size("train")), key=lambda index: lot(seed, "general", index))
    before, kept, offered = Counter(sieve.dropped), 0, 0
    for index in order:
        if kept >= wanted:
            break
        file, place = examples.where("train", index)
        source = {"kind": "general", "file": file.rpartition("/")[2], "line": place}
        offered += 1
        kept += sieve.take(f"{source['file']}:{place}", examples.messages("train", index), source)
    dropped = sieve.dropped - before
    sieve.dropped.subtract(dropped)
    sieve.dropped = +sieve.dropped
    return {"wanted": wanted, "offered": offered, "dropped": dict(dropped), "kept": kept}


def histogram(rates: Sequence[float]) -> dict[str, int]:
    """How many prompts were never, seldom, … always answered rightly: their difficulty."""
    bounds = (0.0, 0.25, 0.5, 0.75)
    found = {"never": sum(rate == 0 for rate in rates)}
    for low in bounds:
        inside = sum(low < rate <= low + 0.25 and rate < 1 for rate in rates)
        found[f"up to {low + 0.25:.0%}" if low < 0.75 else "below 100%"] = inside
    return found | {"always": sum(rate == 1 for rate in rates)}


def described(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    kept = report["kept"]
    lines = became(report)
    lines.append(f"  {kept['reasoning']:>9,}  kept, of {report['prompts_kept']:,} prompts")
    if general := report["general"]:
        lost = "".join(f"; {count:,} {why}" for why, count in general["dropped"].items())
        lines.append(f"  {general['kept']:>9,}  general examples of {general['wanted']:,} wanted{lost}")
    lines.append(f"compared with {report['evaluation_problems']:,} problems of evaluations")
    return "\n".join(lines + bars(report["pass_rates"]))


def became(told: Mapping[str, Any]) -> list[str]:
    """How many replies were right, and why others are not kept, for a person."""
    lines = [
        f"{told['sampled']:,} replies to {told['prompts']:,} prompts: {told['right']:,} right, "
        f"{told['wrong']:,} wrong, {told['ungraded']:,} not graded"
    ]
    if told["judged"]:
        lines.append(f"{told['judged']:,} were judged, {told['judged_right']:,} of them right")
    return lines + [f"  {count:>9,}  {why}" for why, count in told["dropped"].items()]


def bars(rates: Mapping[str, int]) -> list[str]:
    """A ``histogram`` for a person."""
    most = max(1, *rates.values())
    lines = (f"  {name:>10} {count:>7,} {'█' * round(_BARS * count / most)}" for name, count in rates.items())
    return ["prompts by share of right replies:", *(line.rstrip() for line in lines)]
