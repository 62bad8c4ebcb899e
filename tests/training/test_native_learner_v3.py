"""Latent attention, routed experts and multi-token prediction under the learner, in the native core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_native_learner import FULL, error, exact, few, gradient, groups, with_core
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.objective import NLL
from longthought.core.types import SamplingParams, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.models import lora
from longthought.models.attention import PackedAttention
from longthought.models.kernels import library
from longthought.models.kernels.core import core
from longthought.models.kernels.native import NativeTransformer
from longthought.models.kernels.packed import unfit, unsupported
from longthought.models.parts import Experts, Latent
from longthought.models.precision import native_choice
from longthought.models.presets import sized
from longthought.models.rope import YarnScaling
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW

V3: dict[str, Any] = {
    "num_attention_heads": 2,
    "qk_norm": False,
    "latent": Latent(16, 16, 16, 32),
    "experts": Experts(6, 2, 32, 1, dense_layers=(0,), routed_scaling_factor=1.5),
    "max_position_embeddings": 256,
}
KINDS: dict[str, dict[str, Any]] = {
    "deepseek_v3": V3,
    "all of it": V3 | {
        "latent": Latent(32, 32, 16, 16, q_lora_rank=48, attention_bias=True),
        "experts": Experts(8, 3, 16, 2, n_group=4, topk_group=2),
        "rope_scaling": YarnScaling(4.0, 64, mscale=1.0, mscale_all_dim=0.8),
    },
    "halves": V3 | {"latent": Latent(32, 16, 32, 16, q_lora_rank=16, rope_interleave=False), "experts": None},
    "qwen3_moe": {"head_dim": 16, "experts": Experts(6, 3, 16, score="softmax"), "max_position_embeddings": 256},
}  # fmt: skip


def model_of(kind: str, **changes: Any) -> Transformer:
    """Some experts are preferred, so that others get no token of a small batch."""
    model = tiny_model(**KINDS[kind] | changes)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(0, 0.3, len(buffer)))
    return model


@with_core
@pytest.mark.parametrize("name", library.NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_pytorch(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in library.usable():
        pytest.skip(f"no {name} here")
    monkeypatch.setenv(library.VARIABLE, name)
    model, batch = partial(model_of, kind), groups(3)
    chosen = native_choice(model(), "float32")
    assert chosen is not None
    assert chosen[0].name == name
    truth = exact(model, batch, FULL)
    for micro_tokens in (2048, 50):
        found = gradient(model(), batch, FULL, "float32", micro_tokens)
        assert error(found, truth) < 1e-5
        for parameter, tensor in truth.items():
            assert error({parameter: found[parameter]}, {parameter: tensor}) < 1e-4, parameter


@with_core
@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe"])
@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([(12, 9), (20,), (2, 1, 3), (8, 50)]))
@few
def test_no_cut_changes_the_gradient(kind: str, seed: int, micro_tokens: int, prompts: tuple[int, ...]) -> None:
    """Rows that share a prompt and rows alone, many tokens of an expert, few and none."""
    batch, model = groups(seed, prompts), partial(model_of, kind)
    truth = exact(model, batch, FULL)
    assert error(gradient(model(), batch, FULL, "float32", micro_tokens), truth) < 1e-5


# --- one pass ----------------------------------------------------------------------------------------------------

LENGTHS, PARENTS = (20, 5, 1, 33, 9), (-1, 0, 0, -1, 3)


class Passed:
    """One pass over packed tokens: states, log-probs of every depth, and what the routers did."""

    def __init__(self, model: Transformer, by: Any, replay: Tensor | None = None, depth: int = 0) -> None:
        g = torch.Generator().manual_seed(4)
        tokens = torch.randint(0, 23, (sum(LENGTHS),), generator=g)
        following = torch.randint(0, 23, (depth, len(tokens)), generator=g)
        attend = PackedAttention(LENGTHS, parents=PARENTS)
        self.routing = Routing(model.config.routed_layers, replay)
        states = [by(tokens, attend.positions, attend, self.routing)]
        if depth:
            states += by.ahead(states[0], following, attend.positions, attend, self.routing)
        self.states = [state.double() for state in states]
        said = [by.token_logprobs(state, tokens, 1.0) for state in states]
        self.logp = torch.stack([logp.double() for logp, _ in said])
        pulls = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (*self.states, self.logp)]
        self.loss = sum(((x * pull).mean() for x, pull in zip((*self.states, self.logp), pulls)), torch.zeros(()))
        for s in self.routing.affinities.values():  # what balances them
            self.loss = self.loss + s.double().square().mean()

    def gradients(self, model: Transformer) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        self.loss.backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def natively(model: Transformer, dtype: torch.dtype = torch.float32) -> NativeTransformer:
    return NativeTransformer(model, core(library.load(), dtype))


@with_core
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_pass_is_that_of_the_model(depth: int) -> None:
    """States and gradients, also of the modules that predict further tokens and of a loss on the affinities; what is
    noted of the routing."""
    ahead = {"num_nextn_predict_layers": 2}
    model, exactly = model_of("all of it", **ahead), model_of("all of it", **ahead).double()
    found, truth = Passed(model, natively(model), depth=depth), Passed(exactly, exactly, depth=depth)
    for ours, theirs in zip(found.states, truth.states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.routing.choices(), truth.routing.choices())
    for layer, s in truth.routing.affinities.items():
        torch.testing.assert_close(found.routing.affinities[layer].double(), s, rtol=1e-5, atol=1e-5)
    ours_of, truths = found.gradients(model), truth.gradients(exactly)
    assert any("mtp.1" in name for name in truths) == (depth == 2)
    assert error(ours_of, truths) < 1e-5
    for name, tensor in truths.items():
        assert error({name: ours_of[name]}, {name: tensor}) < 1e-4, name


@with_core
@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe"])
def test_a_replayed_choice_is_made(kind: str) -> None:
    """Of every layer, with gates and gradients of the pass; where none is known, the router's own."""
    model, exactly = model_of(kind), model_of(kind).double()
    free = Passed(model, natively(model)).routing.choices()
    told = (free + 1) % 6
    told[::3] = -1
    found, truth = Passed(model, natively(model), told), Passed(exactly, exactly, told)
    assert torch.equal(found.routing.choices()[1::3], told[1::3])
    assert torch.equal(found.routing.choices(), truth.routing.choices())
    torch.testing.assert_close(found.logp, truth.logp, rtol=1e-4, atol=1e-4)
    assert error(found.gradients(model), truth.gradients(exactly)) < 1e-5


@with_core
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_errs_no_more_than_pytorch_in_bfloat16(kind: str) -> None:
    """In log-probs and gradients, with the choices of float64: which expert is chosen is no error of rounding."""
    model, exactly = model_of(kind), model_of(kind).double()
    truth = Passed(exactly, exactly)
    replay = truth.routing.choices() if model.config.experts is not None else None
    found = Passed(model, natively(model, torch.bfloat16), replay)
    ours = error(found.gradients(model), truths := truth.gradients(exactly))
    with torch.autocast("cpu", torch.bfloat16):
        peer = Passed(model, model, replay)
    theirs = error(peer.gradients(model), truths)
    assert 1e-5 < ours < 1.5 * theirs
    assert 1e-5 < (found.logp - truth.logp).abs().mean() < 1.5 * (peer.logp - truth.logp).abs().mean()


@with_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    model = model_of("deepseek_v3", num_nextn_predict_layers=1)
    first, again = (Passed(model, natively(model, dtype), depth=1) for _ in range(2))
    assert torch.equal(first.logp, again.logp)
    whole, twice = first.gradients(model), again.gradients(model)
    assert all(torch.equal(whole[name], twice[name]) for name in whole)


@with_core
@pytest.mark.parametrize("frozen", ["experts", "self_attn", "gate.weight", "layers.0", "shared_experts", "layers"])
def test_frozen_parameters_have_no_gradient_and_change_no_other(frozen: str) -> None:
    model, batch = model_of("all of it"), groups(5)
    whole = gradient(model, batch, FULL, "bfloat16")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    found = gradient(model, batch, FULL, "bfloat16")
    assert found.keys() == {name for name in whole if frozen not in name}
    for name, tensor in found.items():
        assert torch.equal(tensor, whole[name])


@with_core
@pytest.mark.parametrize(
    ("kind", "targets"),
    [("all of it", "all-linear"), ("deepseek_v3", ("q_proj", "kv_b_proj")), ("qwen3_moe", ("q_proj", "o_proj"))],
)
def test_an_adapter_is_trained(kind: str, targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA beside latent attention and shared experts; routed experts have none and stay as they are."""
    model = model_of(kind)
    lora.add(model, lora.LoRA(4, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
    batch = documents([tuple(range(1, 20)), (3, 1, 4, 1, 5, 9, 2, 6)])

    def trained() -> dict[str, Tensor]:
        learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision="float32"))
        learner.accumulate(batch, NLL())
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    found = trained()
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    expected = trained()
    assert found.keys() == expected.keys()
    assert all("lora_" in name for name in found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5)


@with_core
@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_moe"])
def test_weights_stored_in_bfloat16_are_trained(kind: str) -> None:
    batch = groups(6)

    def stored() -> Transformer:
        model = model_of(kind)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        return model

    assert error(gradient(stored(), batch, FULL, "float32"), exact(stored, batch, FULL)) < 0.01


@with_core
def test_an_expert_that_is_not_there_is_refused() -> None:
    """The core reads memory by these numbers."""
    model = model_of("deepseek_v3")
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        Passed(model, natively(model), torch.full((sum(LENGTHS), 1, 2), 6))


@with_core
@pytest.mark.parametrize("kind", KINDS)
def test_sampler_and_learner_agree(kind: str) -> None:
    """The one decodes with latents, a token at a time; the other expands them, a prompt once for its replies."""
    model = model_of(kind)
    prompts = [tuple(range(n)) for n in (3, 10, 20)]
    said = Engine(model, EngineSettings(precision="float32")).sample(prompts, SamplingParams(4, 30))
    learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision="float32"))
    for prompt, group in zip(prompts, said):
        rows = rows_of([prompt + completion.token_ids for completion in group])
        found = learner.logprobs(rows)
        for row, completion in enumerate(group):
            again = found[row, len(prompt) : int(rows.lengths[row])]
            torch.testing.assert_close(again, torch.tensor(completion.logprobs), rtol=0, atol=5e-5)


# --- who computes ------------------------------------------------------------------------------------------------

ODD: dict[str, dict[str, Any]] = {
    "kv_lora_rank=24": V3 | {"latent": Latent(24, 16, 16, 16)},
    "q_lora_rank=8": V3 | {"latent": Latent(16, 16, 16, 16, q_lora_rank=8)},
    "qk_nope_head_dim=12": V3 | {"latent": Latent(16, 12, 16, 16)},
    "qk_rope_head_dim=8": V3 | {"latent": Latent(16, 16, 8, 16)},
    "v_head_dim=20": V3 | {"latent": Latent(16, 16, 16, 20)},
    "moe_intermediate_size=24": V3 | {"experts": Experts(6, 2, 24, 1)},
    "intermediate_size=40": V3 | {"intermediate_size": 40},
}


@pytest.mark.parametrize("said", ODD)
def test_other_widths_are_refused_in_words_and_computed_by_pytorch(said: str) -> None:
    model: Callable[[], Transformer] = partial(tiny_model, **ODD[said])
    assert unfit(model().config) == f"{said} is not a multiple of 16"
    assert unsupported(model()) == unfit(model().config)
    batch = groups(2, (4, 9), 2)
    assert error(gradient(model(), batch, NLL(), "float32"), exact(model, batch, NLL())) < 1e-4


@pytest.mark.parametrize("width", [64, 96, 128, 256, 512])
def test_presets_are_trained_natively(width: int) -> None:
    assert not unfit(sized("deepseek_v3", width, 300))
