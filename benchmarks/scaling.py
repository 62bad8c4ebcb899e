"""How ours scales: with the batch, the length of replies, the size of the model, and from one core to two.

Every table shows tokens per second of rollouts and of GRPO steps (new tokens over the seconds of sampling, grading and
training). Wall time, and CPU time per token, which is what a longer reply or a larger model costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import PRECISIONS, System, graded, system
from peer import SIZES, random_model, random_prompts

from longthought.core.types import SamplingParams

SAMPLES = 8


@dataclass(frozen=True)
class Case:
    """batch: replies.  new: tokens of each."""

    model: str = "4m"
    batch: int = 128
    new: int = 128
    threads: int = 1


def rollout(ours: System, case: Case, vocabulary: int) -> int:
    """New tokens."""
    samples = min(case.batch, SAMPLES)
    groups = ours.sample(random_prompts(case.batch // samples, 32, vocabulary), SamplingParams(samples, case.new))
    return sum(len(completion.token_ids) for group in groups for completion in group)


def step(ours: System, case: Case, vocabulary: int) -> int:
    """New tokens of a whole step. Every other reply is rewarded, at least two are drawn: every group teaches."""
    samples = max(2, min(case.batch, SAMPLES))
    prompts = random_prompts(max(1, case.batch // samples), 32, vocabulary)
    groups = ours.sample(prompts, SamplingParams(samples, case.new))
    number = count()
    ours.step(graded(prompts, groups, lambda tokens: float(next(number) % 2)))
    return sum(len(completion.token_ids) for group in groups for completion in group)


def measure(case: Case, options: argparse.Namespace) -> dict[str, list[Sample]]:
    model = random_model(case.model)
    vocabulary = model.config.vocab_size
    with system(model, options.precision, case.threads) as ours:
        step(ours, Case(case.model, SAMPLES, 8, case.threads), vocabulary)  # what a first call costs is not measured
        sides: dict[str, Callable[[], int]] = {
            "rollout": partial(rollout, ours, case, vocabulary),
            "step": partial(step, ours, case, vocabulary),
        }
        return interleaved(sides, options.repetitions, options.seconds)


def tables(options: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases of every table; by default each changes one thing."""
    return {
        "batch": [Case(batch=batch) for batch in options.batches],
        "length": [Case(batch=options.long_batch, new=new) for new in options.lengths],
        "model": [Case(model=model) for model in options.models],
        "threads": [Case(threads=threads) for threads in options.threads],
    }


def main() -> None:
    parser = arguments(__doc__, threads=None, repetitions=3)
    parser.add_argument("--tables", nargs="+", default=["batch", "length", "model", "threads"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--long-batch", type=int, default=8, help="replies in the table of lengths (default: 8)")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)), help="of ours")
    parser.add_argument("--seconds", type=float, default=20.0, help="no new round of a line after these (default: 20)")
    options = parser.parse_args()
    head = ("model", "batch", "new", "threads", "rollout tokens/s", "step tokens/s", "rollout us CPU/token", "step")
    everything = []
    for name, cases in tables(options).items():
        if name not in options.tables:
            continue
        rows = []
        for case in cases:
            samples = measure(case, options)
            rates = [spread([s.result / s.wall for s in each]) for each in samples.values()]
            costs = [f"{median([1e6 * s.cpu / s.result for s in each]):,.0f}" for each in samples.values()]
            rows.append((case.model, case.batch, case.new, case.threads, *rates, *costs))
            everything.append({"table": name, "case": vars(case), "samples": samples})
            write_json(options.json, options, everything)
        print(f"\nby {name}")
        table(head, rows)


if __name__ == "__main__":
    main()
