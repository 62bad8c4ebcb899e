"""Routed experts under the learner: one balance for any cut, biases that move and survive, stacks of matrices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import ragged_batch
from torch import Tensor

from conftest import tiny_model
from longthought.algorithms.objective import GRPO, NLL, MultiToken, ValueLoss
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import DataError, NotFinite, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Rows, rows_of
from longthought.models import lora
from longthought.models.attention import PackedAttention
from longthought.models.balance import maximal_violation, squared_variation
from longthought.models.parts import Experts, Latent
from longthought.models.precision import native
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer, initialize
from longthought.training.balancing import Balancing, routers_of
from longthought.training.batching import documents
from longthought.training.critic import ValueHead, ValueModel
from longthought.training.learner import LearnerSettings, LogprobHead, PolicyLearner
from longthought.training.optimizer import AdamW, Muon, MuonAdamW, OptimizerSettings, cost, orthogonalize
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

SIGMOID = {"qk_norm": False, "latent": Latent(16, 8, 8, 8), "experts": Experts(4, 2, 16, 1, dense_layers=(0,))}
SOFTMAX = {"experts": Experts(4, 2, 16, score="softmax")}
NOISY = {"experts": Experts(4, 2, 16, score="softmax", noisy=True)}
BALANCED = Balancing(rate=0.01, alpha=0.5)
CLASSIC = Balancing(rate=0.0, alpha=0.5, importance=0.1)
ADAM, MUON = AdamW(lr=1e-2, weight_decay=0.1), MuonAdamW()


def deep(depth: int = 1, **changes: object) -> Transformer:
    """Three layers, two of them routed, and what predicts further; biases that matter."""
    model = tiny_model(num_hidden_layers=3, num_nextn_predict_layers=depth, **{**SIGMOID, **changes})
    for number, router in routers_of(model)[0].items():
        router.e_score_correction_bias.copy_(0.1 * torch.randn(4, generator=torch.Generator().manual_seed(number)))
    return model


def learner_of(
    model: Transformer,
    balancing: Balancing | None = BALANCED,
    micro_tokens: int = 10_000,
    optimizer: OptimizerSettings = ADAM,
) -> PolicyLearner:
    head = LogprobHead(0.9, 1024, ahead=bool(model.config.num_nextn_predict_layers))
    return PolicyLearner(model, optimizer, 6, settings=LearnerSettings(micro_tokens, balancing=balancing), head=head)


def objective_for(model: Transformer) -> Objective:
    return MultiToken(NLL(), 0.3) if model.config.num_nextn_predict_layers else NLL()


@contextmanager
def team_of(learner: PolicyLearner, workers: int) -> Iterator[ShardedLearner]:
    sharded = ShardedLearner(learner, workers)
    with Team(workers, sharded.handlers) as team:
        sharded.join(team)
        yield sharded


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def biases(model: torch.nn.Module) -> list[Tensor]:
    return [r.e_score_correction_bias.clone() for r in routers_of(model)[0].values() if r.shape.corrects]


def same_state(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def by_loops(model: Transformer, batch: Batch) -> tuple[Tensor, dict[int, list[int]]]:
    """Σ over layers of the mean over sequences of Σ_i f_i P_i, and the loads, one sequence and expert at a time.

    A sequence is what stands before its last trained token; for module k, without its last k tokens.
    """
    main, total = model.config.num_hidden_layers, torch.zeros((), dtype=torch.float64)
    loads = {layer: [0] * 4 for layer in model.config.routed_layers}
    for row in range(len(batch.tokens)):
        places = batch.mask[row].nonzero()
        size = int(places.max()) if len(places) else 1
        tokens, attend = batch.tokens[row, :size], PackedAttention([size])
        routing = Routing(model.config.routed_layers)
        hidden = model(tokens, attend.positions, attend, routing)
        if model.config.num_nextn_predict_layers:
            following = torch.stack([tokens.roll(-k) for k in range(1, model.config.num_nextn_predict_layers + 1)])
            model.ahead(hidden, following, attend.positions, attend, routing)
        for layer, s in routing.affinities.items():
            length = size - max(0, layer - main + 1)
            for i in range(4) if length > 0 else ():
                count = int((routing.chosen[layer][:length] == i).sum())
                loads[layer][i] += count
                p = (s[:length, i] / s[:length].sum(-1)).mean()
                total = total + 4 / (2 * length) * count * p / len(batch.tokens)
    return total, loads


@pytest.mark.parametrize("parts", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
def test_the_whole_loss_whatever_the_cut(parts: dict[str, object]) -> None:
    """Objective, further tokens and balance, against one sequence at a time."""
    model = deep(2) if parts is SIGMOID else tiny_model(**parts)
    model, batch = model.double(), ragged_batch(5)
    objective, balancing = objective_for(model), Balancing(rate=0.01 if parts is SIGMOID else 0.0, alpha=0.5)
    learner_of(model, None).accumulate(batch, objective)
    without = gradient(model)
    model.zero_grad(set_to_none=True)
    even, loads = by_loops(model, batch)
    (0.5 * even).backward()
    expected = without + gradient(model)
    assert float((expected - without).norm()) > 1e-4
    for micro_tokens in (10_000, 60, 25, 1):
        model.zero_grad(set_to_none=True)
        tally, _ = learner_of(model, balancing, micro_tokens).accumulate(batch, objective)
        torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-13)
        assert tally.routed is not None
        assert tally.routed.loads.tolist() == list(loads.values())
        assert float(tally.routed.evenness.sum()) / len(batch.tokens) == pytest.approx(float(even.detach()), rel=1e-5)


@given(st.integers(0, 1000), st.integers(1, 80))
@settings(max_examples=8, deadline=None)
def test_any_cut_gives_the_same_gradient_and_loads(seed: int, micro_tokens: int) -> None:
    batch, found = ragged_batch(seed), []
    for size in (10_000, micro_tokens):
        model = deep().double()
        tally, _ = learner_of(model, BALANCED, size).accumulate(batch, objective_for(model))
        found.append((gradient(model), tally.routed))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=1e-13)
    assert torch.equal(found[1][1].loads, found[0][1].loads)


def test_the_bias_moves_by_the_loads_of_the_whole_step() -> None:
    model, batch = deep(), ragged_batch(3)
    before = biases(model)
    _, loads = by_loops(model, batch)
    learner_of(model, BALANCED, micro_tokens=25).step(batch, objective_for(model))
    for old, new, load in zip(before, biases(model), loads.values(), strict=True):
        mean = sum(load) / 4
        expected = [b + 0.01 * ((n < mean) - (n > mean)) for b, n in zip(old.tolist(), load)]
        assert new.tolist() == pytest.approx(expected, abs=1e-7)


def test_a_module_that_nobody_asks_keeps_its_bias() -> None:
    model = deep()
    before = biases(model)
    PolicyLearner(model, ADAM, 1, settings=LearnerSettings(balancing=BALANCED)).step(ragged_batch(3), NLL())
    assert [torch.equal(a, b) for a, b in zip(before, biases(model))] == [False, False, True]


def test_without_balancing_all_is_measured_and_no_bias_moves() -> None:
    model, batch = deep(), ragged_batch(3)
    before = biases(model)
    even, loads = by_loops(model, batch)
    found = learner_of(model, None, micro_tokens=30).step(batch, objective_for(model)).metrics
    assert all(torch.equal(a, b) for a, b in zip(before, biases(model)))
    violations = [max(load) / (sum(load) / 4) - 1 for load in loads.values()]
    assert found["max_violation"] == pytest.approx(sum(violations) / 3)
    assert found["max_violation_worst"] == pytest.approx(max(violations))
    assert found["bias_spread"] == pytest.approx(sum(float(b.max() - b.min()) for b in before) / 3)
    assert all(int(row.nonzero().max()) > 1 for row in batch.mask)  # so that all of them count in the third layer
    assert found["balance_loss"] == pytest.approx(float(even.detach()) / 3, rel=1e-5)
    assert not {"max_violation", "bias_spread"} & set(PolicyLearner(tiny_model(), ADAM, 1).step(batch, NLL()).metrics)


def test_the_classic_loss_of_a_pass_by_hand() -> None:
    model, batch = tiny_model(**SOFTMAX).double(), ragged_batch(3)
    learner_of(model, None).accumulate(batch, NLL())
    without = gradient(model)
    model.zero_grad(set_to_none=True)
    sizes = [int(row.nonzero().max()) if row.any() else 1 for row in batch.mask]
    attend, routing = PackedAttention(sizes), Routing((0, 1))
    tokens = torch.cat([row[:size] for row, size in zip(batch.tokens, sizes)])
    model(tokens, attend.positions, attend, routing)
    total = torch.zeros((), dtype=torch.float64)
    for layer in (0, 1):
        kept = routing.affinities[layer] * torch.zeros_like(routing.affinities[layer]).scatter(
            1, routing.chosen[layer], 1.0
        )
        total = total + squared_variation((kept / kept.sum(-1, keepdim=True)).sum(0))
    (0.1 * total).backward()
    expected = without + gradient(model)
    model.zero_grad(set_to_none=True)
    learner_of(model, Balancing(0.0, 0.0, importance=0.1)).accumulate(batch, NLL())
    torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-13)
    assert float((expected - without).norm()) > 1e-5


@pytest.mark.parametrize("optimizer", [ADAM, MUON])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_team_steps_as_one_process(workers: int, optimizer: OptimizerSettings) -> None:
    alone = learner_of(deep().double(), optimizer=optimizer)
    objective = objective_for(alone.model)  # type: ignore[arg-type]
    with team_of(learner_of(deep().double(), optimizer=optimizer), workers) as learner:
        for step in range(3):
            expected, found = (one.step(ragged_batch(step), objective) for one in (alone, learner))
            assert found.metrics == pytest.approx(expected.metrics, rel=1e-6, abs=1e-9)
            torch.testing.assert_close(found.output.ahead, expected.output.ahead, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            learner.evaluate(ragged_batch(9)).ahead, alone.evaluate(ragged_batch(9)).ahead, rtol=1e-6, atol=1e-6
        )  # the members have seen the biases
        model = learner.learner.model
    for left, right in zip(alone.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("parts", "balancing"), [(SIGMOID, BALANCED), (NOISY, CLASSIC)], ids=["v3", "noisy"])
@pytest.mark.parametrize("optimizer", [ADAM, MUON])
@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_is_uninterrupted_bit_for_bit(
    workers: int, optimizer: OptimizerSettings, parts: dict[str, object], balancing: Balancing
) -> None:
    def fresh(seed: int = 0) -> PolicyLearner:
        ahead = {"num_nextn_predict_layers": 1} if parts is SIGMOID else {}
        return learner_of(tiny_model(seed, **parts, **ahead), balancing, 40, optimizer)

    def steps(learner: ShardedLearner, first: int, last: int) -> None:
        for step in range(first, last):
            learner.step(ragged_batch(step), objective_for(learner.learner.model))  # type: ignore[arg-type]

    with team_of(fresh(), workers) as whole:
        steps(whole, 0, 2)
        saved = whole.learner.state()
        steps(whole, 2, 4)
        expected = copy.deepcopy(whole.learner.model)
        whole.learner.restore(*saved)
        steps(whole, 2, 4)
        assert same_state(whole.learner.model, expected)
    with team_of(fresh(seed=9), workers) as resumed:
        resumed.learner.restore(*saved)
        steps(resumed, 2, 4)
        assert same_state(resumed.learner.model, expected)


def test_noise_is_of_training_and_of_balancing() -> None:
    batch = ragged_batch(1)

    def trained(balancing: Balancing | None) -> PolicyLearner:
        learner = learner_of(tiny_model(**NOISY), balancing)
        learner.step(batch, NLL())
        return learner

    noisy, quiet = trained(CLASSIC), trained(None)
    start = tiny_model(**NOISY).model.layers[0].mlp.gate.noise
    assert not torch.equal(noisy.model.model.layers[0].mlp.gate.noise, start)  # type: ignore[union-attr, union-attr]
    assert torch.equal(quiet.model.model.layers[0].mlp.gate.noise, start)  # type: ignore[union-attr, union-attr]
    assert torch.equal(noisy.logprobs(batch), noisy.logprobs(batch))
    before = learner_of(tiny_model(**NOISY), CLASSIC)
    first, _ = before.accumulate(batch, NLL())
    again, _ = before.accumulate(batch, NLL())
    assert torch.equal(first.routed.loads, again.routed.loads)  # type: ignore[union-attr]
    before.apply(first)
    assert before.version == 1


def skewed(g: torch.Generator) -> Batch:
    """Some tokens are frequent; half of them follow from the one before."""
    tokens = torch.multinomial((1.0 / torch.arange(1, 24)).expand(4, -1), 20, replacement=True, generator=g)
    told = torch.rand(4, 20, generator=g) < 0.5
    for t in range(1, 20):
        tokens[:, t] = torch.where(told[:, t], (5 * tokens[:, t - 1] + 3) % 23, tokens[:, t])
    return documents([tuple(row) for row in tokens.tolist()])


def test_the_bias_keeps_the_load_even() -> None:
    """Without it some expert does twice its share; with it none does 1.5 times. Loads of the last 20 steps."""
    violation = {}
    for rate in (0.0, 0.01):
        model = tiny_model(**{**SIGMOID, "experts": Experts(8, 2, 16, 1, dense_layers=(0,))})
        initialize(model, 0)
        learner = learner_of(model, Balancing(rate, alpha=1e-4), optimizer=AdamW(lr=3e-3))
        g, loads = torch.Generator().manual_seed(0), torch.zeros(8)
        for step in range(120):
            tally, _ = learner.accumulate(skewed(g), NLL())
            learner.apply(tally)
            assert tally.routed is not None
            loads += tally.routed.loads[0] if step >= 100 else 0
        violation[rate] = float(maximal_violation(loads))
    assert violation[0.01] < 0.5
    assert violation[0.0] > 0.9


def test_a_gradient_that_is_not_finite_moves_no_bias() -> None:
    model, batch = deep(), ragged_batch(0)
    batch.weight[0, batch.mask[0]] = float("inf")
    before = copy.deepcopy(model)
    with pytest.raises(NotFinite):
        learner_of(model).step(batch, objective_for(model))
    assert same_state(model, before)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"rate": -0.1}, "rate=-0.1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"importance": float("inf")}, "importance=inf"),
        ({"rate": True}, "rate=True"),
        ({"rate": 0, "alpha": 0}, "changes nothing"),
    ],
)
def test_balancing_that_is_none_is_refused(settings: dict[str, float], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        Balancing(**settings)


def test_balancing_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="no routed experts"):
        learner_of(tiny_model(), BALANCED)
    with pytest.raises(SettingsError, match="no bias; set rate=0"):
        learner_of(tiny_model(**SOFTMAX), BALANCED)
    adapted = deep()
    lora.add(adapted, lora.LoRA(rank=2), 0)
    with pytest.raises(SettingsError, match="frozen"):
        learner_of(adapted, BALANCED)


def test_what_is_stored_when_a_part_is_frozen() -> None:
    """Biases that move are stored with what is trained; those that do not come from where the rest comes from."""
    model = deep()
    model.model.embed_tokens.weight.requires_grad_(False)
    stored = learner_of(model, BALANCED).state()[0]
    assert "model.model.embed_tokens.weight" not in stored
    assert "model.model.layers.1.mlp.gate.e_score_correction_bias" in stored
    assert not any("bias" in name for name in learner_of(model, None).state()[0])


def test_a_critic_has_experts_of_its_own() -> None:
    policy, batch = deep(), ragged_batch(2)
    critic = ValueModel(policy)
    assert not any(".mtp." in name for name in critic.state_dict())
    learner = PolicyLearner(critic, ADAM, 6, settings=LearnerSettings(balancing=BALANCED), head=ValueHead())
    before, own = biases(policy), biases(critic)
    assert all(torch.equal(a, b) for a, b in zip(before, own))
    metrics = learner.step(replace(batch, returns=batch.advantage, logp_old=None), ValueLoss()).metrics
    assert "max_violation" in metrics
    assert not any(torch.equal(a, b) for a, b in zip(own, biases(critic)))
    assert all(torch.equal(a, b) for a, b in zip(before, biases(policy)))


def test_a_head_that_hides_its_rows_is_refused() -> None:
    class Hiding:
        def __call__(self, model, rows: Rows, needed: Tensor, /):
            attend = PackedAttention(rows.lengths.tolist())
            model(rows.tokens[needed.new_ones(needed.shape)], attend.positions, attend)

    learner = PolicyLearner(deep(), ADAM, 1, settings=LearnerSettings(balancing=BALANCED), head=Hiding())
    batch = documents([(1, 2, 3), (4, 5, 6)])
    with pytest.raises(SettingsError, match="hidden_before"):
        learner.accumulate(batch, lambda policy, micro: NLL())  # type: ignore[arg-type]


def test_rows_of_another_model_are_refused() -> None:
    rows = Rows(torch.tensor([[1, 2, 3]]), torch.tensor([3]), routing=torch.zeros(1, 3, 1, 2, dtype=torch.int16))
    with pytest.raises(DataError, match="2 experts of 1 layers"):
        PolicyLearner(deep(0), ADAM, 1).logprobs(rows)


# the native core


def wide(seed: int = 0, depth: int = 1) -> Transformer:
    """A model that the core computes."""
    sizes = {**SIGMOID, "latent": Latent(16, 16, 16, 16), "num_nextn_predict_layers": depth}
    return tiny_model(seed, num_hidden_layers=3, max_position_embeddings=256, **sizes)


@pytest.mark.usefixtures("served")
def test_the_core_balances_as_pytorch_does() -> None:
    batch = ragged_batch(5)
    found = []
    for model in (wide(), wide().double()):
        assert (native(model, "float32") is None) == (model.lm_head.weight.dtype == torch.float64)
        settings = LearnerSettings(60, precision="float32", balancing=BALANCED)
        learner = PolicyLearner(model, ADAM, 1, settings=settings, head=LogprobHead(0.9, 64, ahead=True))
        assert not learner.shares_prompts
        tally, _ = learner.accumulate(batch, MultiToken(NLL(), 0.3))
        found.append((gradient(model).double(), tally))
    (ours, tally), (exact, truth) = found
    assert float((ours - exact).norm() / exact.norm()) < 1e-4
    assert tally.routed is not None
    assert truth.routed is not None
    assert torch.equal(tally.routed.loads, truth.routed.loads)
    assert tally.means() == pytest.approx(truth.means(), rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("served")
def test_prompts_that_are_computed_once_are_replayed_once() -> None:
    g = torch.Generator().manual_seed(0)
    prompt, sizes = torch.randint(0, 23, (12,), generator=g).tolist(), (3, 9, 1, 6)
    rows = rows_of([(*prompt, *torch.randint(0, 23, (n,), generator=g).tolist()) for n in sizes])
    places = torch.arange(rows.tokens.shape[1])
    mask = (places >= 12) & (places < rows.lengths[:, None])
    told = torch.rand(*rows.tokens.shape, 2, 4, generator=g).topk(2, -1).indices.short()
    told[:, :12] = told[:1, :12]  # a prompt was read once, for all its replies
    batch = Batch(rows.tokens, rows.lengths, mask, token_mean(mask), routing=told)
    found = []
    for model in (wide(depth=0), wide(depth=0).double()):
        learner = PolicyLearner(model, ADAM, 1, settings=LearnerSettings(precision="float32"))
        tally, output = learner.accumulate(batch, NLL())
        found.append((learner.shares_prompts, tally.routed, output.logp, gradient(model).double()))
    (shares, once, said, ours), (alone, often, truth, exact) = found
    assert (shares, alone) == (True, False)
    torch.testing.assert_close(said, truth, atol=1e-4, rtol=1e-4)
    assert float((ours - exact).norm() / exact.norm()) < 1e-4
    assert once is not None
    assert often is not None
    assert once.loads.sum(-1).tolist() == [2 * (12 + sum(n - 1 for n in sizes))] * 2
    assert often.loads.sum(-1).tolist() == [2 * sum(11 + n for n in sizes)] * 2


# Muon


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (2, 5, 5)])
def test_every_expert_steps_as_a_matrix_of_its_own(shape: tuple[int, ...]) -> None:
    start = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack = torch.nn.Parameter(start.clone())
    alone = [torch.nn.Parameter(one.clone()) for one in start]
    beside = torch.nn.Parameter(start[0].mT.contiguous())  # of the same shape, transposed
    together, apart = Muon([stack, beside], lr=0.1, weight_decay=0.5), Muon(alone, lr=0.1, weight_decay=0.5)
    for step in range(3):
        g = torch.randn(*shape, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64)
        stack.grad, beside.grad = g.clone(), g[0].mT.contiguous()
        for p, own in zip(alone, g):
            p.grad = own.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(stack.data, torch.stack([p.data for p in alone]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(beside.data, alone[0].data.mT, rtol=1e-9, atol=1e-11)


def test_the_scale_is_that_of_one_matrix() -> None:
    p = torch.nn.Parameter(torch.zeros(20, 2, 3))
    p.grad = torch.ones(20, 2, 3)
    Muon([p], lr=0.1, momentum=0.0).step()
    expected = -0.1 * 0.2 * 3**0.5 * orthogonalize(torch.ones(2, 3))
    torch.testing.assert_close(p.data, expected.expand(20, 2, 3))
    assert cost(p) == 20 * cost(torch.empty(2, 3))


def test_who_steps_with_what() -> None:
    model = deep(1)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adam = (one for one in MUON.build(model))
    matrices = {names[id(p)] for p in muon.matrices}  # type: ignore[attr-defined]
    others = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    assert matrices | others == set(names.values())
    assert not matrices & others
    assert {"model.mtp.0.eh_proj.weight", "model.layers.1.mlp.experts.up_proj"} <= matrices
    assert {"model.mtp.0.block.mlp.experts.down_proj", "model.layers.0.mlp.gate_proj.weight"} <= matrices
    assert {name for name in others if not name.endswith("norm.weight") and "layernorm" not in name} == {
        *("model.embed_tokens.weight", "lm_head.weight"),
        *(f"model.{block}.mlp.gate.weight" for block in ("layers.1", "layers.2", "mtp.0.block")),
    }
    noisy = tiny_model(**NOISY)
    noises = [p for name, p in noisy.named_parameters() if name.endswith("gate.noise")]
    assert not {id(p) for p in noises} & {id(p) for p in MUON.build(noisy)[0].matrices}  # type: ignore[attr-defined]


@pytest.mark.parametrize("optimizer", [ADAM, MUON])
def test_every_parameter_moves(optimizer: OptimizerSettings) -> None:
    model = deep()
    before = copy.deepcopy(model.state_dict())
    learner = learner_of(model, optimizer=optimizer)
    learner.step(ragged_batch(4), MultiToken(GRPO(), 0.3))
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
