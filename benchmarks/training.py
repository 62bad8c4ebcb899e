"""Our training pass against a padded one through transformers: the same rows, the same GRPO loss and gradient norm.

One optimizer step at learning rate 0: forward, backward, clipping, AdamW. The peer pads every micro-batch to its
longest row and computes full logits; with TRL installed, also TRL's head, which does not store them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import PRECISIONS, system
from peer import SIZES, random_model, theirs

from longthought.algorithms.objective import clipped_surrogate
from longthought.algorithms.weighting import token_mean
from longthought.core.types import Batch, rows_of


class Peer(NamedTuple):
    """micro: rows of a micro-batch.  bf16: autocast.  head: TRL's, instead of full logits."""

    micro: int
    bf16: bool = False
    head: bool = False


PEERS = {
    "padded fp32, 32 rows": Peer(32),
    "padded fp32, 8 rows": Peer(8),
    "padded bf16, 8 rows": Peer(8, bf16=True),
    "TRL's head bf16, 8 rows": Peer(8, bf16=True, head=True),
}


def ragged(rows: int, prompt: int, shortest: int, longest: int, vocabulary: int, group: int = 1) -> Batch:
    """Replies of uniformly drawn lengths, random advantages, and old log-probs near the uniform policy's.

    group: rows that have the same prompt.
    """
    g = torch.Generator().manual_seed(0)
    lengths = (torch.randint(shortest, longest + 1, (rows,), generator=g) + prompt).tolist()
    made = rows_of([tuple(torch.randint(1, vocabulary, (n,), generator=g).tolist()) for n in lengths])
    made.tokens[:, :prompt] = made.tokens[torch.arange(rows) // group * group, :prompt]
    position = torch.arange(made.tokens.shape[1])
    mask = (position >= prompt) & (position < made.lengths[:, None])
    advantage = torch.where(mask, torch.randn(rows, 1, generator=g), 0.0)
    old = torch.where(mask, -torch.tensor(float(vocabulary)).log(), 0.0)
    return Batch(made.tokens, made.lengths, mask, token_mean(mask), advantage, old)


def padded_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, settings: Peer) -> dict[str, float]:
    """One optimizer step in micro-batches of rows in the order given; loss and gradient norm."""
    loss = 0.0
    for rows in torch.arange(len(batch.tokens)).split(settings.micro):
        part = batch.select(rows)
        assert part.logp_old is not None
        assert part.advantage is not None
        attention = (torch.arange(part.tokens.shape[1]) < part.lengths[:, None]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            logp = logprobs(model, part, attention, settings.head).float()
        gain = clipped_surrogate(logp, part.logp_old[:, 1:], part.advantage[:, 1:], 0.2, 0.2)
        share = -(gain * part.weight[:, 1:]).sum()
        share.backward()
        loss += float(share.detach())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, "grad_norm": float(norm)}


def logprobs(model: Any, part: Batch, attention: torch.Tensor, head: bool) -> torch.Tensor:
    """Of every token but the first, (N, T - 1)."""
    if head:
        labels = part.tokens.masked_fill(~part.mask, -100)
        logp: torch.Tensor = model(part.tokens, attention_mask=attention, labels=labels, fused_lm_head=True).log_probs
        return logp
    logits: torch.Tensor = model(part.tokens, attention_mask=attention, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, part.tokens[:, 1:, None]).squeeze(-1)


def trained(model: Any, settings: Peer, threads: int) -> Callable[[Batch], Mapping[str, float]]:
    """The peer's step."""
    if settings.head:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def run(batch: Batch) -> dict[str, float]:
        torch.set_num_threads(threads)
        return padded_step(model.train(), optimizer, batch, settings)

    return run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", choices=SIZES, default="4m")
    parser.add_argument("--rows", type=int, default=128, help="sequences (default: 128)")
    parser.add_argument("--group", type=int, default=8, help="rows that have the same prompt (default: 8)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--shortest", type=int, default=32, help="tokens of the shortest reply (default: 32)")
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest reply (default: 256)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)), help="of ours")
    options = parser.parse_args()
    model = random_model(options.model)
    shape = (options.rows, options.prompt, options.shortest, options.longest)
    batch = ragged(*shape, model.config.vocab_size, options.group)
    tokens, numbers = int(batch.lengths.sum()), model.config.parameters()
    print(f"{numbers:,} parameters, {options.rows} rows, {tokens:,} tokens, {options.threads} thread(s)")
    with system(model, options.precision, options.threads, rate=0.0) as ours:
        steps: dict[str, Callable[[Batch], Mapping[str, float]]] = {f"ours {options.precision}": ours.step}
        for name, settings in PEERS.items():
            if not settings.head or find_spec("trl"):
                steps[name] = trained(theirs(model), settings, options.threads)
        for step in steps.values():
            step(batch.select(torch.arange(min(8, options.rows))))  # what a first call costs is not measured
        samples = interleaved({name: partial(step, batch) for name, step in steps.items()}, options.repetitions)
    head = ("side", "tokens/s", "tokens/CPU s", "GFLOP/s", "ours is (wall)", "(CPU)", "loss", "grad norm")
    table(head, describe(samples, tokens, 6e-9 * numbers))
    write_json(options.json, options, {"tokens": tokens, "parameters": numbers, "sides": samples})


def describe(samples: dict[str, list[Sample]], tokens: int, gflop: float) -> list[tuple[object, ...]]:
    """A line for every side."""
    wall = {name: [tokens / s.wall for s in each] for name, each in samples.items()}
    cpu = {name: [tokens / s.cpu for s in each] for name, each in samples.items()}
    ours = next(iter(samples))
    lines: list[tuple[object, ...]] = []
    for name, each in samples.items():
        ratios = [f"{median(rate[ours]) / median(rate[name]):.2f} x" for rate in (wall, cpu)]
        seen = [f"{each[0].result[key]:.5f}" for key in ("loss", "grad_norm")]
        lines.append((name, spread(wall[name]), spread(cpu[name]), f"{gflop * median(wall[name]):.0f}", *ratios, *seen))
    return lines


if __name__ == "__main__":
    main()
