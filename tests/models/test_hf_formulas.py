"""The gate of DeepSeek-V3 and of Qwen3-MoE, and YaRN, against those of transformers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longthought.models.experts import Router
from longthought.models.parts import Experts
from longthought.models.rope import YarnScaling, angles

WIDTH = 8


@st.composite
def routers(draw: st.DrawFn) -> Experts:
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    kept = draw(st.integers(1, groups))
    return Experts(
        n_routed_experts=groups * size,
        num_experts_per_tok=draw(st.integers(1, kept * size)),
        moe_intermediate_size=4,
        n_shared_experts=1,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        n_group=groups,
        topk_group=kept,
    )


def chosen_by(theirs: torch.nn.Module, ours: Router, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the gates give to every expert, by both."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, WIDTH, generator=generator)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            tensor.normal_(0.0, 1.0, generator=generator)
            ours.state_dict()[name].copy_(tensor)
        _, weights, indices = theirs(x)
        s = ours.affinities(x)
        chosen = ours.select(s)
        gates = ours.gates(s, chosen)
    empty = torch.zeros(20, len(ours.weight))
    return empty.scatter(1, indices, weights), empty.scatter(1, chosen, gates)


@given(shape=routers(), seed=st.integers(0, 2**20))
@settings(deadline=None)
def test_the_gate_of_deepseek_v3(shape: Experts, seed: int) -> None:
    reference = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    names = ("n_routed_experts", "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "n_group")
    config = reference.DeepseekV3Config(
        hidden_size=WIDTH, topk_group=shape.topk_group, **{name: getattr(shape, name) for name in names}
    )
    theirs, ours = chosen_by(reference.DeepseekV3TopkRouter(config), Router(WIDTH, shape), seed)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@given(experts=st.integers(1, 9), chosen=st.integers(1, 9), norm=st.booleans(), seed=st.integers(0, 2**20))
@settings(deadline=None)
def test_the_gate_of_qwen3_moe(experts: int, chosen: int, norm: bool, seed: int) -> None:
    reference = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    assume(chosen <= experts)
    shape = Experts(experts, chosen, 4, score="softmax", norm_topk_prob=norm)
    config = reference.Qwen3MoeConfig(
        hidden_size=WIDTH, num_experts=experts, num_experts_per_tok=chosen, norm_topk_prob=norm
    )
    theirs, ours = chosen_by(reference.Qwen3MoeTopKRouter(config), Router(WIDTH, shape), seed)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@given(
    width=st.sampled_from([2, 4, 8, 10, 64]),
    theta=st.sampled_from([50.0, 1e4, 1e6]),
    factor=st.sampled_from([0.5, 1.0, 4.0, 40.0]),
    context=st.sampled_from([1, 4, 32, 4096, 10**9]),
    fast=st.sampled_from([None, 2.0, 32.0]),
    scales=st.sampled_from([{}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"mscale": 1.0}, {"attention_factor": 0.3}]),
    truncate=st.booleans(),
)
@settings(deadline=None)
def test_the_tables_of_yarn(
    width: int, theta: float, factor: float, context: int, fast: float | None, scales: dict, truncate: bool
) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers.models.llama.configuration_llama")
    rope = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "truncate": truncate, **scales}
    rope |= {"original_max_position_embeddings": context} | ({} if fast is None else {"beta_fast": fast})
    config = llama.LlamaConfig(head_dim=width, max_position_embeddings=4096, rope_parameters=rope)
    frequency, magnitude = utils.ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    scaling = YarnScaling(factor, context, 32.0 if fast is None else fast, truncate=truncate, **scales)
    assert scaling.magnitude == pytest.approx(magnitude)
    plain = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    torch.testing.assert_close(scaling(plain, theta).float(), frequency, atol=1e-7, rtol=1e-5)
    cos, sin = angles(width, 5, theta, scaling)
    angle = torch.arange(5)[:, None] * frequency.repeat(2)
    torch.testing.assert_close(cos, angle.cos() * magnitude, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sin, angle.sin() * magnitude, atol=1e-5, rtol=1e-5)
