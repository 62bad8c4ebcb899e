"""Multi-token prediction: the causal chain of DeepSeek-V3, section 2.2, by hand, and its gradients."""

import pytest
import torch
from torch import Tensor

from longthought.core.errors import SettingsError
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.parts import Experts, Latent
from longthought.models.transformer import Transformer, initialize


def model(depth: int = 2, seed: int = 0) -> Transformer:
    made = Transformer(
        ModelConfig(
            vocab_size=17,
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            qk_norm=False,
            latent=Latent(6, 4, 4, 5),
            experts=Experts(4, 2, 6, 1, dense_layers=(0,)),
            num_nextn_predict_layers=depth,
        )
    )
    initialize(made, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.double()


def chain(made: Transformer, tokens: Tensor) -> list[Tensor]:
    """h^1, h^2, … of one sequence: module k reads positions 1 … T − k alone."""
    attend = PackedAttention([len(tokens)])
    hidden = made(tokens, attend.positions, attend)
    states = []
    for k, module in enumerate(made.model.mtp, 1):
        inside = len(tokens) - k
        shorter = PackedAttention([inside])
        embedded = made.model.embed_tokens(tokens[k:])

        def norm(x: Tensor, gain: Tensor) -> Tensor:
            return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

        halves = norm(embedded, module.enorm.weight), norm(hidden[:inside], module.hnorm.weight)
        m_k = module.eh_proj.weight.split(12, 1)
        joined = sum(half @ weight.T for half, weight in zip(halves, m_k))
        rope = tuple(table[:inside].unsqueeze(1) for table in (made.cos, made.sin))
        hidden = norm(module.block(module.layer, joined, rope, shorter, None), module.norm.weight)
        states.append(hidden)
    return states


def packed(made: Transformer, sequences: list[Tensor], depth: int) -> list[Tensor]:
    """As a learner asks: all sequences in one pass, any token where a sequence has ended."""
    tokens = torch.cat(sequences)
    attend = PackedAttention([len(one) for one in sequences])
    ends = [torch.cat((one[k:], torch.full((min(k, len(one)),), 3))) for k in range(1, depth + 1) for one in sequences]
    following = torch.stack([torch.cat(ends[k * len(sequences) : (k + 1) * len(sequences)]) for k in range(depth)])
    hidden = made(tokens, attend.positions, attend)
    return made.ahead(hidden, following, attend.positions, attend)


def test_the_chain_is_that_of_the_report() -> None:
    made = model()
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 17, (size,), generator=generator) for size in (9, 4, 12)]
    found, first = packed(made, sequences, 2), 0
    for tokens in sequences:
        for k, expected in enumerate(chain(made, tokens), 1):
            inside = len(tokens) - k
            torch.testing.assert_close(found[k - 1][first : first + inside], expected, rtol=1e-9, atol=1e-11)
        first += len(tokens)


def test_gradients_reach_everything_but_the_router_of_no_choice() -> None:
    """Against finite differences along random directions, for every parameter of model and modules."""
    made = model(depth=1)
    tokens = torch.randint(0, 17, (8,), generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        attend = PackedAttention([8])
        hidden = made(tokens, attend.positions, attend)
        (ahead,) = made.ahead(hidden, tokens.roll(-1).unsqueeze(0), attend.positions, attend)
        logp = [made.token_logprobs(h[: 8 - k], tokens[k:], 1.0)[0] for k, h in ((1, hidden), (2, ahead))]
        return -logp[0].sum() - 0.3 * logp[1].sum()

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        assert parameter.grad is not None, name
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            ends = []
            for step in (1e-5, -1e-5):
                parameter.add_(step * direction)
                ends.append(float(loss()))
                parameter.sub_(step * direction)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-6), name


def test_only_deepseek_v3_has_modules() -> None:
    with pytest.raises(SettingsError, match="num_nextn_predict_layers"):
        ModelConfig(vocab_size=9, num_nextn_predict_layers=1)
    with pytest.raises(SettingsError, match="at least 0"):
        ModelConfig(vocab_size=9, num_nextn_predict_layers=-1)
