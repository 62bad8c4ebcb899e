"""Compiles the native core when longthought or its wheel is made; ``python hatch_build.py`` does it alone.

``csrc/core.cpp`` becomes one shared library for each instruction set, in ``src/longthought/models/kernels/built``; the
loader beside that folder takes the best that the CPU has. The core is optional: where there is no compiler, or it
refuses an instruction set, the package is installed all the same, and ``built/why_not.txt`` has a line for what is
missing.
"""

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a program, or imported by the tests
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / "src" / "longthought" / "models" / "kernels"
SOURCES, BUILT = ROOT / "csrc", KERNELS / "built"
WHY_NOT = "why_not.txt"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
INSTRUCTION_SETS = {
    "avx512": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-DLT_AVX512"),
    "avx2": ("-march=x86-64-v3", "-DLT_AVX2"),
    "plain": (),
}

digest = runpy.run_path(str(KERNELS / "sources.py"))["digest"]  # the one that the loader compares with


class Compiler(NamedTuple):
    """The words that start it, and what tells it from another one."""

    command: list[str]
    identity: str


class NativeCore(BuildHookInterface):
    """The hook that hatchling calls before it builds a wheel, editable or not."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a wheel to be carried elsewhere takes the libraries along and names its platform."""
        for line in build(SOURCES, BUILT):
            self.app.display_warning(f"native core: {line}")
        if version == "editable":  # the checkout itself is imported
            return
        libraries = [file for file in map(_library, instruction_sets()) if file.is_file()]
        carried = [*libraries, BUILT / WHY_NOT]
        build_data["artifacts"] += [f"/{file.relative_to(ROOT).as_posix()}" for file in carried]
        if libraries:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def build(sources: Path, built: Path) -> list[str]:
    """Compile ``sources/core.cpp`` into ``built``, as far as it is not there yet.

    Returns a line for everything that is missing; also in ``built/why_not.txt``. Raises nothing for what the machine
    lacks: compiler, instruction set, space, or the right to write.
    """
    try:
        built.mkdir(parents=True, exist_ok=True)
        missing = _build(sources, built)
        if missing:
            (built / WHY_NOT).write_text("".join(f"{line}\n" for line in missing), encoding="utf-8")
        else:
            (built / WHY_NOT).unlink(missing_ok=True)
    except OSError as error:
        return [f"{error.filename or built}: {error.strerror or error}"]
    return missing


def instruction_sets() -> list[str]:
    """Names of the libraries that this kind of machine can have."""
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    return list(INSTRUCTION_SETS) if x86 else ["plain"]


def find_compiler() -> Compiler:
    """That of ``$CXX``, else c++, g++ or clang++. Raises LookupError: there is none; the message says so."""
    if os.name != "posix":
        raise LookupError("the native core is for Linux and macOS")
    wanted = os.environ.get("CXX", "").strip()
    try:
        candidates = [shlex.split(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]
    except ValueError as error:
        raise LookupError(f"the environment variable CXX, {wanted}, is no command: {error}") from None
    for words in candidates:
        if found := shutil.which(words[0]):
            said = _run([*words, "--version"])[1].splitlines()
            return Compiler(words, " ".join([os.path.realpath(found), *words[1:], *said[:1]]))
    if wanted:
        raise LookupError(f"the C++ compiler that the environment variable CXX names, {wanted}, was not found")
    raise LookupError("no C++ compiler was found: neither c++ nor g++ nor clang++, and CXX is not set")


def _build(sources: Path, built: Path) -> list[str]:
    """The lines for what is missing."""
    if not (sources / "core.cpp").is_file():
        return [f"{sources / 'core.cpp'} is missing: these sources are not whole"]
    names, version = instruction_sets(), digest(sources)
    try:
        compiler = find_compiler()
    except LookupError as error:
        kept = [_is_there(name, built, _stamp(name, version, "")) or _remove(name, built) for name in names]
        return [] if all(kept) else [str(error)]
    with ThreadPoolExecutor(len(names)) as pool:
        lines = list(pool.map(lambda name: _compile(name, compiler, sources, version, built), names))
    return [line for line in lines if line]


def _compile(name: str, compiler: Compiler, sources: Path, version: str, built: Path) -> str:
    """Make one library, unless it is there. Returns what went wrong in one line, empty when nothing did."""
    stamp = _stamp(name, version, compiler.identity)
    if _is_there(name, built, stamp):
        return ""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=built, prefix=".compiling-") as folder:
        made = Path(folder) / _library(name).name
        flags = [*FLAGS, *INSTRUCTION_SETS[name], f'-DLT_SOURCES="{version}"']
        status, said = _run([*compiler.command, *flags, "-o", str(made), str(sources / "core.cpp")])
        if said:
            print(said, file=sys.stderr)
        _remove(name, built)
        if status != 0 or not made.is_file():
            lines = said.splitlines()
            first = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit status {status}")
            return f"{name}: {shlex.join(compiler.command)} failed: {first.strip()[:300]}"
        made.replace(_library(name, built))
    _stamp_file(name, built).write_text(f"{_sha256(_library(name, built))}\n{stamp}", encoding="utf-8")
    print(f"{_library(name).name}: compiled in {time.perf_counter() - began:.1f} s")
    return ""


def _stamp(name: str, version: str, compiler: str) -> str:
    """What a library was made from; the compiler comes last, so that without it this is how the whole begins."""
    return "\n".join([version, shlex.join([*FLAGS, *INSTRUCTION_SETS[name]]), compiler])


def _is_there(name: str, built: Path, stamp: str) -> bool:
    """Whether the library was made from just this, and is whole."""
    library, file = _library(name, built), _stamp_file(name, built)
    if not library.is_file() or not file.is_file():
        return False
    return file.read_text(encoding="utf-8", errors="replace").startswith(f"{_sha256(library)}\n{stamp}")


def _remove(name: str, built: Path) -> bool:
    """Remove a library, and tell that it is not there."""
    _stamp_file(name, built).unlink(missing_ok=True)
    _library(name, built).unlink(missing_ok=True)
    return False


def _library(name: str, built: Path = BUILT) -> Path:
    return built / f"core_{name}{SUFFIX}"


def _stamp_file(name: str, built: Path) -> Path:
    return built / f"core_{name}.stamp"


def _sha256(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status, and all that the command said, in English."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


if __name__ == "__main__":
    for reason in build(SOURCES, BUILT):
        print(f"longthought goes without a part of its native core: {reason}", file=sys.stderr)
