"""Replies of a model to prompts of a task, sampled and judged in rounds: what ``Comparing`` and ``Labelling`` share."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from longthought.core.errors import DataError, RunDamaged, SettingsError
from longthought.core.protocols import Task
from longthought.core.types import Group, Message, Problem
from longthought.engine.engine import EngineSettings
from longthought.rollout.filters import NoMarkup, Screen, Uncut
from longthought.runs.artifacts import Checkpoint
from longthought.runs.describe import describe
from longthought.runs.files import json_bytes, write_atomic
from longthought.runs.place import Place
from longthought.runs.settings import fingerprint_of
from longthought.runs.traces import Trained
from longthought.stages.example_set import write_report, writing
from longthought.stages.judgement_set import is_writable, said
from longthought.stages.sampled import Sampled
from longthought.tasks.examples import Part
from longthought.tasks.file_problems import Reading
from longthought.tasks.preferences import Labels, Preferences
from longthought.text.reasoning import split

JUDGED = "judged"
NO_SUMMARY, REPEATED, UNFIT = "no summary", "says what another reply says", "no conversation"

Entry = dict[str, Any]
"""What became of one prompt, as JSON: its replies that can be judged, those that cannot, the judgements."""


class Usable(NamedTuple):
    """A reply that can be judged. correct: by the rule of the task."""

    sample: int
    message: Message
    tokens: int
    correct: bool


class Judged(NamedTuple):
    """What was said of the replies to one prompt. values: of samples, for the trace."""

    rows: list[Entry]
    values: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class JudgedReplies(Sampled):
    """``samples`` replies to each of ``prompts`` prompts.

    held_out: share of the prompts that a reward model is to be measured on: they are drawn so that as many fall there
    by the hash of the question that ``Preferences`` and ``Labels`` divide by. Prompts are those of the train split; for
    a task whose train split has none that are held out, as that of a file, these are of its test split.
    screen: what a reply must be to be judged. It must have a summary, and differ from the others, too.
    Everything else: see ``Sampled``.
    """

    afterwards: ClassVar[str] = "judging"
    folder: ClassVar[str]

    samples: int = 4
    held_out: float = 0.1
    screen: Screen = Screen((Uncut(), NoMarkup()))
    seed: int = 0
    prompts_per_round: int = 64
    engine: EngineSettings = EngineSettings()
    workers: int = 1

    def __post_init__(self) -> None:
        if self.prompts < 4:
            raise SettingsError(f"{self.called}: prompts={self.prompts} must be at least 4, two of them held out")
        super().__post_init__()
        if not 0 < self.held_out < 1:
            raise SettingsError(f"{self.called}: held_out={self.held_out} must lie between 0 and 1")

    def _problems(self) -> list[Problem]:
        return prompts_of(self.task, self.prompts, self.held_out)

    def _made(self, problems: Sequence[Problem], given: Checkpoint, place: Place) -> None:
        """Write the folder of the set; the same for the same judgements. Raises DataError where nothing is left."""
        provenance = {
            "stage": self.called,
            "from": given.fingerprints(),
            "model": fingerprint_of(given.fingerprints()),
            "held_out": self.held_out,
            "settings": describe(self),
        }
        with writing(place.path / self.folder, provenance, self._contents) as made:
            report, text = self._write(self._entries(problems, place), made)
            write_report(made, report, text)
        if not self.quiet:
            print(text, file=sys.stderr)

    def _contents(self, made: Path) -> str:
        """The fingerprint by which a reward model knows the judgements; empty where they cannot be learned from."""
        try:
            return self._learned(made).fingerprint
        except DataError:
            return ""

    def _keep(self, step: int, groups: list[Group], place: Place, values: dict[str, Any]) -> Mapping[str, float]:
        """Judge what was sampled, and keep all of it."""
        del values
        found = [self._usable(group) for group in groups]
        asked = [(group[0].problem, usable) for group, (usable, _) in zip(groups, found, strict=True)]
        judged = self._judge(asked)
        lines = [
            self._entry(group, usable, left_out, one.rows)
            for group, (usable, left_out), one in zip(groups, found, judged, strict=True)
        ]
        write_atomic(_file(place, step), b"".join(json_bytes(line) + b"\n" for line in lines))
        place.trace(
            step,
            groups,
            rewards=[[one.values.get(number) for number in range(len(g))] for g, one in zip(groups, judged)],
            advantages=[[None] * len(group) for group in groups],
            shaping={},
            trained=[[Trained(left_out=why) for why in left_out] for _, left_out in found],
        )
        count = sum(map(len, groups))
        metrics = {"usable": sum(len(usable) for usable, _ in found) / count, **self._metrics(lines)}
        place.log(step, metrics)
        return metrics

    def _usable(self, group: Group) -> tuple[list[Usable], list[str]]:
        """The replies that can be judged, and for every reply why it cannot be, or nothing."""
        usable: list[Usable] = []
        left_out: list[str] = []
        seen: set[Hashable] = set()
        for number, rollout in enumerate(group):
            thought, content = (part.strip() for part in split(rollout.text))
            message = Message("assistant", content, thought)
            refusal = self.screen.refusal(rollout)
            why = "" if refusal is None else refusal[0]
            if not why and not content:
                why = NO_SUMMARY
            if not why and not is_writable(rollout.problem.messages, message):
                why = UNFIT
            if not why and self._judged_part(message) in seen:
                why = REPEATED
            if not why:
                seen.add(self._judged_part(message))
                tokens = len(rollout.completion.token_ids)
                usable.append(Usable(number, message, tokens, rollout.score.correct))
            left_out.append(why)
        return usable, left_out

    def _entry(self, group: Group, usable: Sequence[Usable], left_out: Sequence[str], rows: list[Entry]) -> Entry:
        problem = group[0].problem
        replies = [
            {"sample": one.sample, "said": said([one.message]), "tokens": one.tokens, "correct": one.correct}
            for one in usable
        ]
        return {
            "problem": problem.id,
            "prompt": said(problem.messages),
            "part": part_of(problem, self.held_out),
            "left_out": left_out,
            "replies": replies,
            "judged": rows,
        }

    def _entries(self, problems: Sequence[Problem], place: Place) -> Iterator[Entry]:
        """What became of every prompt. Raises RunDamaged where the rounds are not those of the prompts."""
        for step, chosen in enumerate(self._in_rounds(problems), 1):
            path = _file(place, step)
            try:
                lines = [json.loads(line) for line in path.read_bytes().splitlines()]
                found = [line["problem"] for line in lines]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise RunDamaged(f"{path} cannot be read: {error}") from error
            if found != [problem.id for problem in chosen]:
                raise RunDamaged(f"{path} holds other prompts than round {step} asked")
            yield from lines

    @abstractmethod
    def _judged_part(self, reply: Message) -> Hashable:
        """What of a reply is judged: of several that are equal in it, one is."""

    @abstractmethod
    def _judge(self, asked: Sequence[tuple[Problem, Sequence[Usable]]]) -> list[Judged]:
        """The judgements of the replies to every prompt; they must not depend on what else is asked."""

    @abstractmethod
    def _metrics(self, entries: Sequence[Entry]) -> dict[str, float]:
        """What is logged of a round."""

    @abstractmethod
    def _learned(self, made: Path) -> Preferences | Labels:
        """The judgements of a folder, as a reward model reads them. Raises DataError where they are too few."""

    @abstractmethod
    def _write(self, entries: Iterator[Entry], made: Path) -> tuple[Entry, str]:
        """Fill the folder of the set; the report, as JSON and for a person."""


def prompts_of(task: Task, count: int, held_out: float) -> list[Problem]:
    """``count`` prompts that differ, of which the share ``held_out`` is held out by the hash of the question.

    At least two are, and at least two are not.

    Raises DataError when the task seems to have fewer.
    """
    held = min(max(2, round(count * held_out)), count - 2)
    missing: dict[Part, int] = {"train": count - held, "held_out": held}
    found: dict[tuple[Message, ...], Problem] = {}
    _look(task, "train", 20 * count + 1000, missing, found, held_out)
    if missing["held_out"] and not missing["train"]:
        with suppress(DataError):  # it may have no test split
            _look(task, "test", 20 * count + 1000, missing, found, held_out)
    if any(missing.values()):
        raise DataError(
            f"{task.name} has too few prompts that differ: {missing['train']} to train on and {missing['held_out']} to "
            f"hold out are missing; ask for fewer than prompts={count}, or for another share than held_out={held_out}"
        )
    return list(found.values())


def _look(
    task: Task,
    split_name: str,
    draws: int,
    missing: dict[Part, int],
    found: dict[tuple[Message, ...], Problem],
    held_out: float,
) -> None:
    """Add problems of a split, in order, until none is missing."""
    for index in range(draws):
        if not any(missing.values()):
            return
        problem = task.problem(split_name, index)
        part = part_of(problem, held_out)
        if missing[part] and problem.messages not in found:
            found[problem.messages] = problem
            missing[part] -= 1


def part_of(problem: Problem, held_out: float) -> Part:
    """The side on which ``Preferences`` and ``Labels`` put what is said about a prompt."""
    question = next((one.content for one in problem.messages if one.role == "user"), "")
    reading = Reading(dev_share=0.0, test_share=held_out)
    return "held_out" if reading.split_of([("user", question)]) == "test" else "train"


def counted(entries: Sequence[Entry]) -> Entry:
    """How many replies were sampled, and why some of them were not judged."""
    reasons = [why for entry in entries for why in entry["left_out"]]
    dropped = {why: reasons.count(why) for why in dict.fromkeys(reasons) if why}
    return {
        "prompts": len(entries),
        "held_out_prompts": sum(entry["part"] == "held_out" for entry in entries),
        "replies": len(reasons),
        "usable": reasons.count(""),
        "dropped": dict(sorted(dropped.items(), key=lambda item: -item[1])),
    }


def told(report: Entry) -> list[str]:
    """``counted`` for a person."""
    lines = [
        f"{report['replies']:,} replies to {report['prompts']:,} prompts, {report['held_out_prompts']:,} of them held "
        f"out: {report['usable']:,} can be judged"
    ]
    return lines + [f"  {count:>9,}  {why}" for why, count in report["dropped"].items()]


def _file(place: Place, step: int) -> Path:
    path = place.path / JUDGED / f"round-{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
