"""Balance of experts: the equations by hand, and what they are at their ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longthought.models.balance import (
    importance,
    loads,
    maximal_violation,
    sequence_balance,
    squared_variation,
    update_bias,
)


def test_loads_by_hand() -> None:
    assert loads(torch.tensor([[0, 2], [2, 1], [2, 0]]), 4).tolist() == [2, 1, 3, 0]
    assert loads(torch.zeros(0, 2, dtype=torch.int64), 3).tolist() == [0, 0, 0]


def test_the_bias_by_hand() -> None:
    bias = torch.tensor([0.5, 0.0, -0.25, 0.0])
    update_bias(bias, torch.tensor([4.0, 2.0, 0.0, 2.0]), 0.125)  # the mean is 2
    assert bias.tolist() == [0.375, 0.0, -0.125, 0.0]
    update_bias(bias, torch.zeros(4), 0.125)  # who saw nothing stays
    assert bias.tolist() == [0.375, 0.0, -0.125, 0.0]


def test_a_bias_that_moves_evens_the_load() -> None:
    """Algorithm 1 of arXiv:2408.15664 on affinities that never change."""
    s = torch.rand(512, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 1.0, 8)
    bias = torch.zeros(8)
    seen = []
    for _ in range(200):
        load = loads((s + bias).topk(2, -1).indices, 8)
        seen.append(float(maximal_violation(load)))
        update_bias(bias, load, 5e-3)
    assert seen[0] > 0.7
    assert max(seen[-20:]) < 0.1


def test_maximal_violation_by_hand() -> None:
    load = torch.tensor([[4.0, 2.0, 0.0, 2.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert maximal_violation(load).tolist() == [1.0, 0.0, 0.0]
    assert float(maximal_violation(load[0])) == 1.0


def test_the_sequence_wise_loss_by_hand() -> None:
    """Two sequences of two tokens and one, three experts of which one is chosen: f_i = 3 / T · chosen, P_i = mean s̄."""
    s = torch.tensor([[0.6, 0.2, 0.2], [0.8, 0.4, 0.4], [0.1, 0.1, 0.2]])
    chosen, sequence = torch.tensor([[0], [1], [2]]), torch.tensor([0, 0, 1])
    first = 1.5 * (0.6 + 0.5) / 2 + 1.5 * (0.2 + 0.25) / 2
    torch.testing.assert_close(sequence_balance(s, chosen, sequence, 2), torch.tensor([first, 3 * 0.5]))


def test_the_sequence_wise_loss_of_an_absent_sequence_is_zero() -> None:
    s, chosen = torch.full((2, 4), 0.5), torch.tensor([[0, 1], [2, 3]])
    assert sequence_balance(s, chosen, torch.tensor([0, 2]), 4).tolist() == [1.0, 0.0, 1.0, 0.0]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_sequence_wise_loss_by_loops(seed: int, top: int, empty: int) -> None:
    g = torch.Generator().manual_seed(seed)
    lengths = [int(n) for n in torch.randint(1, 6, (3,), generator=g)] + [0] * empty
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    s = torch.rand(sum(lengths), 5, generator=g, dtype=torch.float64)
    chosen = torch.rand(len(s), 5, generator=g).topk(top, -1).indices
    order = torch.randperm(len(s), generator=g)  # tokens of a sequence need not stand together
    found = sequence_balance(s[order], chosen[order], sequence[order], len(lengths))
    for number, length in enumerate(lengths):
        rows = [t for t in range(len(s)) if sequence[t] == number]
        expected = 0.0
        for i in range(5):
            f = 5 / (top * max(length, 1)) * sum(i in chosen[t].tolist() for t in rows)
            p = sum(float(s[t, i] / s[t].sum()) for t in rows) / max(length, 1)
            expected += f * p
        assert float(found[number]) == pytest.approx(expected, abs=1e-12)


def test_an_even_choice_has_loss_one_and_the_gradient_pulls_down_what_is_chosen_often() -> None:
    s = torch.full((4, 4), 0.5, requires_grad=True)
    even = sequence_balance(s, torch.tensor([[0], [1], [2], [3]]), torch.zeros(4, dtype=torch.int64), 1)
    assert float(even.detach()) == pytest.approx(1.0)
    sequence_balance(s, torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 1).sum().backward()
    assert s.grad is not None
    assert bool((s.grad[:, 0] > 0).all())
    assert bool((s.grad[:, 1:] < 0).all())


def test_affinities_that_vanish_give_no_nan() -> None:
    s = torch.zeros(2, 3, requires_grad=True)
    loss = sequence_balance(s, torch.tensor([[0], [1]]), torch.tensor([0, 0]), 1)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())


def test_importance_by_hand() -> None:
    s = torch.zeros(2, 3)
    gates = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    found = importance(s, torch.tensor([[0, 2], [2, 0]]), gates)
    assert found.tolist() == [1.25, 0.0, 0.75]
    mean = 2 / 3
    variance = ((1.25 - mean) ** 2 + mean**2 + (0.75 - mean) ** 2) / 3
    assert float(squared_variation(found)) == pytest.approx(variance / mean**2)
    assert float(squared_variation(torch.full((4,), 3.0))) == 0
    assert float(squared_variation(torch.zeros(4))) == 0
