"""Evaluation by hand, with a sampler that follows a script; and the readiness probe against plain softmax."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import inf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import tiny_model
from longthought.core.errors import SettingsError
from longthought.core.types import Finish, Group, Message, Problem, TokenIds
from longthought.evaluation.behaviours import Lexicon
from longthought.evaluation.evaluate import EvaluationSettings, evaluate, paired_difference, summarize
from longthought.evaluation.readiness import Gate, probe
from longthought.evaluation.report_data import Estimate
from longthought.models.attention import PackedAttention
from longthought.rollout.scripted import ScriptedSampler
from longthought.tasks.corpus import Probe
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import CountdownProbes, vocabulary
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

TASK = Countdown()
RENDERER = PlainRenderer(Tokenizer.of_words(vocabulary(TASK), (BEGIN, USER, ASSISTANT, END)))
LEXICON = Lexicon(frozenset({"low", "high", "小", "大"}), frozenset({"wait", "等"}))
QUANTILE = 1.959963985  # of the normal distribution, 97.5 %


def right(problem: Problem) -> str:
    expression = TASK.solve([int(n) for n in problem.info["numbers"].split()], int(problem.answer))
    return f"<think> yes </think> <answer> {expression} </answer>"


WRONG = "<think> low wait high </think> <answer> 1 + 1 </answer>"  # 9 tokens of text, 2 rejections, 1 reflection
MIXED = "<think> low 小 </think> <answer> 1 + 1 </answer>"
CUT = "<think> wait"


def tokens(text: str) -> TokenIds:
    """What a model emits for a text; only a cut reply has no end token."""
    return RENDERER.tokenizer.encode(text) + (() if text == CUT else RENDERER.stop_tokens)


def scripted(*replies: list[str], split: str = "test") -> ScriptedSampler:
    """Problem i of the split is answered by ``replies[i]``; "right" stands for its solution."""
    problems = [TASK.problem(split, index) for index in range(len(replies))]
    texts = [[right(p) if text == "right" else text for text in script] for p, script in zip(problems, replies)]
    return ScriptedSampler(
        {RENDERER.prompt(p.messages): [tokens(t) for t in script] for p, script in zip(problems, texts)}
    )


def groups_of(*replies: list[str]) -> list[Group]:
    settings = EvaluationSettings(len(replies), len(replies[0]), 40)
    return evaluate(TASK, scripted(*replies), RENDERER, settings)


def estimate(*means: float, low: float = -inf, high: float = inf) -> Estimate:
    """Mean and interval over problems, from the formula."""
    n, mean = len(means), sum(means) / len(means)
    half = QUANTILE * sqrt(sum((m - mean) ** 2 for m in means) / (n - 1) / n)
    ends = (max(low, mean - half), min(high, mean + half))
    return Estimate(pytest.approx(mean), *map(pytest.approx, ends))


def share(*means: float) -> Estimate:
    """The interval of a share ends where shares do."""
    return estimate(*means, low=0.0, high=1.0)


FIRST = ["right", WRONG, CUT, MIXED]
SECOND = ["right", "right", WRONG, "right"]


def test_two_problems_by_hand() -> None:
    summary = summarize(groups_of(FIRST, SECOND), LEXICON, step=7)
    assert (summary.problems, summary.samples, summary.step) == (2, 4, 7)
    assert summary.accuracy == share(1 / 4, 3 / 4)
    gap = 0.5 / 4 * QUANTILE  # of rejections: 1 and 1/2
    assert summary.rejections == Estimate(0.75, pytest.approx(0.75 - 2 * gap), pytest.approx(0.75 + 2 * gap))
    assert summary.format_rate == share(3 / 4, 1)
    assert summary.cut == share(1 / 4, 0)
    assert summary.mixing == share(1 / 4, 0)
    assert summary.rejections == estimate((0 + 2 + 0 + 2) / 4, 2 / 4)
    assert summary.reflections == estimate((0 + 1 + 1 + 0) / 4, 1 / 4)
    lengths = [
        [len(tokens(right(g[0].problem) if t == "right" else t)) for t in s]
        for g, s in zip(groups_of(FIRST, SECOND), (FIRST, SECOND))
    ]
    assert summary.length == estimate(*(sum(row) / 4 for row in lengths))


def test_pass_at_k_by_hand() -> None:
    """1 - C(n - c, k) / C(n, k): with one of four right 1/4, 1/2, 1; with three of four right 3/4, 1, 1."""
    assert summarize(groups_of(FIRST, SECOND), LEXICON).pass_at_k == (
        (1, share(1 / 4, 3 / 4)),
        (2, share(1 / 2, 1)),
        (4, share(1, 1)),
    )
    three = summarize(groups_of(["right", WRONG, WRONG], [WRONG] * 3), LEXICON)
    assert three.pass_at_k == ((1, share(1 / 3, 0)), (2, share(2 / 3, 0)))


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=2, max_size=4))
def test_pass_at_k_rises_from_accuracy_to_any(grades: list[list[bool]]) -> None:
    summary = summarize(groups_of(*[["right" if good else WRONG for good in row] for row in grades]), LEXICON)
    values = [one.value for _, one in summary.pass_at_k]
    assert [k for k, _ in summary.pass_at_k] == [1, 2, 4, 8]
    assert values == pytest.approx(sorted(values))
    assert summary.accuracy is not None
    assert values[0] == pytest.approx(summary.accuracy.value)
    assert values[-1] == pytest.approx(sum(map(any, grades)) / len(grades))


def test_the_limit_of_tokens_cuts() -> None:
    settings = EvaluationSettings(problems=2, samples=1, max_tokens=4)
    groups = evaluate(TASK, scripted(["right"], ["right"]), RENDERER, settings)
    assert {r.completion.finish for g in groups for r in g} == {Finish.LENGTH}
    summary = summarize(groups, LEXICON)
    assert (summary.cut, summary.accuracy, summary.length) == (estimate(1, 1), estimate(0, 0), estimate(4, 4))


def test_the_first_problems_of_the_split_in_order() -> None:
    told: list[tuple[int, float]] = []
    sampler = scripted(*([["right", WRONG]] * 25 + [[WRONG, WRONG]] * 5), split="dev")
    settings = EvaluationSettings(problems=30, samples=2, max_tokens=40, temperature=0.7, split="dev", seed=3)
    groups = evaluate(TASK, sampler, RENDERER, settings, lambda done, accuracy: told.append((done, accuracy)))
    assert [g[0].problem for g in groups] == [TASK.problem("dev", index) for index in range(30)]
    assert [len(g) for g in groups] == [2] * 30
    assert told == [(25, 0.5), (30, pytest.approx(25 / 60))]
    for _, params in sampler.calls:
        assert (params.count, params.max_tokens, params.temperature, params.seed) == (2, 40, 0.7, 3)
        assert params.stop_tokens == RENDERER.stop_tokens


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.0}, "temperature 0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"problems": 1}, "problems"),
        ({"samples": 0}, "samples"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, float], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        replace(EvaluationSettings(), **change)
    assert EvaluationSettings(temperature=0.0, samples=1).samples == 1


def test_the_difference_is_paired() -> None:
    """Problem by problem it is + 1/2 and + 1/4: the interval is that of the differences, not of the models."""
    base = groups_of([WRONG] * 4, ["right", "right", "right", WRONG])
    trained = groups_of(["right", WRONG, "right", WRONG], ["right"] * 4)
    assert paired_difference(base, trained) == estimate(1 / 2, 1 / 4)
    assert paired_difference(trained, base) == estimate(-1 / 2, -1 / 4)
    assert paired_difference(base, base) == estimate(0, 0)


def test_evaluations_of_different_problems_are_not_compared() -> None:
    groups = groups_of([WRONG], ["right"], [WRONG])
    for other in (groups[:2], groups[::-1], [groups[0], groups[0], groups[2]]):
        with pytest.raises(SettingsError, match="same problems in the same order"):
            paired_difference(groups, other)


def test_the_probe_is_plain_softmax() -> None:
    """More probes than are asked at once, of different lengths."""
    model = tiny_model(vocab_size=RENDERER.tokenizer.size).double()
    asked = [*CountdownProbes(TASK, 75), Probe("short", "1", "", "yes")]
    assert len(asked) > 256
    expected: dict[str, list[float]] = defaultdict(list)
    for one in asked:
        ids = RENDERER.prompt((Message("user", one.user),)) + RENDERER.tokenizer.encode(one.text)
        attend = PackedAttention([len(ids)])
        with torch.no_grad():
            logits = model(torch.tensor(ids), attend.positions, attend)[-1] @ model.lm_head.weight.T
        expected[one.check].append(float(logits.softmax(-1)[RENDERER.tokenizer.id_of(one.word)]))
    means = {check: sum(values) / len(values) for check, values in expected.items()}
    assert probe(model, RENDERER, asked) == pytest.approx(means, rel=1e-6)
    assert means.keys() == {"fact", "hit", "miss", "short"}
    assert max(means.values()) > 1.5 * min(means.values())  # a probe of the wrong place would be noticed
    assert probe(model, RENDERER, []) == {}


def test_the_gate_by_hand() -> None:
    gate = Gate(fact=0.8, hit=0.7, miss=0.12, pass_at_1=(0.02, 0.30), pass_at_8=0.2)
    good = {"fact": 0.8, "hit": 0.7, "miss": 0.12, "pass_at_1": 0.02, "pass_at_8": 0.2}
    assert all(check.passed for check in gate.checks(good))
    for name, value in [("fact", 0.79), ("hit", 0.69), ("miss", 0.13), ("pass_at_1", 0.31), ("pass_at_8", 0.19)]:
        checks = gate.checks({**good, name: value})
        assert [check.passed for check in checks].count(False) == 1
        assert checks[list(good).index(name)].passed is False
    assert not any(check.passed for check in gate.checks(dict.fromkeys(good, float("nan"))))
