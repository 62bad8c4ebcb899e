import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.choice import Choice

ANIMALS = {"options": json.dumps(["a cat", "a dog", "a hen", "12"])}


def grade(reply: str, gold: str = "C", options: dict[str, str] | None = None) -> Verdict:
    return Choice()(Problem("p", (), gold, options or {}), Message("assistant", reply))


@pytest.mark.parametrize(
    "reply",
    [
        "C",
        "(C)",
        "C.",
        "C)",
        "c",
        "(c)",
        " C ",
        "**C**",
        r"\boxed{C}",
        r"\boxed{(C)}",
        r"\boxed{\text{(C)}}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{(C)}\ 12}",
        r"$\boxed{\mathrm{C}}$",
        r"\text{(C)}",
        "The answer is C",
        "The answer is (C).",
        "The correct answer is **C**.",
        "Answer: C",
        "Answer: (C) a hen",
        "ANSWER: C\n",
        "The answer is: C. It has feathers.",
        "The answer is option C.",
        "C) a hen",
        "C. a hen",
        "C: a hen",
        "A is tempting, but it has no feathers. The answer is C.",
        "Both (A) and (B) are mammals, so the answer is (C).",
        r"(A) is wrong. \boxed{C}",
        "I choose C.",
        "The correct option is C",
        "The answer is C because a hen has feathers.",
        "####C",
    ],
)
def test_says_c(reply: str) -> None:
    assert grade(reply).value == 1.0
    assert grade(reply, "B").value == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "A or C",
        "(A) or (C)",
        "A, C",
        "AC".replace("", " ").strip(),
        r"\boxed{A, C}",
        r"\boxed{A or C}",
        "The answer is A or C.",
        "The answer is (B) or (C).",
        "Answer: B and C",
        "(A) (B) (C) (D)",
    ],
)
def test_two_letters_are_wrong(reply: str) -> None:
    verdict = grade(reply)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.GRADED)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "A dog has four legs.",
        "A hen",
        "I am not sure",
        "The answer is a bird with feathers.",
        "The answer is A bird with feathers",
        "Because",
        "Cats are nice",
        r"\boxed{}",
        r"\boxed{7}",
        "DNA",
        "K",
        "The answer is unclear.",
    ],
)
def test_names_no_choice(reply: str) -> None:
    for gold in ("A", "B", "C"):
        verdict = grade(reply, gold)
        assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE)


@pytest.mark.parametrize("gold", ["C", "(C)", "c", r"\text{(C)}", "a hen", "A hen.", "2"])
def test_gold_as_letter_text_or_number(gold: str) -> None:
    for reply in ("C", "The answer is a hen.", r"\boxed{\text{a hen}}", "A  Hen"):
        assert grade(reply, gold, ANIMALS).value == 1.0
    assert grade("The answer is a dog.", gold, ANIMALS).value == 0.0


def test_options_by_line() -> None:
    assert grade("the answer is red", "red", {"options": "blue\nred\n"}).value == 1.0


@pytest.mark.parametrize("gold", ["", "Z", "a cow", "9", "A or B", "AB"])
def test_no_gold(gold: str) -> None:
    verdict = grade("C", gold, ANIMALS)
    assert (verdict.value, verdict.outcome) == (None, Outcome.NO_GOLD)


def test_a_letter_beyond_the_options_is_none() -> None:
    assert grade("E", "A", ANIMALS).outcome is Outcome.UNPARSABLE


@pytest.mark.parametrize("letters", ["", "AA", "ab", "A1", "Ä"])
def test_refusals(letters: str) -> None:
    with pytest.raises(SettingsError):
        Choice(letters)


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_never_raises(reply: str, gold: str, options: str) -> None:
    assert grade(reply, gold, {"options": options}).value in {0.0, 1.0, None}


def test_long_replies_take_no_time() -> None:
    for text in ("answer is " * 9_000, r"\boxed{" * 14_000, "A or " * 19_000, "(" * 99_000):
        assert grade(text).value == 0.0
