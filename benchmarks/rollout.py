"""Our rollouts against transformers.generate, called as TRL's GRPOTrainer calls it: same weights, prompts, lengths.

Replies run to the full length, or end at stop tokens as a policy's do (after half of the limit on average). The peer
runs in fp32 and in bf16; the faster one counts. Only tokens up to the stop count.

"% of roof" is 2 x parameters FLOP per token against the best bf16 matrix product that torch reaches in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import DTYPES, PRECISIONS, System, system
from peer import SIZES, generate, kept, random_model, random_prompts, stop_tokens, theirs
from roofline import bf16_roof

from longthought.core.types import SamplingParams

SAMPLES = 8


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128, 512], help="replies, 8 to a prompt")
    parser.add_argument("--lengths", nargs="+", choices=("full", "varying"), default=["full", "varying"])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--new", type=int, default=128, help="limit of new tokens (default: 128)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)), help="of ours")
    parser.add_argument("--seconds", type=float, default=30.0, help="no new round of a row after these (default: 30)")
    options = parser.parse_args()
    roof = bf16_roof(options.threads)
    print(
        f"bf16 roof {roof:.0f} GFLOP/s, {options.threads} thread(s), prompt {options.prompt}, {options.new} new tokens"
    )
    rows, measured = [], []
    for name in options.models:
        model = random_model(name)
        peers = {f"generate {label}": theirs(model, dtype) for label, dtype in DTYPES.items()}
        with system(model, options.precision, options.threads) as ours:
            ours.sample(random_prompts(2, 8, model.config.vocab_size), SamplingParams(SAMPLES, 8))
            for peer in peers.values():  # what a first call costs is not measured
                generate(peer, torch.ones(8, 8, dtype=torch.int64), 8, ())
            for batch in options.batches:
                for lengths in options.lengths:
                    stop = stop_tokens(model.config.vocab_size, options.new // 2 if lengths == "varying" else 0)
                    sides = {f"ours {options.precision}": sampling(ours, model.config.vocab_size, batch, stop, options)}
                    for label, peer in peers.items():
                        sides[label] = generating(peer, model.config.vocab_size, batch, stop, options)
                    samples = interleaved(sides, options.repetitions, options.seconds)
                    flop = 2e-9 * model.config.parameters()
                    rows += describe((name, batch, lengths), samples, flop / roof)
                    measured.append({"model": name, "batch": batch, "lengths": lengths, "sides": samples})
    print()
    head = ("model", "batch", "lengths", "side", "tokens/s", "tokens/CPU s", "% of roof", "ours is (wall)", "(CPU)")
    table(head, rows)
    write_json(options.json, options, {"bf16_roof_gflops": roof, "rows": measured})


def asked(vocabulary: int, batch: int, prompt: int) -> tuple[list[tuple[int, ...]], int]:
    """Prompts, and how many samples each."""
    samples = min(batch, SAMPLES)
    return random_prompts(batch // samples, prompt, vocabulary), samples


def sampling(ours: System, vocabulary: int, batch: int, stop: tuple[int, ...], options: Any) -> Callable[[], int]:
    prompts, samples = asked(vocabulary, batch, options.prompt)
    params = SamplingParams(samples, options.new, stop_tokens=stop)
    return lambda: sum(len(c.token_ids) for group in ours.sample(prompts, params) for c in group)


def generating(peer: Any, vocabulary: int, batch: int, stop: tuple[int, ...], options: Any) -> Callable[[], int]:
    prompts, samples = asked(vocabulary, batch, options.prompt)
    rows = torch.tensor(prompts).repeat_interleave(samples, 0)

    def run() -> int:
        torch.set_num_threads(options.threads)
        return kept(generate(peer, rows, options.new, stop), stop)

    return run


def describe(
    about: tuple[object, ...], samples: dict[str, list[Sample]], share_per_rate: float
) -> list[tuple[object, ...]]:
    """A line for ours and one for every peer; ratios against the faster peer stand in the line of that peer."""
    wall = {name: [s.result / s.wall for s in each] for name, each in samples.items()}
    cpu = {name: [s.result / s.cpu for s in each] for name, each in samples.items()}
    ours, *peers = samples
    lines = []
    for name in samples:
        fastest = name in peers and median(cpu[name]) == max(median(cpu[peer]) for peer in peers)
        ratios = [f"{median(rate[ours]) / median(rate[name]):.2f} x" if fastest else "" for rate in (wall, cpu)]
        percent = f"{100 * share_per_rate * median(wall[name]):.1f}"
        lines.append((*about, name, spread(wall[name]), spread(cpu[name]), percent, *ratios))
        print(*lines[-1], file=sys.stderr, flush=True)
    return lines


if __name__ == "__main__":
    main()
