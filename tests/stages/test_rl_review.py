"""What other libraries got wrong: one RL step against plain arithmetic, and the corners where steps break."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from parrot import Parrot, checkpoint

from longthought.algorithms.advantage import group_centered, group_normalized, leave_one_out, per_group
from longthought.algorithms.control import EntropyTarget
from longthought.algorithms.correction import Truncated
from longthought.algorithms.credit import GAE, Discounted, PerReply, ReMax
from longthought.algorithms.objective import CISPO, GRPO, Imitation, Sum, ValueLoss
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.errors import Alarm, DataError, NotFinite, SettingsError
from longthought.core.types import CUT, Batch, Completion, Finish, Loss, Outcome, PolicyOutput, Problem, Score, Verdict
from longthought.models import lora
from longthought.models.attention import PackedAttention
from longthought.models.lora import LoRA
from longthought.rollout.collect import collect, grade_all, play
from longthought.runs.place import Place
from longthought.stages.earning import rewards_of
from longthought.stages.method import Critic, KLReward, Method, Refill
from longthought.stages.monitors import Monitors
from longthought.stages.rl import RL, _Loop
from longthought.stages.updates import _Step
from longthought.training.batching import lay_out
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.schedule import Schedule
from longthought.training.team import Team

LEAVE = per_group(leave_one_out)
OPEN = Monitors(stop=())


@dataclass(frozen=True)
class Flaky(Parrot):
    """Every fourth reply cannot be graded; the greedy reply to a "blue" problem cannot either."""

    def _score(self, problem: Problem, reply: str, number: int) -> Score:
        if number % 4 == 3:
            return Score(None, False, {}, Verdict(None, Outcome.TIMED_OUT, ""))
        return super()._score(problem, reply, number)

    def grade(self, problem: Problem, replies: Any) -> list[Score]:
        if len(replies) == 1 and problem.answer == "blue":
            return [Score(None, False, {}, Verdict(None, Outcome.TIMED_OUT, ""))]
        return super().grade(problem, replies)


@dataclass(frozen=True)
class Never(Parrot):
    """No reply is right."""

    def _score(self, problem: Problem, reply: str, number: int) -> Score:
        return super()._score(replace(problem, answer="black"), reply, number)


@dataclass(frozen=True)
class Silent(Parrot):
    """No reply can be graded."""

    def _score(self, problem: Problem, reply: str, number: int) -> Score:
        return Score(None, False, {}, Verdict(None, Outcome.TIMED_OUT, ""))


def rl(method: Method, **changes: Any) -> RL:
    fields = {"steps": 1, "prompts": 6, "samples": 4, "updates": 1, "max_tokens": 4, "quiet": True, "monitors": OPEN}
    return RL(**{"task": Parrot(), "method": method, **fields, "optimizer": AdamW(lr=6e-3), **changes})


def run(stage: RL, folder: Path, base: Any = None) -> list[dict[str, float]]:
    with Place(folder / "rl") as place:
        stage.run(base or checkpoint(folder / "base"), place)
    return [json.loads(line) for line in (folder / "rl/metrics.jsonl").read_text().splitlines()]


def trace(folder: Path, step: int = 1) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"rl/traces/step-{step:06d}.parquet").to_pylist()


# --- one step, recomputed from the trace with plain tensors in float64: no batch, no packing, no weights


@dataclass
class Twin:
    """The gradient of a step's loss. ``rows``: of the trace; ``model``, ``old``: before the step, float64."""

    model: Any
    rows: list[dict[str, Any]]
    temperature: float

    def logp(self, row: dict[str, Any]) -> torch.Tensor:
        tokens = torch.tensor([*row["prompt"], *row["tokens"]])
        spread = (self.scores(tokens) / self.temperature).log_softmax(-1)
        said = spread[:-1].gather(-1, tokens[1:, None]).squeeze(-1)
        return said[len(row["prompt"]) - 1 :]

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        attend = PackedAttention([len(tokens)])
        return self.model(tokens, attend.positions, attend) @ self.model.lm_head.weight.T

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(loss, list(self.model.parameters()))
        return torch.cat([part.flatten() for part in parts])


def groups_of(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def by_group(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], how: str) -> dict[int, float]:
    """id(row) → advantage, with plain Python arithmetic; absent rewards leave the mean."""
    advantage = {}
    for members in groups_of(rows).values():
        present = [value(row) for row in members if row["value"] is not None]
        mean = sum(present) / max(len(present), 1)
        var = sum((x - mean) ** 2 for x in present) / max(len(present) - 1, 1)
        for row in members:
            if row["value"] is None or len(present) < 2:
                advantage[id(row)] = 0.0
                continue
            gap = value(row) - mean
            if how == "loo":
                gap *= len(present) / (len(present) - 1)
            if how == "std":
                gap = gap / (var**0.5 + 1e-6) if max(present) > min(present) else 0.0
            advantage[id(row)] = gap
    return advantage


def dapo_twin(twin: Twin) -> torch.Tensor:
    """Token mean over what is neither cut, nor ungraded, nor in a dropped group."""
    alive = [m for m in groups_of(twin.rows).values() if {r["correct"] for r in m if r["value"] is not None} == {0, 1}]
    rows = [row for members in alive[:6] for row in members]
    advantage = by_group(rows, lambda row: row["value"], "std")
    used = [r for r in rows if r["value"] is not None and r["finish"] == "stop"]
    assert len(used) < len(rows)
    tokens = sum(len(row["tokens"]) for row in used)
    return -sum(advantage[id(row)] * twin.logp(row).sum() for row in used) / tokens


def dr_grpo_twin(twin: Twin) -> torch.Tensor:
    advantage = by_group(twin.rows, lambda row: row["value"], "mean")
    used = [row for row in twin.rows if row["value"] is not None]
    return -sum(advantage[id(row)] * twin.logp(row).sum() for row in used) / (len(used) * 4)


def grpo_twin(twin: Twin) -> torch.Tensor:
    """At π = π_ref the gradient of k3 is 0, so the KL term only counts in the second update; see the next test."""
    advantage = by_group(twin.rows, lambda row: row["value"], "std")
    used = [row for row in twin.rows if row["value"] is not None]
    return -sum(advantage[id(row)] * twin.logp(row).mean() for row in used) / len(used)


def remax_twin(twin: Twin) -> torch.Tensor:
    """Problems whose greedy reply was not graded teach nothing and count nowhere."""
    used = [row for row in twin.rows if row["value"] is not None and _word(row) != "blue"]
    assert len(used) < len(twin.rows) - 6
    return -sum((row["value"] - _greedy(twin, row)) * twin.logp(row).sum() for row in used) / len(used)


def _word(row: dict[str, Any]) -> str:
    return ("red", "blue", "green")[int(row["problem"].split("/")[1]) % 3]


def _greedy(twin: Twin, row: dict[str, Any]) -> float:
    """The first greedy token decides."""
    best = int(twin.scores(torch.tensor(row["prompt"]))[-1].argmax())
    return float(best == row["prompt"][2])  # <begin> <user> word <assistant>


TWINS = {
    "dapo": (
        Method(per_group(group_normalized), token_mean, GRPO(), filter_truncated=True, refill=Refill(4)),
        dapo_twin,
    ),
    "dr. grpo": (Method(per_group(group_centered), partial(constant, length=4), GRPO()), dr_grpo_twin),
    "grpo": (Method(per_group(group_normalized), sequence_mean, GRPO(beta=0.1)), grpo_twin),
    "remax": (Method(ReMax(), sequence_sum, GRPO()), remax_twin),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", TWINS)
def test_the_gradient_of_a_step_is_that_of_the_paper(
    name: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, loss = TWINS[name]
    seen: list[torch.Tensor] = []
    apply = PolicyLearner.apply

    def spy(self: PolicyLearner, tally: Any) -> Any:
        seen.append(torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))
        return apply(self, tally)

    monkeypatch.setattr(PolicyLearner, "apply", spy)
    base = checkpoint(tmp_path / "base", noise=0.1)
    run(rl(method, task=Flaky(), temperature=0.8, workers=workers, samples=8), tmp_path, base)
    twin = Twin(base.load().model.double(), trace(tmp_path), 0.8)
    expected = twin.gradient(loss(twin))
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-3, atol=1e-5)


def test_the_second_update_is_off_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ratio is to the policy that sampled, its KL to the one before the first update; the clip binds."""
    seen: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    apply = PolicyLearner.apply

    def spy(self: PolicyLearner, tally: Any) -> Any:
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        seen.append((torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]), weights))
        return apply(self, tally)

    monkeypatch.setattr(PolicyLearner, "apply", spy)
    base = checkpoint(tmp_path / "base", noise=0.1)
    method = Method(per_group(group_normalized), sequence_mean, GRPO(0.1, 0.1, beta=0.3, entropy_bonus=0.05))
    run(rl(method, task=Flaky(), updates=2, samples=8, optimizer=AdamW(lr=2e-2)), tmp_path, base)
    first = base.load().model.double()
    twin, reference = Twin(base.load().model.double(), trace(tmp_path), 1.0), Twin(first, [], 1.0)
    twin.model.load_state_dict({name: tensor.double() for name, tensor in seen[1][1].items()})
    advantage = by_group(twin.rows, lambda row: row["value"], "std")
    used, clipped, losses = [row for row in twin.rows if row["update"] == 1], 0, []
    for row in used:
        logp, old = twin.logp(row), torch.tensor(row["logprobs"]).double()
        with torch.no_grad():
            d = reference.logp(row)
        a, ratio = advantage[id(row)], (logp - old).exp()
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a)
        clipped += int((surrogate != ratio * a).sum())
        kl = (d - logp).exp() - 1 - (d - logp)
        spread = (twin.scores(torch.tensor([*row["prompt"], *row["tokens"]]))).log_softmax(-1)
        entropy = -(spread.exp() * spread).sum(-1)[len(row["prompt"]) - 1 : -1]
        losses.append(-(surrogate - 0.3 * kl + 0.05 * entropy).mean())
        assert row["logprobs_new"] == pytest.approx(logp.tolist(), abs=1e-4)
        assert row["entropies"] == pytest.approx(entropy.tolist(), abs=1e-4)
        assert row["weight"] == pytest.approx(1 / len(used))
    assert clipped > 5
    expected = twin.gradient(torch.stack(losses).mean())
    torch.testing.assert_close(seen[1][0].double(), expected, rtol=1e-3, atol=1e-5)


# --- critic, correction: what is credited to which token


def loop_of(stage: RL, folder: Path) -> _Loop:
    return _Loop(stage, checkpoint(folder / "base", noise=0.1).load())


@pytest.mark.parametrize("bootstrap", [False, True])
def test_values_stand_before_their_tokens_and_a_cut_reply_has_a_verdict_or_a_value(
    bootstrap: bool, tmp_path: Path
) -> None:
    """The critic on every row alone, and generalized advantages by recursion, against the columns of a step."""
    critic_ = Critic(AdamW(lr=1e-2), bootstrap=bootstrap)
    method = Method(GAE(gamma=0.9, lam=0.5, whiten=False), token_mean, GRPO(), critic=critic_)
    loop = loop_of(rl(method, steps=3, workers=2), tmp_path)
    with loop.start_team(), Place(tmp_path / "rl") as place:
        loop.step(1, place)
        groups = loop._rollouts(2).kept
        said = replace(groups[0][0].completion, token_ids=(5,) * 28, logprobs=(-2.0,) * 28, finish=Finish.BUDGET)
        groups[0] = (replace(groups[0][0], completion=said), *groups[0][1:])  # the whole context of 32 tokens
        rewards = rewards_of(groups, method)
        step = _Step(loop.updates, 2, groups, rewards)
        laid, _ = step._laid()
    critic = loop.updates.critic.learner.model
    ends = {r.completion.finish for r in step.rollouts}
    assert ends == {Finish.STOP, Finish.LENGTH, Finish.BUDGET}
    for row, rollout in enumerate(step.rollouts):
        tokens, start = [*rollout.prompt, *rollout.completion.token_ids], len(rollout.prompt)
        attend = PackedAttention([len(tokens)])
        with torch.no_grad():
            states = critic(torch.tensor(tokens), attend.positions, attend)
            values = critic.value_head(states).squeeze(-1)[start - 1 :].tolist()
        goes_on = bootstrap and rollout.completion.finish in CUT
        after, running, advantages = values.pop() if goes_on else 0.0 * values.pop(), 0.0, []
        for t in reversed(range(len(values))):
            reward = rollout.score.value if t == len(values) - 1 and not goes_on else 0.0
            running = reward + 0.9 * after - values[t] + 0.9 * 0.5 * running
            advantages.insert(0, running)
            after = values[t]
        mask = laid.mask[row]
        assert laid.value_old[row][mask].tolist() == pytest.approx(values, abs=1e-5)
        assert laid.advantage[row][mask].tolist() == pytest.approx(advantages, abs=1e-5)
        assert laid.returns[row][mask].tolist() == pytest.approx([a + v for a, v in zip(advantages, values)], abs=1e-5)


def test_a_corrected_step_and_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that is off by a known amount: weights, gap and the advantages in the trace are those of the update."""

    def off(*given: Any) -> Any:
        return [tuple(replace(r, completion=shifted(r.completion)) for r in group) for group in collect(*given)]

    def shifted(said: Completion) -> Completion:
        return replace(said, logprobs=tuple(map(sum, zip(said.logprobs, [0.3, -0.2, 0.0, 0.1]))))

    monkeypatch.setattr("longthought.stages.rl.collect", off)
    method = Method(LEAVE, sequence_sum, GRPO(), correction=Truncated(1.15))
    [line] = run(rl(method, gap_limit=1.0, updates=2), tmp_path)
    rows = [row for row in trace(tmp_path) if not row["left_out"]]
    assert len(rows) > 3
    for row in rows:
        weights = [min(1.15, 2.718281828459045**-shift) for shift in (0.3, -0.2, 0.0, 0.1)]
        expected = [row["advantage"] * weight for weight in weights[: len(row["tokens"])]]
        assert row["advantages"] == pytest.approx(expected, rel=1e-4)
    assert 0.1 < line["logprob_gap"] < 0.3
    assert line["ratio"] == pytest.approx(1.0, abs=0.02)  # π / π_old, and π_old is the learner's own


@pytest.mark.parametrize("workers", [1, 2])
def test_grading_beside_sampling_changes_no_byte(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def afterwards(task: Any, problems: Any, sampler: Any, renderer: Any, params: Any, sampled: Any) -> Any:
        played = play(problems, sampler, renderer, params)
        sampled()
        return grade_all(task, problems, played, renderer)

    stage = rl(Method(LEAVE, sequence_sum, GRPO(), refill=Refill(2)), task=Flaky(), steps=3, workers=workers)
    run(stage, tmp_path / "beside")
    monkeypatch.setattr("longthought.stages.rl.collect", afterwards)
    run(stage, tmp_path / "afterwards")
    for file in ("metrics.jsonl", "model/model.safetensors", *(f"traces/step-{n:06d}.parquet" for n in (1, 2, 3))):
        assert (tmp_path / "beside/rl" / file).read_bytes() == (tmp_path / "afterwards/rl" / file).read_bytes()


def test_what_fails_in_grading_ends_a_step(tmp_path: Path) -> None:
    """As the task said it, in both members' groups; no thread and no member stays behind."""

    @dataclass(frozen=True)
    class Lost(Parrot):
        def grade(self, problem: Problem, replies: Any) -> list[Score]:
            raise DataError(f"{problem.id} is lost")

    for workers in (1, 2):
        with pytest.raises(DataError, match=r"^train/\d is lost$"):
            run(rl(Method(LEAVE, sequence_sum, GRPO()), task=Lost(), workers=workers), tmp_path / str(workers))
    assert [thread.name for thread in threading.enumerate() if thread.name == "grading"] == []


# --- corners


def test_a_team_that_is_asked_nothing_answers_nothing() -> None:
    with Team(3, {"x": lambda member: member}) as team:
        assert team.call("x", []) == []
        assert team.call("x", [(), (), ()]) == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_critic_with_fewer_replies_than_updates(workers: int, tmp_path: Path) -> None:
    method = Method(GAE(), token_mean, GRPO(), critic=Critic(), refill=Refill(2))
    lines = run(rl(method, prompts=2, samples=2, updates=4, steps=6, max_tokens=1, seed=1, workers=workers), tmp_path)
    kept = [line["updates"] for line in lines]
    assert 0 in kept
    assert any(0 < updates < 4 for updates in kept)
    assert all("critic/logprob_gap" not in line for line in lines)


def test_greedy_baselines_of_no_problem(tmp_path: Path) -> None:
    method = Method(ReMax(), sequence_sum, GRPO(), refill=Refill(2))
    [line] = run(rl(method, task=Never(), workers=3), tmp_path)
    assert line["updates"] == 0


def test_a_step_without_any_reward_is_survived(tmp_path: Path) -> None:
    lines = run(rl(Method(LEAVE, sequence_sum, GRPO()), task=Silent(), steps=8), tmp_path)
    assert [line["reward"] for line in lines] == [None] * 8
    assert [line["updates"] for line in lines] == [0] * 8
    watch = OPEN.start()
    for step, reward in enumerate([float("nan")] * 7 + [0.2, 0.3]):
        watch.read(step, {"reward": reward, "length": 3.0, "cut": 0.0})
    assert watch.state()["usual"]["reward"] == pytest.approx(0.22)


def test_parts_in_which_nothing_is_trained_count_nowhere(tmp_path: Path) -> None:
    """Nearly all replies are cut and filtered: their parts make no update, and do not pull the entropy down."""
    method = Method(LEAVE, token_mean, GRPO(entropy_bonus=0.01), filter_truncated=True)
    [line] = run(rl(method, max_tokens=1, updates=12), tmp_path)
    assert 0 < line["updates"] < 12
    assert line["entropy"] > 2.0  # of ln 9 = 2.2


def test_a_group_with_an_ungraded_reply_is_not_live(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Right(Flaky):
        def _score(self, problem: Problem, reply: str, number: int) -> Score:
            return super()._score(problem, problem.answer, number)

    [line] = run(rl(Method(LEAVE, sequence_sum, GRPO()), task=Right()), tmp_path)
    assert line["live"] == 0
    assert line["ungraded"] == 0.25


@dataclass(frozen=True)
class Shifted:
    """One value too few for the first reply to a problem, one too many for the next."""

    name: str = "shifted"
    dense: bool = False

    def __call__(self, group: Any) -> Any:
        if not self.dense:
            return [0.0] * (len(group) - 1 if group[0].problem.answer == "red" else len(group) + 1)
        lengths = [len(r.completion.token_ids) for r in group]
        lengths[0], lengths[1] = lengths[0] - 1, lengths[1] + 1
        return [[0.0] * length for length in lengths]


@pytest.mark.parametrize(
    "method",
    [
        Method(LEAVE, sequence_sum, GRPO(), shaping=(Shifted(),)),
        Method(Discounted((("shifted", 0.9),), LEAVE), sequence_sum, GRPO(), dense=(Shifted(dense=True),)),
    ],
    ids=["shaping", "dense"],
)
def test_values_for_the_wrong_replies_are_refused(method: Method, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="reward 'shifted'"):
        run(rl(method, prompts=2), tmp_path)


def test_rewards_that_are_no_number_stop_the_run(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class NotANumber:
        name: str = "nan"

        def __call__(self, group: Any) -> list[float]:
            return [float("nan")] * len(group)

    method = Method(LEAVE, sequence_sum, GRPO(), shaping=(NotANumber(),))
    with pytest.raises(Alarm, match="100%"):
        run(rl(method, monitors=Monitors()), tmp_path)


def test_the_learning_rate_ends_where_it_should_after_pretraining_a_critic(tmp_path: Path) -> None:
    method = Method(GAE(), token_mean, GRPO(), critic=Critic(pretrain=2))
    fall = AdamW(lr=1e-3, schedule=Schedule(decay=1.0, final=0.1))
    assert run(rl(method, steps=4, optimizer=fall), tmp_path)[-1]["lr"] == pytest.approx(1e-4)


def test_knobs_without_effect_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"entropy_bonus=0\.5 changes nothing"):
        Method(LEAVE, token_mean, GRPO(entropy_bonus=0.5), entropy=EntropyTarget(0.3))
    with pytest.raises(SettingsError, match="clip"):
        Critic(clip=0.0)


# --- gradients that are not finite


@dataclass(frozen=True)
class Broken:
    """An objective whose gradient is NaN in a process where ``bad`` is set."""

    bad: Any
    inner: Any = GRPO()

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    @property
    def silent_without_advantage(self) -> bool:
        return True

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        loss = self.inner(policy, batch)
        return Loss(loss.value * float("nan"), loss.metrics) if self.bad() else loss


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gradient_that_is_not_finite_leaves_no_trace_but_in_the_trace(workers: int, tmp_path: Path) -> None:
    failing = [False]
    loop = loop_of(rl(Method(LEAVE, sequence_sum, GRPO()), steps=9, workers=workers, updates=2), tmp_path)
    with loop.start_team(), Place(tmp_path / "rl") as place:
        loop.step(1, place)
        before, own = loop.updates.state()
        method = loop.stage.method
        object.__setattr__(loop.stage, "method", replace(method, objective=Broken(partial(failing.__getitem__, 0))))
        failing[0] = True
        metrics = loop.step(2, place)
        after, values = loop.updates.state()
        assert metrics["updates"] == 0
        assert {row["left_out"] for row in trace(tmp_path, 2)} <= {"gradient not finite", "advantage 0"}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert values == {**own, "failures": 2}
        failing[0] = False
        loop.step(3, place)
        assert loop.updates.state()[1]["failures"] == 0
        once = loop.updates.state()[0]
        loop.updates.restore(before, own)  # as if the broken step had never been
        loop.step(3, place)
        twice = loop.updates.state()[0]
        assert all(torch.equal(once[name], twice[name]) for name in once)
        failing[0] = True
        loop.step(4, place)
        with pytest.raises(NotFinite, match="3 updates of the policy in a row"):
            loop.step(5, place)


def test_a_critic_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longthought.stages.updates.ValueLoss", lambda clip: Broken(lambda: True, ValueLoss(clip)))
    method = Method(GAE(), token_mean, GRPO(), critic=Critic(pretrain=1))
    with pytest.raises(NotFinite, match="3 updates of the critic"):
        run(rl(method, steps=2, updates=2), tmp_path)
    assert {row["left_out"] for row in trace(tmp_path, 1)} == {"only the critic learned"}


# --- what all members see, what is drawn, what is resumed


@pytest.mark.parametrize("method", [Method(LEAVE, token_mean, GRPO(beta=0.1))], ids=["kl"])
def test_members_see_the_refreshed_reference_and_the_restored_weights(method: Method, tmp_path: Path) -> None:
    stage = rl(method, steps=4, workers=2, reference_every=1)
    loop = loop_of(stage, tmp_path)
    with loop.start_team(), Place(tmp_path / "rl") as place:
        for step in (1, 2):
            loop.step(step, place)
        kept = [tensor.clone() for tensor in loop.updates.learner.learner.model.state_dict().values()]
        groups = loop._rollouts(3).kept
        rows = lay_out([r for group in groups for r in group])
        loop.save(2, place)
    again = loop_of(stage, tmp_path)
    with Place(tmp_path / "rl") as place:
        assert again.restore(place) == 2
        with again.start_team():
            assert all(torch.equal(a, b) for a, b in zip(kept, again.policy.model.state_dict().values()))
            alone = again.updates.learner.learner.logprobs(rows)
            torch.testing.assert_close(again.updates.learner.logprobs(rows), alone)
            assert [g[0].completion for g in again._rollouts(3).kept] == [g[0].completion for g in groups]
            apart = again.updates.reference.logprobs(rows)
            assert float((apart - alone).abs().max()) > 1e-3  # still the policy of a step ago
            again.step(3, place)  # the reference becomes what ``alone`` was asked of
            torch.testing.assert_close(again.updates.reference.logprobs(rows), alone)


def test_an_adapter_and_its_reference_share_what_members_see(tmp_path: Path) -> None:
    method = Method(PerReply(LEAVE), sequence_sum, GRPO(), kl_reward=KLReward(0.1))
    loop = loop_of(rl(method, steps=4, workers=2, adapter=LoRA(4), optimizer=AdamW(lr=5e-2)), tmp_path)
    base = checkpoint(tmp_path / "again", noise=0.1).load().model
    with loop.start_team(), Place(tmp_path / "rl") as place:
        lines = [loop.step(step, place) for step in (1, 2, 3)]
        rows = lay_out([r for group in loop._rollouts(4).kept for r in group])
        frozen = PolicyLearner(base, AdamW(), 1).logprobs(rows)
        torch.testing.assert_close(loop.updates.reference.logprobs(rows), frozen)
        now = loop.updates.learner.logprobs(rows)
        torch.testing.assert_close(now, loop.updates.learner.learner.logprobs(rows))
        assert float((now - frozen).abs().max()) > 1e-2
    assert lora.is_adapted(loop.policy.model)
    assert all(line["logprob_gap"] < 1e-5 for line in lines)


def test_no_two_groups_share_their_randomness(tmp_path: Path) -> None:
    """The three prompts of this world are sampled many times: in a step, in rounds of refill, in later steps."""
    method = Method(LEAVE, sequence_sum, GRPO(), refill=Refill(3))
    stage = rl(method, task=Never(), samples=8, steps=2)  # nothing is learned, so only the randomness differs
    run(stage, tmp_path)
    rows = [row for step in (1, 2) for row in trace(tmp_path, step)]
    said: dict[tuple[int, int], list[Any]] = {}
    for row in rows:
        said.setdefault((row["step"], row["group"]), []).append(tuple(row["tokens"]))
    groups = [tuple(replies) for replies in said.values()]
    assert len(groups) == 36
    assert len(set(groups)) == 36
    assert all(len(set(replies)) > 4 for replies in groups)


COMBINATIONS: dict[str, dict[str, Any]] = {
    "ppo, refill, a critic that is pretrained, imitation": {
        "method": Method(
            GAE(lam=0.9),
            token_mean,
            Sum((GRPO(clip_high=0.28), Imitation())),
            critic=Critic(AdamW(lr=1e-2), clip=0.5, pretrain=1),
            refill=Refill(3),
        )
    },
    "dapo, entropy target": {
        "method": Method(
            per_group(group_normalized),
            token_mean,
            GRPO(),
            filter_truncated=True,
            refill=Refill(3),
            entropy=EntropyTarget(2.5, rate=0.01),
        )
    },
    "adapter, KL in the reward": {
        "method": Method(PerReply(LEAVE), sequence_sum, GRPO(), kl_reward=KLReward(0.05)),
        "adapter": LoRA(4),
    },
    "moving reference, correction": {
        "method": Method(per_group(group_normalized), sequence_mean, GRPO(beta=0.05), correction=Truncated()),
        "reference_every": 2,
    },
    "remax": {"method": Method(ReMax(), sequence_sum, CISPO(), refill=Refill(3))},
}


def _started(stage: RL, base: Any, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            with Place(folder) as place:
                stage.run(base, place)
        finally:
            os._exit(0)
    return child


def _contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "timings.jsonl")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_kills_at_any_moment_change_no_bit(name: str, tmp_path: Path) -> None:
    stage = rl(task=Flaky(), steps=6, updates=2, workers=2, samples=6, **COMBINATIONS[name])
    base = checkpoint(tmp_path / "base", noise=0.1)
    began = time.monotonic()
    with Place(tmp_path / "whole") as place:
        stage.run(base, place)
    whole, chance = time.monotonic() - began, random.Random(name)
    for _ in range(4):
        child = _started(stage, base, tmp_path / "killed")
        time.sleep(chance.uniform(0.1, 0.7) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with Place(tmp_path / "killed") as place:
        stage.run(base, place)
    expected, found = _contents(tmp_path / "whole"), _contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [file for file in expected if found[file] != expected[file]] == []
