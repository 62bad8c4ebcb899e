"""The engine against the plain forward pass."""

import math
import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model as tiny_model_of
from longthought.core.errors import DataError, LongthoughtError, SettingsError
from longthought.core.protocols import StreamingSampler
from longthought.core.types import Completion, Finish, SamplingParams, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sampling import distribution, draw, sample_key, uniforms
from longthought.engine.sharding import ShardedEngine
from longthought.models.attention import PackedAttention
from longthought.models.transformer import Transformer
from longthought.training.learner import evaluate_policy

FLOAT32 = EngineSettings(precision="float32")
tiny_model = partial(tiny_model_of, head_dim=16)  # the native core wants heads of a multiple of 16
pytestmark = pytest.mark.usefixtures("computed_by")


@pytest.fixture
def model() -> Transformer:
    return tiny_model()


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
        logp = distribution(logits[None], [prompt + tuple(tokens)], params, [position])
        token, _ = draw(logp, random[position : position + 1], greedy=params.temperature == 0)
        tokens.append(int(token))
        logps.append(float(logp[0, token]))
        if tokens[-1] in params.stop_tokens:
            return Completion(tuple(tokens), tuple(logps), Finish.STOP)
        if position + 1 >= params.min_tokens and letters(tokens).endswith(params.stop):
            return Completion(tuple(tokens), tuple(logps), Finish.STOP_STRING)
    cut = Finish.LENGTH if limit == params.max_tokens else Finish.BUDGET
    return Completion(tuple(tokens), tuple(logps), cut)


@pytest.mark.parametrize("slots", [1, 3, 7, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_equals_plain_sampling_whatever_the_slots(model: Transformer, slots: int, temperature: float) -> None:
    params = SamplingParams(count=4, max_tokens=20, temperature=temperature, seed=3, stop_tokens=(2, 5))
    groups = Engine(model, EngineSettings(slots, "float32")).sample(PROMPTS, params)
    numbering = {0: 0, 1: 0, 2: 0, 3: 4, 4: 0}  # the second (1, 2, 3) continues the numbering of the first
    for index, (prompt, group) in enumerate(zip(PROMPTS, groups)):
        for sample, completion in enumerate(group):
            expected = plain_sample(model, prompt, params, numbering[index] + sample)
            assert completion.token_ids == expected.token_ids
            assert completion.finish == expected.finish
            assert completion.logprobs == pytest.approx(expected.logprobs, abs=2e-5)


def letters(tokens: Sequence[int]) -> str:
    """A decoder: token 0 is a, 1 is b, …"""
    return "".join(chr(ord("a") + token) for token in tokens)


def shy(tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """A processor that knows all of the tokens so far, and their order."""
    logits[(3 * len(tokens) + tokens[0] + tokens[-1]) % len(logits)] -= 1.5
    return logits


@given(
    slots=st.sampled_from([1, 2, 5, 64]),
    kept=st.sampled_from([(0, 1.0, 0.0), (4, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (9, 0.9, 0.05)]),
    least=st.sampled_from([0, 6]),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    penalty=st.sampled_from([0.7, 1.0, 1.4]),
    own=st.sampled_from([(), (shy,), (shy, shy)]),
    order=st.permutations(PROMPTS[:3]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_equals_plain_sampling_with_every_option(slots, kept, least, temperature, penalty, own, order) -> None:
    """Whatever the slots, the neighbours and the refills: the definition, one row at a time."""
    model = tiny_model()
    params = SamplingParams(
        2, 10, temperature, 11, (2, 5), ("gh", "ghi", "q"), least, *kept, penalty, ((3, 1.0), (7, -2.0)), (8,), own
    )
    groups = Engine(model, EngineSettings(slots, "float32"), letters).sample(order, params)
    for prompt, group in zip(order, groups):
        for sample, completion in enumerate(group):
            expected = plain_sample(model, prompt, params, sample)
            assert completion.token_ids == expected.token_ids
            assert completion.finish == expected.finish
            assert completion.logprobs == pytest.approx(expected.logprobs, abs=2e-5)


class Aside:
    """A team whose members are this process; what goes to them is pickled."""

    def __init__(self, size: int, handlers: dict[str, Any]) -> None:
        self.size, self.handlers = size, handlers

    def call(self, name: str, parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [pickle.loads(pickle.dumps((member, *part))) for member, part in enumerate(parts)]
        return [self.handlers[name](*call) for call in calls]


def test_members_of_a_team_change_nothing(model: Transformer, computed_by: str) -> None:
    params = SamplingParams(
        3, 14, 0.9, 2, stop=("gh", "c"), top_p=0.9, repetition_penalty=1.2, processors=(shy,), top_logprobs=2
    )
    alone = Engine(model, FLOAT32, decode=letters).sample(PROMPTS, params)
    for size in (2, 3, 9):
        sharded = ShardedEngine(Engine(model, FLOAT32, decode=letters))
        sharded.join(Aside(size, sharded.handlers))
        for group, expected in zip(sharded.sample(PROMPTS, params), alone):
            assert [c.token_ids for c in group] == [c.token_ids for c in expected]
            assert [c.finish for c in group] == [c.finish for c in expected]
    untold = SamplingParams(processors=(lambda tokens, logits: logits,))
    if computed_by == "native":  # its threads are in this process
        assert sharded.sample(PROMPTS, untold) == Engine(model, FLOAT32).sample(PROMPTS, untold)
        return
    with pytest.raises(SettingsError, match="processors cannot be sent"):
        sharded.sample(PROMPTS, untold)


@pytest.mark.parametrize("slots", [1, 4, 64])
@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_groups_are_handed_over_when_they_are_complete(model: Transformer, slots: int, size: int) -> None:
    """Each once and whole; with few slots the first before the last one has begun. ``size`` 0: no team."""
    params = SamplingParams(3, 14, 0.9, 2, stop_tokens=(2, 5))
    engine = Engine(model, EngineSettings(slots, "float32"))
    expected = engine.sample(PROMPTS, params)
    sampler: StreamingSampler = engine
    if size:
        sharded = ShardedEngine(engine)
        sharded.join(Aside(size, sharded.handlers))
        assert isinstance(sharded, StreamingSampler)
        sampler = sharded
    told: list[tuple[int, list[Completion]]] = []
    found = sampler.stream(PROMPTS, params, lambda *one: told.append(one))
    assert sorted(index for index, _ in told) == list(range(len(PROMPTS)))
    assert dict(told) == dict(enumerate(found))
    assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in group] for group in expected]
    if slots == 1 and not size:
        assert [index for index, _ in told] == list(range(len(PROMPTS)))
    assert sampler.stream([], params, lambda *one: told.append(one)) == []
    assert len(told) == len(PROMPTS)


@pytest.mark.parametrize("size", [0, 2])
def test_who_is_told_may_end_the_sampling(model: Transformer, size: int) -> None:
    engine = Engine(model, EngineSettings(1, "float32"))
    sharded = ShardedEngine(engine)
    sharded.join(Aside(size, sharded.handlers))
    told: list[int] = []

    def stop(index: int, completions: list[Completion]) -> None:
        told.append(index)
        raise DataError("enough")

    params = SamplingParams(2, 4)
    with pytest.raises(DataError, match="enough"):
        (sharded if size else engine).stream(PROMPTS, params, stop)
    assert len(told) == 1
    again = (sharded if size else engine).sample(PROMPTS, params)  # nobody is told now
    assert len(told) == 1
    expected = engine.sample(PROMPTS, params)
    assert [[c.token_ids for c in group] for group in again] == [[c.token_ids for c in group] for group in expected]


def test_alternatives_are_the_most_likely_tokens(model: Transformer) -> None:
    params = SamplingParams(4, 6, 0.7, top_k=3, top_logprobs=5)
    for completion in Engine(model, FLOAT32).sample([(1, 2, 3)], params)[0]:
        said = (1, 2, 3)
        for token, logprob, best in zip(
            completion.token_ids, completion.logprobs, completion.alternatives, strict=True
        ):
            logp = distribution(plain_next(model, said)[None], [said], params)[0]
            expected = logp.sort(descending=True)
            assert [t for t, _ in best] == expected.indices[:3].tolist()
            assert [value for _, value in best] == pytest.approx(expected.values[:3].tolist(), abs=2e-5)
            assert dict(best)[token] == logprob
            said += (token,)
    assert Engine(model, FLOAT32).sample([(1,)], SamplingParams(max_tokens=2))[0][0].alternatives == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_tensor_is_made_where_the_model_is(model: Transformer, temperature: float) -> None:
    """With another default device, a tensor that was made without one could not meet the others."""
    params = SamplingParams(
        4, 10, temperature, 0, (2,), ("gh",), 2, 5, 0.9, 0.01, 1.2, ((3, 1.0),), (8,), (shy,), top_logprobs=2
    )
    for some in (params, SamplingParams(4, 10, temperature, stop_tokens=(2,))):
        expected = Engine(model, EngineSettings(7, "float32"), letters).sample(PROMPTS, some)
        with torch.device("meta"):
            assert Engine(model, EngineSettings(7, "float32"), letters).sample(PROMPTS, some) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logprobs_of_other_types_are_normalized_in_float32_or_wider(dtype: torch.dtype) -> None:
    params = SamplingParams(3, 8, top_logprobs=23)
    for group in Engine(tiny_model().to(dtype), FLOAT32).sample(PROMPTS, params):
        for completion in group:
            for best in completion.alternatives:
                assert sum(math.exp(logprob) for _, logprob in best) == pytest.approx(1, abs=1e-5)


def test_where_no_token_is_left_the_sampler_says_so(model: Transformer) -> None:
    nothing = SamplingParams(max_tokens=4, processors=(lambda tokens, logits: logits - math.inf,))
    with pytest.raises(LongthoughtError, match=r"after 0 tokens of a reply to prompt 0.*processor"):
        Engine(model, FLOAT32).sample(PROMPTS, nothing)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(LongthoughtError, match="diverged"):
            Engine(model, FLOAT32).sample(PROMPTS, SamplingParams(max_tokens=4, temperature=temperature))


@pytest.mark.parametrize("made", [3.0, torch.zeros(4), torch.zeros(1, 23)], ids=str)
def test_a_processor_that_returns_no_logits_is_refused(model: Transformer, made: object) -> None:
    with pytest.raises(SettingsError, match=r"processors: .* returned"):
        Engine(model, FLOAT32).sample([(1,)], SamplingParams(processors=(lambda tokens, logits: made,)))


def test_some_stop_and_some_are_cut(model: Transformer) -> None:
    params = SamplingParams(count=16, max_tokens=12, seed=1, stop_tokens=(2,))
    finishes = {c.finish for group in Engine(model, FLOAT32).sample(PROMPTS, params) for c in group}
    assert finishes == {Finish.STOP, Finish.LENGTH}


def test_the_context_window_is_a_budget(model: Transformer) -> None:
    [[completion]] = Engine(model, FLOAT32).sample([tuple(range(1, 11)) * 6], SamplingParams(max_tokens=100))
    assert len(completion.token_ids) == 4
    assert completion.finish == Finish.BUDGET


def test_recomputed_logprobs_are_the_samplers(model: Transformer) -> None:
    params = SamplingParams(count=8, max_tokens=24, temperature=0.8, seed=5, stop_tokens=(2,))
    groups = Engine(model, EngineSettings(6, "float32")).sample(PROMPTS, params)
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
    [group] = Engine(model, FLOAT32).sample([(1, 2, 3)], SamplingParams(count=count, max_tokens=1, temperature=1.3))
    expected = torch.softmax(plain_next(model, (1, 2, 3)) / 1.3, -1)
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=23) / count
    chi_square = float((count * (seen - expected).square() / expected).sum())
    assert chi_square < 48.3  # the 99.9 % point of chi-square with 22 degrees of freedom


def test_version_is_stamped(model: Transformer) -> None:
    engine = Engine(model, FLOAT32)
    engine.version = 7
    assert engine.sample([(1,)], SamplingParams(max_tokens=1))[0][0].version == 7


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        ([()], SamplingParams(), DataError),
        ([(1,) * 64], SamplingParams(), DataError),
        ([(1,), (3, 23)], SamplingParams(), DataError),
        ([(-1,)], SamplingParams(), DataError),
        ([(1.0,)], SamplingParams(), DataError),
        (["one"], SamplingParams(), DataError),
        ([7], SamplingParams(), DataError),
        ([(1,)], SamplingParams(temperature=-1), SettingsError),
        ([], SamplingParams(max_tokens=0), SettingsError),
        ([(1,)], SamplingParams(stop=("a",)), SettingsError),
    ],
)
def test_refusals(model: Transformer, prompts: list, params: SamplingParams, error: type[Exception]) -> None:
    sharded = ShardedEngine(Engine(model, FLOAT32))
    sharded.join(Aside(2, sharded.handlers))
    for sampler in (Engine(model, FLOAT32), sharded):
        with pytest.raises(error):
            sampler.sample(prompts, params)


def test_any_sequence_of_integers_is_a_prompt(model: Transformer) -> None:
    expected = Engine(model, FLOAT32).sample([(1, 2, 3)], SamplingParams(max_tokens=5))
    for prompt in ([1, 2, 3], np.array([1, 2, 3]), torch.tensor([1, 2, 3])):
        assert Engine(model, FLOAT32).sample([prompt], SamplingParams(max_tokens=5)) == expected


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
    tokens, logp = draw(logits, torch.tensor([1e-17, 0.5, 1 - 1e-16], dtype=torch.float64), greedy=False)
    assert tokens.tolist() == [1, 1, 1]
    assert logp[:, 1].tolist() == [0.0, 0.0, 0.0]


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    st.sampled_from([(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2)]),
)
@settings(max_examples=60, deadline=None)
def test_draws_follow_the_distribution_exactly(values: list[float], kept: tuple[int, float, float]) -> None:
    """Of 1000 evenly spaced numbers a token of probability p gets 1000 p, up to the two ends of its interval."""
    count = 1000
    top_k, top_p, min_p = kept
    params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    logp = distribution(torch.tensor([values]), [(0,)], params)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, _ = draw(logp.expand(count, -1), u, greedy=False)
    seen = torch.bincount(tokens, minlength=len(values))
    assert bool(((seen - count * logp[0].double().exp()).abs() <= 1 + 1e-3).all())
    assert bool((seen[logp[0] == -math.inf] == 0).all())
    assert bool((tokens.diff() >= 0).all())


@pytest.mark.parametrize("kind", [{"qk_norm": False}, {"qk_norm": False, "qkv_bias": True}, {"num_key_value_heads": 4}])
def test_every_architecture_decodes_as_it_computes(kind: dict[str, object]) -> None:
    model = tiny_model(**kind)
    params = SamplingParams(count=2, max_tokens=8, temperature=0)
    for prompt, group in zip(PROMPTS, Engine(model, FLOAT32).sample(PROMPTS, params)):
        assert group[0].token_ids == plain_sample(model, prompt, params, 0).token_ids
