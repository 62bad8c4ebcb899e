"""The readiness gate: can this base learn by reinforcement at all?

RL sharpens what a model sometimes does. A base that cannot tell a hit from a miss finds that thinking does not pay and
collapses to guessing; so this is measured before any RL, and a base that fails is refused with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from longthought.core.errors import DataError
from longthought.core.types import Message, TokenIds
from longthought.evaluation.report_data import GateCheck
from longthought.models.attention import PackedAttention
from longthought.models.heads import token_logprobs
from longthought.models.transformer import Transformer
from longthought.tasks.corpus import Probe
from longthought.text.renderer import PlainRenderer

_AT_ONCE = 256


@torch.no_grad()
def probe(model: Transformer, renderer: PlainRenderer, probes: Iterable[Probe]) -> dict[str, float]:
    """Mean probability of the probed word, by check."""
    asked = list(probes)
    found: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(asked), _AT_ONCE):
        chunk = asked[start : start + _AT_ONCE]
        texts = [renderer.prompt((Message("user", p.user),)) + renderer.tokenizer.encode(p.text) for p in chunk]
        words = torch.tensor([_only(renderer.tokenizer.encode(p.word), p.word) for p in chunk])
        attend = PackedAttention([len(text) for text in texts])
        hidden = model(torch.tensor([t for text in texts for t in text]), attend.positions, attend)
        last = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
        logp, _ = token_logprobs(hidden[last], model.lm_head.weight, words)
        for one, value in zip(chunk, logp.exp().tolist()):
            found[one.check].append(value)
    return {check: sum(values) / len(values) for check, values in found.items()}


def _only(ids: TokenIds, word: str) -> int:
    if len(ids) != 1:
        raise DataError(f"the probed word {word!r} is {len(ids)} tokens; a probe asks for one")
    return ids[0]


@dataclass(frozen=True)
class Gate:
    """Bounds that a base must meet.

    fact: least probability of the right result of a step.
    hit: least probability of claiming success where there is one.
    miss: largest probability of claiming success where there is none.
    pass_at_1: range of pass@1.
    pass_at_8: least pass@8; RL needs groups with some success.
    """

    fact: float = 0.8
    hit: float = 0.7
    miss: float = 0.12
    pass_at_1: tuple[float, float] = (0.02, 0.30)
    pass_at_8: float = 0.2

    def checks(self, measured: Mapping[str, float]) -> tuple[GateCheck, ...]:
        """Every bound with what was measured (keys fact, hit, miss, pass_at_1, pass_at_8)."""
        low, high = self.pass_at_1
        bounds = {
            "fact": ("probability of the right result of a step", f"≥ {self.fact}", self.fact, 1.0),
            "hit": ("says yes to an attempt that hits", f"≥ {self.hit}", self.hit, 1.0),
            "miss": ("says yes to an attempt that misses", f"≤ {self.miss}", 0.0, self.miss),
            "pass_at_1": ("solves a problem at the first try", f"{low} … {high}", low, high),
            "pass_at_8": ("solves a problem in one of eight tries", f"≥ {self.pass_at_8}", self.pass_at_8, 1.0),
        }
        return tuple(
            GateCheck(text, measured[key], needed, at_least <= measured[key] <= at_most)
            for key, (text, needed, at_least, at_most) in bounds.items()
        )
