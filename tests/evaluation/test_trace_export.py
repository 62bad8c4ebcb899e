"""Exports: what is written is read back as it was said, every row knows where it comes from, and files are whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.core.errors import RunError, SettingsError
from longthought.core.types import Finish, Message, Outcome, Rollout
from longthought.evaluation import trace_export
from longthought.evaluation.trace_export import Export, chosen_format, export, reply_of
from longthought.evaluation.trace_query import Query, look
from longthought.evaluation.trace_source import source
from longthought.runs import traces
from longthought.runs.files import digests
from longthought.runs.record import Launch, Record
from longthought.runs.settings import fingerprint_of
from longthought.tasks.examples import ExampleReading, Examples
from longthought.text import folder as text_folder
from longthought.text.folder import Renderer
from longthought.text.templates import TINY_ZERO
from made_traces import HOSTILE, rollout, write

REPLIES = (
    "<think>\n3 + 4, wait\n</think>\n\n7",
    "<think> a <think> b </think>yes \n",
    "plain words",
    "before <think>late</think> after",
    "<think></think>no thought",
    "thought</think> said",
    "<answer>7</answer>",
)
UNFIT = {"<think>cut": 1, "": 1, "<think>x</think> ": 1, "a</think>b</think>c": 1}
ALL = Query()
Form = Literal["messages", "sharegpt", "parquet"]


def with_prompt(made: Rollout, renderer: Renderer, question: str) -> Rollout:
    return replace(made, prompt=renderer.prompt((Message("user", question),)))


def run_of(path: Path, replies: Sequence[str], template: bool = False, steps: int = 1) -> Record:
    """A run whose model speaks Qwen's format, or continues TinyZero's prompt; one group of replies a step."""
    folder = path / "01-base" / "model"
    qwen(folder)
    renderer = text_folder.load(folder, TINY_ZERO if template else None)
    record = Record(path, "tiny", {}, (Launch.now("longthought run tiny", 1),))
    record.write()
    given = {"is": "Checkpoint", "files": fingerprint_of(digests(folder))}
    stated = {"is": "Template", "name": "tiny_zero", "text": TINY_ZERO.text, "source": "", "stop": ["User:"]}
    task = {"is": "FileTask", "grading": {"is": "Grading", "verifier": {"is": "Math", "digits": 6}}}
    asked = {
        "stage": {"is": "RL", "seed": 5, "task": task},
        "given": {**given, "template": stated if template else None},
    }
    done = {"artifact": "model", "files": digests(folder), "stage": "", "given": ""}
    (path / "01-base" / "done.json").write_text(json.dumps(done), encoding="utf-8")
    for step in range(1, steps + 1):
        group = [with_prompt(rollout(text), renderer, f"what is\n{step}?") for text in replies]
        write(path / "02-rl" / "traces", step, [tuple(group)])
    (path / "02-rl" / "stage.json").write_text(json.dumps(asked), encoding="utf-8")
    return record


def qwen(folder: Path) -> None:
    """A small tokenizer with Qwen's chat format."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    chat = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def exported(
    record: Record, asked: Export, query: Query = ALL, missed: Callable[[RunError], None] = print
) -> trace_export.Told:
    given = source(record)
    return export(given, record, look(given.folder, query), asked, missed)


def said(file: Path) -> list[tuple[Message, ...]]:
    examples = Examples.read(file, held_out=0.0, reading=ExampleReading(bad="skip"))
    return [examples.conversations[i] for i in range(len(examples.conversations))]


@pytest.mark.parametrize(("name", "form"), [("a.jsonl", "messages"), ("a.jsonl", "sharegpt"), ("a.parquet", "parquet")])
@pytest.mark.parametrize("template", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, form: Form, template: bool) -> None:
    record = run_of(tmp_path / "run", (*REPLIES, *UNFIT), template)
    told = exported(record, Export(tmp_path / name, form))
    opened = TINY_ZERO.text.endswith("<think>") and template
    expected = [(Message("user", "what is\n1?"), reply_of(text, opened)) for text in (*REPLIES, *UNFIT)]
    expected = [one for one in expected if one[1].content.strip() and one[1].content != "b</think>c"]
    assert [*said(tmp_path / name)] == expected
    assert told.written == (len(REPLIES) + len(UNFIT) if form == "parquet" else len(expected))
    assert sum(told.left_out.values()) == len(REPLIES) + len(UNFIT) - len(expected)


def test_thought_and_answer_by_hand(tmp_path: Path) -> None:
    exported(run_of(tmp_path / "run", REPLIES[:1]), Export(tmp_path / "a.jsonl"))
    exported(run_of(tmp_path / "more", REPLIES[:1]), Export(tmp_path / "b.jsonl", "sharegpt"))
    plain, shared = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("a.jsonl", "b.jsonl"))
    assert plain["messages"] == [
        {"role": "user", "content": "what is\n1?"},
        {"role": "assistant", "content": "7", "reasoning_content": "3 + 4, wait"},
    ]
    assert shared["conversations"] == [
        {"from": "human", "value": "what is\n1?"},
        {"from": "gpt", "value": "<think>\n3 + 4, wait\n</think>\n\n7"},
    ]


def test_every_row_knows_where_it_comes_from(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", REPLIES[:1], template=True)
    exported(record, Export(tmp_path / "a.jsonl", filters="--correct yes"))
    row = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    assert row.pop("messages")
    assert len(row.pop("task")) == 64
    assert row == {
        "run": "run",
        "stage": "rl",
        "id": "1:0:0",
        "step": 1,
        "group": 0,
        "sample": 0,
        "problem": "p/1",
        "model": fingerprint_of(digests(tmp_path / "run/01-base/model")),
        "version": 4,
        "template": "tiny_zero",
        "seed": 5,
        "verifier": "Math",
        "filters": "--correct yes",
        "reward": 1.0,
        "value": 1.0,
        "correct": True,
        "parts": {"accuracy": 1.0},
        "shaping": {},
        "advantage": 1.0,
        "outcome": "graded",
        "finish": "stop",
        "evidence": "saw <think>\n3",
        "length": 3,
        "left_out": None,
    }


def test_parquet_keeps_every_rollout_with_its_tokens(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", (*REPLIES, *UNFIT, *HOSTILE), steps=2)
    exported(record, Export(tmp_path / "a.parquet", "parquet", tokens=True), Query(reverse=True))
    kept, stored = pq.read_table(tmp_path / "a.parquet"), traces.read(tmp_path / "run/02-rl/traces")
    common = [name for name in stored.column_names if name not in ("update", "weight")]
    assert kept.select(common).equals(stored.select(common))
    assert kept["unfit"].null_count == kept["messages"].length() - kept["messages"].null_count
    slim = tmp_path / "slim.parquet"
    exported(record, Export(slim, "parquet"))
    assert not {"tokens", "logprobs", "prompt"} & set(pq.read_table(slim).column_names)


def test_hostile_text_stays_in_its_row(tmp_path: Path) -> None:
    told = exported(run_of(tmp_path / "run", HOSTILE), Export(tmp_path / "a.jsonl"))
    assert [one[1].content for one in said(tmp_path / "a.jsonl")] == [text for text in HOSTILE if text]
    assert told.left_out == {"the reply is empty": 1}


@given(
    st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "a", "<|im_end|>", "é", "\u2028"]), max_size=9).map(
        "".join
    )
)
@settings(max_examples=150, deadline=None)
def test_a_reply_is_read_as_files_are(text: str) -> None:
    """Without an open tag in the prompt: what ``Examples.read`` makes of the raw text, where it takes it."""
    from longthought.tasks.cells import UnfitRow
    from longthought.tasks.example_rows import ExampleColumns, conversation

    row = {"prompt": "x", "reply": text}
    try:
        expected = conversation(row, ExampleColumns(prompt="prompt", reply="reply"))[-1]
    except UnfitRow:
        return
    assert reply_of(text) == expected


def test_filters_order_and_limit(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", REPLIES[:3], steps=3)
    exported(record, Export(tmp_path / "a.jsonl", limit=4), Query(text="wait|plain"))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["3:0:0", "3:0:2", "2:0:0", "2:0:2"]


def test_few_rollouts_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_of(tmp_path / "run", REPLIES[:5], steps=5)
    monkeypatch.setattr(trace_export, "_CHUNK", 2)
    counts: list[int] = []
    reads = trace_export.rows_of

    def counted(folder: Path, ids: Sequence[Any], *rest: Any) -> list[dict[str, Any]]:
        counts.append(len(ids))
        return reads(folder, ids, *rest)

    monkeypatch.setattr(trace_export, "rows_of", counted)
    assert exported(record, Export(tmp_path / "a.jsonl", limit=23)).written == 23
    assert (max(counts), sum(counts)) == (2, 23)


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, out = run_of(tmp_path / "run", REPLIES), tmp_path / "out"
    out.mkdir()
    with pytest.raises(RunError, match="no rollout of 7 matches"):
        exported(record, Export(out / "a.jsonl"), Query(outcomes=(str(Outcome.CRASHED),)))
    cut = run_of(tmp_path / "cut", ("<think>cut", ""))
    with pytest.raises(RunError, match=r"none is a conversation .*1 nothing after the reasoning; 1 the reply is empty"):
        exported(cut, Export(out / "a.jsonl"))
    monkeypatch.setattr(trace_export, "json_bytes", lambda row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exported(record, Export(out / "a.jsonl"))
    with pytest.raises(RunError, match=r"cannot write .*missing/a\.jsonl"):
        exported(record, Export(out / "missing" / "a.jsonl"))
    assert list(out.iterdir()) == []


def test_files_that_are_there_are_kept(tmp_path: Path) -> None:
    record, file = run_of(tmp_path / "run", REPLIES), tmp_path / "a.jsonl"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="there already: choose another name, or replace it with --force"):
        exported(record, Export(file))
    assert file.read_text(encoding="utf-8") == "mine"
    exported(record, Export(file, force=True))
    assert len(said(file)) == len(REPLIES)
    with pytest.raises(RunError, match="a stage of the run"):
        exported(record, Export(tmp_path / "run/02-rl/metrics.jsonl", force=True))
    with pytest.raises(RunError, match="is a folder"):
        exported(record, Export(tmp_path / "run", force=True))


def test_without_a_chat_format_only_parquet_is_written(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", REPLIES)
    (tmp_path / "run/01-base/model/tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="no model with a tokenizer and a chat format"):
        exported(record, Export(tmp_path / "a.jsonl"))
    told = exported(record, Export(tmp_path / "a.parquet", "parquet"))
    assert told.left_out == {"the prompt is not read as a question in the model's chat format": 7}
    assert pq.read_table(tmp_path / "a.parquet")["text"].to_pylist() == list(REPLIES)


def test_a_base_outside_the_run_tells_the_chat_format(tmp_path: Path) -> None:
    """The stage is not finished, and its model lies where the settings say."""
    record = run_of(tmp_path / "run", REPLIES[:1], template=True)
    (tmp_path / "run/01-base/model").rename(tmp_path / "base")
    (tmp_path / "base/config.json").write_text("{}", encoding="utf-8")
    record = replace(record, settings={"model": str(tmp_path / "base")})
    exported(record, Export(tmp_path / "a.jsonl"))
    assert said(tmp_path / "a.jsonl")[0][0] == Message("user", "what is\n1?")


def test_damaged_steps_are_told_and_counted(tmp_path: Path) -> None:
    record, missed = run_of(tmp_path / "run", REPLIES, steps=2), list[RunError]()
    given = source(record)
    listing = look(given.folder, Query())
    traces.file_of(given.folder, 1).write_bytes(b"PAR1")
    told = export(given, record, listing, Export(tmp_path / "a.jsonl"), missed.append)
    assert (told.written, told.lost, len(missed)) == (7, 7, 1)
    assert told.lines[-1] == "7 could not be read"


def test_a_stage_json_that_tells_nothing(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", (*REPLIES[:1],))
    for content in (
        "",
        "[]",
        '{"stage": 3, "given": [1]}',
        '{"stage": {"seed": 1e400, "task": []}, "given": {"files": 7}}',
    ):
        (tmp_path / "run/02-rl/stage.json").write_text(content, encoding="utf-8")
        exported(record, Export(tmp_path / "a.jsonl", force=True))
        row = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
        assert (row["model"], row["seed"], row["verifier"]) == (None, None, None)


def test_reply_that_was_cut_in_its_answer_is_marked(tmp_path: Path) -> None:
    record = run_of(tmp_path / "run", ())
    renderer = text_folder.load(tmp_path / "run/01-base/model")
    cut = with_prompt(rollout("<think>a</think>half", finish=Finish.LENGTH), renderer, "what?")
    write(tmp_path / "run/02-rl/traces", 7, [(cut,)])
    exported(record, Export(tmp_path / "a.jsonl"), Query(finishes=("length",)))
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["finish"] == "length"


@pytest.mark.parametrize(
    ("file", "asked", "form"),
    [("a.jsonl", None, "messages"), ("a.JSONL", "sharegpt", "sharegpt"), ("a.parquet", None, "parquet")],
)
def test_the_format_is_told_by_the_name(file: str, asked: str | None, form: str) -> None:
    assert chosen_format(Path(file), asked) == form


def test_formats_that_do_not_fit() -> None:
    with pytest.raises(SettingsError, match=r"ends in \.jsonl or \.parquet, not in '\.csv'"):
        chosen_format(Path("a.csv"), None)
    with pytest.raises(SettingsError, match="--format sharegpt changes nothing beside a Parquet file"):
        chosen_format(Path("a.parquet"), "sharegpt")
    with pytest.raises(SettingsError, match="--tokens needs a Parquet file"):
        Export(Path("a.jsonl"), tokens=True)
