"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from longthought.core.errors import SettingsError


def orthogonalize(g: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """U Vᵀ of g = U Σ Vᵀ, nearly: the quintic Newton–Schulz iteration of Muon (Jordan et al., 2024).

    Singular values end between about 0.7 and 1.2.  g: (M, N) → (M, N).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[0] <= g.shape[1]
    x: Tensor = g if wide else g.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + torch.addmm(b * s, s, s, alpha=c) @ x  # a x + (b s + c s²) x
    result: Tensor = x if wide else x.T
    return result


class Muon(Optimizer):
    """Momentum, then orthogonalisation of every matrix's update (Jordan et al., 2024).

    Updates are scaled by 0.2 √max(M, N), so that their size matches AdamW's (Moonlight, arXiv:2502.16982, section 2.2).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup`` steps, constant, linear decay to ``final`` × over the last ``decay`` share."""

    warmup: int = 0
    decay: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.final <= 1:
            raise SettingsError("schedule: warmup must be >= 0, decay and final within 0 … 1")
        if self.final and not self.decay:
            raise SettingsError(f"schedule.final={self.final} changes nothing without schedule.decay")

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate for optimizer step ``step`` of ``steps`` (counted from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = steps * (1 - self.decay)
        if step < start or not self.decay:
            return 1.0
        return 1.0 + (self.final - 1.0) * min(1.0, (step + 1 - start) / (steps - start))


@dataclass(frozen=True)
class AdamW:
    """AdamW for every parameter; no decay on norms and biases."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        _check_rates("AdamW", lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

    def build(self, model: nn.Module) -> list[Optimizer]:
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.dim() >= 2]
        plain = [p for p in trained if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)]


@dataclass(frozen=True)
class MuonAdamW:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms.

    For pretraining only: on the noisy low-rank gradients of RL, orthogonalised updates move every direction and
    destroy what the base knows.
    """

    lr: float = 0.03
    adam_lr: float = 8e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    schedule: Schedule = Schedule(warmup=20, decay=0.7)

    def __post_init__(self) -> None:
        _check_rates("MuonAdamW", lr=self.lr, adam_lr=self.adam_lr, weight_decay=self.weight_decay)

    def build(self, model: nn.Module) -> list[Optimizer]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.dim() == 2 and ".layers." in name]
        tables = [p for name, p in named if p.dim() == 2 and ".layers." not in name]
        plain = [p for _, p in named if p.dim() < 2]
        groups = [{"params": tables, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [
            Muon(matrices, self.lr, weight_decay=self.weight_decay),
            torch.optim.AdamW(groups, lr=self.adam_lr, betas=self.betas, fused=True),
        ]


def _check_rates(owner: str, **rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise SettingsError(f"{owner}: {name}={rate} must be at least 0 and finite")


OptimizerSettings: TypeAlias = AdamW | MuonAdamW


def set_lr(optimizers: list[Optimizer], factor: float) -> None:
    """Scale every group's learning rate from the one it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
