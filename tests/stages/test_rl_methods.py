"""Every method learns, resumes bit by bit, and says what became of every rollout."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from parrot import Parrot, checkpoint
from safetensors.torch import load_file

from conftest import tiny_model
from longthought.algorithms.advantage import (
    batch_centered,
    batch_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
    per_group,
)
from longthought.algorithms.control import EntropyTarget
from longthought.algorithms.correction import Masked, Truncated
from longthought.algorithms.credit import GAE, DecoupledGAE, Discounted, PerReply, ReinforcePlusPlus, ReMax
from longthought.algorithms.objective import CISPO, GRPO, GSPO, REINFORCE, MirrorDescent
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.errors import Alarm, DataError, LogprobGap, SettingsError
from longthought.core.types import Message, Outcome
from longthought.engine.engine import EngineSettings
from longthought.models.lora import LoRA
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.run import Run
from longthought.stages.method import Critic, KLReward, Method, Refill
from longthought.stages.monitors import Monitors
from longthought.stages.rl import RL
from longthought.stages.updates import DROPPED, gap_limit
from longthought.training.learner import LearnerSettings
from longthought.training.optimizer import AdamW


@dataclass(frozen=True)
class PerToken:
    """A small penalty on every token."""

    name: str = "tokens"

    def __call__(self, group):
        return [[-0.01] * len(r.completion.token_ids) for r in group]


LEAVE = per_group(leave_one_out)
METHODS = {
    "reinforce": Method(batch_centered, sequence_sum, REINFORCE()),
    "rloo": Method(LEAVE, sequence_sum, GRPO()),
    "rloo, KL in the reward": Method(PerReply(LEAVE), sequence_sum, GRPO(), kl_reward=KLReward(0.01)),
    "reinforce++": Method(ReinforcePlusPlus(), token_mean, GRPO(), kl_reward=KLReward(0.01)),
    "reinforce++-baseline": Method(batch_normalized, token_mean, GRPO(beta=0.01)),
    "remax": Method(ReMax(), sequence_sum, GRPO()),
    "grpo": Method(per_group(group_normalized), sequence_mean, GRPO(beta=0.001)),
    "dr. grpo": Method(per_group(group_centered), partial(constant, length=4), GRPO()),
    "dapo": Method(
        per_group(group_normalized), token_mean, GRPO(clip_high=0.28), filter_truncated=True, refill=Refill(4)
    ),
    "gspo": Method(per_group(group_normalized), sequence_mean, GSPO()),
    "cispo": Method(per_group(group_normalized), token_mean, CISPO()),
    "k1.5": Method(per_group(group_centered), sequence_sum, MirrorDescent(0.1)),
    "ppo": Method(GAE(), token_mean, GRPO(), critic=Critic(AdamW(lr=1e-2), clip=0.5)),
    "vc-ppo": Method(DecoupledGAE(lam=0.95), token_mean, GRPO(clip_high=0.28), critic=Critic(AdamW(lr=3e-3))),
    "per-reward discounts": Method(Discounted((("tokens", 0.9),), LEAVE), sequence_sum, GRPO(), dense=(PerToken(),)),
    "truncated importance": Method(LEAVE, sequence_sum, GRPO(), correction=Truncated()),
    "entropy target": Method(LEAVE, token_mean, GRPO(), entropy=EntropyTarget(0.3, rate=0.01, maximum=0.05)),
}


def rl(method: Method, **changes: object) -> RL:
    fields = {"steps": 24, "prompts": 6, "samples": 8, "updates": 2, "max_tokens": 4, "quiet": True}
    return RL(Parrot(), method, **{**fields, "optimizer": AdamW(lr=6e-3), **changes})  # type: ignore[arg-type]


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name: str, tmp_path: Path) -> None:
    stage = rl(METHODS[name], steps=40 if METHODS[name].critic else 24)
    with Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)
    accuracy = [line["accuracy"] for line in metrics(tmp_path / "rl")]
    assert sum(accuracy[:2]) / 2 < 0.4
    assert sum(accuracy[-3:]) / 3 > 0.75, accuracy


@pytest.mark.parametrize("name", ["ppo", "dapo", "remax", "entropy target", "rloo, KL in the reward"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_is_an_uninterrupted_one(name: str, workers: int, tmp_path: Path) -> None:
    stage = rl(METHODS[name], steps=5, workers=workers)
    base = checkpoint(tmp_path / "base")
    with Place(tmp_path / "whole") as place:
        stage.run(base, place)

    class Stopped(Exception): ...

    def save_and_stop(place, step, tensors, values):
        Place.save_state(place, step, tensors, values)
        if step == 3:
            raise Stopped

    with Place(tmp_path / "cut") as place:
        place.save_state = partial(save_and_stop, place)  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            stage.run(base, place)
    with Place(tmp_path / "cut") as place:
        stage.run(base, place)
    for name in ("metrics.jsonl", "model/model.safetensors", "traces/step-000005.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def trace(folder: Path, step: int) -> list[dict]:
    return pq.read_table(folder / f"traces/step-{step:06d}.parquet").to_pylist()


def test_what_became_of_every_rollout(tmp_path: Path) -> None:
    with Place(tmp_path / "rl") as place:
        rl(METHODS["dapo"], steps=3, max_tokens=2).run(checkpoint(tmp_path / "base"), place)
    rows = [row for step in (1, 2, 3) for row in trace(tmp_path / "rl", step)]
    reasons = {row["left_out"] for row in rows}
    assert {"", "cut by a limit and filtered", DROPPED} <= reasons
    for row in rows:
        if row["left_out"]:
            assert row["logprobs_new"] is None
            continue
        assert len(row["logprobs_new"]) == len(row["tokens"]) == len(row["entropies"])
        assert row["weight"] > 0
        if row["update"] == 0:  # the policy is still the one that sampled
            assert row["logprobs_new"] == pytest.approx(row["logprobs"], abs=1e-4)


def test_the_critic_learns_what_to_expect(tmp_path: Path) -> None:
    method = replace(METHODS["ppo"], critic=Critic(AdamW(lr=1e-2), pretrain=15))
    with Place(tmp_path / "rl") as place:
        rl(method, steps=16, samples=16).run(checkpoint(tmp_path / "base"), place)
    lines = metrics(tmp_path / "rl")
    assert all(line["updates"] == 0 and "ratio" not in line for line in lines[:15])
    assert lines[15]["updates"] == 2
    explained = [line["critic/explained_variance"] for line in lines[:15]]
    assert sum(explained[-5:]) / 5 > max(0.1, explained[0] + 0.1)


def test_dynamic_sampling_stops_when_nothing_teaches(tmp_path: Path) -> None:
    """A word that is never said right: no group lives, no update is made, and the run goes on."""
    stage = rl(replace(METHODS["dapo"], refill=Refill(2)), steps=2)
    stage = replace(stage, task=replace(Parrot(), broken=None))

    @dataclass(frozen=True)
    class Never(Parrot):
        def _score(self, problem, reply, number):
            return super()._score(replace(problem, answer="black"), reply, number)

    with Place(tmp_path / "rl") as place:
        replace(stage, task=Never()).run(checkpoint(tmp_path / "base"), place)
    assert [line["updates"] for line in metrics(tmp_path / "rl")] == [0, 0]
    assert [line["drawn"] for line in metrics(tmp_path / "rl")] == [2, 2]


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.INVALID, Outcome.NO_GOLD])
def test_a_failing_verifier_stops_the_run(outcome: Outcome, tmp_path: Path) -> None:
    stage = replace(rl(METHODS["rloo"]), task=Parrot(outcome))
    with pytest.raises(Alarm, match="verifier failed on 38%"), Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)


def test_replies_without_a_reward_leave_loss_and_baseline(tmp_path: Path) -> None:
    stage = rl(METHODS["rloo"], steps=1, monitors=Monitors(stop=()))
    with Place(tmp_path / "rl") as place:
        replace(stage, task=Parrot(Outcome.TIMED_OUT)).run(checkpoint(tmp_path / "base"), place)
    rows = trace(tmp_path / "rl", 1)
    assert {row["left_out"] for row in rows if row["value"] is None} == {"no reward"}
    for group in range(6):
        members = [row for row in rows if row["group"] == group]
        assert sum(row["advantage"] for row in members) == pytest.approx(0, abs=1e-6)


def test_an_adapter_is_all_that_moves(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", noise=0.3)
    stage = rl(METHODS["rloo, KL in the reward"], steps=24, adapter=LoRA(8, 32.0), optimizer=AdamW(lr=2e-2))
    with Place(tmp_path / "rl") as place:
        made = stage.run(base, place)
        state = place.load_state()
    assert state is not None
    assert all("lora" in name for name in state.tensors if name.startswith("model."))
    before, after = (load_file(folder / "model.safetensors") for folder in (base.path, made.path))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("proj" in name for name in moved)
    accuracy = [line["accuracy"] for line in metrics(tmp_path / "rl")]
    assert sum(accuracy[-3:]) / 3 > sum(accuracy[:2]) / 2 + 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advantage": GAE()}, "needs the values of a critic"),
        ({"critic": Critic()}, "changes nothing"),
        ({"dense": (PerToken(),)}, "discounts"),
        ({"objective": MirrorDescent(0.1), "correction": Masked()}, "not homogeneous"),
        ({"objective": CISPO(), "entropy": EntropyTarget(0.5)}, "no entropy bonus"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        replace(METHODS["rloo"], **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 1}, "at least 2 replies"),
        ({"reference_every": 3}, "changes nothing"),
        ({"updates": 1000}, "exceed"),
        ({"temperature": 0.0}, "positive"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        rl(METHODS["rloo"], **changes)


def test_one_reply_to_a_problem_is_enough_where_replies_are_not_compared(tmp_path: Path) -> None:
    with Place(tmp_path / "rl") as place:
        rl(METHODS["reinforce"], samples=1, steps=2).run(checkpoint(tmp_path / "base"), place)
    assert len(metrics(tmp_path / "rl")) == 2


def test_a_sampler_with_other_weights_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = rl(METHODS["grpo"], temperature=1.0, gap_limit=1e-9)
    with pytest.raises(LogprobGap), Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)


def test_in_a_run(tmp_path: Path) -> None:
    """As a stage of a run, described and loaded again."""
    stage, base = rl(METHODS["ppo"], steps=2), checkpoint(tmp_path / "base")
    for _ in range(2):
        with Run.open(tmp_path / "run", recipe="test", settings=Critic(), command="test") as run:
            made: Checkpoint = run.do("rl", stage, base)
    assert made.load().model.config.hidden_size == 32


def test_replies_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    stage = rl(METHODS["grpo"], max_tokens=32)
    with pytest.raises(SettingsError, match="context of 32 tokens"), Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Long(Parrot):
        def problem(self, split, index):
            found = super().problem(split, index)
            return replace(found, messages=(Message("user", "red " * 40),)) if index == 4 else found

    stage = replace(rl(METHODS["grpo"]), task=Long())
    with pytest.raises(DataError, match="train/4"), Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)


def test_the_cause_of_a_failing_verifier_is_told(tmp_path: Path) -> None:
    stage = replace(rl(METHODS["rloo"]), task=Parrot(Outcome.CRASHED))
    with pytest.raises(Alarm, match="train/0: crashed, on purpose"), Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)


def test_mirror_descent_does_not_step_on_rounding(tmp_path: Path) -> None:
    """Without a live group nothing is between the policy and the sampler but rounding, which Adam would blow up."""

    @dataclass(frozen=True)
    class Never(Parrot):
        def _score(self, problem, reply, number):
            return super()._score(replace(problem, answer="black"), reply, number)

    base = checkpoint(tmp_path / "base")
    with Place(tmp_path / "rl") as place:
        made = replace(rl(METHODS["k1.5"], steps=2, updates=1), task=Never()).run(base, place)
    before, after = (load_file(folder / "model.safetensors") for folder in (base.path, made.path))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("given", "learner", "engine", "expected"),
    [
        (None, "float32", "float32", 1e-3),
        (None, "bfloat16", "bfloat16", 3e-2),
        (None, "float32", "bfloat16", 3e-2),
        (2e-4, "bfloat16", "bfloat16", 2e-4),
    ],
)
def test_the_gap_that_is_tolerated(given: float | None, learner: Any, engine: Any, expected: float) -> None:
    settings = {"learner": LearnerSettings(precision=learner), "engine": EngineSettings(precision=engine)}
    assert gap_limit(rl(METHODS["grpo"], gap_limit=given, **settings), tiny_model(head_dim=16)) == expected
