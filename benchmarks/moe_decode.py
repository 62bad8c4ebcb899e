"""What the parts of DeepSeek-V3 cost in rollouts: tokens per second, beside a dense model of the same active size.

Both by the native core, and by PyTorch. "GFLOP/s" is 2 x active parameters per token, without attention over the
context: an equal number would say that experts and latents cost nothing beside their products.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import PRECISIONS, engine
from peer import random_prompts

from longthought.core.types import SamplingParams
from longthought.models.kernels.library import OFF, VARIABLE
from longthought.models.presets import Architecture, sized
from longthought.models.transformer import Transformer, initialize

SAMPLES = 8
ARCHITECTURES: tuple[Architecture, ...] = ("dense", "deepseek_v3")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[96, 192, 256])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 256], help="replies, 8 to a prompt")
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--new", type=int, default=128, help="tokens of a reply (default: 128)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)))
    parser.add_argument("--pytorch", action="store_true", help="measure PyTorch, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, measured = [], []
    for width in options.widths:
        models = {arch: random_model(arch, width, options.vocabulary) for arch in ARCHITECTURES}
        for batch in options.batches:
            samples = interleaved(sides(models, batch, options), options.repetitions)
            rows += describe((width, batch), samples, models)
            measured.append({"width": width, "batch": batch, "sides": samples})
    table(("width", "replies", "model", "active", "all", "tokens/s", "GFLOP/s", "of dense"), rows)
    write_json(options.json, options, measured)


def random_model(arch: Architecture, width: int, vocabulary: int) -> Transformer:
    """Random weights, of which none is zero: the experts of a token then differ from those of the next."""
    model = Transformer(sized(arch, width, vocabulary))
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


def sides(models: dict[Architecture, Transformer], batch: int, options: Any) -> dict[str, Callable[[], int]]:
    """A call for each model, that samples and counts tokens."""
    found = {arch: sampling(model, batch, options, "") for arch, model in models.items()}
    if options.pytorch:
        found |= {f"{arch}, PyTorch": sampling(model, batch, options, OFF) for arch, model in models.items()}
    for run in found.values():  # what a first call costs is not measured
        run()
    return found


def sampling(model: Transformer, batch: int, options: Any, native: str) -> Callable[[], int]:
    samples = min(batch, SAMPLES)
    prompts = random_prompts(batch // samples, options.prompt, options.vocabulary)
    params = SamplingParams(samples, options.new)
    sampler = engine(model, options.precision)
    sampler.threads = options.threads

    def run() -> int:
        os.environ[VARIABLE] = native
        return sum(len(c.token_ids) for group in sampler.sample(prompts, params) for c in group)

    return run


def describe(
    about: tuple[object, ...], samples: dict[str, list[Sample]], models: dict[Architecture, Transformer]
) -> list[tuple[object, ...]]:
    rates = {name: [s.result / s.wall for s in each] for name, each in samples.items()}
    lines = []
    for name, rate in rates.items():
        arch, _, other = name.partition(",")
        config = models[arch].config  # type: ignore[index]
        active = config.active_parameters()
        share = median(rate) / median(rates["dense" + ("," + other if other else "")])
        flops = 2e-9 * active * median(rate)
        sizes = f"{active / 1e6:.2f} M", f"{config.parameters() / 1e6:.2f} M"
        lines.append((*about, name, *sizes, spread(rate), f"{flops:.1f}", f"{share:.2f}"))
        print(*lines[-1], file=sys.stderr, flush=True)
    return lines


if __name__ == "__main__":
    main()
