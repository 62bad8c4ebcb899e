from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Message, Outcome, Problem, Verdict
from longthought.evaluation.evaluate import distinct
from longthought.runs.describe import describe
from longthought.runs.settings import from_dict, override, to_dict
from longthought.tasks import file_rows
from longthought.tasks.fields import Fields
from longthought.tasks.file_problems import Reading, normalized
from longthought.tasks.files import FileTask
from longthought.tasks.grading import Grading
from longthought.tasks.permutation import permuted
from longthought.tasks.splits import SPLITS, split_of
from longthought.verifiers.exact import Number


def exact(problem: Problem, reply: Message) -> Verdict:
    return Verdict(float(reply.content == problem.answer), Outcome.GRADED)


GRADING = Grading(exact)
SKIP = Reading(bad="skip")


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count: int, form: str = "What is {} + 1?") -> list[dict[str, Any]]:
    return [{"question": form.format(number), "answer": number + 1} for number in range(count)]


def read(*paths: Path | str, **more: Any) -> FileTask:
    return FileTask.read(*paths, grading=GRADING, **more)


def everything(task: FileTask) -> dict[str, list[Problem]]:
    """One epoch of every split."""
    return {split: [task.problem(split, index) for index in range(task.size(split))] for split in SPLITS}


def prompts(problems: Sequence[Problem]) -> set[str]:
    return {problem.messages[-1].content for problem in problems}


# ---------------------------------------------------------------- formats

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
FILLED = TEXT.filter(lambda text: text.strip() != "" and "####" not in text and "\\boxed" not in text)
ROWS = st.lists(
    st.fixed_dictionaries({"question": FILLED, "answer": FILLED, "note": TEXT}),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row["question"],
)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows in the format of the extension, by libraries of their own."""
    kind = path.suffix
    if kind == ".jsonl":
        return lines(path, rows)
    if kind == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), encoding="utf-8-sig", newline="")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "tsv"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(rows=ROWS)
def test_rows_come_back_from_every_format(tmp_path: Path, kind: str, rows: list[dict[str, str]]) -> None:
    path = write(tmp_path / f"data.{kind}", rows)
    task = read(path, reading=Reading(Fields(info=("note",)) if any(row["note"] for row in rows) else Fields()))
    found = {(p.messages, p.answer, p.info.get("note", "")) for problems in everything(task).values() for p in problems}
    assert found == {((Message("user", row["question"]),), row["answer"].strip(), row["note"]) for row in rows}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_messages_come_back(tmp_path: Path, kind: str) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    task = read(write(tmp_path / f"a.{kind}", [{"prompt": turns, "answer": 2.0}]), reading=Reading(dev_share=0))
    (problem,) = [p for problems in everything(task).values() for p in problems]
    assert problem.messages == (Message("system", "Be brief."), Message("user", "1 + 1?"))
    assert problem.answer == "2"


def test_a_long_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"é {number} " + '[{"' * number, "answer": number} for number in range(60)]
    path = write(tmp_path / "a.json", rows)
    whole = read(path).problems.fingerprint
    for chunk in (1, 7):
        monkeypatch.setattr(file_rows, "_CHUNK", chunk)
        assert read(path).problems.fingerprint == whole


# ---------------------------------------------------------------- bad rows

MESS: list[tuple[bytes, str]] = [
    (b'{"question": "a", "answer": 1', "not JSON"),
    (b'{"question": "a", "answer": 1} {}', "not JSON: text after the object"),
    (b"[" * 100_000, "not JSON: nested too deeply"),
    (b'["a", 1]', "not an object"),
    (b'{"question": "a\xff", "answer": 1}', "not UTF-8: byte 0xff at 16"),
    (b'{"question": "a", "question": "b", "answer": 1}', "a key given twice: 'question'"),
    (b'{"question": "a", "answer": 1, "info": {"x": 1, "x": 1}}', "a key given twice: 'x'"),
    (b'{"question": "a", "answer": NaN}', "not a finite number: NaN"),
    (b'{"question": "a", "answer": 1e999}', "not a finite number: inf"),
    (b'{"question": "a"}', "missing answer"),
    (b'{"question": "a", "answer": null}', "missing answer"),
    (b'{"question": "a", "answer": " "}', "missing answer"),
    (b'{"question": "a", "answer": true}', "answer is true or false"),
    (b'{"question": "a", "answer": ["1"]}', "wrong type: answer is a list"),
    (b'{"question": "a", "answer": {"x": 1}}', "wrong type: answer is an object"),
    (b'{"answer": 1}', "missing prompt"),
    (b'{"question": 5, "answer": 1}', "wrong type: prompt is a value of type int"),
    (b'{"question": "\\ud800", "answer": 1}', "no valid Unicode: prompt"),
    (b'{"question": "a", "answer": "\\udfff"}', "no valid Unicode: answer"),
    (b'{"question": "a", "answer": 1, "level": "\\ud800"}', "no valid Unicode: info"),
    (b'{"question": [], "answer": 1}', "missing prompt"),
    (b'{"question": ["a"], "answer": 1}', "wrong type: message 1 is text"),
    (b'{"question": [{"role": "tool", "content": "a"}], "answer": 1}', "unknown role: message 1: 'tool'"),
    (b'{"question": [{"role": "user"}], "answer": 1}', "missing content of message 1"),
    (b'{"question": [{"role": "user", "content": [{"type": "text"}]}], "answer": 1}', "wrong type: content"),
    (b'{"question": [{"role": "user", "content": "a", "tool_calls": []}], "answer": 1}', "further keys"),
    (b'{"question": [{"role": "assistant", "content": "a"}], "answer": 1}', "do not end with the user"),
    (b'{"question": [{"role": "system", "content": "a"}], "answer": 1}', "do not end with the user"),
    (
        b'{"question": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}, '
        b'{"role": "user", "content": "a"}], "answer": 1}',
        "a system message that is not the first",
    ),
    (b"{\"question\": \"[{'role': 'user', 'content': 'a'}]\", \"answer\": 1}", "messages written as text"),
    (b'{"question": "good", "answer": 8}', "the same prompt with another answer: as in"),
]


@pytest.mark.parametrize(("line", "reason"), MESS, ids=[reason[:40] for _, reason in MESS])
def test_every_bad_row_is_named_with_its_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    good, other = b'{"question": "good", "answer": 7}', b'{"question": "other", "answer": 7, "level": 1}'
    path.write_bytes(b"\n".join([good, b"", line, other]) + b"\n")
    with pytest.raises(DataError) as refused:
        read(path)
    heading, first, *_ = str(refused.value).splitlines()
    assert heading.startswith("1 row cannot be used")
    assert first.startswith(f"  {path}:3: ")
    assert reason in first


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("g", "an id given twice: 'g', also in"),
        (" g ", "an id given twice"),
        ("a\nb", "unusable id"),
        ("a" * 300, "unusable id"),
        (" ", "unusable id"),
        ([1], "wrong type: id is a list"),
        (True, "wrong type: id is true or false"),
        (1.5, "wrong type: id"),
        (None, "missing id"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, name: Any, reason: str) -> None:
    path = lines(tmp_path / "a.jsonl", [row | {"id": own} for row, own in zip(numbered(2), ("g", name))])
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {reason}"):
        read(path)


def test_all_bad_rows_are_counted_and_the_first_twenty_listed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"q{number}", "answer": 1} for number in range(10)]
    path = lines(tmp_path / "a.jsonl", rows + [{"question": f"r{number}", "answer": None} for number in range(30)])
    with path.open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError) as refused:
        read(path)
    text = str(refused.value)
    assert text.startswith("31 rows cannot be used (30 missing answer, 1 not JSON):")
    assert text.count(f"{path}:") == 20
    assert "and 11 more" in text
    task = read(path, reading=SKIP)
    assert task.skipped == {"missing answer": 30, "not JSON": 1}
    assert "31 bad rows skipped" in task.describe()
    assert sum(map(task.size, SPLITS)) == 10


def test_bad_rows_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", [*numbered(3), {"question": "x"}])
    two = lines(tmp_path / "two.jsonl", [*numbered(3), {"question": "y"}])
    with pytest.raises(DataError, match=r"(?s)one\.jsonl:4: .*two\.jsonl:4: "):
        read(one, two)


def test_a_contradicted_prompt_is_left_out_whole(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [*numbered(3), {"question": "What is 0 + 1?", "answer": 5}])
    task = read(path, reading=SKIP)
    assert "and 1 that they contradict" in task.describe()
    assert not any("0 + 1" in text for problems in everything(task).values() for text in prompts(problems))


def test_exact_duplicates_are_dropped_once(tmp_path: Path) -> None:
    task = read(lines(tmp_path / "a.jsonl", numbered(5) * 3))
    assert sum(map(task.size, SPLITS)) == 5
    assert "10 exact duplicates dropped" in task.describe()


def test_rows_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_rows, "MAX_ROW", 200)
    path = lines(tmp_path / "a.jsonl", [*numbered(2), {"question": "x" * 1000, "answer": 1}, *numbered(4)])
    with pytest.raises(DataError, match=r"a\.jsonl:3: too long"):
        read(path)
    assert sum(map(read(path, reading=SKIP).size, SPLITS)) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.jsonl", '{"question": "a"}'.encode("utf-16"), "is UTF-16"),
        ("a.jsonl", b"\x00\x01\x02", r"a\.jsonl:1: not JSON"),
        ("a.json", b"", "holds no JSON array"),
        ("a.json", b'{"question": "a", "answer": 1}', "call it .jsonl"),
        ("a.json", b"[]", "holds no rows"),
        ("a.json", b'[{"question": "a", "answer": 1}\n', r"a\.json:2: not JSON: ',' or ']' is missing"),
        ("a.json", b'[{"question": "a", "answer": 1},\n]', r"a\.json:2: not JSON from here on"),
        ("a.json", b'[{"question": "a", "answer": 1}] []', "text after the array"),
        ("a.json", b'[{"question": "a",\n "answer": "\xff"}]', r"a\.json:2: not UTF-8"),
        ("a.json", b"[" * 100_000, "not JSON from here on"),
        ("a.csv", b"", "must name the columns"),
        ("a.csv", b"question,question\na,1\n", "each once"),
        ("a.csv", b"question,answer\n", "holds no rows"),
        ("a.csv", b'question,answer\n"a,1\n', r"no valid CSV"),
        ("a.csv", b"question,answer\na,1\nb\n", r"a\.csv:3: not as many cells as columns: 1, not 2"),
        ("a.csv", b'question,answer\n"a\nb",1\nc,\n', r"a\.csv:4: missing answer"),
        ("a.csv", b"question,answer\na\xff,1\n", r"a\.csv:2: not UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.txt", b"question", r"end in \.jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_files_and_settings(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", numbered(3))
    with pytest.raises(DataError, match="there is no file of problems"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(SettingsError, match="name a file"):
        read()
    with pytest.raises(SettingsError, match="named twice"):
        read(path, test=[path])
    with pytest.raises(SettingsError, match="together at most 1"):
        Reading(dev_share=0.6, test_share=0.6)
    with pytest.raises(SettingsError, match="0 or more"):
        Reading(dev_share=float("nan"))
    with pytest.raises(SettingsError, match="refuse or skip"):
        Reading(bad="ignore")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="a task is named"):
        read(path, reading=Reading(name="a/b"))


# ---------------------------------------------------------------- splits

LOOKALIKE = st.tuples(
    st.text(min_size=1, max_size=20),
    st.sampled_from((str.upper, str.lower, lambda text: f"  {text}\n", lambda text: text.replace(" ", "\u3000"))),
)


@given(LOOKALIKE, st.floats(0, 0.5), st.floats(0, 0.5))
def test_prompts_that_are_equal_when_normalised_share_a_split(lookalike: Any, dev: float, test: float) -> None:
    text, change = lookalike
    reading = Reading(dev_share=dev, test_share=test)
    one, other = (("user", text),), (("system", "Hi."), ("user", change(text)))
    if normalized(one) == normalized(other):
        assert reading.split_of(one) == reading.split_of(other)


@pytest.mark.parametrize("other", ["what is  X=3 ?", "What is $x = 3$?", "Ｗhat is x=３?", "what is x, 3"])
def test_reformatted_prompts_share_a_split(other: str) -> None:
    for number in range(50):
        one, two = ((("user", f"{text} {number}"),) for text in ("What is x = 3?", other))
        assert Reading().split_of(one) == Reading().split_of(two)


@given(st.text(st.characters(categories=("Lu", "Nd"), max_codepoint=0x7F), min_size=1))
def test_default_shares_are_those_of_all_tasks(text: str) -> None:
    assert Reading().split_of((("user", text),)) == split_of("files", text.lower())


@given(st.text(min_size=1), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.1))
def test_a_larger_share_keeps_what_a_smaller_one_had(text: str, dev: float, test: float, more: float) -> None:
    prompt = (("user", text),)
    before, after = Reading(dev_share=dev, test_share=test), Reading(dev_share=dev + more, test_share=test + more)
    if before.split_of(prompt) != "train":
        assert after.split_of(prompt) == before.split_of(prompt)


def test_shares_are_kept(tmp_path: Path) -> None:
    task = read(lines(tmp_path / "a.jsonl", numbered(4000)), reading=Reading(dev_share=0.2, test_share=0.3))
    assert task.size("dev") == pytest.approx(800, abs=100)
    assert task.size("test") == pytest.approx(1200, abs=120)


def test_the_same_prompt_is_in_the_same_split_of_every_file(tmp_path: Path) -> None:
    one = everything(read(lines(tmp_path / "one.jsonl", numbered(200))))
    other = everything(read(lines(tmp_path / "other.jsonl", numbered(150)[::-1])))
    for split in SPLITS:
        assert prompts(other[split]) <= prompts(one[split])


def test_given_splits_rule_and_train_gives_up_what_test_holds(tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", numbered(40))
    test = lines(tmp_path / "test.jsonl", numbered(12, "what  IS {} + 1?"))
    task = read(train=train, test=test)
    found = everything(task)
    assert task.size("test") == 12
    assert task.size("train") + task.size("dev") == 28
    assert task.size("dev") > 0
    assert not {text.lower() for text in prompts(found["train"] + found["dev"])} & {
        " ".join(text.lower().split()) for text in prompts(found["test"])
    }
    assert "of train removed, which test holds too" in task.describe()
    assert all(problem.id.startswith("train/test/") for problem in found["test"])


def test_a_column_gives_the_splits(tmp_path: Path) -> None:
    names = ["train", "validation", "TEST"]
    rows = [row | {"split": names[number % 3]} for number, row in enumerate(numbered(30))]
    task = read(lines(tmp_path / "a.jsonl", rows))
    assert [task.size(split) for split in SPLITS] == [10, 10, 10]
    ignoring = read(tmp_path / "a.jsonl", reading=Reading(Fields(split="-")))
    assert [ignoring.size(split) for split in SPLITS] != [10, 10, 10]
    with pytest.raises(DataError, match="unknown split: 'half'"):
        read(lines(tmp_path / "b.jsonl", [*rows, {"question": "x", "answer": 1, "split": "half"}]))


def test_dev_and_test_are_taken_out_of_a_train_that_is_given_alone(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", numbered(200))
    alone = everything(read(train=path))
    assert {split: prompts(alone[split]) for split in SPLITS} == {
        split: prompts(problems) for split, problems in everything(read(path)).items()
    }


def test_an_empty_split_says_what_to_do(tmp_path: Path) -> None:
    task = read(lines(tmp_path / "a.jsonl", numbered(3)), reading=Reading(test_share=0))
    with pytest.raises(DataError, match="choose a larger test_share, or name a file for it"):
        task.problem("test", 0)
    only_test = read(test=tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="its train split holds none of 3 problems"):
        only_test.problem("train", 0)


def test_evaluation_asks_each_problem_once_and_no_more_than_there_are(tmp_path: Path) -> None:
    task = read(test=lines(tmp_path / "a.jsonl", numbered(20)))
    assert len({problem.id for problem in distinct(task, "test", 20)}) == 20
    with pytest.raises(DataError, match="holds only about 20 problems"):
        distinct(task, "test", 21)


# ---------------------------------------------------------------- order, identity, grading


@given(st.integers(1, 300), st.binary(min_size=1, max_size=64))
def test_permuted_is_a_permutation(size: int, key: bytes) -> None:
    assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_permutations_are_even() -> None:
    """Every position goes everywhere about equally often."""
    size = 5
    counts = [[0] * size for _ in range(size)]
    for key in range(2000):
        for index in range(size):
            counts[index][permuted(index, size, str(key).encode())] += 1
    assert all(300 < count < 500 for row in counts for count in row)


def test_every_epoch_asks_each_problem_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", numbered(60))
    task = read(path)
    size = task.size("train")
    epochs = [[task.problem("train", epoch * size + index).id for index in range(size)] for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert len(set(epochs[0])) == size
    other = read(path, reading=Reading(seed=1))
    assert [other.problem("train", index).id for index in range(size)] != epochs[0]
    assert everything(other)["test"] == everything(task)["test"]


def test_ids_name_the_row_or_its_content(tmp_path: Path) -> None:
    rows = [row | {"id": number} for number, row in enumerate(numbered(3))]
    assert {p.id for ps in everything(read(lines(tmp_path / "x.jsonl", rows))).values() for p in ps} == {
        "x/0",
        "x/1",
        "x/2",
    }
    forward, backward = (read(lines(tmp_path / "y.jsonl", order)) for order in (numbered(3), numbered(3)[::-1]))
    assert {p.id for ps in everything(forward).values() for p in ps} == {
        p.id for ps in everything(backward).values() for p in ps
    }


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    rows = numbered(20)
    one = read(lines(tmp_path / "a.jsonl", rows))
    (tmp_path / "b").mkdir()
    assert read(write(tmp_path / "b" / "a.json", rows)) == one
    rows[3]["answer"] = 99
    changed = read(lines(tmp_path / "a.jsonl", rows))
    moved = read(tmp_path / "a.jsonl", reading=Reading(test_share=0.5))
    assert len({task.problems.fingerprint for task in (one, changed, moved)}) == 3
    known = describe(one)
    assert known["problems"]["fingerprint"] == one.problems.fingerprint
    assert known["grading"]["format_weight"] == 0.1


def test_reading_is_a_section_of_settings() -> None:
    words = ["fields.prompt=question", "fields.info=level,type", "fields.take=boxed", "test_share=0.2", "bad=skip"]
    reading = override(Reading(), words)
    assert reading == Reading(Fields("question", take="boxed", info=("level", "type")), test_share=0.2, bad="skip")
    assert from_dict(Reading(), to_dict(reading)) == reading


def test_the_task_grades(tmp_path: Path) -> None:
    task = read(lines(tmp_path / "a.jsonl", numbered(3)))
    problem = next(p for ps in everything(task).values() for p in ps)
    right, wrong = (f"<think>x</think><answer>{text}</answer>" for text in (problem.answer, "no"))
    assert [score.correct for score in task.grade(problem, [right, wrong, "bare"])] == [True, False, False]
    assert task.grade_together([(problem, [right]), (problem, [wrong])]) == [
        task.grade(problem, [right]),
        task.grade(problem, [wrong]),
    ]


@pytest.mark.parametrize(("split", "index"), [("valid", 0), ("train", -1)])
def test_problems_that_do_not_exist(tmp_path: Path, split: str, index: int) -> None:
    with pytest.raises(DataError):
        read(lines(tmp_path / "a.jsonl", numbered(30))).problem(split, index)


def test_an_instruction_follows_every_question_and_moves_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    grading = Grading(Number(), "free", 0.0)
    plain = FileTask.read(file, grading=grading)
    told = FileTask.read(file, grading=grading, reading=Reading(instruction="In digits."))
    for split in ("train", "test"):
        one, other = (task.problem(split, 0) for task in (plain, told))
        assert other.messages[-1].content == f"{one.messages[-1].content}\nIn digits."
        assert (one.id, one.answer) == (other.id, other.answer)
