"""Our rollout engine against ``transformers.generate``: the same weights, prompts, sample counts and lengths.

Two settings: every reply runs to the full length, and replies end at random as a real policy's do (four of the
tokens stop). Prints tokens per second of kept tokens, and the ratio, medians of
alternating repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from peer import random_model, theirs

from longthought.core.types import SamplingParams
from longthought.engine.engine import Engine, EngineSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=144)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = random_model(options.width, options.vocabulary)
    peer = theirs(model)
    generator = torch.Generator().manual_seed(2)
    shape = (options.prompts, options.prompt_length)
    prompts = torch.randint(6, options.vocabulary, shape, generator=generator)
    batch = prompts.repeat_interleave(options.samples, 0)

    def ours(stop: tuple[int, ...], slots: int) -> int:
        params = SamplingParams(options.samples, options.new, 1.0, 0, stop)
        groups = Engine(model, EngineSettings(slots)).sample([tuple(p) for p in prompts.tolist()], params)
        return sum(len(c.token_ids) for group in groups for c in group)

    print(f"{model.config.parameters():,} parameters, {len(batch)} replies, {options.threads} thread(s), float32")
    for label, stop in (("full length", ()), ("varying length", (5, 6, 7, 8))):
        rates: dict[str, list[float]] = {"longthought": [], "transformers": []}
        for _ in range(options.repetitions):
            began = time.perf_counter()
            tokens = ours(stop, 256)
            rates["longthought"].append(tokens / (time.perf_counter() - began))
            began = time.perf_counter()
            tokens = kept(generate(peer, batch, stop, options), stop)
            rates["transformers"].append(tokens / (time.perf_counter() - began))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        spread = {name: f"{min(values):,.0f}–{max(values):,.0f}" for name, values in rates.items()}
        ratio = medians["longthought"] / medians["transformers"]
        print(f"{label:15} " + "  ".join(f"{n} {m:,.0f} tok/s ({spread[n]})" for n, m in medians.items()), end="")
        print(f"  ratio {ratio:.2f}")


def generate(
    peer: torch.nn.Module, batch: torch.Tensor, stop: tuple[int, ...], options: argparse.Namespace
) -> torch.Tensor:
    """New token ids of ``generate``."""
    with torch.inference_mode():
        out = peer.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=options.new,
            pad_token_id=0,
            eos_token_id=list(stop) or None,
        )
    return out[:, options.prompt_length :]


def kept(new: torch.Tensor, stop: tuple[int, ...]) -> int:
    """Tokens up to and including the first stop token of every row."""
    hit = torch.isin(new, torch.tensor(stop, dtype=torch.int64))
    before = hit.long().cumsum(1) - hit.long()
    return int((before == 0).sum())


if __name__ == "__main__":
    main()
