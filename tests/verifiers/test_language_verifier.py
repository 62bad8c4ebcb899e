import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.verifiers.language import consistency, is_mixed


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("try 9 * 4 = 36 high wait", "en", 1.0),
        ("try 9 * 4 = 36 high wait", "zh", 0.0),
        ("试 9 * 4 = 36 大", "zh", 1.0),
        ("试 try 等", "zh", 2 / 3),
        ("等等 try", "zh", 2 / 3),  # every Han character is a word
        ("试try等", "en", 1 / 3),
        ("<think> 试 </think> <answer> 对 </answer>", "zh", 1.0),  # tags are no words
        ("re\u0301sume\u0301", "en", 1.0),
        ("ｔｒｙ", "en", 1.0),
        ("да yes", "ru", 0.5),
        ("ラーメンを食べる", "ja", 1.0),
    ],
)
def test_share(text: str, language: str, share: float) -> None:
    assert consistency(text, language) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "9 * 4 = 36", "<think> </think>", "…!?", "1 2 3"])
def test_no_words(text: str) -> None:
    assert consistency(text, "en") is None
    assert not is_mixed(text)


def test_unknown_language() -> None:
    with pytest.raises(SettingsError, match="xx"):
        consistency("a", "xx")


def test_is_mixed() -> None:
    assert is_mixed("try 试")
    assert is_mixed("试x")
    assert not is_mixed("try 9 * 4 wait")
    assert not is_mixed("试 9 * 4 大")


@settings(deadline=None)
@given(st.text())
def test_share_is_a_share(text: str) -> None:
    shares = [consistency(text, language) for language in ("en", "zh")]
    assert (shares[0] is None) == (shares[1] is None)
    if shares[0] is not None and shares[1] is not None:
        assert 0 <= shares[0] + shares[1] <= 1
    if not is_mixed(text):
        assert set(shares) <= {None, 0.0, 1.0}
