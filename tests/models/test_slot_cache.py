"""A step of several tokens for every slot, against steps of one."""

from __future__ import annotations

import pytest
import torch

from conftest import tiny_model
from longthought.models.attention import PackedAttention
from longthought.models.cache import SlotCache
from longthought.models.parts import Latent
from longthought.models.transformer import Transformer

KINDS: dict[str, dict[str, object]] = {
    "two queries to a key head": {},
    "own key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "latent": {"latent": Latent(16, 8, 4, 8), "qk_norm": False},
}


def cache_of(model: Transformer, slots: int) -> SlotCache:
    return SlotCache(model.config, slots, 48, torch.float64, torch.device("cpu"))


def fed(model: Transformer, cache: SlotCache, tokens: torch.Tensor) -> torch.Tensor:
    """The states of (slots, n) tokens behind those that are stored."""
    count = tokens.shape[1]
    cache.begin_step(count)
    positions = cache.length[:, None] + torch.arange(count)
    hidden: torch.Tensor = model(tokens.flatten(), positions.flatten(), cache)
    return hidden.unflatten(0, tokens.shape)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_several_tokens_at_once_are_as_many_steps(kind: str) -> None:
    """Slots of different lengths; of what a step has stored only the counted part stays."""
    model, generator = tiny_model(**KINDS[kind]).double(), torch.Generator().manual_seed(0)
    tokens = torch.randint(23, (3, 40), generator=generator)
    together, alone = cache_of(model, 3), cache_of(model, 3)
    for counted in ([1, 2, 3], [4, 0, 1], [2, 2, 2], [0, 4, 1], [3, 1, 4], [4, 4, 4]):
        some = torch.stack([tokens[slot, n : n + 4] for slot, n in enumerate(together.length.tolist())])
        states = fed(model, together, some)
        before = alone.length.clone()
        for place in range(4):
            assert torch.allclose(states[:, place], fed(model, alone, some[:, place : place + 1])[:, 0], atol=1e-12)
            alone.end_step()
        alone.length = before + torch.tensor(counted)
        together.length = together.length + torch.tensor(counted)
    for slot, length in enumerate(together.length.tolist()):
        attend = PackedAttention([length + 4])
        plain = model(tokens[slot, : length + 4], attend.positions, attend)[-4:]
        some = torch.stack([tokens[slot, n : n + 4] for n in together.length.tolist()])
        assert torch.allclose(fed(model, together, some)[slot], plain, atol=1e-12)


@torch.inference_mode()
def test_layers_from_another_one_on() -> None:
    """Layers have the numbers that they have in the model; a cache may keep the last ones alone."""
    model = tiny_model().double()
    whole = cache_of(model, 2)
    last = SlotCache(model.config, 2, 48, torch.float64, torch.device("cpu"), range(1, 2))
    assert last.keys.shape[0] == 1
    q, k, v = (torch.randn(6, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    for cache in (whole, last):
        cache.begin_step(3)
    assert torch.equal(whole(1, q, k, v), last(1, q, k, v))
    assert torch.equal(whole.keys[1], last.keys[0])


def test_numbers_are_stored_in_the_type_of_the_cache() -> None:
    cache = SlotCache(tiny_model().config, 2, 48, torch.bfloat16, torch.device("cpu"))
    cache.begin_step()
    q, k, v = (torch.randn(2, heads, 8) for heads in (4, 2, 2))
    assert cache(0, q.bfloat16(), k, v).dtype is torch.bfloat16
    assert torch.equal(cache.keys[0, :, :, 0], k.bfloat16())
