"""What drafts gain: tokens per second of a model with modules of multi-token prediction, with their drafts and without.

The models are of the shape of DeepSeek-V3, with experts or with ordinary nets. They learn a noisy circle for some
hundred steps: the next token is the successor of the last one, but for one time in ten, when it is any. So their
modules are trained, and keep most drafts. Replies with drafts are compared with those without: in the native core they
are equal bit for bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import PRECISIONS

from longthought.algorithms.multi_token import MultiToken
from longthought.algorithms.objective import NLL
from longthought.core.types import SamplingParams, TokenIds
from longthought.engine.engine import Engine, EngineSettings
from longthought.models.presets import sized
from longthought.models.transformer import Transformer, initialize
from longthought.training.batching import documents
from longthought.training.learner import LogprobHead, PolicyLearner
from longthought.training.optimizer import MuonAdamW

SAMPLES, PROMPT, NOISE = 8, 16, 0.1
ENGINES = {"native": "", "torch": "off"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 12])
    parser.add_argument("--nets", nargs="+", choices=("experts", "dense"), default=["experts", "dense"])
    parser.add_argument("--modules", nargs="+", type=int, default=[1])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="replies, at most 8 to a prompt")
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--new", type=int, default=256, help="tokens of a reply (default: 256)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, measured = [], []
    for layers in options.layers:
        for nets in options.nets:
            for modules in options.modules:
                os.environ["LONGTHOUGHT_NATIVE"] = ""
                model = trained(layers, nets, modules, options)
                for name in options.engines:
                    os.environ["LONGTHOUGHT_NATIVE"] = ENGINES[name]
                    for batch in options.batches:
                        engines = {draft: engine(model, draft, batch, options) for draft in (False, True)}
                        sides = {str(draft): sampling(one, batch, options) for draft, one in engines.items()}
                        replies = {draft: run() for draft, run in sides.items()}  # a first call is not measured
                        same = replies["True"][1] == replies["False"][1]
                        samples = interleaved(
                            {side: lambda run=run: run()[0] for side, run in sides.items()}, options.repetitions
                        )
                        about = (f"{layers} layers, {nets}, D = {modules}", name, batch)
                        rows.append(line(about, samples, engines[True], same))
                        measured.append({"model": about, "sides": samples, "equal": same})
    header = ("model", "engine", "replies", "tokens/CPU s", "with drafts", "kept", "equal", "gain (wall)", "(CPU)")
    table(header, rows)
    write_json(options.json, options, measured)


def trained(layers: int, nets: str, modules: int, options: Any) -> Transformer:
    """A model that knows the circle."""
    config = replace(
        sized("deepseek_v3", options.width, options.vocabulary, PROMPT + options.new, modules), num_hidden_layers=layers
    )
    model = Transformer(config if nets == "experts" else replace(config, experts=None))
    initialize(model, 0)
    head = LogprobHead(1.0, 1024, ahead=True)
    learner = PolicyLearner(model, MuonAdamW(), options.steps, head=head)
    for step in range(options.steps):
        learner.step(documents(circle(step, 16, 64, options.vocabulary)), MultiToken(NLL(), 0.3))
    return model.eval()


def circle(seed: int, rows: int, length: int, vocabulary: int) -> list[TokenIds]:
    """Sequences in which a token follows the one before it, or, with probability ``NOISE``, is any."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=generator)
    jumps = torch.rand(rows, length, generator=generator) < NOISE
    for t in range(1, length):
        tokens[:, t] = torch.where(jumps[:, t], tokens[:, t], (tokens[:, t - 1] + 1) % vocabulary)
    return [tuple(row) for row in tokens.tolist()]


def engine(model: Transformer, draft: bool, slots: int, options: Any) -> Engine:
    settings = EngineSettings(slots, PRECISIONS[options.precision], options.threads, draft=draft)
    return Engine(model, settings)


def sampling(sampler: Engine, batch: int, options: Any) -> Callable[[], tuple[int, list[TokenIds]]]:
    """Tokens that were sampled, and the replies."""
    samples = min(batch, SAMPLES)
    prompts = circle(10**6, batch // samples, PROMPT, options.vocabulary)
    params = SamplingParams(samples, options.new, seed=1)

    def run() -> tuple[int, list[TokenIds]]:
        replies = [one.token_ids for group in sampler.sample(prompts, params) for one in group]
        return sum(map(len, replies)), replies

    return run


def line(
    about: tuple[object, ...], samples: dict[str, list[Sample]], drafting: Engine, same: bool
) -> tuple[object, ...]:
    wall = {name: [s.result / s.wall for s in each] for name, each in samples.items()}
    cpu = {name: [s.result / s.cpu for s in each] for name, each in samples.items()}
    gains = [f"{median(rate['True']) / median(rate['False']):.2f} x" for rate in (wall, cpu)]
    kept = f"{drafting.drafts.rate:.2f}"
    found = (*about, spread(cpu["False"]), spread(cpu["True"]), kept, "yes" if same else "no", *gains)
    print(*found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
