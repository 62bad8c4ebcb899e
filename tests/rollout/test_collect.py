"""Playing a task with a sampler that says what it is told to."""

from __future__ import annotations

import decimal
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Sampler, Shaping
from longthought.core.types import (
    Completion,
    Finish,
    Group,
    Message,
    Outcome,
    Problem,
    Rollout,
    SamplingParams,
    Score,
    TokenIds,
    Verdict,
)
from longthought.rollout.collect import collect, grade, play
from longthought.rollout.scripted import ScriptedSampler
from longthought.rollout.shaping import LanguageConsistency, Length, Overlong, Repetition, TokenRepetition
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import vocabulary
from longthought.tasks.grading import Grading
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.verifiers.function import Function

TASK = Countdown()
RENDERER = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
(STOP,) = RENDERER.stop_tokens
PROBLEMS = [TASK.problem("dev", index) for index in range(3)]
PROMPTS = [RENDERER.prompt(problem.messages) for problem in PROBLEMS]


def solution(problem: Problem) -> str:
    found = TASK.solve([int(n) for n in problem.info["numbers"].split()], int(problem.answer))
    assert found is not None
    return " ".join(found.replace("(", "( ").replace(")", " )").split())


def reply(answer: str, ended: bool = True) -> TokenIds:
    said = RENDERER.tokenizer.encode(f"<think> yes </think> <answer> {answer} </answer>")
    return (*said, STOP) if ended else said


def words(text: str) -> TokenIds:
    return RENDERER.tokenizer.encode(text)


def script() -> ScriptedSampler:
    """Every first reply right, every second wrong, every third cut."""
    replies = {
        prompt: [reply(solution(problem)), reply("1 + 1"), words("<think> try 1")]
        for prompt, problem in zip(PROMPTS, PROBLEMS)
    }
    return ScriptedSampler(replies, version=7)


def test_a_script_is_followed_in_order_and_over_again() -> None:
    sampler: Sampler = ScriptedSampler({(1,): [(5, 0), (6, 0), (7, 0)], (2,): [(8, 0)]}, logprob=-0.5, version=3)
    params = SamplingParams(count=2, stop_tokens=(0,))
    first = sampler.sample([(1,), (2,), (1,)], params)
    assert [[c.token_ids for c in group] for group in first] == [
        [(5, 0), (6, 0)],
        [(8, 0), (8, 0)],
        [(7, 0), (5, 0)],
    ]
    assert [c.token_ids for c in sampler.sample([(1,)], params)[0]] == [(6, 0), (7, 0)]
    assert first[0][0] == Completion((5, 0), (-0.5, -0.5), Finish.STOP, 3)
    with pytest.raises(DataError, match=r"\(9,\)"):
        sampler.sample([(9,)], params)


@pytest.mark.parametrize(
    ("said", "limit", "expected", "finish"),
    [
        ((5, 6, 0), 9, (5, 6, 0), Finish.STOP),
        ((5, 4, 6, 0), 9, (5, 4), Finish.STOP),
        ((5, 6, 0), 3, (5, 6, 0), Finish.STOP),
        ((5, 6, 0), 2, (5, 6), Finish.LENGTH),
        ((5, 6), 2, (5, 6), Finish.LENGTH),
        ((5, 6), 3, (5, 6), Finish.BUDGET),
        ((), 3, (), Finish.BUDGET),
    ],
)
def test_a_script_ends_as_an_engine_does(said: TokenIds, limit: int, expected: TokenIds, finish: Finish) -> None:
    params = SamplingParams(max_tokens=limit, stop_tokens=(0, 4))
    ((completion,),) = ScriptedSampler({(1,): [said]}).sample([(1,)], params)
    assert (completion.token_ids, completion.finish) == (expected, finish)
    assert len(completion.logprobs) == len(expected)


def test_prompts_are_rendered_and_stop_tokens_handed_on() -> None:
    sampler = script()
    played = play(PROBLEMS, sampler, RENDERER, SamplingParams(count=2, max_tokens=60, seed=9))
    assert [prompt for prompt, _ in played] == PROMPTS
    assert sampler.calls == [(PROMPTS, SamplingParams(2, 60, 1.0, 9, (STOP,)))]
    play(PROBLEMS[:1], sampler, RENDERER, SamplingParams(stop_tokens=(3, 4)))
    assert sampler.calls[-1] == (PROMPTS[:1], SamplingParams(stop_tokens=(3, 4)))


def test_rollouts_come_back_in_order_graded_and_as_sampled() -> None:
    groups = collect(TASK, PROBLEMS, script(), RENDERER, SamplingParams(count=4, max_tokens=60))
    assert [[r.problem for r in group] for group in groups] == [[problem] * 4 for problem in PROBLEMS]
    assert [{r.prompt for r in group} for group in groups] == [{prompt} for prompt in PROMPTS]
    for group, problem in zip(groups, PROBLEMS):
        right = f"<think> yes </think> <answer> {solution(problem)} </answer>"
        wrong = "<think> yes </think> <answer> 1 + 1 </answer>"
        assert [r.text for r in group] == [right, wrong, "<think> try 1", right]
        assert [r.completion.finish for r in group] == [Finish.STOP, Finish.STOP, Finish.BUDGET, Finish.STOP]
        assert [r.completion.token_ids[-1] == STOP for r in group] == [True, True, False, True]
        assert [r.score.correct for r in group] == [True, False, False, True]
        assert [r.score.value for r in group] == pytest.approx([1.1, 0.1, 0.0, 1.1])
        assert {r.completion.version for r in group} == {7}


def test_a_cut_reply_is_graded_on_what_it_said() -> None:
    (group,) = collect(TASK, PROBLEMS[:1], script(), RENDERER, SamplingParams(count=1, max_tokens=4))
    (rollout,) = group
    assert rollout.completion.finish is Finish.LENGTH
    assert rollout.text == "<think> yes </think> <answer>"
    assert rollout.score.verdict.outcome is Outcome.UNPARSABLE


def test_a_group_is_graded_together() -> None:
    class Counting(Countdown):
        def grade(self, problem, replies):  # type: ignore[no-untyped-def]
            seen.append((problem.id, list(replies)))
            return super().grade(problem, replies)

    seen: list[tuple[str, list[str]]] = []
    completions = [Completion(reply("3"), (), Finish.STOP), Completion(words("yes"), (), Finish.LENGTH)]
    group = grade(Counting(), PROBLEMS[0], (PROMPTS[0], completions), RENDERER)
    assert seen == [(PROBLEMS[0].id, ["<think> yes </think> <answer> 3 </answer>", "yes"])]
    assert [r.completion for r in group] == completions


def test_nothing_to_play() -> None:
    assert collect(TASK, [], script(), RENDERER, SamplingParams()) == []


# --- grading beside sampling


@dataclass
class Streaming:
    """A script whose groups are complete in the order of ``order``; at some of them it does ``then`` what it likes."""

    script: ScriptedSampler
    order: Sequence[int]
    then: Callable[[int], object] = lambda place: None

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        raise AssertionError("not asked when groups can be had as they end")

    def stream(
        self,
        prompts: Sequence[TokenIds],
        params: SamplingParams,
        finished: Callable[[int, list[Completion]], object],
    ) -> list[list[Completion]]:
        groups = self.script.sample(prompts, params)
        for place, index in enumerate(self.order):
            finished(index, groups[index])
            self.then(place)
        return groups


@dataclass(frozen=True)
class Watched(Countdown):
    """Notes what it is asked, call by call, and by which thread."""

    calls: list[list[str]] = field(default_factory=list, compare=False)
    threads: set[int] = field(default_factory=set, compare=False)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        return self._noted([(problem, replies)])[0]

    def _noted(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        self.threads.add(threading.get_ident())
        scores = [Countdown.grade(self, problem, replies) for problem, replies in groups]
        self.calls.append([problem.id for problem, _ in groups])
        return scores


@dataclass(frozen=True)
class Together(Watched):
    """Grades many problems in one call."""

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        return self._noted(groups)


def graders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "grading"]


def until(reached: Callable[[], bool]) -> None:
    while not reached():
        time.sleep(0.0005)


PARAMS = SamplingParams(count=3, max_tokens=60)
SIX = [TASK.problem("dev", index % 3) for index in range(6)]  # each of them twice


@given(order=st.permutations(range(6)), waits=st.lists(st.booleans(), min_size=6, max_size=6), kind=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_whatever_ends_first_the_groups_are_the_same(order: list[int], waits: list[bool], kind: bool) -> None:
    """Between two groups the sampler waits for grading, or does not: batches of every size, one result."""
    task = Together() if kind else Watched()
    told: list[str] = []

    def graded() -> int:
        return sum(map(len, task.calls))

    def then(place: int) -> None:
        if waits[place]:
            until(lambda: graded() > place)
            told.append("waited")

    found = collect(task, SIX, Streaming(script(), order, then), RENDERER, PARAMS, lambda: told.append("sampled"))
    assert found == collect(TASK, SIX, script(), RENDERER, PARAMS)
    assert told == ["waited"] * sum(waits) + ["sampled"]
    assert sorted(name for call in task.calls for name in call) == sorted(problem.id for problem in SIX)
    assert len(task.threads) == 1
    assert threading.get_ident() not in task.threads
    assert graders() == []


def test_what_came_while_grading_was_busy_is_graded_in_one_call() -> None:
    begun, handed, rest = threading.Event(), threading.Event(), threading.Event()

    @dataclass(frozen=True)
    class Slow(Together):
        def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
            begun.set()
            handed.wait()
            found = super().grade_together(groups)
            if len(self.calls) == 2:
                rest.set()
            return found

    def then(place: int) -> None:
        if place == 0:
            begun.wait()
        if place == 4:
            handed.set()
            rest.wait()

    task = Slow()
    problems = [TASK.problem("dev", index) for index in range(6)]
    prompts = [RENDERER.prompt(problem.messages) for problem in problems]
    replies = ScriptedSampler({prompt: [reply("1 + 1")] for prompt in prompts})
    collect(task, problems, Streaming(replies, [3, 5, 1, 0, 2, 4], then), RENDERER, PARAMS)
    assert task.calls == [[problems[i].id for i in part] for part in ([3], [5, 1, 0, 2], [4])]


def test_nothing_to_play_beside() -> None:
    assert collect(TASK, [], Streaming(script(), []), RENDERER, PARAMS) == []


@dataclass(frozen=True)
class Failing(Countdown):
    """Cannot grade the second problem."""

    error: BaseException = field(default=DataError("lost"), compare=False)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        if problem == PROBLEMS[1]:
            raise self.error
        return super().grade(problem, replies)


@pytest.mark.parametrize("error", [DataError("lost"), ValueError("odd"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]], ids=["at once", "at the end"])
def test_what_grading_raises_ends_the_sampling_and_is_raised(error: BaseException, order: list[int]) -> None:
    """As it is: a fault of grading is none of a prompt."""
    reached: list[int] = []

    def then(place: int) -> None:
        reached.append(place)
        if order[place] == 1:
            until(lambda: graders() == [])

    with pytest.raises(type(error)) as raised:
        collect(Failing(error=error), PROBLEMS, Streaming(script(), order, then), RENDERER, PARAMS)
    assert raised.value is error
    assert reached == ([0] if order[0] == 1 else [0, 1, 2])
    assert graders() == []


def test_what_grading_raises_after_the_last_completion_is_raised_too() -> None:
    sampled = threading.Event()

    class Late(Failing):
        def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
            sampled.wait()
            return super().grade(problem, replies)

    with pytest.raises(DataError, match=r"^lost$"):
        collect(Late(), PROBLEMS, Streaming(script(), [0, 1, 2]), RENDERER, PARAMS, sampled.set)
    assert graders() == []


@pytest.mark.parametrize("streams", [True, False])
def test_what_sampling_raises_names_the_longest_problem(streams: bool) -> None:
    sampler = ScriptedSampler({})
    longest = max(PROBLEMS, key=lambda problem: len(problem.messages[0].content))
    with pytest.raises(DataError, match=f"no reply to the prompt .* {longest.id}$"):
        collect(TASK, PROBLEMS, Streaming(sampler, []) if streams else sampler, RENDERER, PARAMS)
    assert graders() == []


@dataclass(frozen=True)
class Endless(Countdown):
    """Grades until it is stopped. interrupts: with a Ctrl-C of its own, once everything is sampled."""

    interrupts: bool = False
    begun: threading.Event = field(default_factory=threading.Event, compare=False)
    sampled: threading.Event = field(default_factory=threading.Event, compare=False)
    ended: list[str] = field(default_factory=list, compare=False)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        self.begun.set()
        try:
            if self.interrupts and self.sampled.wait(60):  # as a terminal does: to the main thread
                os.kill(os.getpid(), signal.SIGINT)
            while True:
                time.sleep(0.001)
        finally:
            self.ended.append("orderly")


@pytest.mark.parametrize("when", ["sampling", "waiting"])
def test_control_c_does_not_wait_for_grading(when: str) -> None:
    task = Endless(interrupts=when == "waiting")

    def then(place: int) -> None:
        task.begun.wait()
        if when == "sampling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(task, PROBLEMS, Streaming(script(), [0], then), RENDERER, PARAMS, task.sampled.set)
    assert task.ended == ["orderly"]
    assert graders() == []


def test_control_c_while_the_thread_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(TASK, PROBLEMS, Streaming(script(), [0, 1, 2]), RENDERER, PARAMS)
    until(lambda: graders() == [])


def test_an_error_in_sampling_lets_grading_finish_what_it_is_at() -> None:
    """It may be in the middle of an exchange with a worker, which later steps go on using."""
    done: list[str] = []
    begun = threading.Event()

    @dataclass(frozen=True)
    class Slow(Countdown):
        def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
            begun.set()
            time.sleep(0.02)
            done.append(problem.id)
            return super().grade(problem, replies)

    def then(place: int) -> None:
        begun.wait()
        if place:
            raise SettingsError("no")

    with pytest.raises(SettingsError, match="no"):
        collect(Slow(), PROBLEMS, Streaming(script(), [0, 1, 2], then), RENDERER, PARAMS)
    assert done[0] == PROBLEMS[0].id
    assert graders() == []


def test_grading_is_in_the_context_of_its_caller() -> None:
    @dataclass(frozen=True)
    class Precise(Countdown):
        def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
            seen.append(decimal.getcontext().prec)
            return super().grade(problem, replies)

    seen: list[int] = []
    with decimal.localcontext(prec=7):
        collect(
            Precise(), PROBLEMS[:1], Streaming(script(), [0], lambda _: until(lambda: seen != [])), RENDERER, PARAMS
        )
    assert seen == [7]


def test_workers_of_a_verifier_outlive_the_thread_that_started_them_and_are_killed_when_they_hang() -> None:
    def verify(content: str) -> tuple[bool, str]:
        while "hang" in content:
            pass
        return True, str(os.getpid())

    words = ("hang", "on")
    renderer = PlainRenderer(Tokenizer.of_words(words, (BEGIN, USER, ASSISTANT, END)))
    problems = [Problem(word, (Message("user", word),), word) for word in words]
    prompts = [renderer.prompt(problem.messages) for problem in problems]
    verifier = Function(verify, deadline=0.3, workers=1)
    grading = Grading(verifier, form="free", format_weight=0.0)

    class Words:
        name = "words"

        def problem(self, split: str, index: int) -> Problem:
            return problems[index]

        def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
            graded.append(threading.current_thread().name)
            return grading(problem, replies)

    graded: list[str] = []

    def ask(*numbers: int) -> list[Verdict]:
        before = len(graded)
        said = ScriptedSampler({prompts[n]: [(*renderer.tokenizer.encode(words[n]), STOP)] for n in numbers})
        sampler = Streaming(said, range(len(numbers)), lambda place: until(lambda: len(graded) > before + place))
        groups = collect(Words(), [problems[n] for n in numbers], sampler, renderer, SamplingParams())
        return [rollout.score.verdict for group in groups for rollout in group]

    try:
        ((first,), (second,)) = ask(1), ask(1)
        hung, after = ask(0, 1)
    finally:
        verifier.close()
    assert set(graded) == {"grading"}
    assert first.outcome is Outcome.GRADED
    assert first.evidence == second.evidence  # one worker served both
    assert hung.outcome is Outcome.TIMED_OUT
    assert after.outcome is Outcome.GRADED
    assert after.evidence != first.evidence


# --- shaping


def group_of(*texts: str, correct: tuple[bool, ...] = (), language: str = "en") -> Group:
    problem = Problem("p", (Message("user", "use 1"),), "1", {"language": language})
    right = correct or (False,) * len(texts)
    scores = [Score(float(c), c, {}, Verdict(float(c), Outcome.GRADED)) for c in right]
    tokens = [tuple(ord(word[0]) for word in text.split()) for text in texts]
    made = [Completion(t, (-1.0,) * len(t), Finish.STOP) for t in tokens]
    return tuple(Rollout(problem, (1,), c, text, score) for c, text, score in zip(made, texts, scores))


def test_language_by_hand() -> None:
    """Words of the reasoning only; a reply that says nothing earns nothing."""
    shaping: Shaping = LanguageConsistency(0.5)
    texts = ("<think> try 3 low 小 wait </think> 大 大", "<think> 试 等 </think> yes", "<think> 3 </think> yes", "")
    assert shaping(group_of(*texts)) == pytest.approx([0.5 * 3 / 4, 0.0, 0.0, 0.0])
    assert shaping(group_of(*texts, language="zh")) == pytest.approx([0.5 * 1 / 4, 0.5, 0.0, 0.0])
    assert shaping.name == "language"
    with pytest.raises(SettingsError, match="xx"):
        shaping(group_of("low", language="xx"))


def test_repetition_by_hand() -> None:
    """a b a b a b has the pairs ab ba ab ba ab: two of five are distinct."""
    shaping: Shaping = Repetition(0.5, n=2)
    assert shaping(group_of("a b a b a b", "a b c", "a")) == pytest.approx([-0.5 * 3 / 5, 0.0, 0.0])
    assert Repetition(1.0)(group_of("a " * 9, "a " * 12)) == pytest.approx([0.0, -(1 - 1 / 3)])


def test_token_repetition_by_hand() -> None:
    """a b a b c: the second "a b" repeats the first; a value for every token, the end token included."""
    dense = TokenRepetition(0.5, n=2)
    group = group_of("a b a b c", "a b c")
    found = dense(group)
    assert [len(row) for row in found] == [len(r.completion.token_ids) for r in group]
    assert found[0][:5] == [0.0, 0.0, -0.5, -0.5, 0.0]
    assert not any(found[1])


def test_overlong_by_hand() -> None:
    shaping: Shaping = Overlong(maximum=10, cache=4, weight=2.0)
    lengths = (1, 6, 7, 9, 10, 12)
    assert shaping(group_of(*("a " * n for n in lengths))) == pytest.approx([0, 0, -0.5, -1.5, -2.0, -2.0])
    for cache in (0, 10, 11):
        with pytest.raises(SettingsError, match=f"cache={cache}"):
            Overlong(10, cache)


def test_length_by_hand() -> None:
    """λ = ½ - (len - min) / (max - min) = ½, 0, -½; wrong replies cannot earn."""
    shaping: Shaping = Length(0.2)
    texts = ("a " * 2, "a " * 4, "a " * 6)
    assert shaping(group_of(*texts, correct=(True, True, True))) == pytest.approx([0.1, 0.0, -0.1])
    assert shaping(group_of(*texts, correct=(False, True, False))) == pytest.approx([0.0, 0.0, -0.1])
    assert shaping(group_of("a b", "c d", correct=(True, False))) == [0.0, 0.0]


def test_shaping_gives_one_finite_value_per_rollout() -> None:
    group = group_of("", "<think>", "</think>", "a " * 50, correct=(True, False, True, False))
    everything: tuple[Shaping, ...] = (LanguageConsistency(1.0), Repetition(1.0), Overlong(20, 5), Length(1.0))
    for shaping in everything:
        values = shaping(group)
        assert len(values) == len(group)
        assert all(map(math.isfinite, values))
    assert len({shaping.name for shaping in everything}) == len(everything)
