"""Run folders: one process at a time, the same settings or none, finished stages never twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longthought.core.errors import RunDamaged, RunError, RunLocked, RunMismatch, SettingsError
from longthought.runs.describe import describe
from longthought.runs.place import Place
from longthought.runs.run import Run


@dataclass(frozen=True)
class RL:
    steps: int = 100
    lr: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    rl: RL = field(default_factory=RL)


@dataclass(frozen=True)
class Text:
    """An artifact: a folder with one file."""

    path: Path

    @property
    def content(self) -> str:
        return (self.path / "text").read_text()


@dataclass(frozen=True)
class Append:
    """A stage that adds a word to a text, and counts how often it ran."""

    word: str
    keeps_state: bool = False
    ran: list[str] = field(default_factory=list, compare=False)

    def run(self, given: Text | None, place: Place) -> Text:
        self.ran.append(self.word)
        state = place.load_state()
        if self.keeps_state and state is None:
            place.log(1, {"loss": 1.0})
            place.save_state(1, {"w": torch.ones(2)}, {})
        folder = place.path / "text"
        folder.mkdir(exist_ok=True)
        (folder / "text").write_text((given.content if given else "") + self.word)
        return Text(folder)

    def load(self, place: Place) -> Text:
        return Text(place.path / "text")


def opened(path: Path, settings: Recipe | None = None, **options: Any) -> Run:
    return Run.open(path, recipe="tiny", settings=settings or Recipe(), command="longthought run tiny", **options)


def refused(path: Path, error: type[RunError], settings: Recipe | None = None, **options: Any) -> str:
    with pytest.raises(error) as caught:
        opened(path, settings, **options)
    return str(caught.value)


# -- run.json --------------------------------------------------------------------------------------------------------


def test_run_json_tells_what_where_and_how(tmp_path: Path) -> None:
    opened(tmp_path / "a" / "run", Recipe(3), threads=1).close()
    found = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert found["recipe"] == "tiny"
    assert found["settings"] == {"seed": 3, "rl": {"steps": 100, "lr": 1e-3}}
    (launch,) = found["launches"]
    assert launch["threads"] == 1
    assert launch["command"] == "longthought run tiny"
    assert launch["versions"]["torch"] == torch.__version__
    assert {"python", "torch", "longthought", "numpy", "tokenizers"} <= launch["versions"].keys()
    assert {"cpu", "cores", "memory", "platform"} <= launch["machine"].keys()
    record = Run.read(tmp_path / "a" / "run")
    assert record.fingerprint == found["fingerprint"]
    assert record.stages() == []


def test_every_launch_is_recorded(tmp_path: Path) -> None:
    for _ in range(3):
        opened(tmp_path).close()
    assert len(Run.read(tmp_path).launches) == 3


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path).close()
    message = refused(tmp_path, RunMismatch, Recipe(seed=1, rl=RL(200)))
    assert "seed: 0 in the run, 1 now" in message
    assert "rl.steps: 100 in the run, 200 now" in message
    assert "rl.lr" not in message
    assert "another folder" in message
    with pytest.raises(RunMismatch, match="a run of the recipe tiny, not of huge"):
        Run.open(tmp_path, recipe="huge", settings=Recipe(), command="")
    assert len(Run.read(tmp_path).launches) == 1
    opened(tmp_path).close()  # and the lock was let go


def test_other_conditions_are_refused_unless_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, threads=1).close()
    assert "threads: 1 in the run, 2 now" in refused(tmp_path, RunMismatch, threads=2)
    opened(tmp_path, threads=2, accept_changes=True).close()
    opened(tmp_path, threads=2).close()
    monkeypatch.setattr(torch, "__version__", "9.9")
    message = refused(tmp_path, RunMismatch, threads=2)
    assert f"torch: {Run.read(tmp_path).launches[0].versions['torch']} in the run, 9.9 now" in message
    assert "--accept-changes" in message


def test_ill_typed_settings_make_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"rl\.steps"):
        opened(tmp_path / "run", Recipe(rl=RL(steps=1.5)))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "thesis.tex" in refused(tmp_path, RunError)
    assert "is a file" in refused(tmp_path / "thesis.tex", RunError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_launch_killed_before_run_json_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    (tmp_path / ".run.json.77.partial").write_text('{"rec')
    opened(tmp_path).close()
    assert {entry.name for entry in tmp_path.iterdir()} == {"lock", "run.json"}


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "run.json"
    whole = file.read_bytes()
    for damaged in [whole[:n] for n in range(0, len(whole) - 1, 7)] + [
        whole.replace(b'"steps": 100', b'"steps": 101'),
        b"[]",
        b'{"format": 1}',
    ]:
        file.write_bytes(damaged)
        with pytest.raises(RunDamaged, match=r"run\.json is truncated or altered"):
            Run.read(tmp_path)
        assert "run.json" in refused(tmp_path, RunDamaged)
        assert file.read_bytes() == damaged


def test_what_is_no_run_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        Run.read(tmp_path)
    with pytest.raises(RunError, match="is no folder"):
        Run.read(tmp_path / "nowhere")


# -- lock ------------------------------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from longthought.runs.lock import Lock
lock = Lock(Path(sys.argv[1], "lock"))
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)  # a worker that outlives the run
time.sleep(60)
os._exit(0)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    opened(tmp_path).close()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(worker, signal.SIGKILL)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    message = refused(tmp_path, RunLocked)
    assert f"process {holder.pid} on " in message
    assert len(Run.read(tmp_path).launches) == 1  # reading needs no lock
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    opened(tmp_path).close()  # although its forked worker is alive


def test_a_second_run_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert f"process {os.getpid()} on " in refused(tmp_path, RunLocked)
    with opened(tmp_path):
        pass


# -- stages ----------------------------------------------------------------------------------------------------------


def recipe(path: Path, *stages: Append) -> Text | None:
    made: Text | None = None
    with opened(path) as run:
        for number, stage in enumerate(stages):
            made = run.do(f"add_{number}", stage, made)
    return made


def test_stages_run_once(tmp_path: Path) -> None:
    stages = Append("a"), Append("b")
    for _ in range(2):
        made = recipe(tmp_path, *stages)
        assert made is not None
        assert made.content == "ab"
    assert [stage.ran for stage in stages] == [["a"], ["b"]]
    record = Run.read(tmp_path)
    assert [(stage.number, stage.name, stage.finished) for stage in record.stages()] == [
        (1, "add_0", True),
        (2, "add_1", True),
    ]
    assert record.stage("add_1").artifact() == tmp_path / "02-add_1" / "text"
    with pytest.raises(RunError, match="no stage rl; its stages: add_0, add_1"):
        record.stage("rl")


def test_a_stage_that_was_stopped_runs_again(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Moody(Append):
        def run(self, given: Text | None, place: Place) -> Text:
            made = super().run(given, place)
            if len(self.ran) < 2:
                raise KeyboardInterrupt
            return made

    stages = Append("a"), Moody("b")
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path, *stages)
    assert not Run.read(tmp_path).stage("add_1").finished
    with pytest.raises(RunError, match="not finished"):
        Run.read(tmp_path).stage("add_1").artifact()
    made = recipe(tmp_path, *stages)
    assert made is not None
    assert made.content == "ab"
    assert [stage.ran for stage in stages] == [["a"], ["b", "b"]]


@pytest.mark.parametrize("damage", [lambda f: f.write_text("x"), lambda f: f.unlink()])
def test_a_damaged_artifact_is_refused_without_a_state(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    recipe(tmp_path, Append("a"))
    damage(tmp_path / "01-add_0" / "text" / "text")
    with pytest.raises(RunDamaged, match=r"text/text is (missing|truncated or altered)"):
        recipe(tmp_path, Append("a"))
    with pytest.raises(RunDamaged, match="text/text is"):
        Run.read(tmp_path).stage("add_0").artifact()


@pytest.mark.parametrize("file", ["text/text", "done.json"])
def test_a_damaged_artifact_is_made_again_from_the_state(tmp_path: Path, file: str) -> None:
    stage = Append("a", keeps_state=True)
    recipe(tmp_path, stage)
    before = (tmp_path / "01-add_0" / "done.json").read_bytes()
    (tmp_path / "01-add_0" / file).write_text("{")
    made = recipe(tmp_path, stage, Append("b"))
    assert made is not None
    assert made.content == "ab"
    assert stage.ran == ["a", "a"]
    assert (tmp_path / "01-add_0" / "done.json").read_bytes() == before


def test_other_fields_inputs_or_stages_are_refused(tmp_path: Path) -> None:
    recipe(tmp_path, Append("a"), Append("b"))
    with pytest.raises(RunMismatch, match=r"stage\.word: a in the run, c now"):
        recipe(tmp_path, Append("c"))
    with opened(tmp_path) as run, pytest.raises(RunMismatch, match="given"):
        run.do("add_0", Append("a"), Text(tmp_path / "02-add_1" / "text"))
    with opened(tmp_path) as run, pytest.raises(RunMismatch, match="stage 1 is now rl"):
        run.do("rl", Append("a"), None)
    with opened(tmp_path) as run, pytest.raises(RunMismatch, match="stage 1 is now add_1"):
        run.do("add_1", Append("a"), None)


def test_stage_names(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.do("a", Append("a"), None)
        with pytest.raises(RunError, match="two stages of one run are named a"):
            run.do("a", Append("a"), None)
        with pytest.raises(RunError, match="no name for a stage"):
            run.do("../a", Append("a"), None)


def test_an_artifact_must_lie_in_its_place(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Astray(Append):
        def run(self, given: Text | None, place: Place) -> Text:
            return Text(place.path / ".." / "..") if self.word == "out" else Text(place.path)

    for number, word in enumerate(("out", "in")):
        with opened(tmp_path / str(number)) as run, pytest.raises(RunError, match="not inside its folder"):
            run.do("a", Astray(word), None)


def test_a_tracker_hears_what_stages_log(tmp_path: Path) -> None:
    heard: list[tuple[str, int, dict[str, Any]]] = []

    class Ear:
        def log(self, stage: str, step: int, metrics: Any, /) -> None:
            heard.append((stage, step, dict(metrics)))

    with opened(tmp_path) as run:
        run.tracker = Ear()
        run.do("a", Append("a", keeps_state=True), None)
    assert heard == [("01-a", 1, {"loss": 1.0})]


# -- descriptions ----------------------------------------------------------------------------------------------------


def test_descriptions(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a")
    plain = {"stage": Append("a"), "f": (math_like, torch.bfloat16, 0.1, None), "p": partial(math_like, 2)}
    assert describe(plain) == {
        "stage": {"is": "Append", "word": "a", "keeps_state": False},
        "f": [f"{__name__}.math_like", "torch.bfloat16", 0.1, None],
        "p": {"partial of": f"{__name__}.math_like", "arguments": [2], "keywords": {}},
    }
    before = describe(Text(tmp_path))
    assert before == describe(Text(tmp_path))
    (tmp_path / "text").write_text("b")
    assert before != describe(Text(tmp_path))
    assert describe({3, 1, 2}) == describe(frozenset({2, 3, 1})) == [1, 2, 3]


def test_a_path_among_other_fields_hides_none_of_them(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Corpus:
        path: Path
        share: float = 1.0

    for name in ("a", "b"):
        (tmp_path / name).write_text("the same")
    assert describe(Corpus(tmp_path / "a")) == describe(Corpus(tmp_path / "b"))
    assert describe(Corpus(tmp_path / "a")) != describe(Corpus(tmp_path / "a", 0.5))


def math_like(x: float) -> float:
    return x


@pytest.mark.parametrize("value", [lambda: 0, object(), torch.ones(1)])
def test_what_has_no_stable_description_is_refused(value: object) -> None:
    with pytest.raises(RunError, match=r"stage\.rule\[1\] .* cannot be recognised"):
        describe({"rule": [1, value]})
