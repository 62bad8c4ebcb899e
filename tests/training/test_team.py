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
from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.types import SamplingParams
from longthought.engine.engine import Engine
from longthought.engine.sharding import ShardedEngine
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.sharding import ShardedLearner, shards
from longthought.training.team import Team


def sharded(workers: int) -> tuple[ShardedLearner, Team]:
    learner = ShardedLearner(PolicyLearner(tiny_model().double(), AdamW(lr=1e-2), 4), workers)
    team = Team(workers, learner.handlers)
    learner.join(team)
    return learner, team


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_team_steps_as_one_process(workers: int) -> None:
    alone = PolicyLearner(tiny_model().double(), AdamW(lr=1e-2), 4)
    learner, team = sharded(workers)
    with team:
        for step in range(3):
            expected, found = (one.step(ragged_batch(step), GRPO()).metrics for one in (alone, learner))
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
        again = learner.logprobs(ragged_batch(9))
    torch.testing.assert_close(again, alone.logprobs(ragged_batch(9)), rtol=1e-6, atol=1e-6)
    for left, right in zip(alone.model.parameters(), learner.learner.model.parameters()):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def test_the_same_team_gives_the_same_bits() -> None:
    def weights() -> list[torch.Tensor]:
        learner, team = sharded(2)
        with team:
            for step in range(3):
                learner.step(ragged_batch(step), GRPO())
        return [p.detach().clone() for p in learner.learner.model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights()))


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
