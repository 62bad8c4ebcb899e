"""Fill in the middle: nothing is lost, and the share and the cuts are those that were asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.text.fim import FIM_BEGIN, FIM_END, FIM_HOLE, FillInTheMiddle
from longthought.text.tokenizer import Tokenizer
from longthought.text.tokenizer_training import BytePairs

TEXTS = ["The quick brown fox jumps over the lazy dog. 12 + 34 = 46\n", "Die Straße ist naß, 中文, 🙂.\n"] * 20
PAIRS = BytePairs(size=320).train(TEXTS, fim=True)
WORDS = Tokenizer.of_words(("one", "two", "three", "four"), (FIM_BEGIN, FIM_HOLE, FIM_END))
ALWAYS = FillInTheMiddle(1.0)


def parts(tokenizer: Tokenizer, ids: tuple[int, ...]) -> tuple[str, str, str]:
    """Prefix, suffix and middle."""
    begin, hole, end = (ids.index(tokenizer.id_of(mark)) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END))
    assert begin == 0
    return tuple(tokenizer.decode(ids[a + 1 : b]) for a, b in ((begin, hole), (hole, end), (end, len(ids))))  # type: ignore[return-value]


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60), number=st.integers(0, 2**60))
def test_prefix_middle_and_suffix_are_the_text(text: str, number: int) -> None:
    turned = ALWAYS(PAIRS, text, number)
    assert turned is not None
    prefix, suffix, middle = parts(PAIRS, turned)
    assert prefix + middle + suffix == text


def test_words_are_cut_between_tokens() -> None:
    ids = WORDS.encode("one two three four")
    for number in range(20):
        turned = ALWAYS(WORDS, "one two three four", number)
        assert turned is not None
        hole, end = turned.index(WORDS.id_of(FIM_HOLE)), turned.index(WORDS.id_of(FIM_END))
        assert turned[1:hole] + turned[end + 1 :] + turned[hole + 1 : end] == ids


def test_the_rate_and_the_cuts_are_uniform() -> None:
    some = FillInTheMiddle(0.1, seed=3)
    assert sum(some(PAIRS, "a", number) is not None for number in range(5000)) / 5000 == pytest.approx(0.1, abs=0.015)
    lengths = [tuple(map(len, parts(PAIRS, ALWAYS(PAIRS, "x" * 10, number)))) for number in range(2000)]  # type: ignore[arg-type]
    # of two cuts in 0 … 10: the lower is 35/11 on average, which is the mean prefix and the mean suffix
    for place in (0, 1):
        assert sum(length[place] for length in lengths) / 2000 == pytest.approx(35 / 11, abs=0.2)


def test_a_document_is_turned_by_seed_and_number_alone() -> None:
    def first(seed: object) -> list[object]:
        fim = FillInTheMiddle(0.5, seed)  # type: ignore[arg-type]
        return [fim(PAIRS, TEXTS[0], number) for number in range(30)]

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_refusals(rate: float) -> None:
    with pytest.raises(SettingsError):
        FillInTheMiddle(rate)
