"""Our packed training pass against a padded one through ``transformers``: the same model, rows, loss and gradient.

The loss is token-mean GRPO. The peer pads every micro-batch to its longest row, computes full logits and their
log-softmax, as trainers built on ``transformers`` do. Prints real tokens per second and the ratio, medians of
alternating repetitions, and the relative difference of the gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peer import random_model, theirs

from longthought.algorithms.objective import GRPO, clipped_surrogate
from longthought.algorithms.weighting import token_mean
from longthought.core.types import Batch, rows_of
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW


def ragged(rows: int, prompt: int, longest: int, vocabulary: int) -> Batch:
    """Rows with replies of uniformly drawn lengths."""
    g = torch.Generator().manual_seed(0)
    lengths = (torch.randint(prompt, longest, (rows,), generator=g) + prompt).tolist()
    made = rows_of([tuple(torch.randint(6, vocabulary, (n,), generator=g).tolist()) for n in lengths])
    position = torch.arange(made.tokens.shape[1])
    mask = (position >= prompt) & (position < made.lengths[:, None])
    advantage = torch.where(mask, torch.randn(rows, 1, generator=g), 0.0)
    old = torch.where(mask, torch.full(mask.shape, -5.0), 0.0)
    return Batch(made.tokens, made.lengths, mask, token_mean(mask), advantage, old)


def padded_pass(peer: torch.nn.Module, batch: Batch, micro: int) -> None:
    """Micro-batches of ``micro`` rows in the order given, full logits."""
    for rows in torch.arange(len(batch.tokens)).split(micro):
        part: Any = batch.select(rows)
        attention = (torch.arange(part.tokens.shape[1]) < part.lengths[:, None]).long()
        logits = peer(part.tokens, attention_mask=attention, use_cache=False).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, part.tokens[:, 1:, None]).squeeze(-1)
        gain = clipped_surrogate(logp, part.logp_old[:, 1:], part.advantage[:, 1:], 0.2, 0.2)
        (-(gain * part.weight[:, 1:]).sum()).backward()


def gradient(model: torch.nn.Module) -> torch.Tensor:
    grads = {name: p.grad.flatten().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return torch.cat([grads[name] for name in sorted(grads)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=144)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--longest", type=int, default=192)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = random_model(options.width, options.vocabulary)
    peer = theirs(model).train()
    batch = ragged(options.rows, options.prompt_length, options.longest, options.vocabulary)
    learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(micro_tokens=2048))
    tokens = int(batch.lengths.sum())
    print(f"{model.config.parameters():,} parameters, {options.rows} rows, {tokens:,} real tokens, float32")
    rates: dict[str, list[float]] = {}
    for _ in range(options.repetitions):
        began = time.perf_counter()
        learner.accumulate(batch, GRPO())
        rates.setdefault("longthought packed", []).append(tokens / (time.perf_counter() - began))
        ours = gradient(model)
        for micro in (8, 32):
            began = time.perf_counter()
            padded_pass(peer, batch, micro)
            rates.setdefault(f"padded, {micro} rows", []).append(tokens / (time.perf_counter() - began))
            difference = float((gradient(peer) - ours).norm() / ours.norm())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        spread = f"{min(rates[name]):,.0f}–{max(rates[name]):,.0f}"
        print(f"{name:20} {median:>9,.0f} tok/s ({spread})  ours is {medians['longthought packed'] / median:.2f} ×")
    print(f"relative difference of the gradients: {difference:.1e}")


if __name__ == "__main__":
    main()
