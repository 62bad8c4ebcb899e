"""Drafts of the model's own modules: the replies are those without them, and the drafts are those of the definition."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from conftest import tiny_model
from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.types import Completion, Finish, SamplingParams
from longthought.engine.draft import Drafts, DraftSteps
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sampling import distribution, draw, sample_key, uniforms
from longthought.engine.sharding import ShardedEngine
from longthought.models.attention import PackedAttention
from longthought.models.kernels import library
from longthought.models.parts import Experts, Latent
from longthought.models.transformer import Transformer

LATENT = Latent(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
EXPERTS = Experts(4, 2, 16, 1, dense_layers=(0,))
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (1, 2, 3), (11, 12)]
WORDS = 13


@pytest.fixture(autouse=True)
def _computed_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, library.OFF)


def v3(depth: int, **changes: object) -> Transformer:
    """A random model whose modules know nothing of what it will say."""
    parts = {"latent": LATENT, "experts": EXPERTS, "qk_norm": False, "num_nextn_predict_layers": depth}
    return tiny_model(**{"vocab_size": WORDS, **parts, **changes}).double()


@cache
def learned(depth: int) -> Transformer:
    """A model of a noisy circle, t + 5 modulo 13 but for one token in thirty, and modules that know it as well."""
    model = v3(depth).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    rows, width = 16, 16
    for _ in range(120):
        tokens = torch.randint(WORDS, (rows, width + depth + 1), generator=generator)
        for place in range(1, tokens.shape[1]):
            noisy = torch.rand(rows, generator=generator) < 0.03
            tokens[:, place] = torch.where(noisy, tokens[:, place], (tokens[:, place - 1] + 5) % WORDS)
        attend = PackedAttention([width] * rows)
        hidden = model(tokens[:, :width].flatten(), attend.positions, attend)
        following = torch.stack([tokens[:, k : k + width].flatten() for k in range(1, depth + 2)])
        states = [hidden, *model.ahead(hidden, following[:-1], attend.positions, attend)]
        loss = sum(cross_entropy(model.lm_head(state), target) for state, target in zip(states, following))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.double()


def both(
    model: Transformer, params: SamplingParams, slots: int = 64, prompts: Sequence[tuple[int, ...]] = PROMPTS
) -> Drafts:
    """Sample without and with drafts; the replies must be the same, in every respect."""
    plain = Engine(model, EngineSettings(slots), decode=letters).sample(prompts, params)
    engine = Engine(model, EngineSettings(slots, draft=True), decode=letters)
    for group, expected in zip(engine.sample(prompts, params), plain, strict=True):
        for one, other in zip(group, expected, strict=True):
            assert replace(one, logprobs=(), alternatives=()) == replace(other, logprobs=(), alternatives=())
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
            for best, known in zip(one.alternatives, other.alternatives, strict=True):
                assert dict(best) == pytest.approx(dict(known), abs=1e-9)
    return engine.drafts


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens)


def shy(tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """A processor that knows all of the tokens so far, and their order."""
    logits[(3 * len(tokens) + tokens[0] + tokens[-1]) % len(logits)] -= 1.5
    return logits


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_replies_are_those_without_drafts(depth: int, temperature: float, slots: int) -> None:
    """Of modules that are mostly wrong, with few slots for many rows, and of modules that are mostly right."""
    params = SamplingParams(2, 14, temperature, 3, stop_tokens=(2,))
    assert both(v3(depth), params, slots).rate < 0.4
    assert both(learned(depth), params, slots).rate > 0.6


@pytest.mark.parametrize("changes", [{"experts": None}, {"latent": replace(LATENT, q_lora_rank=8)}], ids=["dense", "q"])
def test_replies_of_other_shapes(changes: dict[str, object]) -> None:
    assert both(v3(2, **changes), SamplingParams(4, 12, seed=1)).proposed


def test_replies_in_float32() -> None:
    model = learned(2)
    try:
        params = SamplingParams(4, 30, 0.9, 2)
        plain, drafted = (
            Engine(model.float(), EngineSettings(7, draft=draft)).sample(PROMPTS, params) for draft in (False, True)
        )
        for group, expected in zip(drafted, plain):
            assert [c.token_ids for c in group] == [c.token_ids for c in expected]
            for one, other in zip(group, expected):
                assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    finally:
        model.double()


@given(
    depth=st.sampled_from([1, 3]),
    slots=st.sampled_from([1, 2, 5, 64]),
    kept=st.sampled_from([(0, 1.0, 0.0), (4, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (9, 0.9, 0.05)]),
    least=st.sampled_from([0, 6]),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    penalty=st.sampled_from([0.7, 1.0, 1.4]),
    own=st.sampled_from([(), (shy,)]),
    order=st.permutations(PROMPTS[:3]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_replies_with_every_option(depth, slots, kept, least, temperature, penalty, own, order) -> None:
    params = SamplingParams(
        2, 12, temperature, 11, (2,), ("gl", "dia"), least, *kept, penalty, ((3, 1.0), (7, -2.0)), (8,), own, 3
    )
    both(learned(depth), params, slots, order)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_those_of_the_definition(depth: int, temperature: float) -> None:
    """What was proposed and accepted, counted again without a cache."""
    for model in (v3(depth), learned(depth)):
        params = SamplingParams(2, 18, temperature, 5, stop_tokens=(2,))
        engine = Engine(model, EngineSettings(3, draft=True))
        groups = engine.sample(PROMPTS[:3], params)
        expected = Drafts()
        for prompt, group in zip(PROMPTS, groups):
            for sample, completion in enumerate(group):
                expected += counted(model, prompt, completion, params, sample)
        assert engine.drafts == expected


def counted(
    model: Transformer, prompt: tuple[int, ...], completion: Completion, params: SamplingParams, sample: int
) -> Drafts:
    """Every step drafts from the states of all tokens but the last, and goes on behind the drafts that were right."""
    random = uniforms(sample_key(params.seed, prompt, sample), params.max_tokens)
    reply, done, found = list(completion.token_ids), 0, Drafts()
    while done < len(reply):
        room = min(model.config.num_nextn_predict_layers, params.max_tokens - done - 1)
        said = [*prompt, *reply[:done]]
        right = 0
        if len(said) > 1:
            drafts = drafted(model, said, params, random[done:])[: min(room, len(reply) - done - 1)]
            right = next((k for k, token in enumerate(drafts) if token != reply[done + k]), len(drafts))
            found += Drafts(room, right)
        done += 1 + right
    return found


@torch.no_grad()
def drafted(model: Transformer, said: list[int], params: SamplingParams, random: torch.Tensor) -> list[int]:
    tokens, attend = list(said), PackedAttention([len(said) - 1])
    hidden = model(torch.tensor(said[:-1]), attend.positions, attend)
    drafts: list[int] = []
    for k in range(1, min(model.config.num_nextn_predict_layers, len(random)) + 1):
        following = torch.tensor([tokens[j : j + len(said) - 1] for j in range(1, k + 1)])
        state = model.ahead(hidden, following, attend.positions, attend)[-1][-1]
        logp = distribution((state @ model.lm_head.weight.T)[None], [()], params)
        token, _ = draw(logp, random[k - 1 : k], greedy=params.temperature == 0)
        drafts.append(int(token))
        tokens.append(int(token))
    return drafts


@pytest.mark.parametrize("stop", range(WORDS))
def test_a_reply_ends_with_its_stop_token_wherever_that_is(stop: int) -> None:
    """Among the drafts, behind the last of them that was right, or never."""
    both(learned(3), SamplingParams(2, 16, 0.0, stop_tokens=(stop,)), prompts=[(1, 6, 11), (0,), (4, 9)])


@pytest.mark.parametrize("limit", range(1, 9))
def test_no_reply_is_longer_than_its_limit(limit: int) -> None:
    found = both(learned(3), SamplingParams(3, limit, 1.0))
    assert (found.proposed == 0) == (limit == 1)


@pytest.mark.parametrize("length", [1, 2, 57, 60, 62, 63])
def test_the_context_is_the_limit(length: int) -> None:
    """Drafts that would lie behind it are not there."""
    prompt = tuple(5 * place % WORDS for place in range(length))
    both(learned(3), SamplingParams(2, 100, 1.0), prompts=[prompt, (1, 6)])
    [[completion]] = Engine(learned(3), EngineSettings(draft=True)).sample([prompt], SamplingParams(1, 100))
    assert completion.finish is Finish.BUDGET
    assert len(completion.token_ids) == 64 - length


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_accepted_draft_saves_a_pass(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    verify = DraftSteps.verify
    monkeypatch.setattr(DraftSteps, "verify", lambda steps: passes.append(1) or verify(steps))
    engine = Engine(learned(depth), EngineSettings(1, draft=True))
    groups = engine.sample([(1, 6), (3,), (2, 7, 12)], SamplingParams(2, 24, 0.0))
    tokens = sum(len(completion.token_ids) for group in groups for completion in group)
    assert len(passes) + engine.drafts.accepted == tokens
    assert len(passes) < 1.2 * tokens / (1 + depth)
    before = engine.drafts
    engine.sample([(1, 6)], SamplingParams(1, 24, 0.0))
    assert engine.drafts.accepted > before.accepted


def test_processors_see_every_prefix_once() -> None:
    """Nothing that was drafted in vain."""
    seen: list[tuple[int, ...]] = []

    def note(tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(tokens))
        return logits

    [group] = Engine(learned(3), EngineSettings(draft=True)).sample([(1,)], SamplingParams(3, 9, processors=(note,)))
    replies = [(1, *completion.token_ids) for completion in group]
    assert sorted(seen) == sorted(reply[:end] for reply in replies for end in range(1, len(reply)))


def test_broken_modules_change_no_reply() -> None:
    model = v3(2)
    with torch.no_grad():
        for weight in model.model.mtp.parameters():
            weight.fill_(math.nan)
    for temperature in (0.0, 1.0):
        both(model, SamplingParams(3, 10, temperature))


def test_a_broken_model_is_told() -> None:
    model = v3(1)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(LongthoughtError, match="after 0 tokens of a reply to prompt 0"):
        Engine(model, EngineSettings(draft=True)).sample(PROMPTS, SamplingParams(2, 4))


def test_groups_are_handed_over_and_who_is_told_may_end_it() -> None:
    told: list[int] = []
    engine = Engine(learned(2), EngineSettings(1, draft=True))
    engine.stream(PROMPTS, SamplingParams(2, 6), lambda index, group: told.append(index))
    assert told == list(range(len(PROMPTS)))

    def stop(index: int, group: list[Completion]) -> None:
        raise KeyboardInterrupt

    before = engine.drafts
    with pytest.raises(KeyboardInterrupt):
        engine.stream(PROMPTS, SamplingParams(2, 6), stop)
    assert engine.drafts.proposed > before.proposed


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_in_bfloat16_the_modules_are_as_often_right() -> None:
    model = learned(1)
    try:
        engine = Engine(model.float(), EngineSettings(precision="bfloat16", draft=True))
        [[completion]] = engine.sample([(1, 6)], SamplingParams(1, 40, 0.0))
        assert completion.token_ids == tuple((1 + 5 * place) % WORDS for place in range(2, 42))
        assert engine.drafts.rate > 0.9
    finally:
        model.double()


def test_a_rate_of_nothing() -> None:
    assert (Drafts().rate, (Drafts(3, 1) + Drafts(5, 3)).rate) == (0, 0.5)


@pytest.mark.parametrize("draft", [1, "yes", None])
def test_the_setting_is_yes_or_no(draft: object) -> None:
    with pytest.raises(SettingsError, match="draft="):
        EngineSettings(draft=draft)


def test_a_model_without_modules_cannot_draft() -> None:
    with pytest.raises(SettingsError, match=r"num_nextn_predict_layers.*draft=False"):
        Engine(tiny_model(), EngineSettings(draft=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_tensor_is_made_where_the_model_is(temperature: float) -> None:
    params = SamplingParams(2, 10, temperature, 0, (2,), ("gl",), 2, 5, 0.9, 0.01, 1.2, ((3, 1.0),), (8,), (shy,))
    expected = Engine(learned(2), EngineSettings(3, draft=True), letters).sample(PROMPTS, params)
    with torch.device("meta"):
        assert Engine(learned(2), EngineSettings(3, draft=True), letters).sample(PROMPTS, params) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_team_counts_the_drafts_of_all_members(size: int) -> None:
    params = SamplingParams(2, 12, seed=4)
    alone = Engine(learned(1), EngineSettings(4, draft=True))
    expected = alone.sample(PROMPTS, params)
    sharded = ShardedEngine(Engine(learned(1), EngineSettings(4, draft=True)))
    members = [ShardedEngine(Engine(learned(1), EngineSettings(4, draft=True))) for _ in range(size)]
    sharded.join(Members([sharded, *members[1:]]))
    for _ in range(2):
        tokens = [[c.token_ids for c in group] for group in sharded.sample(PROMPTS, params)]
        assert tokens == [[c.token_ids for c in group] for group in expected]
    assert sharded.drafts == alone.drafts + alone.drafts


class Members:
    """A team, all of it in this process."""

    def __init__(self, engines: Sequence[ShardedEngine]) -> None:
        self.size, self._handlers = len(engines), [engine.handlers for engine in engines]

    def call(self, name: str, parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [handlers[name](member, *part) for member, (handlers, part) in enumerate(zip(self._handlers, parts))]


def test_routing_is_that_of_the_tokens_that_were_kept() -> None:
    """As without drafts, wherever a draft was wrong."""
    params = SamplingParams(3, 20, seed=1, stop_tokens=(2,))
    model = v3(2)
    plain, drafted = (
        Engine(model, EngineSettings(4, draft=draft, routing=True)).sample(PROMPTS, params) for draft in (False, True)
    )
    for group, expected in zip(drafted, plain):
        for one, other in zip(group, expected):
            assert one.token_ids == other.token_ids
            assert isinstance(one.routing, np.ndarray)
            assert np.array_equal(one.routing, other.routing)
