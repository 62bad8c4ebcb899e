"""Command lines that are wrong, and recipes that misbehave: a plain message, and a traceback only for a bug."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longthought.cli.launch import command_of, default_out
from longthought.cli.main import NOT_READY, STOPPED, main
from longthought.cli.rehearsal import rehearse
from longthought.core.errors import SettingsError
from longthought.recipes.catalogue import Recipe, find
from longthought.runs.record import Record
from longthought.runs.settings import override

Capture = pytest.CaptureFixture[str]

RECIPE = """
import json
from dataclasses import dataclass
from longthought.core.errors import NotReady
from longthought.runs.run import Run
from longthought.stages.measure import Folder


@dataclass(frozen=True)
class Settings:
    what: str = "end"
    words: tuple[str, ...] = ()
    most: float | None = None


@dataclass(frozen=True)
class Readiness:
    what: str

    def run(self, given, place):
        if self.what == "interrupt":
            raise KeyboardInterrupt
        if self.what == "crash":
            raise ZeroDivisionError("a bug")
        if self.what == "refuse":
            check = {"check": "knows <sums>", "measured": 0.1, "needed": "0.8", "passed": False}
            (place.path / "checks.json").write_text(json.dumps({"checks": [check]}))
            raise NotReady("the base knows nothing")
        (place.path / "made").mkdir(exist_ok=True)
        return Folder(place.path / "made")

    def load(self, place):
        return Folder(place.path / "made")


def recipe(settings: Settings, run: Run) -> None:
    \"\"\"Do what is asked.\"\"\"
    run.do("readiness", Readiness(settings.what), None)


def curious(settings: Settings, run: Run) -> None:
    made = run.do("readiness", Readiness(settings.what), None)
    if made.path.exists():
        run.do("second", Readiness(settings.what), made)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("evl", "did you mean eval?"),
        ("--hlp", "did you mean --help?"),
        ("run", "give a recipe"),
        ("run tny", "Did you mean tiny?"),
        ("run nowhere.py", "nowhere.py does not exist"),
        ("run tiny --tread 2", "did you mean --threads?"),
        ("run tiny --threads 0", "at least 1"),
        ("run tiny --threads many", "at least 1"),
        ("run tiny rl.stps=3", "did you mean rl.steps?"),
        ("run tiny rl.steps=often", "rl.steps=often: an integer is needed"),
        ("run tiny rl=3", "rl is a group of settings"),
        ("run tiny rl.steps=3 rl.steps=4", "set twice"),
        ("run tiny steps", "write key=value"),
        ("run tiny rl.samples=1", "at least 2"),
        ("run tiny --threads 2", "set workers=1"),
        ("run tiny rl.reference_every=3", "changes nothing"),
        ("run tiny --settings nowhere.yaml", "nowhere.yaml cannot be read"),
        ("quickstart extra", "write key=value"),
        ("quickstart --quick rl.stps=3", "did you mean rl.steps?"),
        ("eval", "RUN|MODEL_FOLDER"),
        ("eval nowhere", "nowhere does not exist"),
        ("eval .", "neither a run (run.json) nor a model (config.json)"),
        ("eval . --problems 1", "at least 2"),
        ("eval . --split tset", "invalid choice: 'tset'"),
        ("sample", "RUN|MODEL_FOLDER"),
        ("sample . --temperature -1", "positive"),
        ("sample . --temperature nan", "positive"),
        ("sample . --temperature 0 --count 2", "all answers are equal"),
        ("sample . --count 0", "at least 1"),
        ("report nowhere", "is no folder"),
        ("report .", "no run.json"),
        ("plan", "RECIPE (see"),
        ("plan tiny base.width=33", "multiple of 32"),
    ],
)
def test_wrong_lines_are_told_in_one_message(
    line: str, told: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("longthought: ") or "measuring" in shown.err
    assert told in shown.err
    assert "key=value (see" not in shown.err
    assert not (tmp_path / "runs").exists()


def test_options_and_settings_in_any_order(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["run", "--threads", "1", "most=2.5", recipe, "--quiet", "--out", str(out)]) == 2  # most=… is no recipe
    assert main(["run", recipe, "most=2.5", "--threads", "1", "words=a,b", "--quiet", "--out", str(out)]) == 0
    assert Record.read(out).settings == {"what": "end", "words": ["a", "b"], "most": 2.5}


def test_ctrl_c_says_how_to_go_on(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    words = ["run", recipe, "--threads", "1", "--out", str(tmp_path / "a b"), "what=interrupt"]
    assert main(words) == STOPPED
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("longthought: stopped; run the same command again to go on: ")
    assert told.endswith(shlex.join(words))


def test_a_bug_keeps_its_traceback(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        main(["run", recipe, "--threads", "1", "--out", str(tmp_path / "out"), "what=crash"])


def test_a_base_that_is_not_ready_has_its_own_exit_code_and_a_report(
    recipe: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main(["run", recipe, "--threads", "1", "--out", str(out), "what=refuse"]) == NOT_READY
    assert "the base knows nothing\nReport: " in capsys.readouterr().err
    assert "knows &lt;sums&gt;" in (out / "report.html").read_text(encoding="utf-8")


def test_a_folder_with_other_files_is_refused(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["run", recipe, "--threads", "1", "--out", str(tmp_path)]) == 2
    assert "holds other files (mine.py)" in capsys.readouterr().err


def test_a_run_in_use_is_refused(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    from longthought.runs.run import Run

    found = find(recipe)
    with Run.open(tmp_path / "out", recipe=found.name, settings=found.settings, command="x", threads=1):
        assert main(["run", recipe, "--out", str(tmp_path / "out")]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_other_threads_are_refused_unless_accepted(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ZeroDivisionError):
        main(["run", recipe, "--threads", "1", "--out", out, "what=crash"])
    try:
        assert main(["run", recipe, "--threads", "2", "--out", out, "what=crash"]) == 2
        assert "threads: 1 in the run, 2 now" in capsys.readouterr().err
        with pytest.raises(ZeroDivisionError):
            main(["run", recipe, "--threads", "2", "--accept-changes", "--out", out, "what=crash"])
    finally:
        import torch

        torch.set_num_threads(1)
    assert [launch.threads for launch in Record.read(Path(out)).launches] == [1, 2]


def test_a_recipe_that_looks_at_results_runs_and_can_be_planned(recipe: str, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    assert main(["plan", f"{recipe}:curious", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "readiness (Readiness)" in shown
    assert "later stages are not known" in shown
    for _ in range(2):
        assert main(["run", f"{recipe}:curious", "--threads", "1", "--quiet", "--out", out]) == 0
    assert [stage.name for stage in Record.read(Path(out)).stages()] == ["readiness", "second"]


def test_rehearsal_finds_stages_and_task_without_running() -> None:
    recipe = find("tiny")
    rehearsal = rehearse(recipe, recipe.settings)
    assert [step.name for step in rehearsal.steps] == ["base", "readiness", "before", "rl", "after"]
    assert rehearsal.stopped == ""
    assert rehearsal.testing().task.name == "countdown"
    with pytest.raises(SettingsError, match="at least 2"):
        rehearse(recipe, override(recipe.settings, ["rl.samples=1"]))


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


@given(
    st.tuples(TEXT, st.lists(TEXT, max_size=3), st.none() | st.floats(allow_nan=False, allow_infinity=False)),
)
def test_the_printed_command_gives_the_same_settings(given_values: tuple[str, list[str], float | None]) -> None:
    from dataclasses import make_dataclass

    what, words, most = given_values
    kind = make_dataclass(
        "S",
        [("what", str, "end"), ("words", tuple[str, ...], ()), ("most", float | None, None)],
        frozen=True,
    )
    settings = kind(what, tuple(words), most)
    command = shlex.split(command_of(Recipe("mine", lambda *_: None, kind()), settings, 2))
    assert command[:5] == ["longthought", "run", "mine", "--threads", "2"]
    assert override(kind(), command[5:]) == settings


def test_default_folders(recipe: str) -> None:
    found = find(recipe)
    assert default_out(found, found.settings).name.startswith("mine-")
    assert default_out(found, found.settings) != default_out(found, override(found.settings, ["what=x"]))
    assert default_out(find(f"{recipe}:curious"), found.settings).name.startswith("mine-curious-")
