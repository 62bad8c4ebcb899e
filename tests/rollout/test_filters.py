"""Planted bad replies are dropped, each for its reason, and good ones are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.core.types import Completion, Finish, Message, Outcome, Problem, Rollout, Score, Verdict
from longthought.rollout.filters import (
    READABLE,
    Correct,
    Filter,
    Length,
    NoCode,
    OneLanguage,
    Readable,
    Screen,
    ShortParagraphs,
    Uncut,
    Unrepeated,
    language_of,
    prose,
)

SCREEN = Screen((Correct(), *READABLE, Length(least=3, most=9_000)))
ENGLISH, CHINESE = "How much is 9 times 4 minus 3?", "九乘四减三等于多少？"
STEPS = "\n".join(
    f"Step {k}: {k} apples and {k * k} pears make {k + k * k} fruits in basket number {k}." for k in range(80)
)
LONG_LINE = " ".join(f"item {k} costs {k * 7} coins," for k in range(200))


def rollout(
    text: str,
    question: str = ENGLISH,
    *,
    right: bool = True,
    finish: Finish = Finish.STOP,
    tokens: int | None = None,
    answer: str = "33",
    **info: str,
) -> Rollout:
    outcome = Outcome.GRADED if right else Outcome.UNPARSABLE
    score = Score(float(right), right, {}, Verdict(float(right), outcome))
    ids = tuple(range(len(text.split()) if tokens is None else tokens))
    problem = Problem("p", (Message("user", question),), answer, info)
    return Rollout(problem, (1,), Completion(ids, (0.0,) * len(ids), finish), text, score)


def thought(reasoning: str, summary: str = "The result is 33.") -> str:
    return f"<think> {reasoning} </think> {summary}"


GOOD: list[tuple[str, str]] = [
    (thought("First 9 * 4 = 36. Then 36 - 3 = 33."), ENGLISH),
    ("First 36, then minus 3. </think> It is 33.", ENGLISH),  # the prompt opened the tag
    (thought("try 9 * 4 = 36 high wait 36 - 3 = 33 yes", "<answer> ( 9 * 4 ) - 3 </answer>"), ENGLISH),
    (thought("试 9 * 4 = 36 大 等 36 - 3 = 33 对", "<answer> ( 9 * 4 ) - 3 </answer>"), CHINESE),
    (thought("先算九乘四等于三十六，再减三。", "答案是33。"), CHINESE),
    (thought("设 x 为未知数，则 x = 36 - 3 = 33。", "所以 x=33。"), CHINESE),
    (thought("在三角形ABC中，AB=AC，由 sin A = 1/2 得角A为30度。", "答案：33。"), CHINESE),
    (thought(r"由 $\text{the left side} = 36$ 可知结果。", r"所以 $\boxed{33}$。"), CHINESE),
    (thought(r"We need \(x^2 = 9\), so \(x = 3\).", r"\boxed{33}"), ENGLISH),
    (thought("\\begin{align*} x &= 36 - 3 \\\\ &= 33 \\end{align*} That settles it."), ENGLISH),
    (thought("The angle α plus β is 90 degrees, and γ follows."), ENGLISH),
    (thought("The word 你好 means hello, and 好 alone means good."), "What does 你好 mean?"),
    (thought("单词 hello 的意思是你好。", "hello 就是你好。"), "hello 是什么意思？"),
    (thought("GPU 的价格是三十六元，减去三元优惠。", "33元。"), CHINESE),
    (thought("L'addition coûte 36 euros, moins trois."), ENGLISH),  # languages of one script are not told apart
    (thought("Сначала девять умножить на четыре, потом минус три.", "Ответ 33."), "Сколько будет девять на четыре?"),
    (thought("まず9に4をかけて、それから3をひきます。", "答えは33です。"), "9かける4ひく3はいくつですか。"),
    (thought("먼저 구 곱하기 사는 삼십육입니다.", "답은 33입니다."), "구 곱하기 사는 얼마입니까?"),
    (thought("Use a loop in the summary.", "```python\nprint(9 * 4 - 3)\n```\nprints 33."), ENGLISH),
    (thought("Call `f(x)` once, with x = 3."), ENGLISH),
    (thought("It costs $36 and I get $3 back, so $33."), ENGLISH),
    (thought(STEPS), ENGLISH),  # alike, and each line says something new
    (thought("36 - 3.\n\n" * 3 + "So 33."), ENGLISH),
    (thought("Wait, let me check: 9 * 4 = 36. Wait, yes. Wait, 36 - 3 = 33. Wait, that is right."), ENGLISH),
    (thought("See https://example.org/百科 for the rule."), ENGLISH),
    (thought("ｎｉｎｅ times four, full width, is still Latin."), ENGLISH),
    (thought("Caf\u00e9 and cafe\u0301 are one word. \U0001f600"), ENGLISH),
    (thought("| a | b |\n|---|---|\n| 9 | 4 |\n| 36 | 3 |"), ENGLISH),
    (thought("0.333333333333333333333333333333333333333333333333333 is a third."), ENGLISH),
    (thought("a < b and b > c, so a | b is not asked."), ENGLISH),
    (thought("周长是 12 km，面积是 9 cm，共 5 kg。", "33。"), CHINESE),
    (thought("36 - 3", "33"), "9 * 4 - 3 = ?"),  # no words at all
]

BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("not right", thought("9 * 4 = 35."), {"right": False}),
    ("cut", thought("9 * 4 = 36."), {"finish": Finish.LENGTH}),
    ("cut", "<think> 9 * 4", {"finish": Finish.BUDGET}),
    ("unreadable", "The result is 33.", {}),
    ("unreadable", "<think> 9 * 4 = 36 and so on", {}),
    ("unreadable", "<think> 36 </think> 33 </think>", {}),
    ("unreadable", "<think> a <think> b </think> 33", {}),
    ("unreadable", "I say first <think> 36 </think> 33", {}),
    ("unreadable", "36 </think> 33 <think>", {}),
    ("unreadable", "<think> </think> 33", {}),
    ("unreadable", "<think> 9 * 4 - 3 = 33 </think>", {}),
    ("unreadable", "<think> 9 * 4 - 3 = 33 </think> \n ", {}),
    ("unreadable", "<think> 9 * 4 - 3 = 33 </think> <answer> </answer>", {}),
    ("markup", thought("36 <|user|> and what is 7?"), {}),
    ("markup", thought("36") + "<｜end▁of▁sentence｜>", {}),
    ("markup", thought("36 <pad> <pad>"), {}),
    ("markup", thought("36 [INST] and what is 7? [/INST]"), {}),
    ("unreadable", thought("the price is \ufffd\ufffd 36"), {}),
    ("unreadable", thought("the price is \x00 36"), {}),
    ("unreadable", thought("the price is \x1b[31m 36"), {}),
    ("mixed language", thought("First 9 * 4 然后减去三 makes 33."), {}),
    ("mixed language", thought("First nine times four.", "答案是三十三"), {}),
    ("mixed language", thought("先算 nine times four, that is thirty six 再减三。"), {"question": CHINESE}),
    ("mixed language", thought("Nine times four is thirty six.", "33."), {"question": CHINESE}),
    ("mixed language", thought("试 9 * 4 = 36 high wait 36 - 3"), {"question": CHINESE}),
    ("mixed language", thought("Сначала nine times four."), {"question": "Сколько будет девять на четыре?"}),
    ("mixed language", thought("It costs $36 然后我们 $3 back."), {}),
    ("mixed language", thought("It costs $36然后我们$3 back."), {}),
    ("mixed language", thought("九乘四"), {"question": "9 * 4 - 3 = ?", "language": "en"}),
    ("mixed language", thought("试 36"), {"question": "use 9 4 3 make 33", "language": "en"}),
    (
        "mixed language",
        thought("The word 你好 means hello, 再见 means bye, 谢谢"),
        {"question": "What does 你好 mean?"},
    ),
    ("long paragraph", thought(LONG_LINE), {}),
    ("long paragraph", thought("36.", LONG_LINE), {}),
    ("long paragraph", thought("".join(f"第{k}项是{k * 3}，" for k in range(400)), "33。"), {"question": CHINESE}),
    ("code block", thought("Let me run it.\n```python\nprint(9 * 4)\n```\n36."), {}),
    ("code block", thought("Let me run it. ```print(9)``` 36."), {}),
    ("code block", thought("Run:\n~~~\nprint(9 * 4)\n~~~\n36."), {}),
    ("code block", thought("Run: <code>print(9 * 4)</code> 36."), {}),
    ("code block", thought(r"\begin{verbatim} print(9 * 4) \end{verbatim} 36."), {}),
    ("code block", thought("算一下：\n```\nprint(9 * 4)\n```\n", "33。"), {"question": CHINESE}),
    ("repetition", thought("wait " * 60), {}),
    ("repetition", thought("so nine times four is thirty six minus three and then again " * 6), {}),
    ("repetition", thought("所以九乘四等于三十六再减三。" * 8, "33。"), {"question": CHINESE}),
    ("repetition", thought("\n".join(["try 9 * 4 = 36 high try 9 - 4 = 5 low"] * 10)), {}),
    ("repetition", thought(STEPS * 3), {}),
    ("length", "a</think>b", {"tokens": 2}),
    ("length", thought("First 36, then 33."), {"tokens": 9_001}),
]


@pytest.mark.parametrize(("text", "question"), GOOD)
def test_good_replies_are_kept(text: str, question: str) -> None:
    assert SCREEN.refusal(rollout(text, question)) is None


@pytest.mark.parametrize(("name", "text", "how"), BAD)
def test_bad_replies_are_dropped_for_their_reason(name: str, text: str, how: dict[str, Any]) -> None:
    refusal = SCREEN.refusal(rollout(text, **how))
    assert refusal is not None
    assert refusal[0] == name
    assert refusal[1]


def test_there_are_enough_of_both() -> None:
    assert min(len(GOOD), len(BAD)) >= 30


def test_a_screen_tells_apart_and_counts() -> None:
    good = [rollout(text, question) for text, question in GOOD]
    bad = [rollout(text, **how) for _, text, how in BAD]
    found = SCREEN([*bad, *good])
    assert found.kept == good
    assert [one.rollout for one in found.dropped] == bad
    assert [one.name for one in found.dropped] == [name for name, *_ in BAD]
    assert sum(found.counts.values()) == len(bad)
    assert Screen(())([*bad, *good]).kept == [*bad, *good]


def test_an_ungraded_reply_is_not_right_and_says_why() -> None:
    ungraded = Score(None, False, {}, Verdict(None, Outcome.TIMED_OUT))
    one = rollout(thought("36"))
    refused = Correct()(Rollout(one.problem, one.prompt, one.completion, one.text, ungraded))
    assert refused == "not graded: timed_out"


@pytest.mark.parametrize(
    ("summary", "answer", "stated"),
    [
        ("It is 33.", "33", True),
        ("It is 33,000.", "33", False),
        ("It is 133.", "33", False),
        ("It is 33.5", "33", False),
        ("It is 2.33", "33", False),
        ("It is -33", "33", False),
        ("It is -33", "-33", True),
        ("共33元", "33", True),
        (r"\boxed{\frac{1}{2}}", r"\frac 1 2", False),
        (r"\boxed{\frac{1} {2}}", r"\frac{1}{2}", True),
        ("so (9*4) - 3 makes it", "( 9 * 4 ) - 3", True),
        ("The capital is PARIS!", "Paris", True),
        ("Parisian", "Paris", False),
        ("anything", "", False),
    ],
)
def test_the_summary_states_the_answer_as_a_whole(summary: str, answer: str, stated: bool) -> None:
    refused = Readable(answer=True)(rollout(thought(answer, summary), answer=answer))
    assert (refused is None) == stated


def test_the_reasoning_may_be_empty_if_that_is_allowed() -> None:
    assert Readable(reasoning=False)(rollout("<think></think> Hello!")) is None


@pytest.mark.parametrize(
    ("question", "info", "language"),
    [
        ("Add 3 and 4", {}, "en"),
        ("求三与四之和", {}, "zh"),
        ("求 x 与 y 之和", {}, "zh"),
        ("3と4をたす", {}, "ja"),
        ("3 + 4", {}, "en"),
        ("求三与四之和", {"language": "en"}, "en"),
        ("求三与四之和", {"language": "python"}, "zh"),
    ],
)
def test_the_language_is_the_stated_one_or_that_of_the_prompt(
    question: str, info: dict[str, str], language: str
) -> None:
    assert language_of(Problem("p", (Message("user", question),), "", info)) == language


def test_a_share_of_foreign_words_may_be_allowed() -> None:
    text = thought("Nine times four is thirty six and 三 less is ten more than that is right.")
    assert OneLanguage(0.9)(rollout(text)) is None
    assert OneLanguage(1.0)(rollout(text)) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: OneLanguage(0),
        lambda: OneLanguage(1.1),
        lambda: ShortParagraphs(0),
        lambda: Unrepeated(n=0),
        lambda: Unrepeated(most=2),
        lambda: Length(5, 4),
        lambda: Length(-1),
        lambda: Screen((NoCode(), NoCode())),
    ],
)
def test_settings_that_make_no_sense(make: Any) -> None:
    with pytest.raises(SettingsError):
        make()


def test_a_filter_of_ones_own_is_counted_by_its_name() -> None:
    @dataclass(frozen=True)
    class Polite:
        name: str = "impolite"

        def __call__(self, rollout: Rollout, /) -> str | None:
            return None if "please" in rollout.text else "no please"

    own: Filter = Polite()
    assert Screen((Uncut(), own))([rollout("now"), rollout("please")]).counts == {"impolite": 1}


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=400), st.text(max_size=50))
def test_no_text_makes_a_filter_fail(text: str, question: str) -> None:
    for reply in (text, thought(text)):
        SCREEN.refusal(rollout(reply, question))


@pytest.mark.parametrize("piece", [r"\[", r"\(", "$$", "$", "`", "```", r"\begin{a}", "<think>", "<|", "~~~"])
def test_what_is_opened_ten_thousand_times_is_read_all_the_same(piece: str) -> None:
    SCREEN.refusal(rollout(thought(piece * 10_000)))
    assert isinstance(prose(piece * 10_000), str)
