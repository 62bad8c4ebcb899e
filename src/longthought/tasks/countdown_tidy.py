"""Replies to Countdown made fit to learn from, by rule: what annotators did to the outputs of R1-Zero.

DeepSeek-R1 (arXiv:2501.12948, section 2.3.1) starts from such outputs after people have made them readable: the thought
in the language of the question, no aimless repetition, and after it a summary of the solution. A thought about
Countdown is a list of attempts, so that all of this can be done, and proved, by a rule.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Problem
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import WORDS, CountdownWeb, Words

_TOKEN = re.compile(r"[0-9]+|[A-Za-z]+|\S")
_CHAIN = re.compile(r"(?P<first>[0-9]{1,9})(?P<steps>(?: [-+*/] [0-9]{1,9} = [0-9]{1,9}\b)+)")
_STEP = re.compile(r"([-+*/]) ([0-9]+) = ([0-9]+)")
_RETRY: Final = WORDS["en"].retry
_DRAWS: Final = 300  # attempts, until the numbers count as exhausted
_IN_VAIN: Final = 200  # problems in a row, until the task counts as one that has none
_OPENINGS: Final = frozenset(word for words in WORDS.values() for word in (words.attempt, words.retry))


class Step(NamedTuple):
    """``left sign right = result``, as it was written."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def is_true(self) -> bool:
        """Whether the result is right; a quotient must be a whole number."""
        if self.sign == "/":
            return self.right != 0 and self.left == self.right * self.result
        return self.result == {"+": self.left + self.right, "-": self.left - self.right}.get(
            self.sign, self.left * self.right
        )

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


class Trial(NamedTuple):
    """An attempt: a chain of steps, each of which goes on with the result of the one before."""

    steps: tuple[Step, ...]

    @property
    def value(self) -> int:
        """What the chain comes to."""
        return self.steps[-1].result

    @property
    def numbers(self) -> list[int]:
        """The numbers that it takes, in order."""
        return [self.steps[0].left, *(step.right for step in self.steps)]

    @property
    def expression(self) -> str:
        """As in ``( 9 * 4 ) - 3``."""
        written = str(self.steps[0].left)
        for step in self.steps:
            written = f"{f'( {written} )' if ' ' in written else written} {step.sign} {step.right}"
        return written

    @property
    def trace(self) -> str:
        """As in ``9 * 4 = 36 - 3 = 33``."""
        return " ".join(
            [str(self.steps[0].left), *(f"{step.sign} {step.right} = {step.result}" for step in self.steps)]
        )

    @property
    def key(self) -> Trial:
        """The same for attempts that differ in the order of the first sum or product alone."""
        first = self.steps[0]
        if first.sign in "+*" and first.left > first.right:
            first = first._replace(left=first.right, right=first.left)
        return Trial((first, *self.steps[1:]))


def trials(thought: str) -> Iterator[Trial | None]:
    """The attempts of a thought, in order; None for what begins like one, or stands before the first, and is none.

    Words of a verdict, checks and whatever else stands after the chain of an attempt are passed over.

    Example: ``try 9 * 3 = 27 + 4 = 31 low wait 9 *`` has one attempt and one None.
    """
    parts: list[list[str]] = [[]]
    for token in _TOKEN.findall(thought):
        if token in _OPENINGS:
            parts.append([])
        else:
            parts[-1].append(token)
    return (_trial(" ".join(part)) for number, part in enumerate(parts) if number or part)


def _trial(text: str) -> Trial | None:
    found = _CHAIN.match(text)
    if found is None:
        return None
    steps, left = [], int(found["first"])
    for sign, right, result in _STEP.findall(found["steps"]):
        steps.append(Step(left, sign, int(right), int(result)))
        left = int(result)
    return Trial(tuple(steps))


@dataclass(frozen=True)
class CountdownTidy:
    """Writes a reply to a problem of ``task`` anew: a short, true, readable account of how it found its solution.

    Of the attempts those are kept that use each given number once, calculate rightly within the numbers that the
    corpus knows (0 … the largest of the task), and come for the first time. The last that reaches the target ends the
    thought and is the answer; other hits, which were overlooked, and what came after it go. Verdicts are mended, and
    all words are those of the problem's language. Where the task's form is ``summary``, the solution stands before the
    answer: ``9 * 4 = 36 - 3 = 33 <answer> ( 9 * 4 ) - 3 </answer>``.

    A reply whose thought does not hold its solution is refused: nothing is found for it. What comes out is right, in
    one language and in the words of ``countdown_web.vocabulary``, and written anew it stays as it is.

    most_attempts: the last ones, the hit included; None: all.
    check: whether the hit is checked, once, at the end of the thought.
    """

    task: Countdown
    most_attempts: int | None = None
    check: bool = True
    name: str = field(default="countdown tidy", init=False)

    def __post_init__(self) -> None:
        if self.most_attempts is not None and self.most_attempts < 1:
            raise SettingsError(f"countdown tidy: most_attempts={self.most_attempts}: must be at least 1, or None")

    def rewrite(self, problem: Problem, reply: Message) -> Message | str:
        """The reply written anew, or why it cannot be."""
        try:
            numbers = sorted(map(int, problem.info["numbers"].split()))
            target, words = int(problem.info["target"]), WORDS[problem.info["language"]]
        except (KeyError, ValueError):
            return "not a problem of Countdown"
        found = list(trials(reply.reasoning))
        if not any(found):
            return "no attempt can be read"
        sound = [one for one in found if one is not None and self._is_sound(one, numbers)]
        if not sound:
            return "no attempt is sound"
        hits = [place for place, one in enumerate(sound) if one.value == target]
        if not hits:
            return "no attempt reaches the target"
        kept = dict.fromkeys(one.key for one in sound[: hits[-1]] if one.value != target)
        written = {one.key: one for one in reversed(sound)}  # as it was written the first time
        misses, hit = [written[key] for key in kept], sound[hits[-1]]
        if self.most_attempts is not None:
            misses = misses[max(0, len(misses) + 1 - self.most_attempts) :]
        thought = _thought([*misses, hit], target, words)
        checked = f" {words.check} {target} {words.make} {target} {words.yes}" if self.check else ""
        return Message("assistant", self._content(hit), thought + checked)

    def _is_sound(self, one: Trial, numbers: Sequence[int]) -> bool:
        most = max(self.task.intermediate, self.task.target, self.task.largest)
        return sorted(one.numbers) == numbers and all(step.is_true and 0 <= step.result <= most for step in one.steps)

    def _content(self, hit: Trial) -> str:
        answer = f"<answer> {hit.expression} </answer>"
        return f"{hit.trace} {answer}" if self.task.form == "summary" else answer


def worked(task: Countdown, count: int, attempts: int = 4, seed: int = 0) -> tuple[tuple[str, str], ...]:
    """Problems of the training split with long replies as a careful person writes them, to be shown to a base model.

    ``attempts`` of each, of which the last reaches the target. Raises SettingsError for a task that the corpus does not
    speak of, or whose problems have fewer attempts.
    """
    tidy, made = CountdownTidy(task), []
    for problem, found in itertools.islice(_drawn(task, f"worked/{seed}", attempts, wants_hit=True), count):
        thought = " ".join(f"{_RETRY} {one.trace}" for one in found)
        reply = tidy.rewrite(problem, Message("assistant", "", thought))
        assert isinstance(reply, Message)
        made.append((problem.messages[0].content, f"<think> {reply.reasoning} </think> {reply.content}"))
    return tuple(made)


def surrendered(task: Countdown, count: int, attempts: int = 13, seed: int = 0) -> tuple[tuple[Message, ...], ...]:
    """Conversations in which a careful person says that nothing was found: ``attempts`` different ones, all of which
    miss, and an empty answer.

    Right replies alone teach a model to search for ever: its longest thoughts are cut, and have no answer at all.
    Problems are from the training split. Raises SettingsError for a task that the corpus does not speak of, or whose
    problems have fewer attempts.
    """
    made = []
    for problem, found in itertools.islice(_drawn(task, f"surrendered/{seed}", attempts, wants_hit=False), count):
        thought = _thought(found, int(problem.info["target"]), WORDS[problem.info["language"]])
        made.append((problem.messages[0], Message("assistant", "<answer> </answer>", thought)))
    return tuple(made)


def _drawn(task: Countdown, name: str, attempts: int, wants_hit: bool) -> Iterator[tuple[Problem, list[Trial]]]:
    """Problems without end, each with so many different attempts: all miss, or the last alone reaches the target."""
    if attempts < 1:
        raise SettingsError(f"countdown: attempts={attempts} must be at least 1")
    web, in_vain = CountdownWeb(task), 0
    for number in itertools.count():
        problem = task.problem("train", number)
        found = _tries(web, problem, Random(f"{name}/{number}"), attempts - wants_hit, wants_hit)
        in_vain = 0 if found else in_vain + 1
        if in_vain == _IN_VAIN:
            raise SettingsError(
                f"countdown: attempts={attempts}: {_IN_VAIN} problems in a row have fewer different ones; ask for fewer"
            )
        if found:
            yield problem, found


def _tries(web: CountdownWeb, problem: Problem, rng: Random, most: int, wants_hit: bool) -> list[Trial]:
    """So many misses by lot, and after them a hit, if one is wanted; none where the numbers have too few."""
    numbers, target = [int(n) for n in problem.info["numbers"].split()], int(problem.info["target"])
    misses: dict[Trial, Trial] = {}
    hit: list[Trial] = []
    for _ in range(_DRAWS):
        (trial,) = (one for one in trials(web.random_attempt(rng, numbers).trace) if one is not None)
        if trial.value == target:
            hit = hit or [trial]
        elif len(misses) < most:
            misses.setdefault(trial.key, trial)
        if len(misses) == most and (hit or not wants_hit):
            return [*misses.values(), *(hit if wants_hit else ())]
    return []


def _thought(tried: Sequence[Trial], target: int, words: Words) -> str:
    lines = []
    for number, one in enumerate(tried):
        opening = words.retry if number else words.attempt
        verdict = words.yes if one.value == target else words.low if one.value < target else words.high
        lines.append(f"{opening} {one.trace} {verdict}")
    return " ".join(lines)
