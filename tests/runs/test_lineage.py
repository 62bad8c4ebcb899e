"""Lineage: what came from what, across runs, whatever is damaged, altered, gone, or runs in a circle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from longthought.core.errors import RunDamaged, RunError
from longthought.core.types import Message
from longthought.runs.artifacts import Checkpoint
from longthought.runs.files import digests
from longthought.runs.lineage import Lineage, Node, lineage
from longthought.runs.place import Place
from longthought.runs.record import Record
from longthought.runs.run import Run
from longthought.runs.settings import fingerprint_of
from longthought.runs.shelf import record_of
from longthought.tasks.examples import Examples
from made_traces import run_of as run_with_traces


@dataclass(frozen=True)
class Base:
    """Settings of a recipe that takes a model."""

    model: Path = Path("model")


@dataclass(frozen=True)
class Train:
    """Makes a model folder of one file; the weights are the word and what was given."""

    word: str
    teacher: Checkpoint | None = None
    examples: Examples | None = None
    stops: bool = False
    state: bool = False

    def run(self, given: Checkpoint | None, place: Place) -> Checkpoint:
        place.load_state()
        place.time(1, {"training": 1.5, "tokens": 7})
        place.log(1, {"loss": 1.0, "tokens": 40, "trained": 30})
        if self.state or self.stops:
            place.save_state(1, {"w": torch.ones(1)}, {})
        if self.stops:
            raise KeyboardInterrupt
        return model(place.path / "model", self.word, given)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")


def model(folder: Path, word: str, given: Checkpoint | None = None, **told: Any) -> Checkpoint:
    """A folder that says how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_text(word, encoding="utf-8")
    (folder / "provenance.json").unlink(missing_ok=True)
    origin = {"from": given.fingerprints()} if given is not None else {}
    content = {"stage": "train", **origin, **told, "files": digests(folder)}
    (folder / "provenance.json").write_text(json.dumps(content), encoding="utf-8")
    return Checkpoint(folder)


def run(path: Path, stages: Sequence[Train], base: Path | None = None) -> Path:
    """A run of stages one after the other, named a, b, c …"""
    settings = Base(base) if base is not None else Base()
    with Run.open(path, recipe="mine", settings=settings, command="longthought run mine") as opened:
        given = Checkpoint(base) if base is not None else None
        for name, stage in zip("abcdef", stages):
            given = opened.do(name, stage, given)
    return path


def told(path: Path, check: bool = False) -> Lineage:
    found = lineage(Record.read(path), check)
    json.dumps(asdict(found), allow_nan=False)
    return found


def by_name(found: Lineage) -> dict[str, Node]:
    return {Path(node.key).name if node.run == found.run else node.key: node for node in found.nodes}


def test_a_stage_tells_what_it_took_and_made(tmp_path: Path) -> None:
    run(tmp_path / "run", [Train("x"), Train("y")])
    first, second = told(tmp_path / "run").nodes
    assert (first.name, first.kind, first.state, first.given) == ("a", "Train", "finished", ())
    assert first.settings == json.loads((tmp_path / "run/01-a/done.json").read_text())["stage"]
    assert first.fingerprint == fingerprint_of(digests(tmp_path / "run/01-a/model"))
    assert (first.artifact, first.files, first.seconds, first.trained, first.sampled) == ("model", 3, 1.5, 30, None)
    assert first.bytes == sum(file.stat().st_size for file in (tmp_path / "run/01-a/model").iterdir())
    assert first.began <= first.ended
    (given,) = second.given
    assert (given.kind, given.fingerprint, given.source) == ("Checkpoint", first.fingerprint, first.key)
    assert (first.again, first.faults, second.again, second.faults) == ((), (), (), ())


def test_tokens_of_rollouts_are_counted(tmp_path: Path) -> None:
    run_with_traces(tmp_path / "run")
    node = by_name(told(tmp_path / "run"))["02-rl"]
    assert (node.sampled, node.trained) == (2 * (3 + 3 + 7 + 3 + 4 * 3), 2 * 3)


def test_data_is_an_input_too(tmp_path: Path) -> None:
    examples = Examples.of([(Message("user", "a"), Message("assistant", "b"))])
    run(tmp_path / "run", [Train("x", examples=examples)])
    (node,) = told(tmp_path / "run").nodes
    assert [(given.where, given.kind, given.fingerprint, given.source) for given in node.given] == [
        ("stage.examples.conversations", "Conversations", examples.conversations.fingerprint, "")
    ]


def test_a_base_of_another_run_is_followed_to_its_beginning(tmp_path: Path) -> None:
    run(tmp_path / "far" / "one", [Train("x"), Train("y")])
    run(tmp_path / "far" / "two", [Train("z")], tmp_path / "far/one/02-b/model")
    run(tmp_path / "here" / "three", [Train("w")], tmp_path / "far/two/01-a/model")
    found = told(tmp_path / "here/three")
    chain = [
        (Path(node.run).name, node.name, [Path(given.source).name for given in node.given]) for node in found.nodes
    ]
    assert chain == [("three", "a", ["01-a"]), ("two", "a", ["02-b"]), ("one", "b", ["01-a"]), ("one", "a", [])]


def test_a_copy_of_a_model_is_followed_through_its_provenance(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "one", [Train("x")])
    base = model(
        tmp_path / "copy", "tuned", Checkpoint(tmp_path / "runs/one/01-a/model"), converted={"dtype": "float16"}
    )
    run(tmp_path / "runs" / "two", [Train("y")], base.path)
    own, copy, origin = told(tmp_path / "runs/two").nodes
    assert own.given[0].source == copy.key == str(base.path)
    assert (copy.state, copy.kind, copy.run) == ("model", "made by train, converted to float16", "")
    assert copy.given[0].source == origin.key == str((tmp_path / "runs/one/01-a").resolve())


def test_a_model_of_somebody_else_is_compared_when_it_is_asked_for(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "x").path
    (base / "provenance.json").unlink()
    run(tmp_path / "run", [Train("y")], base)
    own, other = told(tmp_path / "run").nodes
    assert (own.given[0].source, other.kind, other.fingerprint) == (str(base), "of somebody else", "")
    assert (own.again, other.faults) == ((), ())
    assert told(tmp_path / "run", check=True).nodes[1].fingerprint == own.given[0].fingerprint
    (base / "model.safetensors").write_text("z", encoding="utf-8")
    (own,) = told(tmp_path / "run", check=True).nodes
    assert f"is not what the settings name now, {base}" in own.again[0]


def test_a_path_may_be_written_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "one", [Train("x")])
    run(tmp_path / "two", [Train("y"), Train("z")], tmp_path / "one/01-a/model")
    for place, path in ((tmp_path / "two", "."), (tmp_path, "two"), (tmp_path / "one", "../two")):
        monkeypatch.chdir(place)
        found = told(Path(path))
        assert [node.name for node in found.nodes] == ["a", "b", "a"]
        assert [node.again for node in found.nodes] == [(), (), ()]


def test_two_inputs_both_have_a_source(tmp_path: Path) -> None:
    run(tmp_path / "one", [Train("x")])
    run(tmp_path / "two", [Train("y", Checkpoint(tmp_path / "one/01-a/model")), Train("z")])
    node = by_name(told(tmp_path / "two"))["01-a"]
    assert [(given.where, Path(given.source)) for given in node.given] == [("stage.teacher", tmp_path / "one/01-a")]


# -- what would be done again --------------------------------------------------------------------------------------


def test_a_stage_that_was_stopped_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", [Train("x"), Train("y", stops=True)])
    first, second = told(tmp_path / "run").nodes
    assert not first.again
    assert (second.state, second.ended, second.artifact) == ("unfinished", "", "")
    assert second.again == ("goes on after step 1",)
    shutil.rmtree(tmp_path / "run/02-b/state")
    assert told(tmp_path / "run").nodes[1].again == ("starts from its beginning",)


@pytest.mark.parametrize("state", [False, True])
def test_check_names_the_file_that_was_altered(tmp_path: Path, state: bool) -> None:
    run(tmp_path / "run", [Train("x", state=state), Train("y")])
    file = tmp_path / "run/01-a/model/model.safetensors"
    file.write_text("z", encoding="utf-8")
    assert not any(node.faults for node in told(tmp_path / "run").nodes)
    first, second = told(tmp_path / "run", check=True).nodes
    assert first.faults == (f"{file} is altered",)
    assert first.again[0].startswith("is made again from its state of step 1" if state else "is refused until")
    assert second.again == ("depends on a, which is not as it was",)
    file.unlink()
    assert told(tmp_path / "run").nodes[0].faults == (f"{file} is missing",)
    assert told(tmp_path / "run", check=True).nodes[0].faults == (f"{file} is missing",)
    shutil.rmtree(tmp_path / "run/01-a/model")
    assert told(tmp_path / "run").nodes[0].faults == (f"{tmp_path / 'run/01-a/model'} is missing",)


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    run(tmp_path / "run", [Train("x")])
    (tmp_path / "run/01-a/model/more.txt").write_text("", encoding="utf-8")
    assert told(tmp_path / "run", check=True).nodes[0].faults == (f"{tmp_path}/run/01-a/model/more.txt was added",)


def test_other_settings_in_stage_json_are_noticed(tmp_path: Path) -> None:
    run(tmp_path / "run", [Train("x")])
    file = tmp_path / "run/01-a/stage.json"
    file.write_text(file.read_text().replace('"x"', '"z"'), encoding="utf-8")
    (node,) = told(tmp_path / "run").nodes
    assert node.faults == (f"{file} was altered after the stage was finished",)
    assert "is refused: what the stage was asked" in node.again[0]


def test_a_base_that_is_gone(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "x").path
    run(tmp_path / "run", [Train("y")], base)
    shutil.rmtree(base)
    (node,) = told(tmp_path / "run").nodes
    assert "is there again: it was not found" in node.again[0]


# -- hostile folders -------------------------------------------------------------------------------------------------


def test_a_circle_ends(tmp_path: Path) -> None:
    """Two models that were each made from the other, as their provenance says; and two stages of two runs."""
    one, two = (model(tmp_path / name, name) for name in ("one", "two"))
    model(one.path, "one", two)
    model(two.path, "two", one)
    run(tmp_path / "run", [Train("y")], one.path)
    settings = tmp_path / "run/run.json"
    content = json.loads(settings.read_text())
    content["settings"]["other"] = str(two.path)
    content["fingerprint"] = fingerprint_of(content["settings"])
    settings.write_text(json.dumps(content), encoding="utf-8")
    found = told(tmp_path / "run")
    assert [Path(node.key).name for node in found.nodes] == ["01-a", "one", "two"]
    run(tmp_path / "left", [Train("l")])
    run(tmp_path / "right", [Train("r")])
    prints = {name: told(tmp_path / name).nodes[0].fingerprint for name in ("left", "right")}
    for name, other in (("left", "right"), ("right", "left")):
        given = {"is": "Checkpoint", "files": prints[other]}
        (tmp_path / name / "01-a/stage.json").write_text(json.dumps({"stage": {}, "given": given}), encoding="utf-8")
    assert len(told(tmp_path / "left").nodes) == 2
    itself = {"is": "Checkpoint", "files": prints["left"]}
    (tmp_path / "left/01-a/stage.json").write_text(json.dumps({"stage": {}, "given": itself}), encoding="utf-8")
    assert len(told(tmp_path / "left").nodes) == 1


DEEP = "[" * 100_000
CONTENTS = (
    "",
    "{",
    "[]",
    "null",
    '{"artifact": 3}',
    DEEP,
    '{"stage": ' + "[" * 500 + "]" * 500 + ', "given": 7}',
    "\x00",
)
OUTSIDE = json.dumps({"artifact": "../..", "files": {"/etc/passwd": "x"}, "stage": "", "given": ""})
LOOP = json.dumps({"artifact": "loop", "files": {}, "stage": "", "given": ""})
NUL = json.dumps({"artifact": "\x00", "files": {"\x00": "\ud800"}, "stage": "", "given": ""})
HUGE = '{"step": 1, "training": 1' + "0" * 999 + ', "tokens": 1' + "0" * 999 + "}\n"
NO_TEXT = json.dumps({"artifact": "model", "files": {"config.json": 3}, "stage": "", "given": ""})


@pytest.mark.parametrize("name", ["01-a/stage.json", "01-a/done.json", "01-a/timings.jsonl", "01-a/metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [*CONTENTS, OUTSIDE, NO_TEXT, LOOP, NUL, HUGE, '{"step": 1, "training": 1e999, "tokens": "many"}\n']
)
@pytest.mark.parametrize("check", [False, True])
def test_damaged_files_are_faults_and_no_crash(
    made: Path, tmp_path: Path, name: str, content: str, check: bool
) -> None:
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content, encoding="utf-8")
    (tmp_path / "run/01-a/loop").symlink_to("loop")
    found = told(tmp_path / "run", check)
    assert len(found.nodes) == 2
    if name.endswith("done.json"):
        assert found.nodes[0].faults
        assert "is refused" in found.nodes[0].again[0]


@pytest.mark.parametrize(
    "content", [*CONTENTS, '{"files": 3}', '{"files": {"a": 1}, "from": 3}', '{"from": {"a": []}}']
)
def test_damaged_provenance(tmp_path: Path, content: str) -> None:
    base = model(tmp_path / "base", "x").path
    run(tmp_path / "run", [Train("y")], base)
    (base / "provenance.json").write_text(content, encoding="utf-8")
    assert told(tmp_path / "run", check=True).nodes[0].name == "a"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("lineage") / "run", [Train("x"), Train("y")])


@pytest.mark.parametrize("content", ["", "[]", DEEP, '{"format": 1}', '{"format": 9}'])
def test_what_is_no_run_is_refused_and_beside_one_is_passed_over(made: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run/02-b/stage.json").write_text('{"stage": {}, "given": {"files": "00"}}', encoding="utf-8")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/run.json").write_text(content, encoding="utf-8")
    assert len(told(tmp_path / "run").nodes) == 2
    with pytest.raises((RunError, RunDamaged)):
        record_of(tmp_path / "beside")


def test_what_is_no_regular_file_is_not_opened(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    os.mkfifo(tmp_path / "run/01-a/model/pipe")
    (tmp_path / "run/01-a/stage.json").unlink()
    os.mkfifo(tmp_path / "run/01-a/stage.json")
    node = told(tmp_path / "run", check=True).nodes[0]
    assert any("is no regular file" in fault for fault in node.faults)


def test_names_that_are_no_paths_stand_in_settings(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    content = json.loads((tmp_path / "run/run.json").read_text())
    content["settings"] = {"a": ["\x00", "x" * 9000, "~", "", ".", "/"], "b": {"c": "\ud800"}}
    content["fingerprint"] = fingerprint_of(content["settings"])
    (tmp_path / "run/run.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(lineage(Record.read(tmp_path / "run")).nodes) == 2


def test_other_conditions_are_told(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    content = json.loads((tmp_path / "run/run.json").read_text())
    content["launches"][-1]["versions"]["torch"] = "0.1"
    (tmp_path / "run/run.json").write_text(json.dumps(content), encoding="utf-8")
    assert told(tmp_path / "run").conditions == (f"torch: 0.1 in the run, {torch.__version__} now",)
