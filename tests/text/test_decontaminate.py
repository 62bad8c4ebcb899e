"""Near-duplicates that were planted are found, and texts that have nothing to do with each other are not."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.text.decontaminate import Duplicates, Evaluations, Reference, _hashes, units, words

CLIPS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
BOXES = (
    "A farmer packs 1,200 eggs into boxes that hold a dozen each. How many boxes does the farmer need for all of them?"
)
CHICKENS = "鸡兔同笼，共有三十五个头，九十四只脚，问鸡和兔各有多少只？"
SHORT = "What is 17 + 25?"
SOLUTION = "In May she sold 48/2 = 24 clips, so that altogether she sold 48 + 24 = 72 clips in both months."

PLANTED = [
    (CLIPS, "clips"),
    (CLIPS.upper(), "clips"),
    (CLIPS.replace(",", " ;").replace(".", " —").replace("?", ""), "clips"),
    (CLIPS.replace(" ", "\n\t  "), "clips"),
    (f"12. {CLIPS}", "clips"),
    (f"Problem 7: {CLIPS}", "clips"),
    (f"**Question 3.** {CLIPS}", "clips"),
    (f"Please solve this for me. {CLIPS} Think step by step.", "clips"),
    (CLIPS.translate({ord(c): ord(c) + 0xFEE0 for c in "abcdefghijklmnopqrstuvwxyz0123456789"}), "clips"),
    ("\u200b".join(CLIPS), "clips"),
    (CLIPS.replace("Natalia", "Maria"), "clips"),  # ten words in a row are left
    (BOXES.replace("1,200", "1200"), "boxes"),
    (CHICKENS, "chickens"),
    (f"例题 5：{CHICKENS.replace('，', ' , ')}", "chickens"),
    (" ".join(CHICKENS), "chickens"),
    (f"请解这道题：{CHICKENS}谢谢。", "chickens"),
    (SHORT, "short"),
    ("Q4) what is 17+25", "short"),
    ("  WHAT is 17 + 25 ?!", "short"),
]
UNRELATED = [
    "Natalia has 48 friends. In April she bought clips for half of them; how many were left without any in May?",
    "What is 17 - 25?",
    "What is 17 + 26?",
    "What is 17 + 25 + 3?",
    "Tell me a story about a farmer who packs eggs.",
    "有若干只鸡和兔在一个笼子里，数一数有二十个头，五十只脚。",
    "72",
    "42",
    "",
    "?!",
    "How many boxes are there?",
    "Write a poem about April and May.",
    "0 0 0 0 0 0 0 0 0 0 0 0",
]


def evaluations() -> Evaluations:
    found = Evaluations()
    found.add([Reference("clips", CLIPS, ("72", SOLUTION)), Reference("boxes", BOXES, ("100",))])
    found.add([Reference("chickens", CHICKENS), Reference("short", SHORT, ("42",))])
    return found


@pytest.mark.parametrize(("text", "name"), PLANTED)
def test_a_planted_question_is_found(text: str, name: str) -> None:
    found = evaluations().overlap(text)
    assert found is not None
    assert (found.problem, found.part) == (name, "question")


@pytest.mark.parametrize("text", UNRELATED)
def test_what_has_nothing_to_do_with_it_is_not(text: str) -> None:
    assert evaluations().overlap(text) is None
    assert evaluations().overlap("Another question", text) is None


def test_a_reference_solution_and_a_question_within_a_reply_are_found() -> None:
    found = evaluations().overlap("How many?", "Let me see.", f"Well: {SOLUTION}")
    assert found is not None
    assert (found.problem, found.part) == ("clips", "solution")
    assert len(found.words.split()) == 10
    assert evaluations().overlap("Write a problem.", f"Here is one: {BOXES}") is not None


def test_grams_do_not_reach_from_one_text_into_another() -> None:
    half = CLIPS.split()
    assert evaluations().overlap(" ".join(half[:7]), " ".join(half[7:13])) is None


@pytest.mark.parametrize("count", range(1, 16))
def test_exactly_n_words_are_needed(count: int) -> None:
    found = Evaluations(n=10)
    found.add([Reference("clips", CLIPS)])
    assert (found.overlap("zero " + " ".join(CLIPS.split()[3 : 3 + count]) + " zero") is not None) == (count >= 10)


def brute(question: str, text: str, n: int) -> bool:
    one, other = words(question), words(text)
    grams = [one[i : i + n] for i in range(len(one) - n + 1)]
    return any(other[j : j + n] in grams for j in range(len(other) - n + 1))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=30), st.lists(st.sampled_from("abcdefgh"), max_size=40)
)
def test_as_every_pair_of_grams_compared(question: list[str], text: list[str]) -> None:
    found = Evaluations(n=4)
    found.add([Reference("p", " ".join(question))])
    telling = any(len(set(question[i : i + 4])) >= 2 for i in range(len(question) - 3))
    asked = " ".join(text)
    if found.overlap("other", asked) is not None:
        assert brute(" ".join(question), asked, 4)
    elif telling:
        shared = [
            question[i : i + 4] for i in range(len(question) - 3) for j in range(len(text) - 3)
            if question[i : i + 4] == text[j : j + 4]
        ]  # fmt: skip
        assert all(len(set(gram)) < 2 for gram in shared)


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{} at the very end of it."


def templated(count: int, **how: object) -> Evaluations:
    found = Evaluations(**how)  # type: ignore[arg-type]
    found.add(Reference(f"t{k}", f"What is {k} times {k + 1}? {INSTRUCTION}") for k in range(count))
    return found


@pytest.mark.parametrize("evaluated", [templated(12), templated(3, ignore=(INSTRUCTION,))], ids=["found", "given"])
def test_an_instruction_that_all_share_is_no_evidence(evaluated: Evaluations) -> None:
    assert evaluated.overlap(f"Name a river of Asia. {INSTRUCTION}") is None
    assert evaluated.overlap(f"What is 40 times 41? {INSTRUCTION}") is None
    found = evaluated.overlap(f"what is 2 times 3 ? {INSTRUCTION}")
    assert found is not None
    assert found.problem == "t2"
    assert evaluated.overlap("What is 2 times 3?") is not None  # without it, too


def test_a_question_that_was_entered_many_times_is_no_template() -> None:
    found = Evaluations()
    found.add([Reference(f"p{k}", CLIPS) for k in range(20)])
    assert found.overlap(CLIPS) is not None


def test_the_same_word_again_and_again_is_no_evidence() -> None:
    found = Evaluations()
    found.add([Reference("zeros", f"How many zeros stand at the end of this number here: {'0 ' * 30}?")])
    assert found.overlap("Write some zeros.", "0 " * 50) is None
    assert found.overlap("How many zeros stand at the end of this number here?") is not None


def test_numbers_and_units() -> None:
    assert words("12) What's 1,000 + x?") == ["whats", "1000", "x"]
    assert units("3 − 4 = 5*6 / 2, **bold** well-known\n- item") == [
        "3", "-", "4", "=", "5", "*", "6", "/", "2", "bold", "well", "known", "item",
    ]  # fmt: skip
    assert words("") == []


# --- duplicates


@pytest.mark.parametrize(
    "text",
    [
        CLIPS,
        CLIPS.lower(),
        f"(3) {CLIPS}",
        CLIPS.replace(" ", "  \n").replace(",", "").replace(".", "!"),
        CLIPS.replace("How many", "so how many"),
        f"{CLIPS} Explain.",
    ],
)
def test_planted_duplicates_are_found(text: str) -> None:
    seen = Duplicates()
    assert seen.add("first", CLIPS) is None
    assert seen.add("boxes", BOXES) is None
    assert seen.add("second", text) == "first"
    assert seen.add("third", text) == "first"


@pytest.mark.parametrize("text", [t for t in UNRELATED if words(t)] + [BOXES, CHICKENS, SOLUTION])
def test_different_texts_are_kept(text: str) -> None:
    seen = Duplicates()
    for number, other in enumerate([CLIPS, SHORT]):
        assert seen.add(str(number), other) is None
    assert seen.add("own", text) is None


def test_signs_make_a_difference_and_scopes_are_apart() -> None:
    seen = Duplicates()
    assert [seen.add(str(k), t) for k, t in enumerate(["3 + 4", "3 - 4", "3 * 4", "3 / 4", "3 +  4"])] == [None] * 4 + [
        "0"
    ]
    assert seen.add("a", "yes it is", "question one") is None
    assert seen.add("b", "yes it is", "question two") is None
    assert seen.add("c", "Yes, it is!", "Question one?") == "a"


def test_as_all_pairs_compared_exactly() -> None:
    chance = Random(0)
    vocabulary = [f"w{k}" for k in range(60)]
    texts: list[list[str]] = []
    for _ in range(150):
        text = list(chance.choice(texts)) if texts and chance.random() < 0.5 else chance.choices(vocabulary, k=60)
        for _ in range(chance.choice([0, 1, 1, 2, 4, 8])):
            text[chance.randrange(len(text))] = chance.choice(vocabulary)
        texts.append(text)
    seen, kept = Duplicates(), list[set[tuple[str, ...]]]()
    for number, text in enumerate(texts):
        grams = {tuple(text[i : i + 3]) for i in range(58)}
        near = any(len(grams & other) >= 0.8 * len(grams | other) for other in kept)
        assert (seen.add(str(number), " ".join(text)) is not None) == near
        if not near:
            kept.append(grams)
    assert 30 < len(kept) < 140


def test_hashes_are_the_same_in_every_process() -> None:
    """They depend on no seed of Python's own."""
    assert int(np.bitwise_xor.reduce(_hashes(units(CLIPS), 3))) == HASHES


HASHES = 12_227_192_635_313_840_889


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_text_can_be_read(texts: list[str]) -> None:
    seen, found = Duplicates(), evaluations()
    for text in texts:
        found.overlap(text, text)
        seen.add("x", text)
        assert seen.add("y", text) is not None


@pytest.mark.parametrize("make", [lambda: Duplicates(0.3), lambda: Duplicates(1.1), lambda: Evaluations(n=1)])
def test_settings_that_make_no_sense(make: object) -> None:
    with pytest.raises(SettingsError):
        make()  # type: ignore[operator]
