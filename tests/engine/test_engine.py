"""The engine against the plain forward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Completion, Finish, SamplingParams, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sampling import draw, sample_key, uniforms
from longthought.models.attention import PackedAttention
from longthought.models.transformer import Transformer
from longthought.training.learner import evaluate_policy

PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (1, 2, 3), (11, 12)]


def plain_next(model: Transformer, tokens: tuple[int, ...]) -> torch.Tensor:
    attend = PackedAttention([len(tokens)])
    with torch.no_grad():
        return model(torch.tensor(tokens), attend.positions, attend)[-1] @ model.lm_head.weight.T


def plain_sample(model: Transformer, prompt: tuple[int, ...], params: SamplingParams, sample: int) -> Completion:
    """One token at a time, recomputing everything: the definition of sampling."""
    random = uniforms(sample_key(params.seed, prompt, sample), params.max_tokens)
    tokens: list[int] = []
    logps: list[float] = []
    limit = min(params.max_tokens, model.config.max_position_embeddings - len(prompt))
    for position in range(limit):
        logits = plain_next(model, prompt + tuple(tokens))
        token, logp = draw(logits[None], random[position : position + 1], params.temperature)
        tokens.append(int(token))
        logps.append(float(logp))
        if tokens[-1] in params.stop_tokens:
            return Completion(tuple(tokens), tuple(logps), Finish.STOP)
    cut = Finish.LENGTH if limit == params.max_tokens else Finish.BUDGET
    return Completion(tuple(tokens), tuple(logps), cut)


@pytest.mark.parametrize("slots", [1, 3, 7, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_equals_plain_sampling_whatever_the_slots(model: Transformer, slots: int, temperature: float) -> None:
    params = SamplingParams(count=4, max_tokens=20, temperature=temperature, seed=3, stop_tokens=(2, 5))
    groups = Engine(model, EngineSettings(slots)).sample(PROMPTS, params)
    numbering = {0: 0, 1: 0, 2: 0, 3: 4, 4: 0}  # the second (1, 2, 3) continues the numbering of the first
    for index, (prompt, group) in enumerate(zip(PROMPTS, groups)):
        for sample, completion in enumerate(group):
            expected = plain_sample(model, prompt, params, numbering[index] + sample)
            assert completion.token_ids == expected.token_ids
            assert completion.finish == expected.finish
            assert completion.logprobs == pytest.approx(expected.logprobs, abs=2e-5)


def test_some_stop_and_some_are_cut(model: Transformer) -> None:
    params = SamplingParams(count=16, max_tokens=12, seed=1, stop_tokens=(2,))
    finishes = {c.finish for group in Engine(model).sample(PROMPTS, params) for c in group}
    assert finishes == {Finish.STOP, Finish.LENGTH}


def test_the_context_window_is_a_budget(model: Transformer) -> None:
    [[completion]] = Engine(model).sample([tuple(range(1, 11)) * 6], SamplingParams(max_tokens=100))
    assert len(completion.token_ids) == 4
    assert completion.finish == Finish.BUDGET


def test_recomputed_logprobs_are_the_samplers(model: Transformer) -> None:
    params = SamplingParams(count=8, max_tokens=24, temperature=0.8, seed=5, stop_tokens=(2,))
    groups = Engine(model, EngineSettings(6)).sample(PROMPTS, params)
    pairs = [(prompt, c) for prompt, group in zip(PROMPTS, groups) for c in group]
    rows = rows_of([prompt + c.token_ids for prompt, c in pairs])
    needed = (torch.arange(rows.tokens.shape[1]) < rows.lengths[:, None]) & (torch.arange(rows.tokens.shape[1]) > 0)
    with torch.no_grad():
        logp = evaluate_policy(model, rows, needed, temperature=0.8, chunk=7).logp
    for row, (prompt, completion) in enumerate(pairs):
        again = logp[row, len(prompt) : len(prompt) + len(completion.token_ids)]
        assert again.tolist() == pytest.approx(completion.logprobs, abs=2e-5)


def test_frequencies_follow_the_distribution(model: Transformer) -> None:
    count = 4000
    [group] = Engine(model).sample([(1, 2, 3)], SamplingParams(count=count, max_tokens=1, temperature=1.3))
    expected = torch.softmax(plain_next(model, (1, 2, 3)) / 1.3, -1)
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=23) / count
    chi_square = float((count * (seen - expected).square() / expected).sum())
    assert chi_square < 48.3  # the 99.9 % point of chi-square with 22 degrees of freedom


def test_version_is_stamped(model: Transformer) -> None:
    engine = Engine(model)
    engine.version = 7
    assert engine.sample([(1,)], SamplingParams(max_tokens=1))[0][0].version == 7


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        ([()], SamplingParams(), DataError),
        ([(1,) * 64], SamplingParams(), DataError),
        ([(1,)], SamplingParams(temperature=-1), SettingsError),
        ([(1,)], SamplingParams(max_tokens=0), SettingsError),
        ([(1,)], SamplingParams(count=0), SettingsError),
    ],
)
def test_refusals(model: Transformer, prompts: list, params: SamplingParams, error: type[Exception]) -> None:
    with pytest.raises(error):
        Engine(model).sample(prompts, params)


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=30, deadline=None)
def test_uniforms_are_prefix_stable_and_open(key: int) -> None:
    long = uniforms(key, 500)
    assert torch.equal(long[:20], uniforms(key, 20))
    assert bool(((long > 0) & (long < 1)).all())


def test_uniforms_are_uniform() -> None:
    u = torch.cat([uniforms(sample_key(0, (1, 2), s), 50) for s in range(400)])
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12) ** 0.5 / len(u) ** 0.5
    assert float(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) == pytest.approx(0, abs=0.03)


def test_draw_never_takes_an_impossible_token() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    tokens, logp = draw(logits, torch.tensor([1e-17, 0.5, 1 - 1e-16], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 1, 1]
    assert logp.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", [{"qk_norm": False}, {"qk_norm": False, "qkv_bias": True}, {"num_key_value_heads": 4}])
def test_every_architecture_decodes_as_it_computes(kind: dict[str, object]) -> None:
    model = tiny_model(**kind)
    params = SamplingParams(count=2, max_tokens=8, temperature=0)
    for prompt, group in zip(PROMPTS, Engine(model).sample(PROMPTS, params)):
        assert group[0].token_ids == plain_sample(model, prompt, params, 0).token_ids
