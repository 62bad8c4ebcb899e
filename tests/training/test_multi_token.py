"""Multi-token prediction: the loss by the paper, any cut of it, and modules that nobody asks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import ragged_batch
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.objective import GRPO, NLL, MultiToken, Sum
from longthought.algorithms.terms import Entropy
from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, Loss, PolicyOutput
from longthought.models.attention import PackedAttention
from longthought.models.kernels import library
from longthought.models.parts import Experts, Latent
from longthought.models.transformer import Transformer
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, LogprobHead, PolicyLearner
from longthought.training.optimizer import AdamW, MuonAdamW, OptimizerSettings
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

PARTS = {"qk_norm": False, "latent": Latent(16, 8, 8, 8), "experts": Experts(4, 2, 16, 1, dense_layers=(0,))}
NLL_AHEAD = MultiToken(NLL(), 0.3)
ADAM = AdamW(lr=1e-2, weight_decay=0.1)


def predictor(depth: int = 2) -> Transformer:
    return tiny_model(num_nextn_predict_layers=depth, **PARTS)


def learner_of(
    model: Transformer, micro_tokens: int = 10_000, chunk: int = 1024, optimizer: OptimizerSettings = ADAM
) -> PolicyLearner:
    head = LogprobHead(0.9, chunk, ahead=True)
    return PolicyLearner(model, optimizer, 6, settings=LearnerSettings(micro_tokens), head=head)


def gradient(model: Transformer) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def said_row_by_row(model: Transformer, batch: Batch) -> PolicyOutput:
    """Every row by itself, every module on the states that have a token to join: nothing is packed or cut short."""
    depth = model.config.num_nextn_predict_layers
    logp = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    ahead = torch.zeros(*batch.tokens.shape, depth, dtype=torch.float64)
    for row, length in enumerate(batch.lengths.tolist()):
        tokens = batch.tokens[row, :length]
        attend = PackedAttention([length])
        hidden = model(tokens, attend.positions, attend)
        for k in range(depth + 1):
            if k:
                if length - k < 2:
                    break
                attend = PackedAttention([length - k])
                embedded = model.model.embed_tokens(tokens[k:])
                hidden = model.model.mtp[k - 1](hidden[:-1], embedded, model.rope(attend.positions), attend, None)
            own = (hidden @ model.lm_head.weight.T / 0.9).log_softmax(-1)[:-1]
            found = own.gather(-1, tokens[k + 1 :, None]).squeeze(-1)
            column = logp if not k else ahead[..., k - 1]
            column[row, k + 1 : length] = torch.where(batch.mask[row, k + 1 : length], found, 0.0)
    return PolicyOutput(logp, torch.zeros_like(logp), ahead=ahead)


@pytest.mark.parametrize("depth", [1, 3])
def test_what_is_said_ahead_is_what_each_row_says_by_itself(depth: int) -> None:
    model, batch = predictor(depth).double(), ragged_batch(3)
    expected = said_row_by_row(model, batch)
    for micro_tokens, chunk in ((10_000, 1024), (30, 3), (1, 1)):
        learner = learner_of(model, micro_tokens, chunk)
        _, found = learner.accumulate(batch, NLL_AHEAD)
        torch.testing.assert_close(found.logp, expected.logp.detach().float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.ahead, expected.ahead.detach().float(), atol=1e-5, rtol=1e-5)
    whole = learner_of(model).evaluate(batch)
    torch.testing.assert_close(torch.where(batch.mask[..., None], whole.ahead, 0.0), found.ahead, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weighting", [token_mean, sequence_mean])
@pytest.mark.parametrize("inner", [NLL(), GRPO(beta=0.1)])
def test_the_gradient_is_the_papers_whatever_the_cut(inner, weighting) -> None:
    batch = ragged_batch(5, weighting)
    model = predictor().double()
    said = said_row_by_row(model, batch)
    nll = [-(said.ahead[..., k] * batch.weight).sum() for k in range(2)]
    (inner(said, batch).value + 0.3 / 2 * (nll[0] + nll[1])).backward()
    expected = gradient(model)
    assert float(model.model.mtp[1].eh_proj.weight.grad.norm()) > 1e-6
    for micro_tokens, chunk in ((10_000, 1024), (1, 1024), (25, 5), (60, 7)):
        model.zero_grad(set_to_none=True)
        tally, _ = learner_of(model, micro_tokens, chunk).accumulate(batch, MultiToken(inner, 0.3))
        torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-13)
        for k, one in enumerate(nll, 1):
            assert tally.sums[f"mtp_nll_{k}"] == pytest.approx(float(one.detach()), rel=1e-6)


@given(st.integers(0, 1000), st.integers(1, 80))
@settings(max_examples=10, deadline=None)
def test_any_cut_gives_the_same_gradient(seed: int, micro_tokens: int) -> None:
    batch, found = ragged_batch(seed), []
    for size in (10_000, micro_tokens):
        model = predictor(1).double()
        learner_of(model, size).accumulate(batch, NLL_AHEAD)
        found.append(gradient(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-13)


def test_multi_token_by_hand() -> None:
    mask = torch.tensor([[False, True, True]])
    batch = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([3]), mask, torch.tensor([[0.0, 0.25, 0.75]]))
    ahead = torch.tensor([[[torch.nan, torch.nan], [0.0, 0.0], [-2.0, -4.0]]])  # what weighs nothing is not read
    policy = PolicyOutput(torch.tensor([[0.0, -1.0, -1.0]]), torch.zeros(1, 3), ahead=ahead)
    loss = MultiToken(NLL(), 0.5)(policy, batch)
    assert float(loss.value) == pytest.approx(1.0 + 0.5 / 2 * (0.75 * 2 + 0.75 * 4))
    assert {name: float(value) for name, value in loss.metrics.items()} == pytest.approx(
        {"nll": 1.0, "entropy": 0.0, "mtp_nll_1": 1.5, "mtp_nll_2": 3.0}
    )


def test_multi_token_reads_what_is_inside() -> None:
    assert MultiToken(GRPO(beta=0.1)).reads == GRPO(beta=0.1).reads
    assert not MultiToken(GRPO()).silent_without_advantage
    assert MultiToken(Sum((GRPO(), Entropy(0.1)))).reads == {"advantage", "logp_old"}


@pytest.mark.parametrize("weight", [0.0, -0.3, float("nan"), float("inf"), True, "0.3"])
def test_a_weight_that_is_none_is_refused(weight: object) -> None:
    with pytest.raises(SettingsError, match=r"MultiToken\.weight"):
        MultiToken(NLL(), weight)  # type: ignore[arg-type]


def test_without_modules_that_predict_further() -> None:
    batch = documents([(1, 2, 3, 4)])
    with pytest.raises(SettingsError, match="no modules that predict further"):
        learner_of(tiny_model()).accumulate(batch, NLL_AHEAD)
    with pytest.raises(SettingsError, match="LogprobHead"):
        PolicyLearner(predictor(), AdamW(), 1).accumulate(batch, NLL_AHEAD)
    with pytest.raises(SettingsError, match="leave one of them out"):
        MultiToken(NLL_AHEAD)


def test_rows_too_short_for_any_module() -> None:
    model = predictor(3).double()
    tally, output = learner_of(model).accumulate(documents([(1, 2), (3, 4)]), NLL_AHEAD)
    assert output.ahead is not None
    assert not output.ahead.any()
    assert tally.sums["mtp_nll_3"] == 0
    assert bool(torch.isfinite(gradient(model)).all())


@pytest.mark.parametrize("optimizer", [ADAM, MuonAdamW()])
def test_all_modules_learn_when_they_are_asked(optimizer: OptimizerSettings) -> None:
    model = predictor()
    before = copy.deepcopy(model.state_dict())
    learner = learner_of(model, optimizer=optimizer)
    batch = documents([tuple(torch.randperm(23).tolist()) for _ in range(4)])
    seen = [learner.step(batch, NLL_AHEAD).metrics for _ in range(6)]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    assert seen[-1]["mtp_nll_1"] < seen[0]["mtp_nll_1"]
    assert seen[-1]["mtp_nll_2"] < seen[0]["mtp_nll_2"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("optimizer", [ADAM, MuonAdamW()])
def test_modules_that_nobody_asks_stay_as_they_are(optimizer: OptimizerSettings, workers: int) -> None:
    """No gradient is not a gradient of zero: neither weight decay nor momenta move them, in a team either."""
    model = predictor()
    before = copy.deepcopy(model.state_dict())
    learner = ShardedLearner(PolicyLearner(model, optimizer, 6), workers)
    with Team(workers, learner.handlers) as team:
        learner.join(team)
        for seed in range(3):
            learner.step(ragged_batch(seed), NLL())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, _ in model.named_parameters() if ".mtp." not in name}


def test_they_wake_up_where_they_are_asked_later() -> None:
    model = predictor()
    learner = ShardedLearner(learner_of(model, optimizer=MuonAdamW()), 2)
    batch, asking = ragged_batch(1), learner.learner.head
    with Team(2, learner.handlers) as team:
        learner.join(team)
        before = model.model.mtp[0].eh_proj.weight.detach().clone()
        learner.learner.head = LogprobHead(0.9, 64)
        learner.learner.step(batch, NLL())
        assert torch.equal(model.model.mtp[0].eh_proj.weight, before)
        learner.learner.head = asking
        learner.step(batch, NLL_AHEAD)
        assert not torch.equal(model.model.mtp[0].eh_proj.weight, before)


def test_an_objective_inside_keeps_its_metrics() -> None:
    class Marked(NLL):
        def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
            loss = NLL()(policy, batch)
            return Loss(loss.value, {**loss.metrics, "marked": torch.ones(())})

    tally, _ = learner_of(predictor(1), 30).accumulate(documents([(1, 2, 3)] * 20), MultiToken(Marked()))
    assert tally.sums["marked"] > 1  # a sum over micro-batches


def test_in_bfloat16_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are narrow; what flows between the blocks, those that predict further included, is not."""
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    batch, found = ragged_batch(2), []
    for precision in ("float32", "bfloat16"):
        model = predictor()
        head = LogprobHead(1.0, 64, ahead=True)
        learner = PolicyLearner(model, ADAM, 1, settings=LearnerSettings(precision=precision), head=head)
        learner.accumulate(batch, NLL_AHEAD)
        found.append(model.model.mtp[1].eh_proj.weight.grad)
    assert not torch.equal(found[0], found[1])
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.2
