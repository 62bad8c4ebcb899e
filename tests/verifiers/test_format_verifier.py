import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.verifiers.format import extract_answer, think_answer, think_summary

KEPT = [
    "<think> 9 * 4 = 36 - 3 = 33 yes </think> <answer> ( 9 * 4 ) - 3 </answer>",
    "<think></think><answer></answer>",
    "<think>a\nb</think>\n\n<answer>c\nd</answer>",
    "<think>a < b > c</think> <answer>x</answer>",
    " <think> a </think> <answer> 1 </answer>\n",
]

BROKEN = [
    "",
    "( 9 * 4 ) - 3",
    "<answer> 1 </answer>",
    "<think> a </think>",
    "<think> a </think> 1",
    "<think> a <answer> 1 </answer>",
    "a </think> <answer> 1 </answer>",
    "<think> a </think> <answer> 1",
    "well <think> a </think> <answer> 1 </answer>",
    "<think> a </think> so <answer> 1 </answer>",
    "<think> a </think> <answer> 1 </answer> done",
    "<think> a <think> b </think> <answer> 1 </answer>",
    "<think> a </think> </think> <answer> 1 </answer>",
    "<think> a </think> <answer> 1 </answer> <answer> 1 </answer>",
    "<think> a <answer> 1 </answer> </think>",
    "<think> <answer> a </think> 1 </answer>",
    "<answer> 1 </answer> <think> a </think>",
    "<THINK> a </THINK> <answer> 1 </answer>",
    "<think > a </think> <answer> 1 </answer>",
]


@pytest.mark.parametrize("text", KEPT)
def test_kept(text: str) -> None:
    assert think_answer(text).value == 1.0


@pytest.mark.parametrize("text", BROKEN)
def test_broken(text: str) -> None:
    verdict = think_answer(text)
    assert verdict.value == 0.0
    assert verdict.evidence


SUMMED_UP = [
    *KEPT,
    "<think> a </think> 9 * 4 = 36 . 36 - 3 = 33 . <answer> ( 9 * 4 ) - 3 </answer>",
    "<think> a </think> so <answer> 1 </answer>",
    "<think> a </think> <answer> 1 </answer> done",
    "<think>a</think>\nSo\n<answer>1</answer>\n\nCheck it.\n",
]


@pytest.mark.parametrize("text", SUMMED_UP)
def test_summed_up(text: str) -> None:
    assert think_summary(text).value == 1.0


@pytest.mark.parametrize("text", [text for text in BROKEN if text not in SUMMED_UP])
def test_not_summed_up(text: str) -> None:
    verdict = think_summary(text)
    assert verdict.value == 0.0
    assert verdict.evidence


def test_extract_answer() -> None:
    assert extract_answer(KEPT[0]) == "( 9 * 4 ) - 3"
    assert extract_answer("<answer> 1 </answer> no <answer> 2 </answer>") == "2"
    assert extract_answer("<answer> 1 </answer> <answer> 2") == "1"
    assert extract_answer("<answer><answer> 1 </answer>") == "1"
    assert extract_answer("</answer> <answer>") is None
    assert extract_answer("1 </answer>") is None
    assert extract_answer("") is None


TAGS = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "1", "x\n"])).map("".join)


@settings(deadline=None)
@given(TAGS)
def test_format_implies_an_answer(text: str) -> None:
    answer = extract_answer(text)
    if think_answer(text).value == 1.0:
        assert think_summary(text).value == 1.0
    if think_summary(text).value == 1.0:
        assert answer is not None
        assert not any(tag in answer for tag in ("<think>", "</think>", "<answer>", "</answer>"))
