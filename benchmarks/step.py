"""A whole GRPO step, ours against TRL's GRPOTrainer: sample 16 prompts x 8, grade, one optimizer step.

The same random model, prompts, limits, reward (parity of the first token), learning rate, and loss: token mean, no KL.
Every side lives in its own process, with its own CPU time, memory and malloc settings, and waits while another one
works; the sides take turns step by step. The first step of each is short and not counted. "train" is all of a step that
is not generation: rewards, advantages, forward, backward, optimizer.

sides
    ours      engine and learner as `ours.py` sets them, without run folder and traces
    default   TRL with its own settings and all replies in one micro-batch: bf16 autocast, gradient checkpointing
    fp32      the same in fp32
    tuned     TRL with micro-batches of 16, bf16, no gradient checkpointing, malloc that keeps its memory
    tuned8, tuned32, tuned_fp32   the same with other micro-batches, or in fp32

lengths
    a number  so many tokens, the end token switched off
    varying   stop tokens end a reply after 48 tokens on average, 128 at most
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import arguments, median, rotated, spread, table, write_json

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_MAX_": "0"}
TUNED = {"bf16": True, "gradient_checkpointing": False}
VARYING, MEAN = 128, 48


class Side(NamedTuple):
    """micro: TRL's micro-batch, 0 for all replies at once.  trl: settings that are not TRL's own."""

    micro: int = 0
    trl: dict[str, Any] = {}  # noqa: RUF012, never changed
    malloc: dict[str, str] = {}  # noqa: RUF012


SIDES = {
    "ours": Side(),
    "default": Side(),
    "fp32": Side(trl={"bf16": False}),
    "tuned": Side(16, TUNED, MALLOC),
    "tuned8": Side(8, TUNED, MALLOC),
    "tuned32": Side(32, TUNED, MALLOC),
    "tuned_fp32": Side(16, {**TUNED, "bf16": False}, MALLOC),
}


class Child:
    """A side that runs, and makes a step when asked."""

    def __init__(self, spec: dict[str, Any], malloc: dict[str, str]) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in close()
        threads = {"OMP_NUM_THREADS": str(spec["threads"]), "MKL_NUM_THREADS": str(spec["threads"])}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sides.py")), json.dumps(spec)],
            env={**os.environ, **threads, **quiet, **malloc},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self._answer()  # that it is ready

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return dict(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"a side ended early; the last that it said:\n{self.log.read()[-3000:]}")
        return json.loads(line)


def prepare(folder: Path, options: Any, lengths: str) -> int:
    """Model, prompts and stop tokens that all sides read; returns the limit of new tokens."""
    from peer import random_model, random_prompts, stop_tokens, write_folder

    model = random_model(options.model)
    vocabulary = model.config.vocab_size
    stop = stop_tokens(vocabulary, MEAN if lengths == "varying" else 0)
    write_folder(model, folder, stop)
    prompts = random_prompts(options.prompts * (options.steps + 1), options.prompt, vocabulary)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "stop.json").write_text(json.dumps(stop))
    return VARYING if lengths == "varying" else int(lengths)


def compare(options: Any, lengths: str, threads: int) -> dict[str, list[dict[str, float]]]:
    """Steps of every side, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        new = prepare(Path(folder), options, lengths)
        common = {
            "folder": folder,
            "prompts": options.prompts,
            "samples": options.samples,
            "new": new,
            "warm": min(new, 32),
            "steps": options.steps,
            "threads": threads,
            "precision": options.precision,
            "rate": 1e-6,
        }
        children = {}
        for name in options.sides:
            side = SIDES[name]
            spec = {"side": name, **common, "micro": side.micro or options.prompts * options.samples, "trl": side.trl}
            children[name] = Child(spec, side.malloc)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in children}
        began = time.perf_counter()
        for number in range(options.steps + 1):
            if number > 1 and time.perf_counter() - began > options.seconds:
                break
            for name in rotated(list(children), number):
                said = children[name].step()
                if number:
                    seen[name].append(said)
        for child in children.values():
            child.close()
    return seen


def describe(about: Sequence[object], seen: dict[str, list[dict[str, float]]]) -> list[tuple[object, ...]]:
    """A line for every side."""
    first = next(iter(seen.values()))
    lines = []
    for name, steps in seen.items():
        cpu, wall = ([step[key] for step in steps] for key in ("cpu", "wall"))
        made = [step["generate_cpu"] for step in steps]
        trained = [step["cpu"] - step["generate_cpu"] for step in steps]
        ratios = [f"{median([s[key] for s in steps]) / median([s[key] for s in first]):.2f}" for key in ("cpu", "wall")]
        generated = f"{median(made):.2f}"
        split = (generated, f"{median(trained):.2f}", f"{median([step['tokens'] for step in steps]):,.0f}")
        peak = f"{max(step['peak_bytes'] for step in steps) / 2**20:,.0f}"
        lines.append((*about, name, spread(cpu, ".2f"), spread(wall, ".2f"), *split, peak, *ratios))
    return lines


def main() -> None:
    parser = arguments(__doc__, threads=None, repetitions=None)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["ours", "default", "tuned"])
    parser.add_argument("--lengths", nargs="+", default=["128", "256", "varying"], help="default: 128 256 varying")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of every side (default: 3)")
    text = "no new round of steps of a table after these (default: 150)"
    parser.add_argument("--seconds", type=float, default=150.0, help=text)
    parser.add_argument("--model", default="4m", help="1m, 4m or 15m (default: 4m)")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default: 16)")
    parser.add_argument("--samples", type=int, default=8, help="replies to each (default: 8)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--precision", default="", help="of ours (default: what `ours.py` names first)")
    options = parser.parse_args()
    head = ("length", "threads", "side", "CPU s", "wall s", "generate", "train", "tokens", "peak MB")
    print(
        "Seconds of a step, median (least–most); generate and train in CPU seconds; x: times the first side's",
        flush=True,
    )
    measured = []
    for threads in options.threads:
        for lengths in options.lengths:
            seen = compare(options, lengths, threads)
            print()
            table((*head, "CPU x", "wall x"), describe((lengths, threads), seen))
            measured.append({"length": lengths, "threads": threads, "sides": seen})
            write_json(options.json, options, measured)


if __name__ == "__main__":
    main()
