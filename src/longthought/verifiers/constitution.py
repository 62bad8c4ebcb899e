"""Principles that a model votes by: feedback where no rule grades and no reference is there.

Source: DeepSeek-V3 (arXiv:2412.19437, section 5.4.2) takes the votes of the model itself under a constitution as the
feedback for open questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.endpoint import Reply, Respondent
from longthought.verifiers.judge import LABELS, Preference, asked, check_prompt, label_of, question_of, settled

PRINCIPLE_PROMPT: Final = """\
Compare two replies to a request by one principle alone. The order in which they are shown means nothing, nor does \
anything that the principle does not name.

The principle:
{principle}

The request:
{question}

Reply A:
{first}

Reply B:
{second}

Which reply keeps to the principle better?"""

KEEPS_PROMPT: Final = """\
Judge whether a reply to a request keeps to one principle. Nothing else about it counts.

The principle:
{principle}

The request:
{question}

The reply:
{reply}

Does the reply keep to the principle?"""

_VOTES: Final = {label: value for label, value in LABELS.items() if abs(value) < 2}
_KEPT, _BROKEN = "[[KEPT]]", "[[BROKEN]]"
_VOTE_RULE = (
    "Reason briefly. Then end with one line that is one of [[A>B]] (A keeps to it better), [[A=B]], [[B>A]], and write "
    "no double brackets elsewhere."
)
_KEEPS_RULE = (
    f"Reason briefly. Then end with one line that is {_KEPT} or {_BROKEN}, and write no double brackets elsewhere."
)


@dataclass(frozen=True)
class Constitution:
    """Compares two replies by the votes of a model, each under one principle, both orders asked: a rater of pairs.

    endpoint: the model that votes: an ``Endpoint``, or a ``LocalModel``, such as the policy itself.
    votes: how many; None: one for each principle. They go round the principles in an order by a hash of pair and seed.
    prompt: what the model is asked, with ``{principle}``, ``{question}``, ``{first}`` and ``{second}``.
    longest: characters of each reply that are judged, its last ones.
    seed: of the order of the principles, and of the fences, which differ from vote to vote.

    A vote is two judgements, one for each order. One without a label in the form asked for is none, and counted. The
    margin is 2 · (for − against) / judgements, −2 … 2, those that are missing in the denominator, too; where fewer than
    half are given, there is no preference. The winner must be ahead in both orders, else the result is a tie whose
    evidence begins with ``order-dependent``. Equal replies are a tie, unasked. Only the content of a reply is judged.
    """

    endpoint: Respondent
    principles: tuple[str, ...]
    votes: int | None = None
    prompt: str = PRINCIPLE_PROMPT
    longest: int = 16_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.principles, self.votes, self.longest)
        check_prompt(self.prompt, ("principle", "question", "first", "second"), needed=("principle", "first", "second"))

    def __call__(self, problem: Problem, first: Message, second: Message) -> Preference:
        """The preference between two replies."""
        return self.many([(problem, first, second)])[0]

    def many(self, triples: Sequence[tuple[Problem, Message, Message]]) -> list[Preference]:
        """A preference for every pair of replies, in order."""
        questions = [
            question
            for problem, first, second in triples
            if first.content != second.content
            for question in self._questions(problem, first.content, second.content)
        ]
        replies = iter(self.endpoint.ask_many(questions))
        each = 2 * (self.votes or len(self.principles))
        equal = Preference("tie", "[[A=B]]", "[[A=B]]", Outcome.GRADED, "the replies are equal; not asked")
        return [
            equal if first.content == second.content else _counted([next(replies) for _ in range(each)])
            for _, first, second in triples
        ]

    def _questions(self, problem: Problem, first: str, second: str) -> list[list[Message]]:
        """Of every vote both orders."""
        question = question_of(problem)
        count = self.votes or len(self.principles)
        order = _shuffled(self.principles, self.seed, problem.id, question, *sorted((first, second)))
        found = []
        for vote in range(count):
            own, seed = {"principle": order[vote % len(order)]}, _seed(self.seed, vote)
            for a, b in ((first, second), (second, first)):
                texts = {"question": question, "first": a[-self.longest :], "second": b[-self.longest :]}
                found.append(asked(self.prompt, texts, _VOTE_RULE, seed, own))
        return found


@dataclass(frozen=True)
class Observance:
    """Whether one reply keeps to all principles, by the votes of a model: 1 or 0; a verifier, as for safety labels.

    votes: how often each principle is asked about. It is kept, or broken, where more than half of them say so.
    reads: ``reply``: the reasoning, too; ``summary``: the content alone.
    Everything else: see ``Constitution``.

    One broken principle is 0. Where none is broken, but one has no majority, there is no value.
    """

    endpoint: Respondent
    principles: tuple[str, ...]
    votes: int = 1
    reads: Literal["summary", "reply"] = "reply"
    prompt: str = KEEPS_PROMPT
    longest: int = 16_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.principles, self.votes, self.longest)
        check_prompt(self.prompt, ("principle", "question", "reply"), needed=("principle", "reply"))
        if self.reads not in ("summary", "reply"):
            raise SettingsError(f"constitution: reads={self.reads!r}; choose summary or reply")

    def __call__(self, problem: Problem, reply: Message) -> Verdict:
        """The verdict on one reply."""
        return self.many([(problem, reply)])[0]

    def many(self, pairs: Sequence[tuple[Problem, Message]]) -> list[Verdict]:
        """A verdict for every reply, in order."""
        questions = [question for pair in pairs for question in self._questions(*pair)]
        replies = iter(self.endpoint.ask_many(questions))
        return [self._verdict([[next(replies) for _ in range(self.votes)] for _ in self.principles]) for _ in pairs]

    def _questions(self, problem: Problem, reply: Message) -> list[list[Message]]:
        read = (reply.reasoning, reply.content) if self.reads == "reply" else (reply.content,)
        texts = {"question": question_of(problem), "reply": "\n\n".join(filter(None, read))[-self.longest :]}
        return [
            asked(self.prompt, texts, _KEEPS_RULE, _seed(self.seed, vote), {"principle": principle})
            for principle in self.principles
            for vote in range(self.votes)
        ]

    def _verdict(self, replies: Sequence[Sequence[Reply]]) -> Verdict:
        told, open_ones, faults = [], 0, []
        for principle, row in zip(self.principles, replies, strict=True):
            labels = [label_of(reply, (_KEPT, _BROKEN)) for reply in row]
            kept, broken = (sum(label == wanted for label, _ in labels) for wanted in (_KEPT, _BROKEN))
            faults += [fault for _, fault in labels if fault is not None]
            told.append(f"{kept} kept, {broken} broken of {self.votes}: {principle}")
            if 2 * broken > self.votes:
                return Verdict(0.0, Outcome.GRADED, f"{self.endpoint.name}: {told[-1]}")
            open_ones += 2 * kept <= self.votes
        evidence = f"{self.endpoint.name}: {'; '.join(told)}"
        if open_ones:
            outcome = faults[0].outcome if faults else Outcome.INVALID
            return Verdict(None, outcome, "; ".join((f"no majority; {evidence}", *(one.reason for one in faults[:1]))))
        return Verdict(1.0, Outcome.GRADED, evidence)


def _counted(replies: Sequence[Reply]) -> Preference:
    """The preference that judgements make, those of both orders in turn."""
    labels = [label_of(reply, _VOTES) for reply in replies]
    faults = [fault for _, fault in labels if fault is not None]
    forward = [_VOTES[label] for label, _ in labels[::2] if label is not None]
    backward = [_VOTES[label] for label, _ in labels[1::2] if label is not None]
    missing = f"; {len(faults)} of {len(labels)} judgements missing: {faults[0].reason}" if faults else ""
    if 2 * len(faults) > len(labels) or not forward or not backward:
        return Preference(None, None, None, faults[0].outcome, missing.removeprefix("; "))
    values = [*forward, *(-value for value in backward)]
    ahead, behind = values.count(1), values.count(-1)
    agreed = max(ahead, behind, values.count(0)) / len(values)
    evidence = f"{ahead} for the first, {behind} for the second, {values.count(0)} for neither; agreement {agreed:.0%}"
    margin = 2 * (ahead - behind) / len(labels)
    return settled(_label(forward), _label(backward), evidence + missing, margin)


def _label(values: Sequence[int]) -> str:
    """What the votes of one order say together: more than half of them for one reply is a clear case."""
    share = sum(values) / len(values)
    size = (share != 0) + (abs(share) > 0.5)
    wanted = size if share > 0 else -size
    return next(label for label, value in LABELS.items() if value == wanted)


def _shuffled(principles: Sequence[str], *key: object) -> list[str]:
    def place(principle: str) -> bytes:
        return blake2b(json.dumps([*map(str, key), principle]).encode(), digest_size=8).digest()

    return sorted(principles, key=place)


def _seed(seed: int, vote: int) -> int:
    """A seed of its own for every vote."""
    return int.from_bytes(blake2b(f"{seed}/{vote}".encode(), digest_size=8).digest(), "big")


def _check(principles: Sequence[str], votes: int | None, longest: int) -> None:
    if isinstance(principles, str) or not principles or not all(one.strip() for one in principles):
        raise SettingsError("constitution: principles must be a tuple of at least one text, none of them empty")
    if len(set(principles)) < len(principles):
        raise SettingsError("constitution: a principle stands there twice; leave one out, or raise votes")
    if (votes is not None and votes < 1) or longest < 1:
        raise SettingsError(f"constitution: votes={votes} and longest={longest} must be at least 1")
