"""A user's own function as a verifier."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import named
from longthought.core.errors import SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.runs.describe import describe
from longthought.verifiers.batch import BatchVerifier
from longthought.verifiers.function import PARAMETERS, Function

PROBLEM = Problem("p", (Message("user", "?"),), "42", {"level": "5"})
REPLY = Message("assistant", " 42 ", reasoning="6 * 7")


def grade(function: Callable[..., Any], **settings: Any) -> Verdict:
    verifier = Function(function, workers=1, **settings)
    try:
        return verifier(PROBLEM, REPLY)
    finally:
        verifier.close()


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def test_the_five_lines_of_the_documentation() -> None:
    def verify(content, answer):  # type: ignore[no-untyped-def]
        return content.strip() == answer

    assert grade(verify) == Verdict(1.0, Outcome.GRADED, "")


def test_every_parameter() -> None:
    def verify(problem, reply, answer, gold, content, text, reasoning, info):  # type: ignore[no-untyped-def]
        assert (problem, reply) == (PROBLEM, REPLY)
        return answer == gold == "42" and content == text == " 42 " and reasoning == "6 * 7" and info["level"] == "5"

    assert set(verify.__code__.co_varnames[:8]) == set(PARAMETERS)
    assert grade(verify).value == 1.0


def test_defaults_and_catch_alls_are_left_alone() -> None:
    def verify(content, strict=True, *rest, **more):  # type: ignore[no-untyped-def]
        return strict and not rest and not more

    assert grade(verify).value == 1.0


@pytest.mark.parametrize(
    ("returned", "value", "evidence"),
    [
        (True, 1.0, ""),
        (False, 0.0, ""),
        (1, 1.0, ""),
        (0.25, 0.25, ""),
        (-3, -3.0, ""),
        (np.float32(0.5), 0.5, ""),
        (np.bool_(True), 1.0, ""),
        ((0.5, "half"), 0.5, "half"),
        (Verdict(0.5, Outcome.GRADED, "so"), 0.5, "so"),
    ],
)
def test_grades(returned: Any, value: float, evidence: str) -> None:
    assert grade(returning(returned)) == Verdict(value, Outcome.GRADED, evidence)


def test_a_verdict_keeps_its_outcome() -> None:
    assert grade(returning(Verdict(0.0, Outcome.UNPARSABLE, "?"))) == Verdict(0.0, Outcome.UNPARSABLE, "?")
    assert grade(returning(Verdict(None, Outcome.NO_GOLD, "?"))) == Verdict(None, Outcome.NO_GOLD, "?")


@pytest.mark.parametrize(
    "returned",
    [
        None,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        "1.0",
        [1.0],
        {"value": 1},
        1j,
        object(),
        (1, 2),
        (None, "?"),
        Verdict(math.nan, Outcome.GRADED),
        Verdict(None, Outcome.GRADED),
        Verdict(1.0, Outcome.CRASHED),
        Verdict(1.0, "excellent"),  # type: ignore[arg-type]
    ],
    ids=lambda value: named(value)[:30],
)
def test_no_grade(returned: Any) -> None:
    verdict = grade(returning(returned))
    assert (verdict.value, verdict.outcome) == (None, Outcome.INVALID)
    assert verdict.evidence.startswith("returned")


def test_a_crash_names_the_line_of_the_user() -> None:
    def verify(content):  # type: ignore[no-untyped-def]
        print("so far", content)
        return int("forty-two")

    verdict = grade(verify)
    line = verify.__code__.co_firstlineno + 2
    assert verdict.outcome is Outcome.CRASHED
    assert verdict.evidence == (
        f"ValueError: invalid literal for int() with base 10: 'forty-two' (test_function.py, line {line}); "
        "printed: so far  42"
    )


def test_a_hang_is_timed_out() -> None:
    def verify():  # type: ignore[no-untyped-def]
        print("thinking")
        time.sleep(60)

    verdict = grade(verify, deadline=0.3)
    assert (verdict.value, verdict.outcome) == (None, Outcome.TIMED_OUT)
    assert verdict.evidence == "no answer within 0.3 s; printed: thinking"


@pytest.mark.parametrize("leave", [sys.exit, lambda: os._exit(0)])
def test_leaving_is_no_grade(leave: Callable[[], Any]) -> None:
    assert grade(lambda: leave()).outcome is Outcome.CRASHED


def test_many_in_order_over_both_workers() -> None:
    def verify(content):  # type: ignore[no-untyped-def]
        if content == "7":
            os._exit(1)
        return float(content)

    verifier = Function(verify)
    verdicts = verifier.many([(PROBLEM, Message("assistant", str(number))) for number in range(40)])
    verifier.close()
    assert [verdict.value for verdict in verdicts] == [None if number == 7 else float(number) for number in range(40)]
    assert isinstance(verifier, BatchVerifier)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda anser: True,
        lambda content, extra: True,
        "verify",
        42,
    ],
)
def test_no_verifier(wrong: Any) -> None:
    with pytest.raises(SettingsError):
        Function(wrong)


def test_refusals() -> None:
    def positional(content, /):  # type: ignore[no-untyped-def]
        return True

    async def later(content):  # type: ignore[no-untyped-def]
        return True

    def generate(content):  # type: ignore[no-untyped-def]
        yield True

    for wrong in (positional, later, generate):
        with pytest.raises(SettingsError):
            Function(wrong)
    for settings in ({"deadline": 0}, {"workers": 0}):
        with pytest.raises(SettingsError):
            Function(returning(True), **settings)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    lines = ["def near(a, b):", "    return a == b", "def verify(content, answer):"]
    file.write_text("\n".join([*lines, "    return near(content.strip(), answer)", ""]))
    return file


def test_from_file(mine: Path) -> None:
    for place in (f"{mine}:verify", str(mine)):
        verifier = Function.from_file(place, workers=1)
        assert verifier(PROBLEM, REPLY).value == 1.0
        verifier.close()
    assert sorted(path.name for path in mine.parent.iterdir()) == ["mine.py"]


@pytest.mark.parametrize("place", ["nowhere.py:verify", "mine.txt", "", ":verify"])
def test_no_such_file(place: str) -> None:
    with pytest.raises(SettingsError, match="no Python file"):
        Function.from_file(place)


def test_files_that_cannot_be_used(mine: Path) -> None:
    with pytest.raises(SettingsError, match="no function grade"):
        Function.from_file(f"{mine}:grade")
    for content in ("1/0", "def verify(:", "import sys; sys.exit(3)", "import no_such_module"):
        mine.write_text(content)
        with pytest.raises(SettingsError, match="cannot be imported"):
            Function.from_file(str(mine))


def test_the_fingerprint_follows_the_source(mine: Path) -> None:
    before = Function.from_file(str(mine))
    again = Function.from_file(str(mine))
    assert before.fingerprint == again.fingerprint
    assert describe(before) == describe(again) == {"is": "Function", "fingerprint": before.fingerprint}
    assert Function.from_file(str(mine), deadline=1).fingerprint != before.fingerprint
    mine.write_text(mine.read_text().replace("a == b", "a != b"))
    assert Function.from_file(str(mine)).fingerprint != before.fingerprint


def test_the_fingerprint_follows_what_is_closed_over() -> None:
    assert Function(returning(1)).fingerprint != Function(returning(2)).fingerprint
    assert Function(returning(1)).fingerprint == Function(returning(1)).fingerprint


def test_the_fingerprint_without_a_source() -> None:
    found = []
    for body in ("content == answer", "content != answer", "content == answer"):
        scope: dict[str, Any] = {}
        exec(f"def verify(content, answer): return {body}", scope)
        found.append(Function(scope["verify"]).fingerprint)
    assert found[0] == found[2] != found[1]
