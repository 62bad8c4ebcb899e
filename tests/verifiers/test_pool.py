"""Worker processes: whatever a task does to its own process, the answers are in order and this one is unharmed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.types import Outcome
from longthought.verifiers.pool import OUTPUT_TAIL, Pool

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="worker processes need Linux")


def apply(task: Callable[..., Any], *arguments: Any) -> Any:
    return task(*arguments)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(apply, workers=2, deadline=30, memory=300 << 20) as pool:
        yield pool


@pytest.fixture
def brief() -> Iterator[Pool]:
    with Pool(apply, workers=2, deadline=0.3) as pool:
        yield pool


def identity(value: Any) -> Any:
    return value


def exit_at_once() -> None:
    os._exit(3)


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    sys.exit("bye")


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def bomb() -> int:
    return len("9" * 10**11)


def grow() -> None:
    pieces = []
    while True:
        pieces.append(bytearray(1 << 20))


def close_descriptors() -> int:
    os.closerange(0, 300)
    return 1


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def overflow() -> str:
    return "x" * 10**7


def function() -> Any:
    return lambda: 1


def interrupt() -> None:
    raise KeyboardInterrupt


def spin_and_catch() -> None:
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(1)
    time.sleep(60)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


CRASHES = [
    (exit_at_once, "exit code 3"),
    (segfault, "SIGSEGV"),
    (kill_itself, "SIGKILL"),
    (leave, "SystemExit: bye"),
    (recurse, "RecursionError"),
    (bomb, "MemoryError"),
    (grow, "MemoryError"),
    (close_descriptors, "exit code"),
    (interrupt, "KeyboardInterrupt"),
]


@pytest.mark.parametrize(("task", "evidence"), CRASHES, ids=lambda value: getattr(value, "__name__", None))
def test_crashes(pool: Pool, task: Callable[[], Any], evidence: str) -> None:
    answers = pool.map([(identity, 1), (task,), (identity, 2), (identity, 3)])
    assert [answer.value for answer in answers] == [1, None, 2, 3]
    assert answers[1].outcome is Outcome.CRASHED
    assert evidence in answers[1].evidence


@pytest.mark.parametrize("task", [overflow, function])
def test_what_cannot_be_passed_on(pool: Pool, task: Callable[[], Any]) -> None:
    answer, after = pool.map([(task,), (identity, 1)])
    assert (answer.outcome, answer.value, after.value) == (Outcome.INVALID, None, 1)
    assert answer.evidence.startswith("returned what cannot be passed on")


@pytest.mark.parametrize("task", [spin_and_catch, ignore_signals, stop_itself])
def test_hanging_costs_its_own_deadline(brief: Pool, task: Callable[[], Any]) -> None:
    answers = brief.map([(task,), *((identity, number) for number in range(20))])
    assert answers[0].outcome is Outcome.TIMED_OUT
    assert [answer.value for answer in answers[1:]] == list(range(20))


def test_in_order_and_more_than_workers(pool: Pool) -> None:
    assert [answer.value for answer in pool.map([(identity, number) for number in range(500)])] == list(range(500))
    assert pool.map([]) == []


def test_the_line_that_raised_is_named(pool: Pool) -> None:
    def deep() -> None:
        {}["missing"]

    with Pool(deep, workers=1) as own:
        evidence = own.call().evidence
    assert evidence == f"KeyError: 'missing' (test_pool.py, line {deep.__code__.co_firstlineno + 1})"


def chatter(lines: int) -> str:
    for _ in range(lines):
        print("x" * 1000)
        print("y" * 1000, file=sys.stderr)
    os.write(1, b"the end")
    return "done"


def test_printing_is_bounded_and_kept(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    answer, quiet = pool.map([(chatter, 20_000), (identity, 1)])
    assert answer.value == "done"
    assert answer.output.endswith("the end")
    assert len(answer.output) <= OUTPUT_TAIL
    assert quiet.output == ""
    assert capfd.readouterr() == ("", "")


def test_the_tail_of_a_killed_task_is_kept(brief: Pool) -> None:
    def say_and_hang() -> None:
        print("before the hang")
        time.sleep(60)

    with Pool(say_and_hang, deadline=0.3) as own:
        assert own.call().output == "before the hang"


def read_input() -> str:
    return sys.stdin.read()


def test_input_is_empty(pool: Pool) -> None:
    assert pool.call(read_input).value == ""


def disturb(folder: str) -> int:
    os.chdir(folder)
    os.environ["DISTURBED"] = "yes"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    sys.stdout = None
    return os.getpid()


def look() -> list[Any]:
    return [os.getcwd(), os.environ.get("DISTURBED"), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]


def test_one_task_changes_nothing_for_the_next(tmp_path: Path) -> None:
    with Pool(apply, workers=1) as own:
        own.call(disturb, str(tmp_path))
        assert own.call(look).value == [os.getcwd(), None, True]
    assert "DISTURBED" not in os.environ


def leave_children(marker: str) -> int:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", marker])
    subprocess.Popen(["sh", "-c", f"setsid {sys.executable} -c 'import time; time.sleep(60)' {marker} &"]).wait()
    return 1


def leave_children_and_hang(marker: str) -> None:
    leave_children(marker)
    time.sleep(60)


def running(marker: str) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [place.parent.name] if marker.encode() in place.read_bytes() else []
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("task", [leave_children, leave_children_and_hang])
def test_what_a_task_started_ends_with_it(brief: Pool, task: Callable[..., Any]) -> None:
    marker = f"left-behind-{os.getpid()}-{task.__name__}"
    brief.call(task, marker)
    brief.call(identity, 1)
    assert wait_until(lambda: running(marker) == [])


def test_closures_and_state_of_this_process() -> None:
    secret = {"answer": 42}
    with Pool(lambda number: secret["answer"] + number) as own:
        assert own.call(1).value == 43


def test_by_name_in_a_fresh_interpreter() -> None:
    with Pool("os.path:join", workers=1) as own:
        assert own.call("a", "b").value == "a/b"
        assert [answer.value for answer in own.map([("x", str(number)) for number in range(3)])] == [
            "x/0",
            "x/1",
            "x/2",
        ]


@pytest.mark.parametrize("function", ["no_such_module:f", "os.path:no_such_name"])
def test_no_such_function(function: str) -> None:
    with Pool(function, label="my grader") as own, pytest.raises(LongthoughtError, match=r"my grader.*no_such"):
        own.call()


def fail_to_warm_up() -> None:
    raise RuntimeError("no model here")


def test_a_warm_up_that_fails_is_told() -> None:
    with Pool(identity, warm_up=fail_to_warm_up) as own, pytest.raises(LongthoughtError, match="no model here"):
        own.call(1)


def slow_import() -> None:
    time.sleep(0.6)


def test_starting_costs_no_task_its_deadline() -> None:
    with Pool(identity, deadline=0.5, warm_up=slow_import) as own:
        assert own.call(1).value == 1


def test_from_many_threads(pool: Pool) -> None:
    found: dict[int, list[Any]] = {}

    def ask(number: int) -> None:
        found[number] = [answer.value for answer in pool.map([(identity, number * 100 + k) for k in range(30)])]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number * 100 + k for k in range(30)] for number in range(6)}


def test_a_forked_copy_makes_its_own(pool: Pool) -> None:
    before = pool.call(os.getpid).value
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            theirs.sendall(str(pool.call(os.getpid).value).encode())
            pool.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(ours.recv(100)) != before
    assert pool.call(identity, 5).value == 5
    ours.close()
    theirs.close()


def test_when_the_zygote_is_killed(pool: Pool) -> None:
    os.kill(int(pool.call(os.getppid).value), signal.SIGKILL)
    answers = pool.map([(identity, number) for number in range(6)])
    assert {answer.outcome for answer in answers} <= {Outcome.GRADED, Outcome.CRASHED}
    assert [answer.value for answer in pool.map([(identity, number) for number in range(6)])] == list(range(6))


PARENT = """
import os, sys, time
from longthought.verifiers.pool import Pool
def work(seconds):
    time.sleep(seconds)
    return [os.getpid(), os.getppid()]
pool = Pool(work, deadline=60)
print(*[p for answer in pool.map([(0.2,), (0.2,)]) for p in answer.value], flush=True)
pool.map([(60,), (60,)]) if sys.argv[1] == "busy" else time.sleep(60)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_workers_die_with_their_parent(state: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = {int(word) for word in parent.stdout.readline().split()}
    assert len(processes) == 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))


def test_closing_leaves_no_process_and_may_be_followed_by_more() -> None:
    own = Pool(apply, workers=1)
    first = [own.call(os.getpid).value, own.call(os.getppid).value]
    own.close()
    assert wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in first))
    assert own.call(identity, 1).value == 1
    own.close()


def test_ctrl_c_in_this_process_frees_the_workers() -> None:
    with Pool(apply, workers=1, deadline=60) as own:
        own.start()
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            own.call(time.sleep, 30)
        timer.join()
        assert own.call(identity, 1).value == 1


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"deadline": 0}, {"deadline": float("inf")}, {"deadline": -1}])
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Pool(identity, **wrong)
