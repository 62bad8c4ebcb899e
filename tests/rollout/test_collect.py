"""Playing a task with a sampler that says what it is told to."""

from __future__ import annotations

import math

import pytest

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
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

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
