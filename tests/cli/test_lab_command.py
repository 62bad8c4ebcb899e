"""``longthought lab`` from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from longthought.cli.main import main

Capture = pytest.CaptureFixture[str]
SMALL = ("--words", "1", "--length", "2", "--problems", "2", "--group", "2", "--steps", "100")
OWN = """
from longthought.algorithms.advantage import leave_one_out, per_group
from longthought.algorithms.objective import KL, REINFORCE, Sum
from longthought.algorithms.weighting import sequence_sum
from longthought.stages.method import Method


def doubled(r):
    return 2 * leave_one_out(r)


def method():
    return Method(per_group(doubled), sequence_sum, REINFORCE())


def with_kl():
    return Method(per_group(doubled), sequence_sum, Sum((REINFORCE(), KL(0.1))))


def broken():
    return 1 / 0


def nothing():
    return None
"""


def test_the_table_and_what_it_says(capsys: Capture) -> None:
    assert main(["lab", *SMALL]) == 0
    out = capsys.readouterr().out
    for name in ("grpo", "rloo", "vapo", "kimi", "gae_1_wrong_critic", "kl_k3_corrected_in_loss"):
        assert re.search(rf"^ ?{name} ", out, re.MULTILINE)
    assert "Unbiased: rloo, remax" in out
    assert "problems × replies a step: 2 × 2" in out
    assert sum(line.startswith("·") for line in out.splitlines()) == 5


def test_json_and_a_picture(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "new" / "lab.svg"
    words = ["--estimators", "rloo, dr_grpo", "--json", "--plot", str(file), "--off-policy", "0.3", "--seed", "2"]
    assert main(["lab", *SMALL, *words]) == 0
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    assert [one["name"] for one in content["estimators"]] == ["dr_grpo", "rloo"]
    assert content["off_policy_nats"] > 0
    assert str(file) in shown.err
    assert file.read_text("utf-8").lstrip().startswith("<?xml")


def test_an_estimator_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    own = f"{file}:method"
    assert main(["lab", *SMALL, "--estimator", own, "--estimators", "rloo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["estimators"]
    assert [one["unbiased"] for one in found] == ["scale only", "yes"]
    assert found[0]["scale"] == pytest.approx(2, abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]
    for function, told in (
        ("with_kl", "has a KL term"),
        ("broken", "ZeroDivisionError"),
        ("nothing", "must return a Method"),
        ("absent", "no attribute"),
    ):
        assert main(["lab", *SMALL, "--estimator", f"{file}:{function}"]) == 2
        assert told in capsys.readouterr().err


def test_a_group_of_one_leaves_out_what_compares(capsys: Capture) -> None:
    assert main(["lab", *SMALL[:-4], "--group", "1", "--steps", "100", "--json"]) == 0
    shown = capsys.readouterr()
    names = [one["name"] for one in json.loads(shown.out)["estimators"]]
    assert "remax" in names
    assert "grpo" not in names
    assert "too small for grpo" in shown.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--estimators", "gropo"], "did you mean grpo"),
        (["--estimators", " , "], "is empty"),
        (["--estimators", "rloo_tis"], "--off-policy"),
        (["--estimators", "grpo", "--group", "1"], "2 or more"),
        (["--skew", "nan"], "a number is needed"),
        (["--skew", "2"], "between 0 and 1"),
        (["--words", "30"], "too many to enumerate"),
        (["--words", "1000000", "--length", "1000000"], "too many to enumerate"),
        (["--plot", "lab.pdf"], "must end in"),
        (["--estimator", "mine"], "give a file and a function"),
        (["--estimator", "gone.py:method"], "does not exist"),
        (["--gruop", "3"], "did you mean --group"),
    ],
)
def test_what_cannot_be_done_is_told_plainly(capsys: Capture, words: list[str], told: str) -> None:
    assert main(["lab", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
