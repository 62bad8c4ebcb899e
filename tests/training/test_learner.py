"""The learner: any cut of a batch gives the same gradient; what it is told to resume from, it resumes from."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_model
from longthought.algorithms.objective import CISPO, GRPO, GSPO, NLL, MirrorDescent
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.types import Batch, rows_of
from longthought.models.attention import PackedAttention
from longthought.models.heads import token_logprobs
from longthought.training.batching import documents, informative
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW, Muon, MuonAdamW, orthogonalize
from longthought.training.packing import micro_batches
from longthought.training.schedule import Schedule

OBJECTIVES = [
    NLL(),
    GRPO(),
    GRPO(clip_high=0.28, beta=0.1, entropy_bonus=0.01, dual_clip=3.0),
    GSPO(),
    CISPO(),
    MirrorDescent(0.3),
]
WEIGHTINGS = [sequence_mean, token_mean, sequence_sum, partial(constant, length=20)]


def ragged_batch(seed: int, weighting=token_mean, rows: int = 9) -> Batch:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 22, (rows,), generator=g).tolist()
    made = rows_of([tuple(torch.randint(0, 23, (n,), generator=g).tolist()) for n in lengths])
    width = made.tokens.shape[1]
    prompts = torch.tensor([int(torch.randint(1, n, (1,), generator=g)) for n in lengths])
    position = torch.arange(width)
    mask = (position >= prompts[:, None]) & (position < made.lengths[:, None])
    noise = [torch.randn(rows, width, generator=g, dtype=torch.float64) for _ in range(3)]
    trained = torch.rand(rows, generator=g) > 0.2
    weight = weighting(mask & trained[:, None]).double()
    advantage = torch.where(mask, noise[0][:, :1], 0.0)
    old, ref = (torch.where(mask, -3.0 + 0.3 * n, 0.0) for n in noise[1:])
    return Batch(made.tokens, made.lengths, mask, weight, advantage, old, ref)


def gradient(objective, batch: Batch, micro_tokens: int, chunk: int = 1024) -> torch.Tensor:
    model = tiny_model().double()
    learner = PolicyLearner(model, AdamW(), 1, 0.9, LearnerSettings(micro_tokens, head_chunk=chunk))
    learner.accumulate(batch, objective)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: getattr(w, "__name__", "constant"))
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__ + str(getattr(o, "beta", "")))
def test_any_split_gives_the_same_gradient(objective, weighting) -> None:
    batch = ragged_batch(3, weighting)
    whole = gradient(objective, batch, 10_000)
    assert float(whole.norm()) > 1e-6
    for micro_tokens, chunk in ((1, 1024), (25, 5), (60, 7)):
        torch.testing.assert_close(gradient(objective, batch, micro_tokens, chunk), whole, rtol=1e-9, atol=1e-13)


def test_packed_is_padded_is_single(model) -> None:
    """Rows laid end to end, padded with garbage, and one by one: the same log-probs."""
    batch = ragged_batch(5)
    learner = PolicyLearner(model, AdamW(), 1)
    packed = learner.logprobs(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        tokens = batch.tokens[row, :length]
        attend = PackedAttention([length])
        with torch.no_grad():
            logits = model(tokens, attend.positions, attend) @ model.lm_head.weight.T
        expected = logits.log_softmax(-1)[:-1].gather(-1, tokens[1:, None]).squeeze(-1)
        torch.testing.assert_close(packed[row, 1:length], expected, atol=1e-5, rtol=1e-5)
        assert float(packed[row, length:].abs().sum()) == 0
    garbage = Batch(**{f: getattr(batch, f) for f in ("mask", "weight", "lengths")}, tokens=batch.tokens.clone())
    garbage.tokens[torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]] = 7
    torch.testing.assert_close(learner.logprobs(garbage), packed)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__ + str(getattr(o, "beta", "")))
def test_an_objective_knows_whether_rows_without_advantage_move_anything(objective) -> None:
    batch = ragged_batch(11)
    batch.advantage[::2] = 0.0
    kept = informative(batch)
    assert len(kept.tokens) < len(batch.tokens)
    left, right = gradient(objective, kept, 100), gradient(objective, batch, 100)
    assert objective.silent_without_advantage == bool(torch.allclose(left, right, rtol=1e-9, atol=1e-13))


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.5, 2.0))
@settings(max_examples=25, deadline=None)
def test_chunked_head_equals_log_softmax(seed: int, chunk: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(8, 5, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 5, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (8,), generator=g)
    a, b = torch.randn(2, 8, generator=g, dtype=torch.float64)

    def total(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return (a * logp).sum() + (b * entropy).sum()

    q = (h @ w.T / temperature).log_softmax(-1)
    expected = torch.autograd.grad(total(q.gather(-1, targets[:, None]).squeeze(-1), -(q.exp() * q).sum(-1)), (h, w))
    found = torch.autograd.grad(total(*token_logprobs(h, w, targets, temperature, chunk)), (h, w))
    torch.testing.assert_close(found, expected)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_micro_batches_partition(lengths: list[int], tokens: int) -> None:
    cuts = micro_batches(torch.tensor(lengths), tokens)
    assert sorted(i for cut in cuts for i in cut.tolist()) == list(range(len(lengths)))
    for cut in cuts:
        assert len(cut) == 1 or sum(lengths[i] for i in cut) <= tokens


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), MuonAdamW(schedule=Schedule(2, 0.5))])
def test_resumed_is_uninterrupted_bit_for_bit(optimizer) -> None:
    def steps(learner: PolicyLearner, first: int, last: int) -> None:
        for step in range(first, last):
            learner.step(ragged_batch(step), GRPO())

    whole = PolicyLearner(tiny_model(), optimizer, 6)
    steps(whole, 0, 6)
    half = PolicyLearner(tiny_model(), optimizer, 6)
    steps(half, 0, 3)
    tensors, values = half.state()
    resumed = PolicyLearner(tiny_model(seed=9), optimizer, 6)
    resumed.restore(tensors, values)
    steps(resumed, 3, 6)
    assert resumed.version == 6
    for left, right in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(left, right)


@pytest.mark.parametrize("optimizer", [AdamW(), MuonAdamW()])
def test_every_parameter_moves_in_the_first_step(optimizer) -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    PolicyLearner(model, optimizer, 3).step(documents([(1, 2, 3, 4), (5, 6, 7)]), NLL())
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    batch = ragged_batch(0)
    batch.advantage[0] = float("inf")
    batch.weight[0, batch.mask[0]] = 0.1
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(LongthoughtError, match="not finite"):
        PolicyLearner(model, AdamW(), 1).step(batch, GRPO())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_the_gap_is_measured() -> None:
    batch = ragged_batch(2)
    learner = PolicyLearner(tiny_model(), AdamW(), 1)
    exact = torch.where(batch.mask, learner.logprobs(batch), 0.0)
    same = Batch(batch.tokens, batch.lengths, batch.mask, batch.weight, batch.advantage, exact)
    off = Batch(batch.tokens, batch.lengths, batch.mask, batch.weight, batch.advantage, exact + 0.25)
    assert learner.accumulate(same, GRPO())[0].means()["logprob_gap"] < 1e-6
    assert learner.accumulate(off, GRPO())[0].means()["logprob_gap"] == pytest.approx(0.25, abs=1e-5)


def test_orthogonalize_flattens_singular_values() -> None:
    g = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    for matrix in (g, g.T):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        made = orthogonalize(matrix)
        s = torch.linalg.svdvals(made)
        assert 0.6 < float(s.min()) <= float(s.max()) < 1.3
        assert float((made * (u @ v)).sum()) / min(matrix.shape) > 0.7


def test_muon_by_hand() -> None:
    p = torch.nn.Parameter(torch.eye(2))
    p.grad = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    Muon([p], lr=0.1, momentum=0.0, weight_decay=0.5).step()
    step = 0.1 * 0.2 * 2**0.5 * float(orthogonalize(torch.eye(2))[0, 0])
    torch.testing.assert_close(p.data, torch.eye(2) * (1 - 0.05 - step))


def test_schedule_by_hand() -> None:
    schedule = Schedule(warmup=2, decay=0.5, final=0.2)
    factors = [schedule.factor(step, 10) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 0.84, 0.68, 0.52, 0.36, 0.2])
    with pytest.raises(SettingsError, match="changes nothing"):
        Schedule(final=0.1)


def test_metrics_are_means_whatever_the_weighting_and_the_cut() -> None:
    for weighting in WEIGHTINGS:
        batch = ragged_batch(4, weighting)
        found = [
            PolicyLearner(tiny_model(), AdamW(), 1, 1.0, LearnerSettings(micro)).step(batch, GRPO()).metrics
            for micro in (20, 10_000)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
        assert 0.3 < found[0]["ratio"] < 3
