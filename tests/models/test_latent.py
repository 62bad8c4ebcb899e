"""Multi-head latent attention: the report's equations by hand, and both of its forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longthought.models.attention import PackedAttention
from longthought.models.cache import SlotCache
from longthought.models.config import ModelConfig
from longthought.models.latent import LatentAttention
from longthought.models.parts import Latent
from longthought.models.rope import YarnScaling, angles, deinterleaved, rotate
from longthought.models.transformer import Transformer, initialize

few = settings(max_examples=25, deadline=None, derandomize=True)


class Absorbing(PackedAttention):
    """Attends as training does, and is given latents as decoding is."""

    keeps = True


def config(latent: Latent, heads: int = 3, **changes: object) -> ModelConfig:
    sizes = {"vocab_size": 29, "hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 2}
    return ModelConfig(
        **{**sizes, "num_attention_heads": heads, "max_position_embeddings": 64, "qk_norm": False, **changes},
        latent=latent,
    )


def drawn(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def by_the_report(module: LatentAttention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Equations 1 to 11 for one sequence, a head and a token at a time."""
    shape, heads = module.shape, module.heads
    n, r, v, rank = shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim, shape.kv_lora_rank

    def norm(c: Tensor, gain: Tensor) -> Tensor:
        return c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    def rope(y: Tensor, t: int) -> Tensor:
        """Pairs (0, 1), (2, 3), … turned by their angles, as two halves: the scores are the same."""
        if not shape.rope_interleave:
            first, second = y[: r // 2], y[r // 2 :]
        else:
            first, second = y[0::2], y[1::2]
        c, s = cos[t, : r // 2], sin[t, : r // 2]
        return torch.cat((first * c - second * s, second * c + first * s))

    def biased(linear: torch.nn.Linear, y: Tensor) -> Tensor:
        return linear.weight @ y + (0 if linear.bias is None else linear.bias)

    w_down, w_up = module.kv_a_proj_with_mqa, module.kv_b_proj.weight.view(heads, n + v, rank)
    latents, rotated = [], []
    for t in range(len(x)):
        down = biased(w_down, x[t])
        latents.append(norm(down[:rank], module.kv_a_layernorm.weight))
        rotated.append(rope(down[rank:], t))
    rows = []
    for t in range(len(x)):
        if shape.q_lora_rank is None:
            q = module.q_proj.weight @ x[t]
        else:
            c_q = norm(biased(module.q_a_proj, x[t]), module.q_a_layernorm.weight)
            q = module.q_b_proj.weight @ c_q
        results = []
        for head, q_head in enumerate(q.view(heads, n + r)):
            query = torch.cat((q_head[:n], rope(q_head[n:], t)))
            keys = [torch.cat((w_up[head, :n] @ latents[j], rotated[j])) for j in range(t + 1)]
            p = torch.stack([query @ key for key in keys]).mul(module.scale).softmax(0)
            results.append(sum(p[j] * (w_up[head, n:] @ latents[j]) for j in range(t + 1)))
        rows.append(biased(module.o_proj, torch.cat(results)))
    return torch.stack(rows)


@given(
    st.sampled_from([None, 5, 14]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(8, 6, 4, 10), (3, 4, 2, 3), (16, 2, 8, 6)]),
    st.integers(1, 7),
    st.integers(0, 99),
)
@few
def test_both_forms_are_the_equations_of_the_report(
    q_rank: int | None, interleave: bool, bias: bool, sizes: tuple[int, ...], length: int, seed: int
) -> None:
    rank, nope, rope, value = sizes
    shape = config(Latent(rank, nope, rope, value, q_rank, interleave, bias))
    module = LatentAttention(shape).double()
    drawn(module, seed)
    x = torch.randn(length, 20, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    cos, sin = (table[:length].double() for table in angles(rope, 64, 10000.0))
    expected = by_the_report(module, x, cos, sin)
    for attend in (PackedAttention([length]), Absorbing([length])):
        found = module(0, x, cos.unsqueeze(1), sin.unsqueeze(1), attend)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_deinterleaved_pairs_are_turned_as_halves() -> None:
    x = torch.arange(6.0)
    assert deinterleaved(x).tolist() == [0, 2, 4, 1, 3, 5]
    cos, sin = angles(2, 4, 10.0)
    turned = rotate(deinterleaved(torch.tensor([[[1.0, 0.0]]])), cos[2].view(1, 1, 2), sin[2].view(1, 1, 2))
    torch.testing.assert_close(turned.flatten(), torch.stack((cos[2, 0], sin[2, 0])))


def test_the_score_is_sharpened_by_yarn() -> None:
    """m² with m = 0.1 · 0.707 · ln 40 + 1 (DeepSeek-V2), and nothing without mscale_all_dim."""
    latent = Latent(8, 12, 4, 8)
    scaling = YarnScaling(40.0, 16, mscale=0.707, mscale_all_dim=0.707)
    m = 0.1 * 0.707 * torch.tensor(40.0, dtype=torch.float64).log().item() + 1
    assert LatentAttention(config(latent, rope_scaling=scaling)).scale == pytest.approx(m * m / 4)
    assert LatentAttention(config(latent, rope_scaling=YarnScaling(40.0, 16))).scale == 1 / 4
    assert scaling.magnitude == 1
    assert YarnScaling(40.0, 16).magnitude == pytest.approx(0.1 * torch.tensor(40.0).log().item() + 1)


def test_the_cache_holds_the_latent_and_one_rotated_key() -> None:
    """d_c + d_h^R numbers per token and layer, whatever the number of heads; decoding with it is the whole pass."""
    shape = config(Latent(10, 6, 4, 8, 7), heads=5)
    assert shape.cache_numbers == 2 * (10 + 4)
    model = Transformer(shape)
    initialize(model, 0)
    drawn(model, 3)
    model = model.double()
    cache = SlotCache(shape, 2, 16, torch.float64, torch.device("cpu"))
    assert cache.keys.numel() + cache.values.numel() == 2 * 16 * shape.cache_numbers
    tokens = torch.randint(0, 29, (2, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        attend = PackedAttention([9, 9])
        whole = model(tokens.flatten(), attend.positions, attend).view(2, 9, -1)
        for t in range(9):
            cache.begin_step()
            step = model(tokens[:, t], cache.length, cache)
            cache.end_step()
            torch.testing.assert_close(step, whole[:, t], rtol=1e-9, atol=1e-11)
