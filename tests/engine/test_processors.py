"""What is sampled from, against the processors of transformers, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import named
from longthought.core.errors import DataError, SettingsError
from longthought.core.types import SamplingParams
from longthought.engine.parameters import check
from longthought.engine.sampling import distribution

process = pytest.importorskip("transformers.generation.logits_process")

CASES = [
    {"temperature": temperature, "top_k": k, "top_p": p, "min_p": m, "repetition_penalty": penalty}
    for temperature, k, p, m, penalty in itertools.product(
        (0.0, 0.6, 1.0, 1.7), (0, 1, 4, 500), (1.0, 0.9, 0.3), (0.0, 0.1, 1.0), (1.0, 1.3, 0.6)
    )
]


def theirs(logits: torch.Tensor, tokens: list[list[int]], params: SamplingParams, prompt: int) -> torch.Tensor:
    """Probabilities of ``generate``, for rows of equal length of which the first ``prompt`` tokens are the prompt."""
    steps = process.LogitsProcessorList()
    if params.logit_bias:
        steps.append(process.SequenceBiasLogitsProcessor({(t,): float(value) for t, value in params.logit_bias}))
    if params.repetition_penalty != 1:
        steps.append(process.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.bad_tokens:
        steps.append(process.NoBadWordsLogitsProcessor([[t] for t in params.bad_tokens]))
    if params.min_tokens:
        steps.append(
            process.MinNewTokensLengthLogitsProcessor(prompt, params.min_tokens, list(params.stop_tokens) or [-1])
        )
    if params.temperature:
        steps.append(process.TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            steps.append(process.TopKLogitsWarper(params.top_k))
        steps.append(process.TopPLogitsWarper(params.top_p))
        steps.append(process.MinPLogitsWarper(params.min_p))
    return steps(torch.tensor(tokens), logits.clone()).softmax(-1)


def random_logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Half of the rows on a grid, where many tie; some −∞."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator)
    logits[::2] = logits[::2].round()
    return logits.masked_fill(torch.rand(rows, vocabulary, generator=generator) < 0.1, -math.inf)


@pytest.mark.parametrize("vocabulary", [2, 40, 3000])
def test_probabilities_are_those_of_transformers(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for seed, case in enumerate(CASES):
        logits = random_logits(6, vocabulary, seed)
        tokens = torch.randint(0, vocabulary, (6, 5), generator=generator).tolist()
        params = SamplingParams(**case)
        ours = distribution(logits, tokens, params).exp()
        torch.testing.assert_close(ours, theirs(logits, tokens, params, 5), atol=1e-6, rtol=0, equal_nan=True)


@given(
    logits=st.lists(
        st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 1.0, 1.0 + 1e-6, 4.0, 30.0]), min_size=6, max_size=9
    ),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    penalty=st.floats(0.2, 3.0),
    bias=st.dictionaries(st.integers(0, 5), st.floats(-5, 5), max_size=3),
    bad=st.sets(st.integers(0, 5), max_size=2),
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    least=st.integers(0, 4),
    stops=st.sets(st.integers(0, 5), max_size=2),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_option_together(
    logits, temperature, top_k, top_p, min_p, penalty, bias, bad, tokens, least, stops, data
) -> None:
    prompt = data.draw(st.integers(1, len(tokens)))
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        logit_bias=tuple(bias.items()),
        bad_tokens=tuple(bad),
        min_tokens=least,
        stop_tokens=tuple(stops),
    )
    rows = torch.tensor([logits])
    ours = distribution(rows, [tokens], params, [len(tokens) - prompt]).exp()
    torch.testing.assert_close(ours, theirs(rows, [tokens], params, prompt), atol=1e-6, rtol=0, equal_nan=True)


def probabilities(logits: list[float], tokens: tuple[int, ...] = (0,), **options: object) -> list[float]:
    return distribution(torch.tensor([logits]), [tokens], SamplingParams(**options)).exp()[0].tolist()


def logs(*values: float) -> list[float]:
    return [math.log(value) for value in values]


def test_truncation_by_hand() -> None:
    """½, ¼, ⅛, ⅛: the token that crosses top_p stays; tokens that tie with the k-th all stay."""
    logits = logs(0.5, 0.25, 0.125, 0.125)
    assert probabilities(logits, top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, top_k=3) == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert probabilities(logits, top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert probabilities(logits, top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, min_p=0.4) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(logits, min_p=1.0) == pytest.approx([1, 0, 0, 0])
    assert probabilities(logits, top_p=1e-9) == pytest.approx([1, 0, 0, 0])
    assert sorted(probabilities([7.0] * 4, top_p=0.5)) == [0, 0, 0.5, 0.5]
    assert sorted(probabilities([7.0] * 4, top_p=0.51)) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_the_least_length_by_hand() -> None:
    """The stop token 1 may be the third token of a reply, not the second."""
    params = SamplingParams(min_tokens=2, stop_tokens=(1,))
    logp = distribution(torch.zeros(4, 2), [(0,), (0, 0), (0, 0, 0), (0,) * 4], params, [0, 1, 2, 3])
    assert logp.exp()[:, 1].tolist() == [0.0, 0.0, 0.5, 0.5]


def test_temperature_comes_before_truncation() -> None:
    """At T = ½ the odds 3 : 2 : 1 become 9 : 4 : 1, and 9/14 alone reaches 0.6."""
    assert probabilities(logs(3, 2, 1), temperature=0.5, top_p=0.6) == pytest.approx([1, 0, 0])
    assert probabilities(logs(3, 2, 1), top_p=0.6) == pytest.approx([0.6, 0.4, 0])


def test_the_repetition_penalty_by_hand() -> None:
    """2 / 2 and −1 · 2, each once however often the token occurred."""
    raw = torch.tensor([1.0, -2.0, 0.5])
    expected = raw.softmax(-1).tolist()
    assert probabilities([2.0, -1.0, 0.5], (0, 1, 0, 0), repetition_penalty=2.0) == pytest.approx(expected)


def test_a_processor_comes_before_temperature_and_sees_all_tokens() -> None:
    seen = []

    def double(tokens, logits):
        seen.append(list(tokens))
        return logits * 2

    logits = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    params = SamplingParams(processors=(double,), temperature=2.0)
    assert torch.allclose(distribution(logits, [(1, 0), (1,)], params), logits.log_softmax(-1))
    assert seen == [[1, 0], [1]]


def test_distribution_leaves_its_logits_as_they_are() -> None:
    def spoil(tokens, logits):
        return logits.zero_()

    logits = torch.randn(2, 5)
    before = logits.clone()
    options = {"top_k": 2, "top_p": 0.5, "min_p": 0.2, "repetition_penalty": 2.0, "processors": (spoil,)}
    for name, value in options.items():
        distribution(logits, [(1, 2), (3,)], SamplingParams(**{name: value}))
        assert torch.equal(logits, before)


def test_greedy_logprobs_are_those_at_temperature_one_without_truncation() -> None:
    logits = torch.randn(3, 7)
    params = SamplingParams(temperature=0, top_k=2, top_p=0.5, min_p=0.5)
    assert torch.equal(distribution(logits, [(0,)] * 3, params), logits.log_softmax(-1))


@pytest.mark.parametrize(
    ("options", "plain", "truncates"),
    [
        ({}, True, False),
        ({"temperature": 0.6, "stop": ("a",), "stop_tokens": (1,), "top_logprobs": 3}, True, False),
        ({"top_k": 3}, False, True),
        ({"top_p": 0.9}, False, True),
        ({"min_p": 0.1}, False, True),
        ({"repetition_penalty": 1.1}, False, False),
        ({"logit_bias": ((1, 2.0),)}, False, False),
        ({"bad_tokens": (1,)}, False, False),
        ({"min_tokens": 2}, False, False),
        ({"processors": (lambda tokens, logits: logits,)}, False, False),
    ],
    ids=named,
)
def test_what_is_the_policys_own_distribution(options: dict, plain: bool, truncates: bool) -> None:
    params = SamplingParams(**options)
    assert (params.is_plain, params.truncates) == (plain, truncates)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, wrong) for name in ("count", "max_tokens") for wrong in (0, -1, True, 2.0, "3", None, math.nan)),
        *((name, wrong) for name in ("min_tokens", "top_k", "top_logprobs") for wrong in (-1, True, 1.5, None)),
        *((name, wrong) for name in ("temperature", "min_p") for wrong in (-1e-9, math.nan, math.inf, True, "1", None)),
        *(("top_p", wrong) for wrong in (0, 0.0, 1.0001, -0.5, math.nan, math.inf, True)),
        *(("repetition_penalty", wrong) for wrong in (0, -1.0, math.nan, math.inf, True)),
        *((name, wrong) for name in ("stop_tokens", "bad_tokens") for wrong in ((10,), (-1,), (True,), (1.0,), 3, "1")),
        *(("stop", wrong) for wrong in (("",), ("a", ""), "abc", (1,), (b"a",), ("\ufffd",), ("\ud800",), None)),
        *(("logit_bias", wrong) for wrong in (((10, 1.0),), ((1, math.inf),), ((1,),), {1: 2.0}, ((1, 1.0), (1, 2.0)))),
        *(("processors", wrong) for wrong in ((1,), print)),
        ("seed", 1.5),
        ("seed", None),
        ("min_p", 1.1),
        ("min_tokens", 2000),
        ("top_logprobs", 11),
        ("bad_tokens", tuple(range(10))),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=field):
        check(SamplingParams(**{field: value}), vocabulary=10, decodes=True)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"top_k": 10**9, "top_p": 1, "min_p": 1, "seed": -(2**70), "min_tokens": 1024},
        {"stop_tokens": [1, 1, 9], "bad_tokens": (0,), "logit_bias": ((0, -3),), "stop": ["a", "ab", "\U0001f600"]},
    ],
    ids=named,
)
def test_what_is_in_range_is_not_refused(options: dict) -> None:
    check(SamplingParams(**options), vocabulary=10, decodes=True)


def test_rows_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(2, 5)
    for tokens, counts in [([(1,)], None), ([(1,), (2,)], [1]), ([(1,), (5,)], None), ([(1,), (-1,)], None)]:
        with pytest.raises(DataError):
            distribution(logits, tokens, SamplingParams(), counts)
