"""Rules for lists, roles, paths and grids: what they accept, what they refuse, and that nothing breaks them."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.types import Outcome, Verdict
from longthought.verifiers import path
from longthought.verifiers.assignment import roles
from longthought.verifiers.grid import sudoku
from longthought.verifiers.sequence import bits, integers

GOLD = {"Ann": "+", "Bo": "-", "小安": "+"}
WORDS = {"knight": "+", "knave": "-", "骑士": "+", "无赖": "-"}
EDGES = {("A", "B"): 2, ("B", "A"): 2, ("B", "C"): 2, ("C", "B"): 2, ("A", "C"): 5, ("C", "A"): 5}
MAZE = ("S.#", "#..", "..G")
CLUES = ("1...", ".4..", "..1.", "...2")
FILLED = "1 2 4 3 / 3 4 2 1 / 2 3 1 4 / 4 1 3 2"


def numbers(answer: str) -> Verdict:
    return integers(answer, [3, 1, 20])


def four_bits(answer: str) -> Verdict:
    return bits(answer, "0110")


def everybody(answer: str) -> Verdict:
    return roles(answer, GOLD, WORDS)


def through(answer: str) -> Verdict:
    return path.nodes(answer, EDGES, ("A", "C"), 4)


def moves(answer: str) -> Verdict:
    return path.moves(answer, MAZE, 4)


def filled(answer: str) -> Verdict:
    return sudoku(answer, CLUES, (2, 2))


RIGHT = [
    (numbers, ["3 1 20", " 3,1,20\n", "3 , 1 , 20", "[3, 1, 20]", "( 3 1 20 )", "03 1 20"]),
    (four_bits, ["0110", "0 1 1 0", "0,1,1,0", " 01 10 "]),
    (
        everybody,
        [
            "Ann: knight, Bo: knave, 小安: knight",
            "bo:KNAVE;ANN : Knight；小安：骑士。",
            "小安是骑士\nAnn is a knight\n Bo is a knave.",
        ],
    ),
    (through, ["A B C", "A,B,C", "A -> B->C", "A-B-C", " A → B → C "]),
    (moves, ["R D D R", "RDDR", "R,D,R,D"]),
    (
        filled,
        [FILLED, FILLED.replace(" / ", "\n"), FILLED.replace(" ", ""), FILLED.replace(" ", ",").replace(",/,", "/")],
    ),
]
WRONG = [
    (numbers, ["3 20 1", "3 1", "3 1 20 3", "0 0 0"]),
    (four_bits, ["0111", "011", "01100", "1"]),
    (everybody, ["Ann: knave, Bo: knave, 小安: knight", "Ann: knight, Bo: knight, 小安：无赖"]),
    (through, ["A C", "A B", "B C", "A B A B C", "A X C", "C B A", "A", "a b c"]),
    (moves, ["R D D R U D", "D D R R", "R", "R D D", "L", "U"]),
    (
        filled,
        [
            "1 2 3 4 / 3 4 2 1 / 2 3 1 4 / 4 1 3 2",
            "2 1 4 3 / 3 4 2 1 / 2 3 1 4 / 4 1 3 2",
            "1 2 4 3 / 2 4 3 1 / 3 2 1 4 / 4 3 1 2",
            "1 3 2 4 / 2 4 3 1 / 4 2 1 3 / 3 1 4 2".replace("3 1 4 2", "9 9 9 2"),
        ],
    ),
]
UNPARSABLE = [
    (
        numbers,
        [
            "",
            ",",
            "3,,1",
            "3 1 20.",
            "[3 1 20",
            "3 1 20]",
            "(3 1 20]",
            "3; 1; 20",
            "-3 1 20",
            "٣ 1 20",
            "3 1 20 ok",
            "3.0",
        ],
    ),
    (four_bits, ["", "0110b", "0b0110", "0110 or 0111", "2", "０１１０", "0110."]),
    (
        everybody,
        [
            "",
            "Ann: knight, Bo: knave",
            "Ann: knight, Bo: knave, 小安: knight, Bo: knave",
            "Ann: knight, Bo: knave, Bo: knight, 小安: knight",
            "Ann: knight, Bo: knave, 小安: knight, Cy: knave",
            "Ann: knight or knave, Bo: knave, 小安: knight",
            "Ann: knight, Bo: maybe knave, 小安: knight",
            "Ann: not knight, Bo: knave, 小安: knight",
            "I think Ann: knight, Bo: knave, 小安: knight",
            "Ann: knight, Bo: knave, 小安: knight, or the other way round",
            "knight, knave, knight",
            "Ann: knight Bo: knave 小安: knight",
            "Ann: liar, Bo: knave, 小安: knight",
        ],
    ),
    (through, ["", "-", "A->->C", "A; B; C", "A B C.", "A B C or A C!", "[A, B, C]", "A>B>C"]),
    (moves, ["", "right down", "rddr", "R D D R!", "RDDRX", "↑", "R/D"]),
    (
        filled,
        [
            "",
            "1",
            FILLED + " / ",
            FILLED + " 1",
            FILLED[:-2],
            FILLED.replace("1", "."),
            FILLED.replace("1", "0"),
            "[[1]]",
        ],
    ),
]


def cases(table: list[tuple[Callable[[str], Verdict], list[str]]]) -> list[object]:
    return [pytest.param(rule, text, id=f"{rule.__name__}-{text!a:.30}") for rule, texts in table for text in texts]


@pytest.mark.parametrize(("rule", "answer"), cases(RIGHT))
def test_right(rule: Callable[[str], Verdict], answer: str) -> None:
    verdict = rule(answer)
    assert (verdict.value, verdict.outcome) == (1.0, Outcome.GRADED), verdict.evidence


@pytest.mark.parametrize(("rule", "answer"), cases(WRONG))
def test_wrong(rule: Callable[[str], Verdict], answer: str) -> None:
    verdict = rule(answer)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.GRADED), verdict.evidence


@pytest.mark.parametrize(("rule", "answer"), cases(UNPARSABLE))
def test_unparsable(rule: Callable[[str], Verdict], answer: str) -> None:
    verdict = rule(answer)
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE), verdict.evidence
    assert verdict.evidence


RULES = [rule for rule, _ in RIGHT]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "piece", ["1", "1 ", "A ", "A->", "R ", "Ann: knight,", " ", "\t", "(", ",", "/", "-", "A-", "is a ", "\n", "\x00"]
)
def test_long_answers_are_refused_at_once(rule: Callable[[str], Verdict], piece: str) -> None:
    for length in (999, 2000, 2_000_000):
        text = (piece * length)[:length]
        assert rule(text).value == 0.0
        assert rule(text + "!").value == 0.0


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet="01 ,/ABCRDLU->是：:knight\n234[]()."))
def test_never_raises(rule: Callable[[str], Verdict], text: str) -> None:
    assert rule(text).value in (0.0, 1.0)


@pytest.mark.parametrize("size", [(6, 2, 3), (9, 3, 3)])
def test_boxes_that_are_not_square_count(size: tuple[int, int, int]) -> None:
    """A Latin square with right rows and columns, but wrong boxes, is refused; one with right boxes is not."""
    digits, height, width = size
    rows = [[(width * r + r // height + c) % digits + 1 for c in range(digits)] for r in range(digits)]
    latin = [[(r + c) % digits + 1 for c in range(digits)] for r in range(digits)]
    clues = ["." * digits] * digits
    good, bad = (
        sudoku("/".join("".join(map(str, row)) for row in grid), clues, (height, width)) for grid in (rows, latin)
    )
    assert good.value == 1.0
    assert bad.value == 0.0
    assert bad.evidence.startswith("box")
