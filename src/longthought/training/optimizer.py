"""Optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim import Optimizer

from longthought.core.errors import SettingsError
from longthought.training.schedule import Schedule

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of Jordan et al. (2024): steepest at 0, for singular values that end near 1, not at 1."""


def orthogonalize(g: Float[Tensor, "*b m n"], steps: int = 5) -> Float[Tensor, "*b m n"]:
    """U Vᵀ of g = U Σ Vᵀ, nearly: the quintic Newton–Schulz iteration of Muon (Jordan et al., 2024).

    Singular values end between about 0.7 and 1.2.  g: one matrix (M, N) or a stack of them → the same shape.
    """
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).reshape(-1, *sorted(g.shape[-2:]))
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    direct, gram = _costs(x, steps)
    # A step amplifies errors of x xᵀ up to a² times: half precision is too short for the other way.
    made = _by_gram(x, steps) if gram < direct and torch.finfo(x.dtype).eps < 1e-6 else _by_steps(x, steps)
    return (made.mT if tall else made).reshape(g.shape)


def cost(matrices: Shaped[Tensor, "*b m n"]) -> int:
    """Multiplications of ``orthogonalize``, nearly."""
    return matrices.shape[:-2].numel() * min(_costs(matrices, 5))


def _costs(matrices: Shaped[Tensor, "*b m n"], steps: int) -> tuple[int, int]:
    """Multiplications for one matrix, by ``_by_steps`` and by ``_by_gram``: the second wins from N = 1.5 M on."""
    m, n = sorted(matrices.shape[-2:])
    return steps * (2 * m * m * n + m**3), 2 * m * m * n + (4 * steps - 3) * m**3


def _by_steps(x: Float[Tensor, "b m n"], steps: int) -> Float[Tensor, "b m n"]:
    """x ← a x + (b s + c s²) x with s = x xᵀ."""
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        s = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Float[Tensor, "b m n"], steps: int) -> Float[Tensor, "b m n"]:
    """The same in exact arithmetic. Every step multiplies x from the left by p = a + b s + c s², which commutes with s.

    So s alone is iterated, s ← p s p, and x is multiplied once, by the product of all p.
    """
    a, b, c = _COEFFICIENTS
    s = torch.bmm(x, x.mT)
    product = None
    for left in reversed(range(steps)):
        p = torch.baddbmm(s, s, s, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else torch.bmm(p, product)
        if left:
            s = torch.bmm(torch.bmm(p, s), p)
    return x if product is None else torch.bmm(product, x)


class Muon(Optimizer):
    """Momentum, then orthogonalisation of every matrix's update (Jordan et al., 2024).

    Updates are scaled by 0.2 √max(M, N), so that their size matches AdamW's (Moonlight, arXiv:2502.16982, section 2.2).
    Parameters are matrices, or stacks of them, such as those of experts, each of which is orthogonalised by itself.
    Matrices of one shape, or its transpose, are orthogonalised together.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._elsewhere: Callable[[], None] | None = None

    @property
    def matrices(self) -> list[Tensor]:
        """All of them, and all stacks, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self._elsewhere is None:
            self.step_some(range(len(self.matrices)))
        else:
            self._elsewhere()

    @torch.no_grad()
    def step_some(self, numbers: Iterable[int]) -> None:
        """Step with some of ``matrices``, named by their places; those without a gradient are left alone."""
        matrices = self.matrices
        chosen = {id(matrices[number]) for number in numbers}
        for group in self.param_groups:
            alike: dict[tuple[object, ...], list[Tensor]] = {}
            for p in group["params"]:
                if id(p) in chosen and p.grad is not None:
                    alike.setdefault((p.device, p.dtype, *sorted(p.shape[-2:])), []).append(p)
            for together in alike.values():
                self._step_together(together, group)

    def keep_in(self, momenta: Sequence[Tensor]) -> None:
        """From now on the momenta lie in these tensors, one like each of ``matrices``."""
        for p, momentum in zip(self.matrices, momenta, strict=True):
            if self.state[p]:
                momentum.copy_(self.state[p]["momentum"])
            self.state[p] = {"momentum": momentum}

    def hand_over(self, step: Callable[[], None]) -> None:
        """From now on ``step`` steps: it sees to it that ``step_some`` is called once with each of ``matrices``."""
        self._elsewhere = step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but momenta stay where they lie: other processes may see them there."""
        places = {p: state["momentum"] for p, state in self.state.items() if state}
        super().load_state_dict(state_dict)
        for p, momentum in places.items():
            loaded = self.state[p].get("momentum")
            momentum.zero_() if loaded is None else momentum.copy_(loaded)
            self.state[p] = {"momentum": momentum}

    def _step_together(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in matrices if p.grad is not None]
        momenta = [self._momentum(p) for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        tall = [p.shape[-2] > p.shape[-1] for p in matrices]
        stacks = [(u.mT if t else u).reshape(-1, *sorted(u.shape[-2:])) for u, t in zip(ahead, tall)]
        made = orthogonalize(torch.cat(stacks)).split([len(stack) for stack in stacks])
        updates = [(u.mT if t else u).reshape(p.shape) for u, t, p in zip(made, tall, matrices)]
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, updates, alpha=-group["lr"] * 0.2 * max(matrices[0].shape[-2:]) ** 0.5)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"]
        return momentum


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
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and routers.

    The matrix of a router is a table of centroids, no map from states to states.

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
        matrices = [p for name, p in named if p.dim() >= 2 and _is_hidden(name)]
        tables = [p for name, p in named if p.dim() >= 2 and not _is_hidden(name)]
        plain = [p for _, p in named if p.dim() < 2]
        groups = [{"params": tables, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [
            Muon(matrices, self.lr, weight_decay=self.weight_decay),
            torch.optim.AdamW(groups, lr=self.adam_lr, betas=self.betas, fused=True),
        ]


def _is_hidden(name: str) -> bool:
    """Whether a parameter belongs to a block, or to a module that predicts further tokens, and to no router."""
    return (".layers." in name or ".mtp." in name) and ".mlp.gate." not in name


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
