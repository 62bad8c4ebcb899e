import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.types import Outcome
from longthought.verifiers.exact import integer


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
