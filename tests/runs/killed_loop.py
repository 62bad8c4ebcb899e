"""A small training loop in a Place, killed and resumed many times. Prints what went wrong; silence is success.

Run as a program: it forks for every kill, so that torch is imported once, and it never computes before forking.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from longthought.core.types import Completion, Finish, Message, Outcome, Problem, Rollout, Score, Verdict
from longthought.runs.place import Place

STEPS, EVERY = 5, 2
HOOKED = ("write", "rename", "unlink", "truncate", "rmdir", "mkdir")


def train(path: Path) -> None:
    """Momentum descent on noise that depends on the step alone."""
    with Place(path) as place:
        state = place.load_state()
        weight = state.tensors["weight"] if state else torch.ones(8)
        momentum = state.tensors["momentum"] if state else torch.zeros(8, dtype=torch.float64)
        seen = list(state.values["seen"]) if state else []
        for step in range(state.step + 1 if state else 1, STEPS + 1):
            noise = torch.randn(8, generator=torch.Generator().manual_seed(step))
            momentum = 0.9 * momentum + noise * weight
            weight = weight - 0.1 * momentum.float()
            seen.append(float(weight[0]))
            groups = [tuple(rollout(step, sample, float(weight[sample])) for sample in range(2))]
            values = [[float(w) for w in weight[:2]]]
            place.trace(step, groups, rewards=values, advantages=values, shaping={"length": values})
            place.log(step, {"weight": float(weight.sum()), "lost": float("nan")})
            place.time(step, {"seconds": time.time()})
            if step % EVERY == 0 or step == STEPS:
                place.save_state(step, {"weight": weight, "momentum": momentum}, {"seen": seen})


def rollout(step: int, sample: int, value: float) -> Rollout:
    problem = Problem(f"p/{step}", (Message("user", "?"),), "1")
    score = Score(value, value > 0, {"accuracy": value}, Verdict(value, Outcome.GRADED, "试"))
    return Rollout(problem, (1, 2), Completion((3, sample), (-0.5, value), Finish.STOP, step), f"{value}", score)


def kept(path: Path) -> dict[str, bytes]:
    """Everything in the folder but the clock."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "timings.jsonl")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def child(act: Callable[[], None]) -> int:
    """Process number of a forked child that does ``act``."""
    number = os.fork()
    if number == 0:
        try:
            torch.set_num_threads(1)
            act()
        except BaseException as error:
            print(f"in a child: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    return number


def killed_at(path: Path, call: int) -> None:
    """Train, and die at system call number ``call``; an ``os.write`` there writes the first half of its bytes."""
    count = 0

    def hook(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def hooked(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == call:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])  # type: ignore
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return hooked

    for name in HOOKED:
        setattr(os, name, hook(name))
    os.fsync = lambda _: None  # a kill loses nothing that was written, only a power cut does
    train(path)


def check(name: str, path: Path, expected: dict[str, bytes]) -> None:
    found = kept(path)
    if found != expected:
        differing = sorted(f for f in found.keys() | expected.keys() if found.get(f) != expected.get(f))
        print(f"{name}: differs in {differing}", flush=True)


def at_every_call(folder: Path, expected: dict[str, bytes]) -> int:
    """Kill at the first, second, third … system call; resume; compare."""
    for call in range(1, 1000):
        path = folder / f"call-{call}"
        _, status = os.waitpid(child(lambda c=call, p=path: killed_at(p, c)), 0)
        if os.WIFSIGNALED(status):
            os.waitpid(child(lambda p=path: killed_at(p, 0)), 0)
        check(f"killed at call {call}", path, expected)
        shutil.rmtree(path)
        if not os.WIFSIGNALED(status):
            return call
    raise AssertionError("the loop does not end")


def from_outside(folder: Path, expected: dict[str, bytes], kills: int) -> None:
    """One run, killed from outside at random moments until ``kills`` have hit, then left in peace."""
    path, chance, hits = folder / "outside", random.Random(0), 0
    for _ in range(20 * kills):
        worker = child(lambda: train(path))
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(worker, signal.SIGKILL)
        _, status = os.waitpid(worker, 0)
        hits += os.WIFSIGNALED(status)
        if hits == kills:
            break
        if not os.WIFSIGNALED(status):
            check("killed from outside", path, expected)
            shutil.rmtree(path)
    os.waitpid(child(lambda: train(path)), 0)
    check("killed from outside", path, expected)


def main(folder: Path) -> None:
    os.waitpid(child(lambda: train(folder / "whole")), 0)
    expected = kept(folder / "whole")
    if len(expected) != 1 + STEPS + 2 * 3:
        print(f"unexpected files: {sorted(expected)}")
    calls = at_every_call(folder, expected)
    if calls < 40:
        print(f"only {calls} calls were hooked")
    from_outside(folder, expected, kills=15)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
