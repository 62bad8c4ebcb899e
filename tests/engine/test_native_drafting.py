"""Drafts in the native core: replies are the same in every bit, and what is drafted is what PyTorch drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_model
from longthought.core.types import Completion, Finish, SamplingParams, TokenIds
from longthought.engine import native
from longthought.engine.draft import Drafts
from longthought.engine.engine import Engine, EngineSettings
from longthought.models.kernels import library
from longthought.models.parts import Experts, Latent
from longthought.models.precision import Precision
from longthought.models.transformer import Prediction, Transformer

pytestmark = pytest.mark.usefixtures("served", "always")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
in_both = pytest.mark.parametrize("precision", PRECISIONS)
depths = pytest.mark.parametrize("depth", [1, 2, 3])
READ_AT_ONCE = 96  # tokens of a prompt, see ``Pass.read``
LATENT = Latent(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
EXPERTS = Experts(6, 2, 16, 1, dense_layers=(0,))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts in all steps, not only in those of few rows."""
    monkeypatch.setattr(native, "_DRAFTED", 10**6)


def tokens(length: int) -> TokenIds:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randint(0, 23, (length,), generator=generator).tolist())


PROMPTS = [tokens(length) for length in (1, 2, 3, 4, 17, READ_AT_ONCE, READ_AT_ONCE + 1, READ_AT_ONCE + 3, 130)]
PARAMS = SamplingParams(3, 20, 0.9, 5, (2,))


def strangers(depth: int, **changes: Any) -> Transformer:
    """Modules that know nothing of what the model will say."""
    parts = {"latent": LATENT, "experts": EXPERTS, "qk_norm": False, "num_nextn_predict_layers": depth}
    return tiny_model(**{"max_position_embeddings": 192, **parts, **changes})


def friends(depth: int, **changes: Any) -> Transformer:
    """Blocks change the stream a little, so that what follows a token depends on it most; and modules look at the token
    that they are given."""
    model = strangers(depth, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                parameter.mul_(0.2)
        for module in model.model.mtp:
            assert isinstance(module, Prediction)
            module.eh_proj.weight.mul_(0.1)
            module.eh_proj.weight[:, : model.config.hidden_size].add_(torch.eye(model.config.hidden_size))
    return model


def engine(model: Transformer, precision: Precision = "float32", draft: bool = True, **settings: Any) -> Engine:
    known = EngineSettings(**{"threads": 1, "routing": model.config.experts is not None, **settings})
    return Engine(
        model,
        replace(known, precision=precision, draft=draft),
        decode=lambda ids: "".join(chr(ord("a") + number) for number in ids),
    )


def all_of(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def same_bits(found: list[list[Completion]], expected: list[list[Completion]]) -> bool:
    if found != expected:
        return False
    pairs = [(one.routing, other.routing) for one, other in zip(all_of(found), all_of(expected))]
    return all((one is None and other is None) or np.array_equal(one, other) for one, other in pairs)


@in_both
@pytest.mark.parametrize("rules", [{}, {"top_p": 0.9999}], ids=["plain", "top_p"])
def test_drafts_begin_when_few_rows_are_left(
    precision: Precision, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modules then compute all that they have not seen: what is drafted late is no worse."""
    model, params = friends(1), replace(PARAMS, stop_tokens=(2, 5, 11), **rules)
    expected = engine(model, precision, draft=False).sample(PROMPTS, params)
    rates = []
    for drafted in (10**6, 10):
        monkeypatch.setattr(native, "_DRAFTED", drafted)
        drafting = engine(model, precision)
        assert drafting.sample(PROMPTS, params) == expected
        rates.append(drafting.drafts)
    assert rates[0].proposed > rates[1].proposed > 0
    assert rates[1].rate > 0.6 * rates[0].rate


@in_both
@depths
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replies_are_those_without_drafts(depth: int, temperature: float, precision: Precision) -> None:
    """With their log-probs and their experts; in few slots and many, in one thread and several."""
    params = replace(PARAMS, temperature=temperature)
    for model, least, most in ((friends(depth), 0.18, 1.0), (strangers(depth), 0.0, 0.18)):
        expected = engine(model, precision, draft=False).sample(PROMPTS, params)
        assert {c.finish for c in all_of(expected)} <= {Finish.STOP, Finish.LENGTH}
        counts = set()
        for slots, threads in ((64, 1), (1, 1), (5, 3)):
            drafting = engine(model, precision, slots=slots, threads=threads)
            assert drafting.is_native
            assert same_bits(drafting.sample(PROMPTS, params), expected)
            counts.add(drafting.drafts)
        assert len(counts) == 1
        assert least < counts.pop().rate < most


@pytest.mark.parametrize(
    "changes", [{"experts": None}, {"latent": replace(LATENT, q_lora_rank=16)}], ids=["dense", "q"]
)
def test_replies_of_other_shapes(changes: dict[str, Any]) -> None:
    model = friends(2, **changes)
    drafting = engine(model)
    assert same_bits(drafting.sample(PROMPTS, PARAMS), engine(model, draft=False).sample(PROMPTS, PARAMS))
    assert drafting.drafts.accepted


@depths
@pytest.mark.parametrize("rules", [{}, {"top_p": 0.8}], ids=["plain", "top_p"])
def test_drafts_are_pytorchs(depth: int, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are proposed, and as many are right."""
    model, params = friends(depth), replace(PARAMS, **rules)
    drafting, other = engine(model), engine(model)
    found = drafting.sample(PROMPTS, params)
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    expected = other.sample(PROMPTS, params)
    assert [c.token_ids for c in all_of(found)] == [c.token_ids for c in all_of(expected)]
    assert drafting.drafts == other.drafts != Drafts()


def shy(tokens: Any, logits: torch.Tensor) -> torch.Tensor:
    """A processor that knows all of the tokens so far."""
    logits[(3 * len(tokens) + tokens[-1]) % len(logits)] -= 1.5
    return logits


RULES: dict[str, dict[str, Any]] = {
    "top_p": {"top_p": 0.8},
    "stop": {"stop": ("ab", "q")},
    "penalty": {"repetition_penalty": 1.3, "top_k": 7, "min_tokens": 4},
    "own": {"processors": (shy,)},
    "alternatives": {"top_logprobs": 2},
}


@in_both
@pytest.mark.parametrize("rule", RULES)
def test_replies_under_every_rule(rule: str, precision: Precision) -> None:
    model, params = friends(2), replace(PARAMS, **RULES[rule])
    expected = engine(model, precision, draft=False).sample(PROMPTS, params)
    for slots, threads in ((64, 1), (4, 3)):
        drafting = engine(model, precision, slots=slots, threads=threads)
        for one, other in zip(all_of(drafting.sample(PROMPTS, params)), all_of(expected), strict=True):
            assert (one.token_ids, one.finish) == (other.token_ids, other.finish)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            assert np.array_equal(one.routing, other.routing)  # type: ignore[arg-type]
        assert drafting.drafts.rate > 0.2


@depths
@pytest.mark.parametrize("rules", [{}, {"top_p": 0.999}], ids=["plain", "top_p"])
def test_the_context_is_a_budget(depth: int, rules: dict[str, Any]) -> None:
    """Nothing is drafted behind the end of a reply or of the context."""
    model = friends(depth, max_position_embeddings=24)
    prompts = [tokens(length) for length in (23, 22, 20, 1)]
    for most in (1, 2, 3, 1000):
        params = SamplingParams(2, most, 0.9, 1, **rules)
        drafting = engine(model)
        found = drafting.sample(prompts, params)
        assert found == engine(model, draft=False).sample(prompts, params)
        sizes = [len(c.token_ids) for c in all_of(found)]
        assert sizes == [size for room in (1, 2, 4, 23) for size in 2 * [min(most, room)]]
        assert drafting.drafts.proposed <= sum(min(depth, size - 1) * size for size in sizes)
        assert (drafting.drafts.proposed == 0) == (most == 1)


@in_both
def test_a_draft_that_is_not_finite_spoils_nothing(precision: Precision) -> None:
    """The module says what the model never would, and no embedding of what the model does not say is finite."""
    model, prompts, params = friends(1, experts=None), [(1,), (3, 1, 3), (1,) * 40], SamplingParams(2, 16, 0.0)
    expected = engine(model, precision, draft=False).sample(prompts, params)
    said = {token for ids in (*prompts, *(c.token_ids for c in all_of(expected))) for token in ids}
    with torch.no_grad():
        model.model.mtp[0].norm.weight.mul_(-1.0)  # type: ignore[union-attr]
    drafting = engine(model, precision)
    assert drafting.sample(prompts, params) == expected
    assert drafting.drafts.accepted == 0
    others = [token for token in range(23) if token not in said]
    with torch.no_grad():
        model.model.embed_tokens.weight[others] = torch.nan
    assert engine(model, precision).sample(prompts, params) == expected
