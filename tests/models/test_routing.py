"""What routers are told, and what is noted of them."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from longthought.models.attention import PackedAttention
from longthought.models.parts import Experts, Latent
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer

DEEPSEEK = {"qk_norm": False, "latent": Latent(16, 8, 8, 8), "experts": Experts(4, 2, 16, 1, dense_layers=(0,))}
NOISY = {"experts": Experts(4, 2, 16, score="softmax", noisy=True)}


def deep(**changes: object) -> Transformer:
    return tiny_model(num_hidden_layers=3, num_nextn_predict_layers=1, **{**DEEPSEEK, **changes})


def states(model: Transformer, routing: Routing | None, tokens: int = 9) -> torch.Tensor:
    attend = PackedAttention([tokens - 3, 3])
    with torch.no_grad():
        return model(torch.arange(tokens), attend.positions, attend, routing)


def test_what_was_chosen_is_noted_in_order() -> None:
    model = deep()
    routing = Routing(model.config.routed_layers)
    states(model, routing)
    assert model.config.routed_layers == (1, 2, 3)
    assert sorted(routing.chosen) == [1, 2]  # what predicts further has not run
    assert routing.choices().shape == (9, 2, 2)
    assert torch.equal(routing.choices()[:, 1], routing.chosen[2])
    assert all(s.shape == (9, 4) for s in routing.affinities.values())


def test_noting_changes_nothing_and_a_replay_of_the_own_choice_neither() -> None:
    model = deep()
    routing = Routing(model.config.routed_layers)
    plain = states(model, None)
    assert torch.equal(states(model, routing), plain)
    assert torch.equal(states(model, Routing(model.config.routed_layers, routing.choices())), plain)


def test_a_replay_is_obeyed_where_it_tells_something() -> None:
    model = deep()
    free = Routing(model.config.routed_layers)
    plain = states(model, free)
    told = (free.choices() + 1) % 4
    told[::2] = -1
    routing = Routing(model.config.routed_layers, told)
    changed = states(model, routing)
    assert torch.equal(routing.choices()[1::2], told[1::2])
    assert torch.equal(routing.chosen[1][::2], free.chosen[1][::2])  # later layers see other states
    assert not torch.equal(changed, plain)


def test_replayed_experts_get_the_gates_and_the_gradients() -> None:
    model = deep()
    told = torch.tensor([3, 1]).expand(5, 2, 2)
    attend = PackedAttention([5])
    hidden = model(torch.arange(5), attend.positions, attend, Routing(model.config.routed_layers, told))
    hidden.square().sum().backward()
    for layer in (1, 2):
        moved = model.model.layers[layer].mlp.experts.down_proj.grad.flatten(1).any(1)
        assert moved.tolist() == [False, True, False, True]


def test_a_replay_says_nothing_of_modules_that_predict_further() -> None:
    model = deep()
    routing = Routing(model.config.routed_layers, torch.zeros(5, 2, 2, dtype=torch.int64))
    attend = PackedAttention([5])
    hidden = model(torch.arange(5), attend.positions, attend, routing)
    model.ahead(hidden, torch.zeros(1, 5, dtype=torch.int64), attend.positions, attend, routing)
    assert not routing.chosen[1].any()
    assert routing.chosen[3].any()


@pytest.mark.parametrize("seed", [0, 12345678901234567890])
def test_noise_is_a_function_of_seed_and_layer(seed: int) -> None:
    shape = NOISY["experts"]
    one, same, other = (Routing((0, 1), seed=s).noise(0, 6, shape) for s in (seed, seed, seed + 1))
    assert one is not None
    assert same is not None
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, Routing((0, 1), seed=seed).noise(1, 6, shape))
    assert Routing((0, 1)).noise(0, 6, shape) is None
    assert Routing((0, 1), seed=seed).noise(0, 6, Experts(4, 2, 16, score="softmax")) is None


def test_noise_moves_the_choice_of_a_noisy_gate_alone() -> None:
    model = tiny_model(**NOISY)
    plain = states(model, None)
    assert torch.equal(states(model, Routing(model.config.routed_layers)), plain)
    assert not torch.equal(states(model, Routing(model.config.routed_layers, seed=1)), plain)
    quiet = tiny_model(experts=Experts(4, 2, 16, score="softmax"))
    assert torch.equal(states(quiet, Routing((0, 1), seed=1)), states(quiet, None))
