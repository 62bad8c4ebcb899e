"""Several processes, one gradient."""

import os
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import ragged_batch

from conftest import tiny_model
from longthought.algorithms.objective import GRPO
from longthought.core.errors import LongthoughtError, NotFinite, SettingsError
from longthought.core.types import Batch, SamplingParams
from longthought.engine.engine import Engine
from longthought.engine.sharding import ShardedEngine
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW, MuonAdamW, OptimizerSettings
from longthought.training.packing import shards
from longthought.training.schedule import Schedule
from longthought.training.sharding import ShardedLearner
from longthought.training.team import Team

ADAM, MUON = AdamW(lr=1e-2), MuonAdamW(schedule=Schedule(2, 0.5))


def small_learner(optimizer: OptimizerSettings, frozen: str = "nothing") -> PolicyLearner:
    model = tiny_model().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    return PolicyLearner(model, optimizer, 6)


def sharded(workers: int, optimizer: OptimizerSettings, frozen: str = "nothing") -> tuple[ShardedLearner, Team]:
    learner = ShardedLearner(small_learner(optimizer, frozen), workers)
    team = Team(workers, learner.handlers)
    learner.join(team)
    return learner, team


def weights(learner: ShardedLearner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.learner.model.parameters()]


def run(learner: ShardedLearner | PolicyLearner, *steps: int) -> None:
    for step in steps:
        learner.step(ragged_batch(step), GRPO())


def endless() -> Batch:
    batch = ragged_batch(0)
    batch.advantage[0] = float("inf")
    batch.weight[0, batch.mask[0]] = 0.1
    return batch


@pytest.mark.parametrize("frozen", ["nothing", "layers.0", "up_proj"])
@pytest.mark.parametrize("optimizer", [ADAM, MUON])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_team_steps_as_one_process(workers: int, optimizer: OptimizerSettings, frozen: str) -> None:
    alone = small_learner(optimizer, frozen)
    learner, team = sharded(workers, optimizer, frozen)
    with team:
        for step in range(3):
            expected, found = (one.step(ragged_batch(step), GRPO()).metrics for one in (alone, learner))
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        again = learner.logprobs(ragged_batch(9))
    torch.testing.assert_close(again, alone.logprobs(ragged_batch(9)), rtol=1e-6, atol=1e-6)
    for left, right in zip(alone.model.parameters(), learner.learner.model.parameters()):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("optimizer", [ADAM, MUON])
def test_the_same_team_gives_the_same_bits(optimizer: OptimizerSettings) -> None:
    def trained() -> list[torch.Tensor]:
        learner, team = sharded(2, optimizer)
        with team:
            run(learner, 0, 1, 2)
        return weights(learner)

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained()))


@pytest.mark.parametrize("optimizer", [ADAM, MUON])
def test_a_team_that_works_resumes_bit_for_bit(optimizer: OptimizerSettings) -> None:
    """What the members keep for themselves must follow when member 0 restores."""
    learner, team = sharded(3, optimizer)
    with team:
        run(learner, 0, 1)
        saved = learner.learner.state()
        run(learner, 2, 3)
        expected = weights(learner)
        learner.learner.restore(*saved)
        run(learner, 2, 3)
        assert all(torch.equal(a, b) for a, b in zip(expected, weights(learner)))
    fresh, team = sharded(3, optimizer)
    with team:
        fresh.learner.restore(*saved)
        run(fresh, 2, 3)
        assert all(torch.equal(a, b) for a, b in zip(expected, weights(fresh)))


@pytest.mark.parametrize("optimizer", [ADAM, MUON])
def test_a_team_leaves_everything_as_it_was_when_a_gradient_is_not_finite(optimizer: OptimizerSettings) -> None:
    learner, team = sharded(2, optimizer)
    other, other_team = sharded(2, optimizer)
    with team, other_team:
        run(learner, 1)
        run(other, 1)
        before = weights(learner)
        with pytest.raises(NotFinite):
            learner.step(endless(), GRPO())
        assert all(torch.equal(a, b) for a, b in zip(before, weights(learner)))
        run(learner, 2)
        run(other, 2)
        assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(learner)))


def test_member_0_may_step_with_a_gradient_of_its_own() -> None:
    alone = small_learner(MUON)
    learner, team = sharded(2, MUON)
    with team:
        run(alone, 0, 1, 2)
        run(learner, 0)
        run(learner.learner, 1)  # not cut over the team
        run(learner, 2)
    for left, right in zip(alone.model.parameters(), learner.learner.model.parameters()):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_completions_do_not_depend_on_the_team(workers: int) -> None:
    prompts = [(1, 2, 3), (4, 5), (1, 2, 3), (6,)]
    params = SamplingParams(count=3, max_tokens=10, seed=4)
    model = tiny_model()
    expected = Engine(model).sample(prompts, params)
    engine = ShardedEngine(Engine(model))
    with Team(workers, engine.handlers) as team:
        engine.join(team)
        engine.version = 5
        found = engine.sample(prompts, params)
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]
    assert {c.version for g in found for c in g} == {5}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_shards_partition_and_balance(lengths: list[int], count: int) -> None:
    parts = shards(torch.tensor(lengths), count)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part.tolist()) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)


def test_what_a_member_raises_is_raised_here() -> None:
    def fail(member: int, at: int) -> int:
        if member == at:
            raise SettingsError(f"member {member}")
        return member

    with Team(3, {"fail": fail}) as team:
        for at in range(3):
            with pytest.raises(SettingsError, match=f"member {at}"):
                team.call("fail", [(at,)] * 3)
        assert team.call("fail", [(9,)] * 3) == [0, 1, 2]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.tensor([True, False, True])[:2],
        torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.arange(10)[::3],
        torch.tensor([float("nan"), -0.0, float("inf")]),
        torch.tensor([1 + 2j]),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)
def test_tensors_travel_unchanged(tensor: torch.Tensor) -> None:
    with Team(2, {"echo": lambda member, one: (one, one + 1 if one.dtype != torch.bool else one)}) as team:
        _, (back, after) = team.call("echo", [(tensor,), (tensor,)])
    assert back.dtype == tensor.dtype
    torch.testing.assert_close(back, tensor, rtol=0, atol=0, equal_nan=True)
    assert after.shape == back.shape
    back.zero_()  # it may be written to


def test_a_closed_team_refuses() -> None:
    team = Team(2, {"pid": lambda member: os.getpid()})
    team.close()
    assert team.call("pid", [()]) == [os.getpid()]
    with pytest.raises(ValueError, match="2 parts for a team of 1"):
        team.call("pid", [(), ()])


def test_a_dead_member_is_told_in_plain_words() -> None:
    with Team(2, {"pid": lambda member: os.getpid()}) as team:
        _, child = team.call("pid", [(), ()])
        os.kill(child, signal.SIGKILL)
        with pytest.raises(LongthoughtError, match="worker process died"):
            team.call("pid", [(), ()])


def test_members_die_with_a_killed_parent(tmp_path) -> None:
    note = tmp_path / "pid"
    parent = os.fork()
    if parent == 0:
        team = Team(2, {"pid": lambda member: os.getpid()})
        note.write_text(str(team.call("pid", [(), ()])[1]))
        time.sleep(60)
    while not (note.exists() and note.read_text()):
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(500):
        try:
            os.kill(int(note.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("the member outlived its parent")


def test_threads_are_refused() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(SettingsError, match="--threads 1"):
            Team(2, {})
    finally:
        torch.set_num_threads(1)
