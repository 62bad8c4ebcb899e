"""What drafts gain: tokens per second of a model with modules of multi-token prediction, with their drafts and without.

The weights are random. Modules that say nearly what the model says, and modules that know nothing of it, show between
which numbers a trained one will be; ``right`` is the share of the drafts that were kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import PRECISIONS, SLOTS
from peer import random_prompts

from longthought.core.types import SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.models.presets import sized
from longthought.models.transformer import Prediction, Transformer, initialize

SAMPLES = 8
BLOCKS = {"knowing": 0.05, "ignorant": 1.0}
"""What the blocks write into the stream: the less, the more the next token follows from the last one alone."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[96, 192])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 128], help="replies, at most 8 to a prompt")
    parser.add_argument("--modules", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--new", type=int, default=256, help="tokens of a reply (default: 256)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, measured = [], []
    for width in options.widths:
        for kind in BLOCKS:
            model = random_model(kind, width, options)
            for batch in options.batches:
                engines = {draft: engine(model, draft, options) for draft in (False, True)}
                sides = {str(draft): sampling(one, batch, options) for draft, one in engines.items()}
                for run in sides.values():  # what a first call costs is not measured
                    run()
                samples = interleaved(sides, options.repetitions)
                rows.append(line((width, kind, batch), samples, engines[True]))
                measured.append({"width": width, "modules": kind, "batch": batch, "sides": samples})
    table(("width", "modules", "replies", "tokens/s", "with drafts", "right", "gain (wall)", "(CPU)"), rows)
    write_json(options.json, options, measured)


def random_model(kind: str, width: int, options: Any) -> Transformer:
    """A model whose distributions are sharp, and whose modules pass on the token that they are given, or noise."""
    config = sized("deepseek_v3", width, options.vocabulary, 2 * (options.prompt + options.new), options.modules)
    model = Transformer(config)
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                size = BLOCKS[kind] * parameter.shape[-1] ** -0.5
                parameter.normal_(0.0, size, generator=generator)
        model.lm_head.weight.normal_(0.0, 3 * width**-0.5, generator=generator)
        for module in model.model.mtp if kind == "knowing" else ():
            assert isinstance(module, Prediction)
            module.eh_proj.weight.zero_()
            module.eh_proj.weight[:, :width].copy_(torch.eye(width))
    return model.eval()


def engine(model: Transformer, draft: bool, options: Any) -> Engine:
    settings = EngineSettings(SLOTS, PRECISIONS[options.precision], options.threads, draft=draft)
    return Engine(model, settings)


def sampling(sampler: Engine, batch: int, options: Any) -> Callable[[], int]:
    samples = min(batch, SAMPLES)
    prompts = random_prompts(batch // samples, options.prompt, options.vocabulary)
    params = SamplingParams(samples, options.new)
    return lambda: sum(len(c.token_ids) for group in sampler.sample(prompts, params) for c in group)


def line(about: tuple[object, ...], samples: dict[str, list[Sample]], drafting: Engine) -> tuple[object, ...]:
    wall = {name: [s.result / s.wall for s in each] for name, each in samples.items()}
    cpu = {name: [s.result / s.cpu for s in each] for name, each in samples.items()}
    gains = [f"{median(rate['True']) / median(rate['False']):.2f} x" for rate in (wall, cpu)]
    found = (*about, spread(wall["False"]), spread(wall["True"]), f"{drafting.drafts.rate:.2f}", *gains)
    print(*found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
