"""The math verifier: facts, what math-verify alone gets wrong, and hostile answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.verifiers.batch import many
from longthought.verifiers.math import Math, equivalent
from longthought.verifiers.math_numbers import exact
from longthought.verifiers.math_text import find, refusal

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "math_pairs.jsonl").read_text("utf-8").splitlines()]
"""Facts: pairs from the suites of public graders, and pairs that are mathematically certain."""


@pytest.fixture(scope="module", autouse=True)
def _workers() -> Iterator[None]:
    """Those of every ``Math()`` and of ``equivalent``; the deadline is for machines that are not busy."""
    yield
    Math().close()


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    """Of all pairs, asked at once."""
    return Math(deadline=20).compare([(pair["prediction"], pair["gold"]) for pair in PAIRS])


def test_there_are_enough_pairs() -> None:
    assert len(PAIRS) >= 600
    assert sum(not pair["equal"] for pair in PAIRS) >= 150


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=[f"{pair['kind']}-{n}" for n, pair in enumerate(PAIRS)])
def test_facts(number: int, verdicts: list[Verdict]) -> None:
    assert (PAIRS[number], verdicts[number].value) == (PAIRS[number], float(PAIRS[number]["equal"])), verdicts[number]


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
        ("101_3", "101_2"),
        (r"1+\frac{1}{e}", r"1-\frac{1}{\mathrm{e}}"),
    ],
)
def test_what_math_verify_takes_for_equal(prediction: str, gold: str) -> None:
    assert equivalent(prediction, gold).value == 0.0


def test_it_is_not_symmetric() -> None:
    """A set answers an inequality; an inequality, which the question may have stated, answers no set."""
    assert equivalent("(1,2)", "1<x<2").value == 1.0
    assert equivalent("1<x<2", "(1,2)").value == 0.0


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (r"First \boxed{41}, no: that forgets a case. After a long second look we find \boxed{42}.", 0.0),
        (r"First $\boxed{41}$ is what we get from the easy case. Then the hard case gives $\boxed{42}$.", 1.0),
        (r"\boxed{42} and again \boxed{42}", 1.0),
        (r"The answer is \boxed{\frac{84}{2}}.", 1.0),
        ("We know 41 is prime.\nThe final answer is: $42$.", 1.0),
        ("It may be 41 or 42.", 0.0),
        (r"\boxed{41 or 42}", 0.0),
        ("Answer: 41, or maybe 42", 0.0),
        (r"\boxed{42", 1.0),
        ("42 is the number of the bus. The answer is 7.", 0.0),
    ],
)
def test_which_answer_counts(reply: str, value: float) -> None:
    assert equivalent(reply, "42").value == value


@pytest.mark.parametrize("prediction", ["", "   ", r"\boxed{}", "\\", "%", "$$", "\\frac{"])
def test_no_answer(prediction: str) -> None:
    verdict = equivalent(prediction, r"\sqrt{2}")
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE)
    assert verdict.evidence


@pytest.mark.parametrize("gold", ["", "  ", "\\frac{", "9^{9^{9^9}}", "(" * 100])
def test_no_gold(gold: str) -> None:
    verdict = equivalent("7", gold)
    assert (verdict.value, verdict.outcome) == (None, Outcome.NO_GOLD)


HOSTILE = [
    "9^9^9^9",
    "9^{9^{9^9}}",
    "10^{10^8}",
    "9^{(9^{9})}",
    "{9}^{{9}^{{9}^{9}}}",
    "9**9**9**9",
    "100000!!!!",
    "((((9!)!)!)!)",
    "10^{9}!",
    "2^{10000000}",
    "e^{e^{e^{79}}}",
    "(" * 10**6,
    "{" * 10**6,
    r"\frac{" * 5000 + "1" + "}{1}" * 5000,
    r"\sqrt{" * 3000 + "2" + "}" * 3000,
    "9" * 5000,
    "9" * 10**6,
    "1+" * 10**5 + "1",
    "x" * 10**6,
    r"\boxed{" * 10**4,
    "4\x002",
    "٤٢",
    "４２",
    "\ud800",
    "\u202e42",
    r"\def\a{\a\a}\a",
    r"\newcommand{\x}{\x}\x",
    r"\input{/etc/passwd}",
    "().__class__.__bases__[0].__subclasses__()",
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_refused_before_any_parser(answer: str) -> None:
    verdict = equivalent(answer, r"\frac{\sqrt{3}}{2}")
    assert (verdict.value, verdict.outcome) == (0.0, Outcome.UNPARSABLE)


@pytest.mark.parametrize(
    "text",
    ["e^{-\\frac{x^2}{2}}", "2^{2^n}", "x^{2^{10}}", "2^{3^{n}}", "2^{2024}", "x^2+y^2+z^2", "a^{b^{c}}", "2006!"],
)
def test_what_looks_hostile_and_is_not(text: str) -> None:
    assert refusal(text) is None


def payloads(marker: Path) -> list[str]:
    """Texts that leave a marker where they are evaluated."""
    call = f"__import__('os').system('touch {marker}')"
    write = f"open('{marker}','w').write('x')"
    inner = [call, write, f'eval("{write}")', f"[{write} for x in (1,)][0]", f"1+{write}", f"(lambda:{write})()"]
    frames = ["{}", r"\boxed{{{}}}", r"$\text{{{}}}$", r"\boxed{{\text{{{}}}}}", r"\operatorname{{{}}}", "${}$"]
    return [frame.format(text) for text in inner for frame in frames] + [
        rf"\write18{{touch {marker}}}",
        f"`touch {marker}`",
        f"$(touch {marker})",
    ]


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    texts = payloads(marker)
    for verdict in Math(deadline=20).compare([(text, "42") for text in texts] + [("42", text) for text in texts]):
        assert verdict.value != 1.0
        assert verdict.outcome is not Outcome.CRASHED
    assert not marker.exists()


def test_no_text_reaches_eval_even_without_the_checks(tmp_path: Path) -> None:
    """The worker's own function, in a process of its own, with everything that the checks refuse."""
    marker = tmp_path / "executed"
    program = """
import json, sys
from longthought.verifiers import math_worker as worker
worker.warm_up()
import sympy
for text in json.loads(sys.argv[1]):
    for prose in (False, True):
        worker.grade((text, prose), ("42", False))
    try:
        sympy.sympify(text)
    except Exception:
        pass
print(worker.grade(("1/2", True), ("0.5", True))[0], worker.grade(("2*(3+4)", True), ("14", True))[0])
"""
    line = [sys.executable, "-c", program, json.dumps(payloads(marker))]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "1.0"]
    assert not marker.exists()


def test_too_slow_is_no_grade() -> None:
    brief = Math(deadline=0.5, workers=1)
    verdicts = brief.compare([(r"\Gamma(10^9)", r"\sqrt{2}"), (r"\sqrt{4}", "2")])
    brief.close()
    assert [(verdict.value, verdict.outcome) for verdict in verdicts] == [
        (None, Outcome.TIMED_OUT),
        (1.0, Outcome.GRADED),
    ]


def test_many_is_one_after_the_other() -> None:
    verifier = Math()
    golds = [r"\sqrt{8}", "42", "x=3", ""]
    pairs = [(Problem("p", (), gold), Message("assistant", reply)) for gold in golds for reply in (r"2\sqrt2", "3", "")]
    assert many(verifier, pairs) == [verifier(*pair) for pair in pairs]
    assert verifier.many([]) == []


def test_off_the_main_thread() -> None:
    found: list[float | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(equivalent(r"\sqrt{8}", r"2\sqrt2").value)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 4


def test_settings() -> None:
    assert Math() == Math()
    assert Math(deadline=1) != Math()
    for wrong in ({"deadline": 0}, {"workers": 0}, {"deadline": float("nan")}):
        with pytest.raises(SettingsError):
            Math(**wrong)


def test_the_parent_never_imports_the_parser() -> None:
    program = "import sys; from longthought.verifiers.math import equivalent; print(equivalent('x','x').value, "
    program += "equivalent('(x+1)^2','x^2+2x+1').value, 'sympy' in sys.modules, 'math_verify' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    # torch imports a part of sympy by itself on some versions; the parser is what must not be there
    assert done.stdout.split()[:2] == ["1.0", "1.0"]
    assert done.stdout.split()[3] == "False"


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="0123456789\\frac{}sqt()^_+-*/=,.$%!xie boxd<>|&", max_size=40))
def test_never_raises_on_what_looks_like_latex(text: str) -> None:
    verdict = equivalent(text, "42")
    assert verdict.value in {0.0, 1.0, None}
    assert isinstance(verdict.evidence, str)


@settings(deadline=None)
@given(st.text())
def test_finding_and_refusing_never_raise(text: str) -> None:
    found = find(text)
    assert found is None or isinstance(refusal(found.text), str | None)


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_exact_numbers_are_read_as_written(above: int, below: int) -> None:
    for text in (f"{above}/{below}", rf"\frac{{{above}}}{{{below}}}", rf"$\dfrac{{{above}}}{{{below}}}$"):
        number = exact(text)
        assert number is not None
        assert number.value == Fraction(above, below)
    grouped = exact(f"{above:,}")
    assert grouped is not None
    assert grouped.value == above


@pytest.mark.parametrize(
    "text", ["", ".", "-", "1/0", "x", "1,23", "0,111", "1.2.3", "1 000", "٣", "1e3", "2_1", "9_8"]
)
def test_no_plain_number(text: str) -> None:
    assert exact(text) is None


@pytest.mark.parametrize("pair", [("0.333333", r"\frac{1}{3}"), ("0.5", "1/2"), ("0.50", r"\frac12"), ("7", "7.0")])
def test_the_fast_path_agrees_with_the_parser(pair: tuple[str, str]) -> None:
    """Behind a bracket the fast path does not see a plain number."""
    assert equivalent(*pair).value == equivalent(f"({pair[0]})", f"({pair[1]})").value == 1.0
