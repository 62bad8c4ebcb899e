from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.core.protocols import Verifier
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.exact import Exact, Number, SetMatch, integer


@pytest.mark.parametrize(
    ("answer", "gold"), [("7", 7), (" 7\n", 7), ("+7", 7), ("-7", -7), ("− 7", -7), ("007", 7), ("-0", 0)]
)
def test_equal(answer: str, gold: int) -> None:
    assert integer(answer, gold).value == 1.0


@pytest.mark.parametrize(("answer", "gold"), [("7", -7), ("-7", 7), ("70", 7), ("9" * 200, 7)])
def test_other_integer(answer: str, gold: int) -> None:
    verdict = integer(answer, gold)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.GRADED)


@pytest.mark.parametrize(
    "answer",
    ["", " ", "-", "7.0", "1e3", "1,000", "x = 7", "7 7", "--7", "٧", "７", "7 apples", "7" * 201, "0x7", "1_0"],
)
def test_no_integer(answer: str) -> None:
    verdict = integer(answer, 7)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE)


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30))
def test_what_python_prints(number: int) -> None:
    assert integer(str(number), number).value == 1.0


@settings(deadline=None)
@given(st.text())
def test_never_raises(text: str) -> None:
    assert integer(text, 7).value in {0.0, 1.0}


def graded(verifier: Verifier, reply: str, gold: str) -> Verdict:
    return verifier(Problem("p", (), gold), Message("assistant", reply))


@pytest.mark.parametrize(
    ("verifier", "reply", "gold", "value"),
    [
        (Exact(), " Paris. ", "paris", 1.0),
        (Exact(), "New\n York", "new york", 1.0),
        (Exact(), "ＮＥＷ", "new", 1.0),
        (Exact(), "Straße", "STRASSE", 1.0),
        (Exact(), "Paris!", "Paris", 0.0),
        (Exact(case=True), "paris", "Paris", 0.0),
        (Exact(whitespace=True), "a  b", "a b", 0.0),
        (Exact(whitespace=True), " a b ", "a b", 1.0),
        (Number(), "1234", "She pays 2 * 617 = 1234.\n#### 1,234", 1.0),
        (Number(), "$1,234.00", "#### 1,234", 1.0),
        (Number(), "He has 3 apples and buys 4. The answer is 7.", "7", 1.0),
        (Number(), r"\boxed{\$7.00}", "7", 1.0),
        (Number(), "#### -7", "-7", 1.0),
        (Number(), "−7", "-7", 1.0),
        (Number(), "1/2", "0.5", 1.0),
        (Number(), ".5", "1/2", 1.0),
        (Number(), "7 or 8", "7", 0.0),
        (Number(), "3, 4, 5, 6, 7", "7", 0.0),
        (Number(), "7.01", "7", 0.0),
        (Number(), "0.30000000000000004", "0.3", 0.0),
        (Number(tolerance=0.01), "7.01", "7", 1.0),
        (Number(tolerance=0.01), "7.011", "7", 0.0),
        (Number(), "7 and 7.0", "7", 1.0),
        (SetMatch(), "a, b,c", "c,a,b", 1.0),
        (SetMatch(), r"\boxed{3, 1, 2}", "{1,2,3}", 1.0),
        (SetMatch(), "a,b", "a,b,c", 0.0),
        (SetMatch(), "a,b,c,d", "a,b,c", 0.0),
        (SetMatch(), "a,a,b", "a,b", 1.0),
        (SetMatch(multiset=True), "a,a,b", "a,b", 0.0),
        (SetMatch(multiset=True), "b,a,a", "a,b,a", 1.0),
        (SetMatch(ordered=True), "b,a", "a,b", 0.0),
        (SetMatch(ordered=True), "[a, b]", "a,b", 1.0),
        (SetMatch(separator=";"), "a,b; c", "c;a,b", 1.0),
    ],
)
def test_texts_numbers_and_lists(verifier: Verifier, reply: str, gold: str, value: float) -> None:
    verdict = graded(verifier, reply, gold)
    assert (verdict.value, verdict.outcome) == (value, Outcome.GRADED)


ALL: list[Verifier] = [Exact(), Number(), SetMatch()]


@pytest.mark.parametrize("verifier", ALL)
def test_nothing_to_read(verifier: Verifier) -> None:
    assert graded(verifier, " ", "7").outcome is Outcome.UNPARSABLE
    assert graded(verifier, "7", " ") == Verdict(None, Outcome.NO_GOLD, graded(verifier, "7", " ").evidence)


@pytest.mark.parametrize("verifier", ALL)
def test_hostile_lengths(verifier: Verifier) -> None:
    for reply in ("9" * 10**6, "1," * 10**5, "(" * 10**6, "1/0", "answer is " * 10**5):
        assert graded(verifier, reply, "7").value == 0.0


@pytest.mark.parametrize("gold", ["", "no number", "3 and 4", "1/0"])
def test_gold_that_is_not_one_number(gold: str) -> None:
    assert graded(Number(), "7", gold).outcome is Outcome.NO_GOLD


def test_settings_that_cannot_be() -> None:
    for make in (lambda: Number(tolerance=-1), lambda: Number(tolerance=float("nan")), lambda: SetMatch(separator="")):
        with pytest.raises(SettingsError):
            make()


@settings(deadline=None)
@given(st.sampled_from(ALL), st.text(), st.text())
def test_verifiers_never_raise(verifier: Verifier, reply: str, gold: str) -> None:
    assert graded(verifier, reply, gold).value in {0.0, 1.0, None}


@settings(deadline=None)
@given(st.fractions())
def test_a_fraction_is_itself(number: Fraction) -> None:
    assert graded(Number(), f"The answer is {number}.", str(number)).value == 1.0
