"""Replies to Countdown written anew: planted chains by hand, and any page of the web that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Problem
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_noise import Noise
from longthought.tasks.countdown_tidy import CountdownTidy, Trial, surrendered, trials, worked
from longthought.tasks.countdown_web import WORDS, CountdownWeb, vocabulary
from longthought.text.reasoning import split
from longthought.verifiers.language import consistency

TASK = Countdown(form="summary")
TIDY = CountdownTidy(TASK)
ANSWER = "9 * 4 = 36 - 3 = 33 <answer> ( 9 * 4 ) - 3 </answer>"
WORDS_KNOWN = frozenset(vocabulary(TASK))
HIT = "9 * 4 = 36 - 3 = 33 yes check 33 make 33 yes"


def asked(text: str = "use 9 4 3 make 33") -> Problem:
    problem = Countdown().parse(text)
    assert problem is not None
    return problem


def written(thought: str, tidy: CountdownTidy = TIDY, question: str = "use 9 4 3 make 33") -> Message | str:
    return tidy.rewrite(asked(question), Message("assistant", "<answer> ( 9 * 4 ) - 3 </answer>", thought))


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("try 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        ("9 * 4 = 36 - 3 = 33", f"try {HIT}"),  # neither opening nor verdict
        ("try 9 * 3 = 27 + 4 = 31 low wait 9 * 4 = 36 - 3 = 33 yes", f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}"),
        ("试 9 * 3 = 27 + 4 = 31 小 wait 9 * 4 = 36 - 3 = 33 对", f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}"),
        ("试9*3=27+4=31小等9*4=36-3=33对", f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}"),
        # a verdict is mended, a miss that was called a hit among them
        ("try 9 * 3 = 27 + 4 = 31 high wait 9 * 4 = 36 - 3 = 33 yes", f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}"),
        ("try 9 * 4 = 36 + 3 = 39 yes wait 9 * 4 = 36 - 3 = 33 yes", f"try 9 * 4 = 36 + 3 = 39 high wait {HIT}"),
        # repeated, also in the other order of a product
        (
            "try 9 * 3 = 27 + 4 = 31 low wait 9 * 3 = 27 + 4 = 31 low wait 3 * 9 = 27 + 4 = 31 low wait "
            "9 * 4 = 36 - 3 = 33 yes",
            f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}",
        ),
        # wrong sums, numbers that were not given, that come twice, or that are left out, and half an attempt
        ("try 9 * 3 = 28 + 4 = 32 low wait 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        ("try 9 * 5 = 45 - 3 = 42 high wait 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        ("try 9 * 9 = 81 - 3 = 78 high wait 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        ("try 9 * 4 = 36 high wait 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        ("try 9 * 4 = wait + wait 9 * 4 = 36 - 3 = 33 yes", f"try {HIT}"),
        # a hit that was overlooked, one that comes twice, and what follows the last
        ("try 4 * 9 = 36 - 3 = 33 low wait 9 * 4 = 36 - 3 = 33 yes wait 9 + 4 = 13 + 3 = 16 low", f"try {HIT}"),
        # checked too often, wrongly, with other things said after it
        ("try 9 * 4 = 36 - 3 = 33 yes check 33 make 33 yes check 33 make 33 yes yes", f"try {HIT}"),
        ("try 9 * 4 = 36 - 3 = 33 yes check 31 make 33 low 7 7 . find x", f"try {HIT}"),
    ],
)
def test_a_thought_is_mended(thought: str, expected: str) -> None:
    assert written(thought) == Message("assistant", ANSWER, expected)


def test_in_the_language_of_the_question() -> None:
    found = written("try 9 * 3 = 27 + 4 = 31 low wait 9 * 4 = 36 - 3 = 33 yes", question="用 9 4 3 得 33")
    assert found == Message("assistant", ANSWER, "试 9 * 3 = 27 + 4 = 31 小 等 9 * 4 = 36 - 3 = 33 对 查 33 得 33 对")


def test_without_a_summary_where_the_form_has_none() -> None:
    found = written("try 9 * 4 = 36 - 3 = 33 yes", CountdownTidy(Countdown()))
    assert found == Message("assistant", "<answer> ( 9 * 4 ) - 3 </answer>", f"try {HIT}")


def test_without_a_check() -> None:
    tidy = CountdownTidy(TASK, check=False)
    found = written(f"try 9 * 3 = 27 + 4 = 31 low wait {HIT}", tidy)
    assert found == Message("assistant", ANSWER, "try 9 * 3 = 27 + 4 = 31 low wait 9 * 4 = 36 - 3 = 33 yes")
    assert written(found.reasoning, tidy) == found


@pytest.mark.parametrize(("most", "left"), [(1, 0), (2, 1), (3, 2), (4, 2), (None, 2)])
def test_the_last_attempts_are_kept(most: int | None, left: int) -> None:
    misses = ["9 * 3 = 27 + 4 = 31 low", "9 + 4 = 13 + 3 = 16 low"]
    found = written(f"try {' wait '.join(misses)} wait {HIT}", CountdownTidy(TASK, most))
    assert isinstance(found, Message)
    assert found.reasoning == f"try {' wait '.join([*misses[len(misses) - left :], HIT])}"


def test_more_numbers_and_division() -> None:
    task = Countdown(4, 50, 99, 999, "+-*/", form="summary")
    problem = task.parse("use 8 2 5 3 make 17")
    assert problem is not None
    found = CountdownTidy(task).rewrite(
        problem, Message("assistant", "", "try 8 / 3 = 2 wait 8 / 2 = 4 * 5 = 20 - 3 = 17")
    )
    assert isinstance(found, Message)
    assert found.content == "8 / 2 = 4 * 5 = 20 - 3 = 17 <answer> ( ( 8 / 2 ) * 5 ) - 3 </answer>"


@pytest.mark.parametrize(
    ("thought", "reason"),
    [
        ("", "no attempt can be read"),
        ("well . 33", "no attempt can be read"),
        ("try wait", "no attempt can be read"),
        ("try 9 * 4 = 37 - 3 = 34 high", "no attempt is sound"),
        ("try 9 * 4 = 36 - 3 = 32 low", "no attempt is sound"),
        (f"try {'9' * 5000} * 4 = 36 - 3 = 33 yes", "no attempt can be read"),
        (f"try 9 * 4 = 36 - 3 = {'3' * 5000} yes", "no attempt is sound"),
        ("try 9 * 3 = 27 + 4 = 31 yes", "no attempt reaches the target"),
        ("try 3 - 9 = 6 + 4 = 33 yes", "no attempt is sound"),
    ],
)
def test_what_is_left_out_and_why(thought: str, reason: str) -> None:
    assert written(thought) == reason


def test_results_that_the_corpus_does_not_know() -> None:
    small = CountdownTidy(Countdown(largest=9, target=40, intermediate=30))
    assert written("try 9 * 4 = 36 - 3 = 33 yes", small) != "no attempt is sound"
    assert written("try 9 * 5 = 45 - 3 = 42 yes", small, "use 9 5 3 make 42") == "no attempt is sound"


def test_problems_of_another_task() -> None:
    assert TIDY.rewrite(Problem("x", (), "33"), Message("assistant", "", "")) == "not a problem of Countdown"
    strange = replace(asked(), info={**asked().info, "language": "fr"})
    assert TIDY.rewrite(strange, Message("assistant", "", "")) == "not a problem of Countdown"


def test_settings() -> None:
    with pytest.raises(SettingsError, match="most_attempts=0"):
        CountdownTidy(TASK, 0)


def test_what_is_no_attempt_is_shown() -> None:
    found = list(trials("well try 9 * 3 = 27 + 4 = 31 low wait 9 *"))
    assert [one and one.expression for one in found] == [None, "( 9 * 3 ) + 4", None]


# --- what people write


def checked(problem: Problem, thought: str, attempts: int) -> list[Trial]:
    """The attempts of a thought, each of them true, with its verdict right and like no other."""
    words, target = WORDS[problem.info["language"]], int(problem.info["target"])
    numbers = sorted(map(int, problem.info["numbers"].split()))
    tried = [one for one in trials(thought) if one is not None]
    assert len({one.key for one in tried}) == len(tried) == attempts
    assert all(sound(one) and sorted(one.numbers) == numbers for one in tried)
    assert all(0 <= step.result <= TASK.intermediate for one in tried for step in one.steps)
    right = [words.yes if one.value == target else words.low if one.value < target else words.high for one in tried]
    assert [f"{one.trace} {verdict}" in thought for one, verdict in zip(tried, right)] == [True] * attempts
    assert [token for token in thought.split() if token in (words.yes, words.low, words.high)][:attempts] == right
    assert consistency(thought, problem.info["language"]) == 1.0
    assert TASK.split_of(numbers) == "train"
    return tried


@pytest.mark.parametrize("attempts", [1, 5])
def test_worked_problems_are_long_right_and_tidy(attempts: int) -> None:
    shown = worked(TASK, 20, attempts)
    assert len(shown) == 20
    assert shown == worked(TASK, 20, attempts) != worked(TASK, 20, attempts, seed=1)
    for question, reply in shown:
        problem = TASK.parse(question)
        assert problem is not None
        (score,) = TASK.grade(problem, [reply])
        assert score.correct
        assert set(reply.split()) <= WORDS_KNOWN
        thought, content = (part.strip() for part in split(reply))
        assert len(list(trials(thought))) == attempts
        *misses, hit = checked(problem, thought, attempts)
        assert hit.value == int(problem.answer) not in {one.value for one in misses}
        assert TIDY.rewrite(problem, Message("assistant", content, thought)) == Message("assistant", content, thought)


@pytest.mark.parametrize("attempts", [1, 13])
def test_who_surrenders_has_searched_and_found_nothing(attempts: int) -> None:
    given_up = surrendered(TASK, 20, attempts)
    assert len(given_up) == 20
    assert given_up == surrendered(TASK, 20, attempts) != surrendered(TASK, 20, attempts, seed=1)
    assert {(problem := TASK.parse(asked.content)) and problem.info["language"] for asked, _ in given_up} == {
        "en",
        "zh",
    }
    for question, reply in given_up:
        problem = TASK.parse(question.content)
        assert problem is not None
        assert reply.content == "<answer> </answer>"
        assert set(f"{reply.reasoning} {reply.content}".split()) <= WORDS_KNOWN
        tried = checked(problem, reply.reasoning, attempts)
        assert int(problem.answer) not in {one.value for one in tried}
        (score,) = TASK.grade(problem, [f"<think> {reply.reasoning} </think> {reply.content}"])
        assert not score.correct


@pytest.mark.parametrize("write", [worked, surrendered])
def test_none_are_asked_for(write: Callable[..., tuple[object, ...]]) -> None:
    assert write(TASK, 0) == ()


@pytest.mark.parametrize("write", [worked, surrendered])
@pytest.mark.parametrize(
    ("task", "attempts", "words"),
    [
        (Countdown(operations="+-"), 16, "attempts=16: 200 problems in a row"),
        (TASK, 0, "attempts=0 must be at least 1"),
        (Countdown(4), 2, "three numbers"),
    ],
)
def test_what_nobody_can_write_is_refused(
    write: Callable[..., tuple[object, ...]], task: Countdown, attempts: int, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        write(task, 1, attempts)


# --- pages of the web


NOISE = Noise(lucky=0.3, no_thinking=0.05, slip=0.1, false_yes=0.1, false_no=0.1, unfaithful=0.05, attempts_en=6.0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1_000_000), st.sampled_from([None, 1, 3]), st.booleans(), st.booleans())
def test_a_right_page_stays_right_and_becomes_tidy(index: int, most: int | None, mixed: bool, check: bool) -> None:
    web = CountdownWeb(TASK, seed=3, noise=NOISE)
    page = next(page for page in map(web.document, range(index, index + 200)) if page.kind == "countdown")
    problem = TASK.parse(page.user or "")
    assert problem is not None
    text = page.text.replace("wait", "等").replace("大", "high") if mixed else page.text
    thought, content = split(text)
    tidy = CountdownTidy(TASK, most, check)
    found = tidy.rewrite(problem, Message("assistant", content, thought))
    if isinstance(found, str):
        assert not any(one.value == int(problem.answer) and sound(one) for one in trials(thought) if one is not None)
        return
    (score,) = TASK.grade(problem, [f"<think> {found.reasoning} </think> {found.content}"])
    assert score.correct
    assert consistency(found.reasoning, problem.info["language"]) == 1.0
    assert set(f"{found.reasoning} {found.content}".split()) <= WORDS_KNOWN
    tried = list(trials(found.reasoning))
    assert None not in tried
    assert len({one.key for one in tried if one}) == len(tried) <= (most or len(tried))
    assert tidy.rewrite(problem, found) == found


def sound(one: object) -> bool:
    return all(eval(f"{step.left} {step.sign} {step.right}") == step.result for step in one.steps)  # type: ignore[attr-defined]
