"""Muon: matrices that step together step as each would alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longthought.training.optimizer import Muon, _by_gram, _by_steps, cost, orthogonalize

SHAPES = [(6, 6), (4, 9), (9, 4), (5, 4), (4, 5), (1, 7), (3, 12), (12, 3), (6, 6), (4, 9)]


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def newton_schulz(g: Tensor) -> Tensor:
    """As in the paper, one matrix at a time."""
    x = g / (torch.linalg.matrix_norm(g) + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x - 4.7750 * s @ x + 2.0315 * s @ s @ x
    return x


class OneByOne:
    """Muon written again, a matrix at a time."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices, self.momenta = matrices, [torch.zeros_like(p) for p in matrices]

    def step(self, gradients: Sequence[Tensor | None], lr: float, decay: float) -> None:
        for p, m, g in zip(self.matrices, self.momenta, gradients):
            if g is not None:
                m.mul_(0.95).add_(0.05 * g)
                p.mul_(1 - lr * decay)
                p.sub_(lr * 0.2 * max(p.shape) ** 0.5 * newton_schulz(0.05 * g + 0.95 * m))


def some_gradients(step: int, missing: set[int]) -> list[Tensor | None]:
    return [None if i in missing else noise(*shape, seed=100 * step + i) for i, shape in enumerate(SHAPES)]


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(noise(*shape, seed=1000 + i)) for i, shape in enumerate(SHAPES)]


def give(matrices: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, gradient in zip(matrices, gradients, strict=True):
        p.grad = None if gradient is None else gradient.clone()


@given(st.lists(st.sets(st.integers(0, len(SHAPES) - 1)), min_size=1, max_size=4), st.integers(1, len(SHAPES)))
@settings(max_examples=30, deadline=None)
def test_together_is_one_by_one(missing: list[set[int]], cut: int) -> None:
    together, alone = parameters(), OneByOne([p.detach().clone() for p in parameters()])
    groups = [{"params": together[:cut], "lr": 0.1}, {"params": together[cut:], "lr": 0.1, "weight_decay": 0.5}]
    muon = Muon([group for group in groups if group["params"]], lr=0.1, weight_decay=0.5)
    for step, absent in enumerate(missing):
        give(together, some_gradients(step, absent))
        muon.step()
        alone.step(some_gradients(step, absent), 0.1, 0.5)
    for i, (left, right) in enumerate(zip(together, alone.matrices)):
        torch.testing.assert_close(left.data, right, rtol=1e-9, atol=1e-10)
        never = all(i in absent for absent in missing)
        assert (left in muon.state) != never  # what never had a gradient has no state either


@given(st.lists(st.integers(0, 2), min_size=len(SHAPES), max_size=len(SHAPES)))
@settings(max_examples=20, deadline=None)
def test_shares_make_the_whole(owner: list[int]) -> None:
    whole, shared = parameters(), parameters()
    one, other = Muon(whole, lr=0.1), Muon(shared, lr=0.1)
    for step in range(2):
        give(whole, some_gradients(step, {3}))
        give(shared, some_gradients(step, {3}))
        one.step()
        for member in range(3):
            other.step_some([place for place, who in enumerate(owner) if who == member])
    for left, right in zip(whole, shared):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 7), (3, 20), (20, 3), (1, 1), (2, 5, 9), (2, 3, 4, 4)])
def test_a_stack_is_its_matrices(shape: tuple[int, ...]) -> None:
    stack = noise(*shape, seed=3)
    expected = torch.stack([newton_schulz(g) for g in stack.reshape(-1, *shape[-2:])]).reshape(shape)
    torch.testing.assert_close(orthogonalize(stack), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", range(7))
def test_both_ways_are_one_iteration(steps: int) -> None:
    x = noise(3, 5, 11, seed=4)
    x /= x.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(_by_gram(x, steps), _by_steps(x, steps), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-8])
def test_float32_suffices_for_ill_conditioned_matrices(smallest: float) -> None:
    u, v = torch.linalg.qr(noise(32, 32, seed=5))[0], torch.linalg.qr(noise(96, 32, seed=6))[0]
    g = u * torch.logspace(0, torch.tensor(smallest).log10().item(), 32, dtype=torch.float64) @ v.T
    assert float((orthogonalize(g.float()).double() - newton_schulz(g)).abs().max()) < 1e-3  # bfloat16 has 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_in_any_precision_singular_values_stay_near_one(dtype: torch.dtype) -> None:
    s = torch.linalg.svdvals(orthogonalize(noise(24, 96, seed=7).to(dtype)).double())
    assert 0.6 < float(s.min()) <= float(s.max()) < 1.3


def test_no_gradient_is_not_a_gradient_of_zero() -> None:
    moved, left = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    moved.grad = torch.zeros(2, 3)
    Muon([moved, left], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(moved.data, torch.full((2, 3), 0.95))
    assert torch.equal(left.data, torch.ones(2, 3))


def test_loaded_momenta_lie_where_they_lay() -> None:
    matrices = parameters()
    muon = Muon(matrices, lr=0.1)
    blank = muon.state_dict()
    room = [torch.zeros_like(p) for p in matrices]
    give(matrices, some_gradients(0, set()))
    muon.step()
    before = [muon.state[p]["momentum"].clone() for p in matrices]
    muon.keep_in(room)
    assert all(torch.equal(a, b) for a, b in zip(before, room, strict=True))
    saved = muon.state_dict()
    saved["state"] = {i: {"momentum": 2 * entry["momentum"]} for i, entry in saved["state"].items()}
    muon.load_state_dict(saved)
    assert all(torch.equal(2 * a, b) for a, b in zip(before, room, strict=True))
    muon.load_state_dict(blank)
    assert not any(momentum.any() for momentum in room)
    muon.step()
    assert all(momentum.any() for momentum in room)


def test_costs_by_hand() -> None:
    assert cost(torch.empty(2, 2)) == 5 * (2 * 8 + 8)
    assert cost(torch.empty(2, 10)) == cost(torch.empty(10, 2)) == 2 * 40 + 17 * 8
