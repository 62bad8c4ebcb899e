"""The native core is compiled where it can be, and only a library that fits sources and CPU is used."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from conftest import tiny_model
from longthought.core.errors import SettingsError
from longthought.diagnosis import check_native
from longthought.diagnosis.finding import Finding
from longthought.engine.engine import EngineSettings
from longthought.models.kernels import library
from longthought.models.kernels.library import NAMES, VARIABLE, Place, available, load, usable, why_not
from longthought.models.kernels.sources import digest
from longthought.runs.record import Launch
from longthought.training.learner import LearnerSettings

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
compiled = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
posix = pytest.mark.skipif(os.name != "posix", reason="the native core is for Linux and macOS")

CORE = """
#include "bits.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char* lt_sources(void) { return LT_SOURCES; }
EXPORT int lt_supported(void) { return BITS; }
EXPORT double lt_half(double x) { return x / 2; }
#if defined(LT_AVX512)
EXPORT int lt_set(void) { return 512; }
#elif defined(LT_AVX2)
EXPORT int lt_set(void) { return 2; }
#else
EXPORT int lt_set(void) { return 0; }
#endif
"""


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = _hook()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Sources of a core that believes its CPU to have everything, and nothing built yet."""
    made = Place(tmp_path / "built", tmp_path / "csrc")
    made.sources.mkdir()
    (made.sources / "core.cpp").write_text(CORE)
    (made.sources / "bits.h").write_text("#define BITS 3\n")
    monkeypatch.setattr(library, "PLACE", made)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(hook, "instruction_sets", lambda: list(NAMES))
    monkeypatch.setattr(hook, "INSTRUCTION_SETS", {"avx512": ("-DLT_AVX512",), "avx2": ("-DLT_AVX2",), "plain": ()})
    monkeypatch.setattr(hook, "FLAGS", tuple(flag for flag in hook.FLAGS if flag != "-O3"))
    return made


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a compiler of a shell script, and names it in CXX; every call leaves a line in ``calls``."""

    def make(script: str) -> Path:
        program, calls = tmp_path / "fake c++", tmp_path / "calls"
        head = '#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit\n'
        program.write_text(f'{head}echo "$*" >>"{calls}"\n{script}')
        program.chmod(0o755)
        monkeypatch.setenv("CXX", f"'{program}'")
        return calls

    return make


def build(place: Place) -> list[str]:
    lines: list[str] = hook.build(place.sources, place.built)
    return lines


def written(place: Place) -> list[str]:
    return (place.built / "why_not.txt").read_text(encoding="utf-8").splitlines()


def there(place: Place) -> list[str]:
    return [name for name in NAMES if place.file(name).exists()]


# -- the build --------------------------------------------------------------------------------------------------------


@compiled
def test_every_library_is_made_for_its_instruction_set(place: Place) -> None:
    assert build(place) == []
    assert there(place) == list(NAMES)
    assert not (place.built / "why_not.txt").exists()
    assert [load(name).bind("lt_set", (), ctypes.c_int)() for name in NAMES] == [512, 2, 0]
    assert len(list(place.built.iterdir())) == 6  # with a stamp of each; nothing is left over


@compiled
def test_what_is_there_is_not_compiled_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sources, flags and compiler, and a whole file; anything else is compiled, and that alone."""

    def made() -> list[str]:
        before = {name: place.file(name).stat().st_ino for name in there(place)}
        assert build(place) == []
        return [name for name in NAMES if place.file(name).stat().st_ino != before.get(name)]

    assert made() == list(NAMES)
    assert made() == []
    place.file("avx2").write_bytes(place.file("avx2").read_bytes()[:-1])
    assert made() == ["avx2"]
    place.file("plain").unlink()
    assert made() == ["plain"]
    sets = {**hook.INSTRUCTION_SETS, "avx2": ("-DLT_AVX2", "-DMORE")}
    monkeypatch.setattr(hook, "INSTRUCTION_SETS", sets)
    assert made() == ["avx2"]
    (place.sources / "bits.h").write_text("#define BITS 1\n")
    assert made() == list(NAMES)
    monkeypatch.setenv("CXX", f"{COMPILER} -g0")
    assert made() == list(NAMES)


@posix
def test_flags_say_what_a_library_is_made_from(place: Place, fake: Callable[[str], Path]) -> None:
    calls = fake("exit 1\n")
    build(place)
    lines = [set(line.split()) for line in calls.read_text().splitlines()]
    shared = {"-std=c++17", "-shared", "-ffp-contract=off", f'-DLT_SOURCES="{digest(place.sources)}"'}
    assert [shared <= words for words in lines] == [True] * 3
    assert sorted(len(words & {"-DLT_AVX512", "-DLT_AVX2"}) for words in lines) == [0, 1, 1]


@posix
def test_a_failing_compiler_is_no_failing_installation(place: Place, fake: Callable[[str], Path]) -> None:
    fake("echo core.cpp:7: note: so; echo 'core.cpp:7: error: no luck'; exit 1\n")
    lines = build(place)
    assert lines == written(place)
    assert [line.partition(":")[0] for line in lines] == list(NAMES)
    assert all("fake c++" in line and "no luck" in line and "note" not in line for line in lines)
    assert available() is None
    assert "no luck" in why_not()


@posix
@pytest.mark.parametrize(
    ("script", "told"),
    [("exit 0\n", "exit status 0"), ("kill -9 $$\n", "exit status -9"), ("printf '\\377\\376'; exit 1\n", "�")],
    ids=["makes nothing", "is killed", "speaks no UTF-8"],
)
def test_odd_compilers(script: str, told: str, place: Place, fake: Callable[[str], Path]) -> None:
    fake(script)
    assert [told in line for line in build(place)] == [True] * 3
    assert there(place) == []


@compiled
def test_an_old_compiler_costs_what_it_does_not_know(
    place: Place, fake: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = 'case "$*" in *LT_AVX512*) echo "cc1plus: error: unknown option -mnew"; exit 1;; esac\n'
    fake(f'{refusal}{COMPILER} "$@"\n')
    (line,) = build(place)
    assert line.startswith("avx512: ")
    assert "unknown option -mnew" in line
    assert there(place) == ["avx2", "plain"]
    found = available()
    assert found is not None
    assert found.name == "avx2"
    assert why_not() == ""
    with pytest.raises(SettingsError, match=r"avx512 is not there.*unknown option -mnew"):
        load("avx512")
    assert [told.status for told in examined()] == ["warn"]
    monkeypatch.delenv("CXX")  # a newer one
    assert build(place) == []
    assert not (place.built / "why_not.txt").exists()


@compiled
def test_a_library_of_other_sources_does_not_outlive_a_failure(place: Place, fake: Callable[[str], Path]) -> None:
    build(place)
    (place.sources / "bits.h").write_text("#error broken\n")
    lines = build(place)
    assert ["broken" in line for line in lines] == [True] * 3
    assert there(place) == []


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("", "no C\\+\\+ compiler was found"),
        ("/nowhere/c++ -g", "/nowhere/c\\+\\+ -g, was not found"),
        ("'c++", "No closing quotation"),
    ],
)
@posix
def test_no_compiler(wanted: str, told: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", wanted)
    monkeypatch.setenv("PATH", str(place.sources))
    (line,) = build(place)
    assert written(place) == [line]
    with pytest.raises(SettingsError, match=told):
        load()


@compiled
def test_without_a_compiler_what_fits_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setenv("PATH", "")
    assert build(place) == []
    assert there(place) == list(NAMES)
    (place.sources / "bits.h").write_text("#define BITS 0\n")
    assert len(build(place)) == 1
    assert there(place) == []


def test_sources_that_are_not_there(place: Place) -> None:
    (place.sources / "core.cpp").unlink()
    (line,) = build(place)
    assert "core.cpp is missing" in line


def test_a_place_that_cannot_be_written(place: Place) -> None:
    place.built.write_text("a file where the folder should be")
    (line,) = build(place)
    assert str(place.built) in line


def test_the_build_and_the_loader_speak_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = _hook()
    assert tuple(fresh.INSTRUCTION_SETS) == NAMES
    assert Place(fresh.BUILT, fresh.SOURCES) == library.PLACE
    assert fresh._library("plain") == library.PLACE.file("plain")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert fresh.instruction_sets() == ["plain"]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert fresh.instruction_sets() == list(NAMES)


def test_the_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    def made(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return digest(folder)

    same = {"core.cpp": "a", "x/y.h": "b"}
    assert made(same) == made(dict(reversed(same.items()))) == made({**same, ".core.cpp.swp": "?", "core.cpp~": "?"})
    others = [{"core.cpp": "a"}, {**same, "z.h": ""}, {"core.cpp": "b", "x/y.h": "a"}, {"core.cpp": "a", "y.h": "b"}]
    assert len({made(same), *map(made, others)}) == 5
    assert len(made(same)) == 16


# -- the loader -------------------------------------------------------------------------------------------------------


def examined() -> list[Finding]:
    """What the doctor says of a model that fits."""
    stage = SimpleNamespace(engine=EngineSettings(), learner=LearnerSettings())
    patient = SimpleNamespace(model=tiny_model(head_dim=16), stage=stage)
    return check_native.native(patient)  # type: ignore[arg-type]


@compiled
@pytest.mark.parametrize(
    ("bits", "names"), [(3, NAMES), (2, ("avx512", "plain")), (1, ("avx2", "plain")), (0, ("plain",))]
)
def test_the_best_that_the_cpu_has_serves(bits: int, names: tuple[str, ...], place: Place) -> None:
    (place.sources / "bits.h").write_text(f"#define BITS {bits}\n")
    build(place)
    found = available()
    assert found is not None
    assert found.name == names[0]
    assert (load(), usable(), why_not()) == (found, names, "")
    assert Launch.now("", 1).conditions()["native core"] == names[0]
    assert [told.status for told in examined()] == ["ok"]
    for name in set(NAMES) - set(names):
        with pytest.raises(SettingsError, match=f"{name} is not for this CPU, which has {', '.join(names)}"):
            load(name)


@compiled
@pytest.mark.parametrize("name", NAMES)
def test_one_can_be_forced(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setenv(VARIABLE, name)
    found = available()
    assert found is not None
    assert found.name == name == load().name
    assert load("plain").name == "plain"
    assert [told.status for told in examined()] == ["ok"]


@compiled
def test_what_is_forced_and_cannot_be_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.sources / "bits.h").write_text("#define BITS 1\n")
    build(place)
    monkeypatch.setenv(VARIABLE, "avx512")
    for ask in (available, why_not, load):
        with pytest.raises(SettingsError, match="not for this CPU"):
            ask()


@pytest.mark.parametrize("value", ["OFF", "avx", "1", " off", "../plain"])
def test_other_values_are_refused(value: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    for ask in (available, why_not, load):
        with pytest.raises(SettingsError, match="off, avx512, avx2, plain, or not be set"):
            ask()
    with pytest.raises(SettingsError, match="there are avx512, avx2, plain"):
        load(value)


@compiled
def test_off(place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    build(place)
    monkeypatch.setenv(VARIABLE, "off")
    assert available() is None
    assert f"{VARIABLE}=off" in why_not()
    launch = Launch.now("", 1)
    earlier = replace(launch, machine={name: fact for name, fact in launch.machine.items() if name != "native"})
    assert launch.conditions()["native core"] == "none"
    assert launch.conditions() == earlier.conditions()  # of a run from before there was a core
    assert [told.status for told in examined()] == ["skipped"]
    with pytest.raises(SettingsError, match="off"):
        load()
    assert caplog.text == ""


@compiled
def test_a_library_of_other_sources_is_refused(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    build(place)
    (place.sources / "new.h").write_text("// changed\n")
    assert available() is None
    assert available() is None
    assert caplog.text.count("run `pip install -e .` again") == 1
    assert "compiled from other sources" in why_not()
    for name in NAMES:
        with pytest.raises(SettingsError, match="run `pip install"):
            load(name)
    assert [told.status for told in examined()] == ["warn"]


@compiled
def test_a_forced_library_of_other_sources_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    (place.sources / "new.h").write_text("// changed\n")
    monkeypatch.setenv(VARIABLE, "plain")
    with pytest.raises(SettingsError, match="run `pip install"):
        available()


@compiled
def test_a_wheel_has_no_sources_to_compare_with(place: Place) -> None:
    build(place)
    shutil.rmtree(place.sources)
    assert load().name == "avx512"


def test_nothing_built(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The folder is missing, or empty, or holds an empty reason."""
    for step in (lambda: None, place.built.mkdir, (place.built / "why_not.txt").touch):
        step()
        library._served.cache_clear()
        assert available() is None
        assert "run `pip install -e .` again" in why_not()
        assert usable() == ()
    assert [told.status for told in examined()] == ["warn"]
    assert caplog.text == ""  # the doctor says so; a machine without a compiler is not to be blamed at every start


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(200)])
def test_a_damaged_library(content: bytes, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.built.mkdir()
    for name in NAMES:
        place.file(name).write_bytes(content)
    assert available() is None
    assert "cannot be loaded" in why_not()
    assert "cannot be loaded" in caplog.text
    with pytest.raises(SettingsError, match="cannot be loaded"):
        usable()


@compiled
def test_functions_are_bound_with_their_types(place: Place) -> None:
    build(place)
    half = load("plain").bind("lt_half", (ctypes.c_double,), ctypes.c_double)
    assert half(3.0) == 1.5
    other = load("plain").bind("lt_half", (ctypes.c_double,), None)
    assert (other(3.0), half(5.0)) == (None, 2.5)
    with pytest.raises(SettingsError, match="no function lt_third"):
        load("plain").bind("lt_third", (), None)


def test_the_loader_needs_no_torch() -> None:
    script = "import sys, longthought.models.kernels.library; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@compiled
@pytest.mark.skipif(library.wish() == library.OFF, reason="it is turned off")
@pytest.mark.skipif(not (library.PLACE.sources / "core.cpp").is_file(), reason="no C++ here")
def test_the_core_of_this_checkout_serves() -> None:
    """Where there is a compiler, what lies in ``csrc/`` compiles, and is what is used (``python hatch_build.py``)."""
    assert why_not() == ""
    assert "plain" in usable()
