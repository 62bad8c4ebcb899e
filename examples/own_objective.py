"""An objective of your own is one dataclass: its fields are the hyperparameters, its call is the equation.

    python examples/own_objective.py my-model problems.jsonl runs/smooth

This one replaces the hard clip of PPO by a smooth one, A · tanh(k (ρ - 1)) / k. It is a weighted sum over tokens, so
any cut into micro-batches gives the same gradient: ``longthought doctor`` checks that, and that every field counts.
"""

import sys
from dataclasses import dataclass, replace

import torch

import longthought as lt


@dataclass(frozen=True)
class Smooth:
    """Σ w · A · tanh(k (ρ - 1)) / k, to be maximised. sharpness: k."""

    sharpness: float = 5.0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: lt.PolicyOutput, batch: lt.Batch, /) -> lt.Loss:
        live = batch.weight != 0
        ratio = torch.where(live, policy.logp - batch.logp_old, 0.0).exp()
        gain = batch.advantage * torch.tanh(self.sharpness * (ratio - 1)) / self.sharpness
        value = -torch.where(live, batch.weight * gain, 0.0).sum()
        return lt.Loss(value, {"ratio": torch.where(live, batch.weight * ratio, 0.0).sum().detach()})


def main(model: str, problems: str, out: str, steps: int = 20) -> lt.Checkpoint:
    task = lt.FileTask.read(problems, grading=lt.Grading(lt.Math(), form="free", format_weight=0.0))
    method = replace(lt.method("grpo", lt.Knobs(beta=0.0)), objective=Smooth())
    return lt.train(lt.RL(task, method, steps=steps, prompts=8, samples=8, max_tokens=256), model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
