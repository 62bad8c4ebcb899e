"""Budget forcing (s1, arXiv:2501.19393, section 3.1): a thought is cut at a cap, or not allowed to end yet.

Cut: what was thought so far is closed, and the model has to answer. Not allowed to end: in the place of ``</think>``
stands the word by which the model's language tries again, and the thought goes on; either always, or only where its
last verdict is not a success.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal, TypeAlias

from longthought.algorithms.statistics import mean_interval
from longthought.core.errors import SettingsError
from longthought.core.protocols import Renderer, Sampler, Task
from longthought.core.types import Problem, SamplingParams, TokenIds
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.evaluation.behaviours import occurrences
from longthought.evaluation.evaluate import EvaluationSettings, distinct
from longthought.evaluation.report_data import Estimate
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import new_folder
from longthought.runs.place import Place
from longthought.stages.measure import Folder
from longthought.text.reasoning import CLOSE, OPEN
from longthought.text.renderer import PlainRenderer
from longthought.training.team import Team

FORCING: Final = "forcing.json"

Way: TypeAlias = Literal["cap", "wait", "wait_unsure"]
Replies: TypeAlias = list[list[TokenIds]]
"""Tokens of every reply to every problem."""


@dataclass(frozen=True)
class Voice:
    """Words of a search in one language.

    retry: opens another attempt.  success: the verdict on a hit.  misses: those on an attempt that failed.
    """

    language: str
    retry: str
    success: str
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Forced:
    """What came of one way of forcing.

    amount: tokens of thought at most, or how often a thought was not allowed to end.
    touched: share of the replies in which something was forced.
    accuracy_by_problem: its mean over the replies to every problem, in order.
    """

    way: Way
    amount: int
    accuracy: Estimate
    tokens: Estimate
    touched: float
    accuracy_by_problem: tuple[float, ...]


@dataclass(frozen=True)
class Forcing:
    """Sample freely once, then force the same replies in every way. Makes ``forcing.json``.

    voices: the languages of the problems.
    caps: longest thoughts, in tokens; ``settings.max_tokens`` is always the last one.
    waits: how often a thought is not allowed to end.
    after: what is written behind the ``</think>`` of a cut thought; empty: the model goes on as it likes.
    answer: tokens that it has for the answer then.
    settings: what is asked; ``max_tokens`` holds for a reply with all that is forced, but for a forced answer.

    A thought that reaches ``settings.max_tokens`` is closed, and answered, in every way: so is the free reply with
    which all are compared, ``wait`` 0.
    """

    task: Task
    voices: tuple[Voice, ...]
    caps: tuple[int, ...] = (0, 24, 48, 72, 96, 120, 144, 168, 192)
    waits: tuple[int, ...] = (1, 2, 4)
    after: str = "<answer>"
    answer: int = 48
    settings: EvaluationSettings = EvaluationSettings(problems=100, samples=8, max_tokens=384)
    engine: EngineSettings = EngineSettings()
    workers: int = 1
    title: str = field(default="forcing", compare=False)

    def __post_init__(self) -> None:
        if any(cap < 0 for cap in self.caps) or any(wait < 1 for wait in self.waits):
            raise SettingsError(f"forcing: caps={self.caps} must be at least 0, waits={self.waits} at least 1")
        if self.answer < 1 or self.settings.max_tokens < 2:
            raise SettingsError("forcing: answer must be at least 1, max_tokens at least 2")
        if not self.voices:
            raise SettingsError("forcing: voices must name the words of one language at least")

    def run(self, given: Checkpoint, place: Place) -> Folder:
        """Raises SettingsError for a model that speaks another chat format than our own."""
        policy = given.load()
        began = time.perf_counter()
        sampler = ShardedEngine(Engine(policy, self.engine))
        with Team(self.workers, sampler.handlers) as team:
            sampler.join(team)
            found = force(self, sampler, policy.renderer)
        with new_folder(place.path / "forcing") as made:
            content = json.dumps({"ways": [asdict(one) for one in found]}, indent=1)
            (made / FORCING).write_text(content + "\n", encoding="utf-8")
        place.time(0, {"forcing": time.perf_counter() - began})
        return Folder(place.path / "forcing")

    def load(self, place: Place) -> Folder:
        return Folder(place.path / "forcing")


def force(asked: Forcing, sampler: Sampler, renderer: Renderer) -> list[Forced]:
    """Every cap, then every wait. Equal arguments and equal weights give equal results."""
    forcer = _Forcer(asked, sampler, renderer)
    free = forcer.free()
    last = asked.settings.max_tokens - 1  # <think> is no thought
    answered = forcer.cut(free, last)
    caps = sorted({*(min(cap, last) for cap in asked.caps), last})
    found = [forcer.judged("cap", cap, forcer.cut(free, cap), free) for cap in caps]
    ways: tuple[tuple[Way, Callable[[TokenIds], bool]], ...] = (("wait", _always), ("wait_unsure", forcer.is_unsure))
    for way, insists in ways:
        found.append(forcer.judged(way, 0, answered, answered))
        replies = free
        for times in range(1, max(asked.waits, default=0) + 1):
            replies = forcer.wait(replies, insists)
            if times in asked.waits:
                found.append(forcer.judged(way, times, forcer.cut(replies, last), answered))
    return found


class _Forcer:
    def __init__(self, asked: Forcing, sampler: Sampler, renderer: Renderer) -> None:
        if not isinstance(renderer, PlainRenderer):
            raise SettingsError("budget forcing needs a small model of our own; this one speaks another chat format")
        self.asked, self.sampler, self.renderer = asked, sampler, renderer
        tokenizer = renderer.tokenizer
        self.open, self.close = tokenizer.id_of(OPEN), tokenizer.id_of(CLOSE)
        self.closing = tokenizer.encode(f"{CLOSE} {asked.after}".strip(), tags=(OPEN, CLOSE))
        self.retry = {voice.language: tokenizer.encode(voice.retry) for voice in asked.voices}
        self.successes = frozenset(voice.success for voice in asked.voices)
        self.verdicts = self.successes | {miss for voice in asked.voices for miss in voice.misses}
        settings = asked.settings
        self.problems = distinct(asked.task, settings.split, settings.problems)
        self.prompts = [renderer.prompt(problem.messages) for problem in self.problems]

    def free(self) -> Replies:
        """Replies to every problem, nothing forced."""
        settings = self.asked.settings
        params = replace(self._params(settings.max_tokens), count=settings.samples)
        groups = self.sampler.sample(self.prompts, params)
        return [[completion.token_ids for completion in group] for group in groups]

    def cut(self, replies: Replies, cap: int) -> Replies:
        """Thoughts of more than ``cap`` tokens end there, those that never end too, and are answered."""

        def shorter(reply: TokenIds, _: Problem) -> TokenIds | None:
            end = self._end(reply)
            if end is None or end - 1 < cap or (end - 1 == cap and end < len(reply)):
                return None
            return (*reply[: 1 + cap], *self.closing)

        return self._gone_on(replies, shorter, lambda start: self.asked.answer)

    def wait(self, replies: Replies, insists: Callable[[TokenIds], bool]) -> Replies:
        """Thoughts that ended go on, where there is room."""
        longest = self.asked.settings.max_tokens

        def longer(reply: TokenIds, problem: Problem) -> TokenIds | None:
            end = self._end(reply)
            if end is None or end == len(reply) or not insists(reply[:end]):
                return None
            start = (*reply[:end], *self._retry(problem))
            return start if len(start) < longest else None

        return self._gone_on(replies, longer, lambda start: longest - len(start))

    def is_unsure(self, thought: TokenIds) -> bool:
        """Whether the last verdict of a thought is not a success; without any verdict, too."""
        last = ""
        for _, _, word in occurrences(self.renderer.decode(thought), self.verdicts):
            last = word
        return last not in self.successes

    def judged(self, way: Way, amount: int, replies: Replies, free: Replies) -> Forced:
        """Graded, and compared with what was not forced."""
        right, tokens, touched = [], [], 0
        for problem, group, before in zip(self.problems, replies, free, strict=True):
            scores = self.asked.task.grade(problem, [self.renderer.text(reply) for reply in group])
            right.append([float(score.correct) for score in scores])
            tokens.append([float(len(reply)) for reply in group])
            touched += sum(reply != other for reply, other in zip(group, before, strict=True))
        means = tuple(sum(row) / len(row) for row in right)
        every = sum(map(len, replies))
        return Forced(way, amount, _estimate(right), _estimate(tokens), touched / every, means)

    def _gone_on(
        self,
        replies: Replies,
        begun: Callable[[TokenIds, Problem], TokenIds | None],
        room: Callable[[TokenIds], int],
    ) -> Replies:
        """Replies with new beginnings and what the model says after them; those without one stay as they are."""
        starts = [
            [begun(reply, problem) for reply in group] for problem, group in zip(self.problems, replies, strict=True)
        ]
        # Equal beginnings are samples of one prompt: asked one by one they would go on alike.
        asked = Counter(
            (prompt, start) for prompt, row in zip(self.prompts, starts) for start in row if start is not None
        )
        ends: dict[tuple[TokenIds, TokenIds], list[TokenIds]] = {}
        for count in sorted(set(asked.values())):
            chosen = [key for key, times in asked.items() if times == count]
            most = max(room(start) for _, start in chosen)
            params = replace(self._params(most), count=count)
            groups = self.sampler.sample([prompt + start for prompt, start in chosen], params)
            for key, group in zip(chosen, groups, strict=True):
                ends[key] = [completion.token_ids[: room(key[1])] for completion in group]
        return [
            [reply if start is None else start + ends[prompt, start].pop(0) for reply, start in zip(group, row)]
            for prompt, group, row in zip(self.prompts, replies, starts)
        ]

    def _end(self, reply: TokenIds) -> int | None:
        """Where ``</think>`` stands, or the length where it does not; None for a reply that does not think first."""
        if not reply or reply[0] != self.open:
            return None
        return reply.index(self.close) if self.close in reply else len(reply)

    def _retry(self, problem: Problem) -> TokenIds:
        language = problem.info.get("language", "en")
        if language not in self.retry:
            raise SettingsError(f"forcing: no voice for the language {language!r} of problem {problem.id}: add one")
        return self.retry[language]

    def _params(self, longest: int) -> SamplingParams:
        s = self.asked.settings
        stop, strings = self.renderer.stop_tokens, self.renderer.stop
        return SamplingParams(
            1, longest, s.temperature, s.seed, stop_tokens=stop, stop=strings, top_p=s.top_p, top_k=s.top_k
        )


def _always(_: TokenIds) -> bool:
    return True


def _estimate(values: Sequence[Sequence[float]]) -> Estimate:
    mean = sum(sum(row) / len(row) for row in values) / len(values)
    return Estimate(mean, *mean_interval(values))
