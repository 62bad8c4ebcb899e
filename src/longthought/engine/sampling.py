"""Drawing tokens: counter-based randomness, and the log-prob of what was drawn from the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from longthought.core.errors import DataError
from longthought.core.types import SamplingParams
from longthought.engine.parameters import check, check_known
from longthought.engine.processors import History, process, seen_tokens, steps_of

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """64 bits that name a sample: a function of (seed, prompt tokens, sample number) alone."""
    content = f"{seed}/{sample}/{','.join(map(str, prompt))}".encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def uniforms(key: int, count: int) -> Float64[Tensor, " {count}"]:
    """``count`` numbers in (0, 1), float64: SplitMix64 (Steele et al., 2014) at counters key + 1·γ, key + 2·γ, …"""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def draw(
    scores: Float[Tensor, "r v"], u: Float[Tensor, " r"], greedy: bool
) -> tuple[Int64[Tensor, " r"], Float[Tensor, "r v"]]:
    """Tokens from softmax(scores) by inverting its distribution function at u, and all its log-probs.

    greedy takes the most likely token instead, the first of those that tie.
    scores: (R, V) float32 or wider; u: (R,) in (0, 1) → tokens (R,) int64, log-probs (R, V).
    """
    logp = torch.log_softmax(scores, dim=-1)
    if greedy:
        return scores.argmax(-1), logp
    mass = logp.double().exp().cumsum(-1)
    tokens = torch.searchsorted(mass, (u.to(mass.device) * mass[:, -1])[:, None]).squeeze(-1)
    return tokens.clamp_(max=scores.shape[-1] - 1), logp


def distribution(
    logits: Float[Tensor, "r v"],
    tokens: Sequence[Sequence[int]],
    params: SamplingParams,
    generated: Sequence[int] | None = None,
) -> Float[Tensor, "r v"]:
    """Log-probs (R, V) of what ``params`` samples the next token from; −inf for tokens that cannot be drawn.

    At temperature 0, where the arg max is taken, those of the processed logits at T = 1.

    logits: (R, V) of the model; tokens: of every row so far, prompt included; generated: how many of them were
    generated, which ``min_tokens`` counts (None: none). Raises SettingsError and DataError as the engine does.
    """
    rows, vocabulary = logits.shape
    check(params, vocabulary, decodes=True)
    counts = [0] * rows if generated is None else list(generated)
    if not len(tokens) == len(counts) == rows:
        raise DataError(f"{rows} rows of logits need as many of tokens ({len(tokens)}) and counts ({len(counts)})")
    for row in tokens:
        check_known(row, vocabulary)
    history = History(
        torch.tensor(counts, dtype=torch.int64, device=logits.device),
        seen_tokens(tokens, vocabulary, logits.device),
        tokens,
    )
    return torch.log_softmax(process(logits, history, steps_of(params, vocabulary, logits.device)), dim=-1)
