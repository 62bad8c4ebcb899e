"""The layouts of the data sets that people bring."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Problem
from longthought.tasks.cells import UnfitRow
from longthought.tasks.fields import Fields
from longthought.tasks.file_problem import number_text
from longthought.tasks.file_problems import Reading
from longthought.tasks.files import FileTask
from longthought.tasks.gold import after_hashes, last_boxed
from longthought.tasks.grading import Grading
from longthought.tasks.splits import SPLITS
from longthought.verifiers.endpoint import Endpoint
from longthought.verifiers.judge import Judge

PLAIN = Fields()
GRADING = Grading(Judge(Endpoint("http://localhost:1/v1", "m")))

GSM8K = {"question": "How many?", "answer": "6 * 200 = <<6*200=1200>>1200\n#### 1,200"}
MATH = {
    "problem": "Find $x$.",
    "level": "Level 3",
    "type": "Algebra",
    "solution": r"First \boxed{1}, then $x=\boxed{\frac{1}{2}}$.",
}
AIME = {"ID": "2024-I-1", "Problem": "Find n.", "Solution": "Long.", "Answer": 204}
DEEPSCALER = {"problem": "Find n.", "answer": r"\frac{1}{2}", "solution": r"So \boxed{\frac{1}{2}}."}
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve it. Answer: $Answer"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
OPEN_R1 = {
    "problem": "Find n.",
    "solution": "Long.",
    "answer": "5",
    "problem_type": "Algebra",
    "question_type": "word-problem",
    "source": "olympiads",
    "uuid": "u-1",
    "generations": ["a", "b"],
    "messages": [{"role": "user", "content": "Find n."}, {"role": "assistant", "content": "It is 5."}],
}
TRL = {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "solution": r"$\boxed{7}$"}


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "info", "name"),
    [
        (GSM8K, "How many?", "1200", {"solution": GSM8K["answer"]}, None),
        (
            MATH,
            "Find $x$.",
            r"\frac{1}{2}",
            {"level": "Level 3", "type": "Algebra", "solution": MATH["solution"]},
            None,
        ),
        (AIME, "Find n.", "204", {"solution": "Long."}, "2024-I-1"),
        (DEEPSCALER, "Find n.", r"\frac{1}{2}", {"solution": DEEPSCALER["solution"]}, None),
        (DAPO, "Solve it. Answer: $Answer", "34", {"data_source": "math_dapo"}, "9a9b6eb4"),
        (
            OPEN_R1,
            "Find n.",
            "5",
            {"solution": "Long.", "problem_type": "Algebra", "question_type": "word-problem", "source": "olympiads"},
            "u-1",
        ),
        (TRL, "Q", "7", {"solution": r"$\boxed{7}$"}, None),
        (TRL | {"solution": "seven"}, "Q", "seven", {}, None),
        (TRL | {"ground_truth": 7}, "Q", "7", {"solution": r"$\boxed{7}$"}, None),
        ({"input": "1 + 1", "target": 2}, "1 + 1", "2", {}, None),
        ({"question": "Q", "final_answer": "x = 2"}, "Q", "x = 2", {}, None),
        ({"instruction": "Add.", "output": "2"}, "Add.", "2", {}, None),
        ({"instruction": "Add.", "input": "", "output": "2"}, "Add.", "2", {}, None),
        ({"question": "Q", "prompt": [{"role": "user", "content": "Q"}], "answer": 2}, "Q", "2", {}, None),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "long"}], "answer": "2"},
            "Q",
            "2",
            {"demonstration": "long"},
            None,
        ),
    ],
)
def test_known_layouts(
    tmp_path: Path, row: dict[str, Any], prompt: str, answer: str, info: dict[str, str], name: str | None
) -> None:
    problem = only(tmp_path, row)
    assert problem.messages[-1] == Message("user", prompt)
    assert (problem.answer, dict(problem.info)) == (answer, info)
    assert name is None or problem.id == f"a/{name}"


def task(tmp_path: Path, *rows: dict[str, Any], fields: Fields = PLAIN) -> FileTask:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileTask.read(path, grading=GRADING, reading=Reading(fields))


def only(tmp_path: Path, *rows: dict[str, Any], **more: Any) -> Problem:
    found = task(tmp_path, *rows, **more)
    (split,) = [split for split in SPLITS if found.size(split)]
    return found.problem(split, 0)


def test_the_mapping_is_described(tmp_path: Path) -> None:
    rows = [GSM8K | {"question": f"Q{number}"} for number in range(1234)]
    assert (
        task(tmp_path, *rows).describe().startswith("prompt ← question, answer ← after #### in answer; 1,234 problems")
    )
    assert "answer ← the last \\boxed in solution, info ← level, type" in task(tmp_path, MATH).describe()
    assert "answer ← reward_model.ground_truth, id ← extra_info.index" in task(tmp_path, DAPO).describe()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Q", "answer": "1", "target": "2"},
            "both 'answer' and 'target' may be the answer.*answer=answer",
        ),
        ({"question": "Q", "problem": "R", "answer": "1"}, "both 'problem' and 'question' may be the prompt"),
        ({"Question": "Q", "question": "R", "answer": "1"}, "both 'Question' and 'question'"),
        ({"instruction": "Add", "input": "1 1", "output": "2"}, "both 'input' and 'instruction'"),
        ({"text": "Q", "answer": "1"}, r"no column is known to hold the prompt.*Columns: text, answer"),
        ({"question": "Q", "result": "1"}, r"no column is known to hold the answer.*fields=answer=…"),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "ends with a reply, which is an example to imitate and no answer",
        ),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "ends with a reply"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_says_how_to_choose(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task(tmp_path, row)


def test_two_columns_that_begin_to_differ_later_are_bad_rows(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": "1", "target": 1 if n < 150 else 2} for n in range(151)]
    with pytest.raises(DataError, match=r"a\.jsonl:151: two answers that differ: answer and target"):
        task(tmp_path, *rows)


def test_fields_choose(tmp_path: Path) -> None:
    row = {"question": "Q", "text": "T", "answer": "1 #### 2", "target": "3", "meta": {"gold": [4], "n": 5}, "x": 6}
    assert only(tmp_path, row, fields=Fields("text", "target")).answer == "3"
    assert only(tmp_path, row, fields=Fields("text", "answer")).answer == "2"
    assert only(tmp_path, row, fields=Fields("text", "answer", take="whole")).answer == "1 #### 2"
    chosen = only(tmp_path, row, fields=Fields.parse("prompt=text, answer=meta.n, id=x, info=meta+x"))
    assert (chosen.messages[0].content, chosen.answer, chosen.id) == ("T", "5", "a/6")
    assert chosen.info == {"meta": '{"gold": [4], "n": 5}', "x": "6"}


def test_a_named_column_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'anwser' is absent or empty; did you mean answer"):
        task(tmp_path, {"question": "Q", "answer": "1"}, fields=Fields(answer="anwser"))
    with pytest.raises(DataError, match="the same column"):
        task(tmp_path, {"question": "Q", "answer": "1"}, fields=Fields(answer="question"))


def test_a_row_without_the_mark_is_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: answer without ####"):
        task(tmp_path, GSM8K, GSM8K | {"question": "R"}, {"question": "S", "answer": "12"})
    with pytest.raises(DataError, match="answer without a closed"):
        task(tmp_path, MATH, MATH | {"problem": "R"}, MATH | {"problem": "S", "solution": r"\boxed{1"})


def test_an_id_column_may_be_ignored(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": "1", "id": "same"} for n in range(2)]
    with pytest.raises(DataError, match="an id given twice"):
        task(tmp_path, *rows)
    assert sum(map(task(tmp_path, *rows, fields=Fields(id="-")).size, SPLITS)) == 2


@pytest.mark.parametrize("text", ["prompt", "prompt=", "prompt=a,prompt=b", "ask=a", "=a", "take=none", "answer=-"])
def test_refuses_fields(text: str) -> None:
    with pytest.raises(SettingsError, match="fields"):
        Fields.parse(text)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### 42", "42"),
        ("a #### 1 b\n####  -1,234.5 ", "-1234.5"),
        ("#### 1,2", "1,2"),
        ("#### (1,000)", "(1,000)"),
        ("####", None),
        ("42", None),
        ("### 42", None),
    ],
)
def test_after_hashes(text: str, gold: str | None) -> None:
    assert after_hashes(text) == gold


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed{1} and \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\fbox{x}", "x"),
        (r"$\boxed 5$", "5"),
        (r"$\boxed5$ apples", "5"),
        (r"$\boxed \pi$", r"\pi"),
        (r"\boxed {7}", "7"),
        (r"\boxed{a\boxed{b}}", "b"),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
        (r"\boxedx{3}", None),
        ("42", None),
        (r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}", "{" * 100_000 + "}" * 100_000),
    ],
)
def test_last_boxed(text: str, gold: str | None) -> None:
    assert last_boxed(text) == gold


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (42, "42"),
        (42.0, "42"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e20, "100000000000000000000"),
        (-2.5, "-2.5"),
        (10**30, "1" + "0" * 30),
        (Decimal("3.1400"), "3.14"),
        (Decimal("300"), "300"),
    ],
)
def test_numbers_as_text(number: float, text: str) -> None:
    assert number_text(number) == text


@pytest.mark.parametrize("number", [float("inf"), float("nan"), Decimal("NaN")])
def test_numbers_that_are_none(number: float) -> None:
    with pytest.raises(UnfitRow, match="not a finite number"):
        number_text(number)
