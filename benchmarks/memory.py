"""Memory of a training pass against vocabulary and length: ours, transformers padded with full logits, and TRL's head.

Each in a new process. "pass" is the peak of resident memory during one optimizer step above what was resident before it
(model and libraries); Adam's two moments and the gradient are part of it. The peers run in fp32; one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import arguments, forget_peak, memory, table, write_json

SIDES = ("ours", "padded", "TRL's head")


def measure(side: str, vocabulary: int, rows: int, length: int, precision: str) -> dict[str, Any]:
    """In the child: peak during a step, resident before, bytes; and loss, to see that all do the same."""
    import torch
    from ours import PRECISIONS, system
    from peer import random_model, theirs

    from training import Peer, ragged, trained

    model = random_model("4m", vocabulary)
    batch = ragged(rows, 32, max(1, length - 32), max(1, length - 32), vocabulary)
    if side == "ours":
        with system(model, precision or next(iter(PRECISIONS)), 1, rate=0.0) as ours:
            return watched(lambda: ours.step(batch))
    torch.set_num_threads(1)
    peer = theirs(model)
    del model
    step = trained(peer, Peer(rows, head=side != "padded"), 1)
    return watched(lambda: step(batch))


def watched(step: Any) -> dict[str, Any]:
    before = memory("VmRSS")
    forget_peak()
    loss = step()["loss"]
    return {"before": before, "peak": memory("VmHWM"), "loss": loss}


def child(*asked: Any) -> dict[str, Any]:
    """``measure`` in a new process; an empty answer when it ran out of memory."""
    code = f"import json, memory; print(json.dumps(memory.measure(*{asked!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode < 0:
        return {}
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = arguments(__doc__, threads=None, repetitions=None)
    parser.add_argument("--vocabularies", nargs="*", type=int, default=[1024, 8192, 32768, 131072])
    parser.add_argument("--lengths", nargs="*", type=int, default=[128, 512, 2048])
    parser.add_argument("--length", type=int, default=256, help="tokens of a row where the vocabulary changes")
    parser.add_argument("--vocabulary", type=int, default=8192, help="where the length changes (default: 8192)")
    parser.add_argument("--rows", type=int, default=8, help="one micro-batch of the peers (default: 8)")
    parser.add_argument("--precision", default="", help="of ours (default: what `ours.py` names first)")
    options = parser.parse_args()
    sides = [side for side in SIDES if side != "TRL's head" or find_spec("trl")]
    cases = [(vocabulary, options.length) for vocabulary in options.vocabularies]
    cases += [(options.vocabulary, length) for length in options.lengths]
    rows, measured = [], []
    for vocabulary, length in cases:
        for side in sides:
            seen = child(side, vocabulary, options.rows, length, options.precision)
            measured.append({"vocabulary": vocabulary, "length": length, "side": side, **seen})
            numbers = [f"{seen[key] / 2**20:,.0f}" for key in ("before", "peak")] if seen else ["", "killed"]
            above = [f"{(seen['peak'] - seen['before']) / 2**20:,.0f}", f"{seen['loss']:.5f}"] if seen else ["", ""]
            rows.append((vocabulary, length, side, *numbers, *above))
    table(("vocabulary", "length", "side", "before MB", "peak MB", "pass MB", "loss"), rows)
    write_json(options.json, options, measured)


if __name__ == "__main__":
    main()
