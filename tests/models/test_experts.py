"""Routed experts: the equations of the report by hand, gradients of plain autograd, a router told what to choose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from longthought.core.errors import SettingsError
from longthought.models.config import ModelConfig
from longthought.models.experts import MixtureOfExperts, Router
from longthought.models.grouped_linear import grouped_linear
from longthought.models.parts import Experts, Latent
from longthought.models.presets import sized
from longthought.models.routing import Routing

few = settings(max_examples=30, deadline=None, derandomize=True)


def config(experts: Experts) -> ModelConfig:
    latent = Latent(8, 4, 4, 4) if experts.corrects else None
    return ModelConfig(
        vocab_size=9, hidden_size=12, num_hidden_layers=2, qk_norm=latent is None, latent=latent, experts=experts
    )


def mixture(experts: Experts, seed: int) -> MixtureOfExperts:
    module = MixtureOfExperts(config(experts)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if experts.corrects:
            bias = module.gate.e_score_correction_bias
            bias.copy_(0.3 * torch.randn(bias.shape, generator=generator, dtype=torch.float64))
    return module


def one_by_one(module: MixtureOfExperts, x: Tensor) -> Tensor:
    """Equations 12 to 16, a token and an expert at a time, with groups as in the official gate."""
    shape, gate, experts = module.gate.shape, module.gate, module.experts
    rows = []
    for u in x:
        logits = gate.weight @ u
        s = logits.sigmoid() if shape.score == "sigmoid" else logits.softmax(0)
        biased = (s + gate.e_score_correction_bias if shape.corrects else s).tolist()
        size = len(biased) // shape.n_group
        groups = [range(g * size, (g + 1) * size) for g in range(shape.n_group)]
        if shape.n_group > 1:
            groups.sort(key=lambda members: -sum(sorted((biased[i] for i in members), reverse=True)[:2]))
        allowed = [i for members in groups[: shape.topk_group] for i in members]
        chosen = sorted(allowed, key=lambda i: -biased[i])[: shape.num_experts_per_tok]
        total = sum(s[i] for i in chosen) if shape.norm_topk_prob else 1
        out = torch.zeros_like(u)
        for i in chosen:
            g = shape.routed_scaling_factor * s[i] / total
            out = out + g * (experts.down_proj[i] @ (silu(experts.gate_proj[i] @ u) * (experts.up_proj[i] @ u)))
        if module.shared_experts is not None:
            out = out + module.shared_experts(u.unsqueeze(0))[0]
        rows.append(out)
    return torch.stack(rows)


SHAPES = [
    Experts(4, 2, 6, 1),
    Experts(8, 3, 5, 2, routed_scaling_factor=2.5, n_group=4, topk_group=2),
    Experts(8, 2, 4, 1, norm_topk_prob=False, n_group=2, topk_group=1),
    Experts(6, 6, 3, 1),
    Experts(5, 1, 4, score="softmax", norm_topk_prob=False),
    Experts(7, 3, 4, score="softmax"),
]


@pytest.mark.parametrize("experts", SHAPES, ids=str)
@given(st.integers(1, 9), st.integers(0, 99))
@few
def test_values_and_gradients_are_those_of_the_equations(experts: Experts, tokens: int, seed: int) -> None:
    module = mixture(experts, seed)
    x = torch.randn(tokens, 12, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).requires_grad_()
    given_ = torch.randn(tokens, 12, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    found, expected = module(1, x, None), one_by_one(module, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    wanted = [x, *module.parameters()]
    ours = torch.autograd.grad(found, wanted, given_, allow_unused=True)
    plain = torch.autograd.grad(expected, wanted, given_, allow_unused=True)
    for ours_of, plain_of, one in zip(ours, plain, wanted):
        zeros = torch.zeros_like(one)
        torch.testing.assert_close(
            zeros if ours_of is None else ours_of, zeros if plain_of is None else plain_of, rtol=1e-9, atol=1e-10
        )


def test_grouped_linear_passes_the_gradient_check() -> None:
    """Against finite differences, with an expert that has no rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([2, 0, 4, 1])
    torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, counts), (x, weights))


def test_the_bias_moves_the_choice_and_never_the_gates() -> None:
    router = Router(2, Experts(3, 1, 4, 1, norm_topk_prob=False))
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0]])
    s = router.affinities(x)
    assert router.select(s).tolist() == [[0]]
    router.e_score_correction_bias[1] = 0.5
    assert router.select(s).tolist() == [[1]]
    assert router.gates(s, router.select(s)).item() == pytest.approx(torch.tensor(1.0).sigmoid().item())


def test_groups_are_chosen_by_their_two_best() -> None:
    """The best expert of all lies in a group whose second is poor: the group loses."""
    router = Router(1, Experts(6, 2, 4, 1, n_group=3, topk_group=1))
    s = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.2, 0.7]])
    assert sorted(router.select(s)[0].tolist()) == [2, 3]


def test_what_is_prescribed_is_done() -> None:
    """Choices of another pass, with gates and gradients of this one; a negative choice leaves the router its own."""
    experts = Experts(5, 2, 4, 1)
    module = mixture(experts, 4)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    free = Routing((1,))
    module(1, x, free)
    own = free.choices()
    assert own.shape == (3, 1, 2)
    told = own.clone()
    told[0, 0] = torch.tensor([4, 3])
    told[1] = -1
    replayed = Routing((1,), told)
    module(1, x, replayed)
    assert replayed.chosen[1][0].tolist() == [4, 3]
    assert torch.equal(replayed.chosen[1][1:], own[1:, 0])
    assert torch.equal(replayed.affinities[1], free.affinities[1])


def test_noise_is_a_function_of_its_seed() -> None:
    experts = Experts(6, 2, 4, score="softmax", noisy=True)
    module = mixture(experts, 2)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    runs = [Routing((0,), seed=seed) for seed in (1, 1, 2)]
    first, again, other = (module(0, x, run) for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(module(0, x, Routing((0,))), module(0, x, None))


@pytest.mark.parametrize("width", [32, 64, 96, 128, 192, 256, 512])
def test_presets_have_nearly_the_same_active_parameters(width: int) -> None:
    dense, routed = (sized(arch, width, 300) for arch in ("dense", "deepseek_v3"))
    assert abs(routed.active_parameters() / dense.active_parameters() - 1) < 0.05
    assert routed.parameters() > 1.5 * dense.parameters()
    assert routed.cache_numbers < dense.cache_numbers or width == 32
    with pytest.raises(SettingsError, match="mamba"):
        sized("mamba", width, 300)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_routed_experts": 0}, "n_routed_experts"),
        ({"num_experts_per_tok": 9}, "only 8"),
        ({"n_group": 3}, "n_group"),
        ({"n_group": 4, "topk_group": 5}, "topk_group"),
        ({"n_group": 8, "topk_group": 8}, "two experts"),
        ({"score": "softmax", "routed_scaling_factor": 2.0}, "routed_scaling_factor"),
        ({"noisy": True}, "noisy"),
        ({"dense_layers": (1, 0)}, "dense_layers"),
        ({"routed_scaling_factor": float("inf")}, "finite"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(change: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Experts(**{"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 4, **change})
