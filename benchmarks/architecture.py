"""Dense against DeepSeek-V3-style at equal active parameters and equal tokens: loss, balance, cache, speed.

Every case is pretrained on the corpus of the laptop recipe, from scratch; the learning rate of the matrices is the best
of --rates for the first seed, and then the other seeds follow. Loss and load of the experts are measured on documents
that none of them has read. Runs lie in --out and are not repeated.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import arguments, median, table, write_json
from torch import Tensor

from longthought.algorithms.multi_token import MultiToken
from longthought.algorithms.objective import NLL
from longthought.core.types import SamplingParams, TokenIds, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.models import balance
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.routing import Routing
from longthought.recipes.tiny import Base, TinySettings, pretraining
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.run import Run
from longthought.stages.pretrain import Pretrain
from longthought.stages.pretrain_loop import Experts
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, LogprobHead, PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Switch

UNREAD = 10**9  # number of the first document that no run reaches
FEW = 400  # documents to measure on


class Case(NamedTuple):
    """A shape, and how its experts are balanced. like: the case whose learning rate it takes; empty: its own best."""

    name: str
    change: Callable[[Pretrain], Pretrain]
    like: str = ""


def no_balance(stage: Pretrain) -> Pretrain:
    """γ = 0 and next to no loss."""
    return replace(stage, balancing=Experts(Switch(0.0, 0.0, 0.5), alpha=1e-12))


CASES = (
    Case("dense", lambda stage: stage),
    Case("V3", lambda stage: replace(stage, arch="deepseek_v3", ahead=1)),
    Case("V3 without MTP", lambda stage: replace(stage, arch="deepseek_v3", ahead=0), "V3"),
    Case("V3 without balance", lambda stage: no_balance(replace(stage, arch="deepseek_v3", ahead=0)), "V3"),
)


@dataclass(frozen=True)
class Script:
    """The settings of a run that a script made: none."""


class Seen(NamedTuple):
    """What one run came to. violation: MaxVio over documents that were not read, the mean over layers and the worst."""

    rate: float
    seed: int
    loss: float
    violation: float
    worst: float


def pretrained(case: Case, seed: int, rate: float, options: Any) -> tuple[Checkpoint, Pretrain]:
    """The base of a case; made if it is not there."""
    base = Base(width=options.width, steps=options.steps, muon_lr=rate)
    stage = case.change(pretraining(TinySettings(seed=seed, workers=options.workers, base=base)))
    folder = options.out / f"{case.name.replace(' ', '_')}-{rate:g}-{seed}"
    with Run.open(folder, recipe="script", settings=Script(), command=shlex.join(sys.argv), threads=1) as run:
        return run.do("base", stage, None), stage


def measured(case: Case, seed: int, rate: float, options: Any) -> tuple[Seen, Policy, list[TokenIds]]:
    """What became of it on documents that it has not read."""
    made, stage = pretrained(case, seed, rate, options)
    policy = made.load()
    sequences = unread(stage, policy)
    loss, loads = look(policy, sequences)
    violation = balance.maximal_violation(loads) if len(loads) else torch.zeros(1)
    return Seen(rate, seed, loss, float(violation.mean()), float(violation.max())), policy, sequences


def unread(stage: Pretrain, policy: Policy) -> list[TokenIds]:
    """Documents as tokens."""
    pages = (stage.corpus.document(UNREAD + number) for number in range(FEW))
    return [policy.renderer.document(page.user, page.text)[: stage.context] for page in pages]  # type: ignore[union-attr]


@torch.no_grad()
def look(policy: Policy, sequences: list[TokenIds]) -> tuple[float, Tensor]:
    """Nats per token, and the loads (L, E) of the routed layers."""
    model, config = policy.model, policy.model.config
    rows = rows_of(sequences)
    learner = PolicyLearner(model, AdamW(), 1)
    loss = -float(learner.logprobs(rows).double().sum()) / float((rows.lengths - 1).sum())
    if config.experts is None:
        return loss, torch.zeros(0, 1)
    attend = PackedAttention([len(one) for one in sequences])
    routing = Routing(config.routed_layers)
    model(torch.tensor([t for one in sequences for t in one]), attend.positions, attend, routing)
    count = config.experts.n_routed_experts
    return loss, torch.stack([balance.loads(chosen, count) for chosen in routing.chosen.values()])


def speeds(policy: Policy, sequences: list[TokenIds]) -> tuple[float, float]:
    """Tokens per second on one core: training (with the objective of its pretraining), and sampling 128 replies."""
    model, config = policy.model, policy.model.config
    ahead = config.num_nextn_predict_layers > 0
    head = LogprobHead(1.0, 1024, ahead=True) if ahead else None
    learner = PolicyLearner(model, AdamW(lr=0.0), 1, settings=LearnerSettings(), head=head)
    batch, objective = documents(sequences[:64]), MultiToken(NLL(), 0.3) if ahead else NLL()
    engine = Engine(model, EngineSettings(threads=1))
    prompts = [one[:12] for one in sequences if len(one) > 12][:16]
    params = SamplingParams(8, 128, seed=1)

    def rate(work: Callable[[], int]) -> float:
        work()
        found = []
        for _ in range(5):
            began = time.perf_counter()
            tokens = work()
            found.append(tokens / (time.perf_counter() - began))
        return median(found)

    def train() -> int:
        learner.accumulate(batch, objective)
        return int(batch.lengths.sum())

    def sample() -> int:
        return sum(len(reply.token_ids) for group in engine.sample(prompts, params) for reply in group)

    return rate(train), rate(sample)


def spread(values: list[float], form: str) -> str:
    """Mean and, of several seeds, the standard deviation."""
    middle = format(statistics.mean(values), form)
    return middle if len(values) == 1 else f"{middle} ± {format(statistics.stdev(values), form)}"


def main() -> None:
    parser = arguments(__doc__, threads=None, repetitions=None)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of 1,536 tokens (default: 1500)")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.025, 0.0125, 0.006])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    parser.add_argument("--out", type=Path, default=Path("runs/architecture"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, everything, best = [], [], {}
    for case in (case for case in CASES if case.name in options.cases):
        rates = [best[case.like]] if case.like in best else options.rates
        tried = [measured(case, 0, rate, options) for rate in rates]
        first = min(tried, key=lambda one: one[0].loss)
        best[case.name] = first[0].rate
        others = [measured(case, seed, first[0].rate, options)[0] for seed in range(1, options.seeds)]
        seen, (_, policy, sequences) = [first[0], *others], first
        trains, samples = speeds(policy, sequences)
        everything.append(
            {"case": case.name, "tried": [one[0]._asdict() for one in tried], "train": trains, "sample": samples}
        )
        everything[-1]["seen"] = [one._asdict() for one in seen]
        config: ModelConfig = policy.model.config
        routed = config.experts is not None
        rows.append(
            (
                case.name,
                f"{config.active_parameters():,}",
                f"{config.parameters():,}",
                config.cache_numbers,
                f"{first[0].rate:g}",
                spread([one.loss for one in seen], ".3f"),
                spread([one.violation for one in seen], ".2f") if routed else "",
                spread([one.worst for one in seen], ".2f") if routed else "",
                f"{trains:,.0f}",
                f"{samples:,.0f}",
            )
        )
        print(rows[-1], [(one[0].rate, round(one[0].loss, 4)) for one in tried], file=sys.stderr, flush=True)
    header = ("", "active", "parameters", "cache", "rate", "loss", "MaxVio", "worst", "train tok/s", "sample tok/s")
    table(header, rows)
    write_json(options.json, options, everything)


if __name__ == "__main__":
    main()
