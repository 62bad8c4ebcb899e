"""``longthought lineage`` and ``traces --export``: real small runs, trees, JSON, and what is wrong in plain words."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from conftest import tiny_model
from longthought.cli.lineage_view import view
from longthought.cli.main import main
from longthought.cli.rehearsal import rehearse
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.lineage import Given, Lineage, Node
from longthought.tasks.examples import Examples
from longthought.text.renderer import ASSISTANT, BEGIN, CHAT_TEMPLATE, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from made_traces import run_of

Capture = pytest.CaptureFixture[str]
SMALL = "precision=float32 examples.held_out=0 sft.epochs=1"


def told(line: str, capsys: Capture, code: int = 0) -> str:
    """What a command prints, on both streams."""
    capsys.readouterr()
    assert main(shlex.split(line)) == code
    shown = capsys.readouterr()
    return shown.out + shown.err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two runs of fine-tuning: the second begins with what the first made."""
    place = tmp_path_factory.mktemp("world")
    chat = PlainRenderer(Tokenizer.of_words([*map(str, range(10)), "plus"], (BEGIN, USER, ASSISTANT, END)))
    Checkpoint.save(place / "model", Policy(tiny_model(vocab_size=chat.tokenizer.size), chat), {"stage": "by hand"})
    rows = [{"question": f"{i % 10} plus {i // 10}", "answer": str(i % 10)} for i in range(40)]
    (place / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, base in (("one", "model"), ("two", "one/01-sft/model")):
        words = f"run sft --quiet --threads 1 --out {place / name} model={place / base} {SMALL}"
        assert main([*shlex.split(words), f"examples.file={place}/chats.jsonl"]) == 0
    return place


@pytest.fixture
def spoiled(world: Path, tmp_path: Path) -> Path:
    """A copy, whose second run still names the models of the first place."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def test_a_tree_over_two_runs(world: Path, capsys: Capture) -> None:
    lines = told(f"lineage {world}/two", capsys).splitlines()
    text = "\n".join(lines)
    assert lines[0].startswith(f"{world}/two: recipe sft, settings ") or len(str(world)) > 40
    places = [
        text.index(part) for part in (f"{world}/model · a model made by by hand", f"{world}/one/01-sft", "01-sft · SFT")
    ]
    assert places == sorted(places)
    assert "trained on 80 tokens" in text
    assert "given stage.examples.conversations: Conversations" in text
    assert "1 stage, all finished and as they were: none would be done again" in text
    assert max(map(len, lines)) <= 120


def test_check_asks_the_recipe_and_hashes(world: Path, capsys: Capture) -> None:
    assert "none would be done again (every file was hashed)" in told(f"lineage {world}/two --check", capsys)


def test_other_data_is_noticed(world: Path, capsys: Capture) -> None:
    file = world / "chats.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + b'\n{"question": "1 plus 1", "answer": "9"}')
    rehearse.cache_clear()  # a process asks a recipe once
    try:
        shown = told(f"lineage {world}/one --check", capsys)
        assert "→ is refused: stage.examples.conversations.fingerprint: " in shown
        file.unlink()
        rehearse.cache_clear()
        assert "what the recipe asks for now: there is no file of conversations" in told(
            f"lineage {world}/one --check", capsys
        )
    finally:
        file.write_bytes(before)
        rehearse.cache_clear()


def test_an_altered_file_is_named(spoiled: Path, capsys: Capture) -> None:
    (spoiled / "one/01-sft/model/config.json").write_text("{}", encoding="utf-8")
    shown = told(f"lineage {spoiled}/one --check", capsys)
    assert "model/config.json is altered" in " ".join(shown.split())
    assert "is made again from its state of step" in shown
    assert "not all is finished and as it was: sft (every file was hashed)" in shown


def test_json_is_the_same_graph(world: Path, capsys: Capture) -> None:
    found = json.loads(told(f"lineage {world}/two --json", capsys))
    assert (found["recipe"], found["checked"], found["notes"]) == ("sft", False, [])
    assert [node["state"] for node in found["nodes"]] == ["finished", "finished", "model"]
    sources = [[given["source"] for given in node["given"] if given["source"]] for node in found["nodes"]]
    assert sources == [[found["nodes"][1]["key"]], [found["nodes"][2]["key"]], []]


def test_a_run_whose_recipe_is_gone(tmp_path: Path, capsys: Capture) -> None:
    run_of(tmp_path / "run")
    content = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    content["recipe"] = "gone.py"
    (tmp_path / "run/run.json").write_text(json.dumps(content), encoding="utf-8")
    shown = told(f"lineage {tmp_path}/run --check", capsys)
    assert "what the recipe asks for now: the recipe file gone.py does not exist" in " ".join(shown.split())


def test_a_run_that_has_not_begun(world: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(world / "two/run.json", tmp_path / "run/run.json")
    assert "no stage was started yet" in told(f"lineage {tmp_path}/run", capsys)
    shown = told(f"lineage {tmp_path}/run --check", capsys)
    assert shown.splitlines()[-3:] == ["→ to be done: sft", "", "nothing is finished"]


@pytest.mark.parametrize(
    ("line", "part"),
    [("nowhere", "is no folder"), (".", "no run.json"), (". --jsn", "did you mean --json?"), ("", "RUN")],
)
def test_wrong_lines(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    shown = told(f"lineage {line}", capsys, code=2)
    assert part in shown
    assert len(shown.splitlines()) == 1


def test_circles_and_hostile_names_are_drawn(capsys: Capture) -> None:
    from rich.console import Console

    def node(name: str, *sources: str) -> Node:
        given = tuple(Given("given", "Checkpoint", "ab" * 32, source) for source in sources)
        return Node(name, "run", name, "\x1b[31m[red]Kind[/red]\u202e", "finished", given=given)

    nodes = (node("a", "b"), node("b", "a"), node("c", "c"), node("d", "a", "c"))
    Console(width=100, markup=False).print(view(Lineage("run", "r\x07", "", "", 1, nodes, (), ("\x00",), False)))
    shown = capsys.readouterr().out
    assert shown.count("which stands above: a circle") == 2
    assert "given given: Checkpoint abababababab, from c" in shown
    assert not any(sign in shown for sign in "\x1b\x07\x00\u202e")
    assert "[red]Kind[/red]" in shown


# -- traces --export -------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    """A run of made traces whose model speaks the format of our small models."""
    path = run_of(tmp_path / "run")
    folder = path / "01-base" / "model"
    Tokenizer.load(folder).save(folder, CHAT_TEMPLATE, end="<|end|>", begin="<|begin|>")
    for file in folder.iterdir():
        if file.name not in ("tokenizer.json", "tokenizer_config.json"):
            file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_export_prints_counts_and_is_read_back(traced: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "right.jsonl"
    shown = told(f"traces {traced} --correct yes --finish stop --export {file} --format sharegpt", capsys)
    assert shown == f"2 rollouts written\nFile: {file}\n"
    (row, _) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert (row["filters"], row["id"]) == ("--finish stop --correct yes", "2:0:0")
    examples = Examples.read(file, held_out=0.0)
    question, reply = examples.messages("train", 0)
    assert (question.content, reply.reasoning, reply.content) == ("33", "try 33", "yes")
    assert examples.conversations.repeated == 1


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--export a.csv", "ends in .jsonl or .parquet"),
        ("--export a.parquet --format messages", "changes nothing beside a Parquet file"),
        ("--export a.jsonl --tokens", "--tokens needs a Parquet file"),
        ("--export a.jsonl --json", "--json changes nothing beside --export"),
        ("--export a.jsonl --html b.html", "--html changes nothing beside --export"),
        ("--export a.jsonl --id 1:0:0", "--export changes nothing beside --id"),
        ("--export a.jsonl --show 1", "--export changes nothing beside --show"),
        ("--export a.jsonl --format alpaca", "invalid choice: 'alpaca'"),
        ("--format messages", "--format changes nothing without --export FILE"),
        ("--force", "--force changes nothing without --export FILE"),
        ("--correct yes --finish length --export a.jsonl", "no rollout of 16 matches: nothing was written"),
        ("--text '^gone$' --export no/a.jsonl", "cannot write no/a.jsonl"),
    ],
)
def test_exports_that_are_refused(
    traced: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str, part: str
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    shown = told(f"traces {traced} {line}", capsys, code=2)
    assert part in shown
    assert len(shown.splitlines()) == 1
    assert list(place.iterdir()) == []
