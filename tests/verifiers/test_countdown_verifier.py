"""The Countdown verifier: exact, bounded, and never raising."""

import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longthought.core.types import Outcome
from longthought.verifiers.countdown import MAX_CHARS, MAX_NESTING, grade

RIGHT = [
    "( 9 * 4 ) - 3",
    "9*4-3",
    "4 × 9 − 3",
    "(((4*9)))-3",
    "9*(4)-3",
    "  9 *\n4 - 3\t",
    "(9*4)-(3)",
    "(" * MAX_NESTING + "9" + ")" * MAX_NESTING + "*4-3",
]

WRONG = [
    ("94-3", "uses 3 94"),
    ("9*4", "uses 4 9"),
    ("9*4-3+0", "uses 0 3 4 9"),
    ("9*4-3*1", "uses 1 3 4 9"),
    ("9+4+3", "gives 16, not 33"),
    ("9/4-3", "gives -3/4, not 33"),
    ("33", "uses 33"),
    ("9*4-3-(9-9)", "uses"),
    ("9" * MAX_CHARS, "uses 9999"),
]

NOT_ARITHMETIC = [
    "",
    "   ",
    "()",
    "9*4-",
    "*9",
    "9 4 3",
    "9 4",
    "9*4-3 9*4-3",
    "9*4-3\n9*4-3",
    "9*4-3 = 33",
    "9*4-3;",
    "9*4-3,",
    "(9,4,3)",
    "9*4-3 # yes",
    "9*4-3 yes",
    "the answer is 9*4-3",
    "x*4-3",
    "2**3",
    "2 ** 3",
    "2 * * 3",
    "7//2",
    "7 / / 2",
    "7%2",
    "9<<4",
    "9|4",
    "9@4",
    "~9",
    "4.5*2",
    "9.*4-3",
    "1e3",
    "1_0",
    "0x1",
    "0b1",
    "1j",
    "09*4-3",
    "-9+4",
    "+9*4-3",
    "9*4+-3",
    "9*4--3",
    "9-(-3)*4",
    "9(4)-3",
    "(9)(4)-3",
    "9 (4)",
    "1(2)",
    "9*4-3)",
    "(9*4-3",
    ")9(",
    "٩*4-3",
    "９*4-3",
    "9*4-³",
    "④*9-3",
    "九*4-3",
    "9∗4-3",
    "9·4-3",
    "9:4",
    "9*4–3",  # an en dash
    "\\frac{9}{4}",
    "9*4-3\x00",
    "\ud800",
    "9 if 4 else 3",
    "9 and 4",
    "lambda:9",
    "__import__('os').system('true')",
    "[9*4-3][0]",
    "9*4-3 or 1",
    "True+9",
    "'9'*4",
    "9:=4",
    "...",
    "(" * 150,
    ")" * 150,
    "(" * 100 + "9" + ")" * 99,
    "(" * 10**6,
    "(" * (MAX_NESTING + 1) + "9" + ")" * (MAX_NESTING + 1) + "*4-3",
    "1+" * 99 + "1",
    "9*4-3" + " " * MAX_CHARS,
    "1" * (MAX_CHARS + 1),
    "-" * 150 + "9",
    "9**9**9**9",
]


@pytest.mark.parametrize("expression", RIGHT)
def test_right(expression: str) -> None:
    verdict = grade(expression, [9, 4, 3], 33)
    assert (verdict.value, verdict.outcome) == (1.0, Outcome.GRADED)


@pytest.mark.parametrize(("expression", "evidence"), WRONG)
def test_well_formed_but_wrong(expression: str, evidence: str) -> None:
    verdict = grade(expression, [9, 4, 3], 33)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.GRADED)
    assert verdict.evidence.startswith(evidence)


@pytest.mark.parametrize("expression", NOT_ARITHMETIC)
def test_not_an_expression(expression: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = grade(expression, [9, 4, 3], 33)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE)
    assert verdict.evidence
    assert "Error" not in verdict.evidence


def test_division_is_exact() -> None:
    assert grade("8/(3-8/3)", [8, 8, 3, 3], 24).value == 1.0
    assert grade("7 ÷ 2 * 2", [7, 2, 2], 7).value == 1.0
    assert grade("1/3*3", [1, 3, 3], 1).value == 1.0


def test_division_by_zero_is_wrong_not_fatal() -> None:
    verdict = grade("9/(4-4)", [9, 4, 4], 9)
    assert verdict == type(verdict)(0.0, Outcome.GRADED, "divides by zero")


def test_numbers_are_a_multiset() -> None:
    assert grade("4+4", [4, 4], 8).value == 1.0
    assert grade("4+4", [4], 8).value == 0.0
    assert grade("4", [4, 4], 4).value == 0.0
    assert grade("4*2", [4, 2, 2], 8).value == 0.0


def test_near_miss_of_floats_is_a_miss() -> None:
    big = 10**17
    assert grade(f"{big}+1", [big, 1], big).value == 0.0


@settings(deadline=None)
@given(st.text())
@example("\u2212")
def test_never_raises_on_text(text: str) -> None:
    verdict = grade(text, [9, 4, 3], 33)
    assert verdict.value in {0.0, 1.0}
    assert verdict.evidence


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/()×÷− \n._x", max_size=220))
def test_never_raises_on_what_looks_like_arithmetic(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grade(text, [1, 2, 3], 6).value in {0.0, 1.0}
