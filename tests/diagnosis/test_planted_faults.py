"""Every fault that is planted is found by the check that is meant to find it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from clinic import GRPO, findings, patient

from longthought.algorithms.advantage import PerGroup, group_normalized
from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.types import Loss, Outcome, Rows, Verdict
from longthought.engine.engine import Engine
from longthought.evaluation.evaluate import EvaluationSettings
from longthought.models.lora import LoRA
from longthought.models.transformer import Block
from longthought.stages import updates
from longthought.stages.rl import _Loop
from longthought.tasks.grading import Grading
from longthought.training import batching, learner
from longthought.training.learner import PolicyLearner
from longthought.training.optimizer import AdamW
from stages.parrot import WORDS, Parrot

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Plain:
    """− A ρ of every token, with something wrong about it. ``bound``: of the ratio, which nobody reads."""

    fault: str = ""
    bound: float = 5.0

    @property
    def reads(self):
        return frozenset({"advantage", "logp_old"})

    @property
    def silent_without_advantage(self):
        return True

    def __call__(self, policy, batch, /):
        live = batch.weight != 0
        if self.fault == "reads everything":
            live = torch.ones_like(live)
        gap = torch.where(live, policy.logp - batch.logp_old, 0.0)
        ratio = gap.exp().clamp(max=self.bound) if self.fault != "inert" else gap.exp()
        gain = ratio * torch.where(live, batch.advantage, 0.0)
        weight = (
            torch.where(live, batch.weight.clamp(min=1e-3), 0.0) if self.fault == "reads everything" else batch.weight
        )
        by = {
            "weights of the micro-batch": batch.weight.sum(),
            "tokens of the micro-batch": batch.mask.sum(),
            "rows of the micro-batch": torch.tensor(len(batch.tokens)),
            "padded width": torch.tensor(batch.tokens.shape[1]),
        }.get(self.fault, torch.tensor(1.0))
        return Loss(-(gain * weight).sum() / by, {})


def ill(found: dict, name: str) -> str:
    assert found[name].status == "fail", found
    return found[name].what + found[name].why


# 1. denominators


def test_a_sound_objective_of_a_user_is_healthy(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, replace(GRPO, objective=Plain())), "micro-batches", "padding", "knobs are live")
    assert {f.status for f in found.values()} == {"ok"}, found


@pytest.mark.parametrize("by", ["weights", "tokens", "rows"])
@pytest.mark.parametrize("weighting", [sequence_mean, token_mean])
def test_a_denominator_of_a_micro_batch(by: str, weighting: object, tmp_path: Path) -> None:
    sick = patient(tmp_path, replace(GRPO, objective=Plain(f"{by} of the micro-batch"), weighting=weighting))
    assert "micro-batch" in ill(findings(sick, "micro-batches"), "micro-batches")


@pytest.mark.parametrize("how", ["its weights", "their number", "the last one"])
def test_a_learner_that_averages_micro_batches(how: str, tmp_path: Path, monkeypatch: Patch) -> None:
    real = PolicyLearner.accumulate

    def accumulate(self, batch, objective):
        def scaled(policy, micro, /):
            loss = objective(policy, micro)
            share = {
                "its weights": micro.weight.sum(),
                "their number": len(learner.micro_batches(batch.lengths, self.settings.micro_tokens)),
                "the last one": len(micro.tokens) / len(batch.tokens),
            }[how]
            return Loss(loss.value / share, loss.metrics)

        return real(self, batch, scaled)

    monkeypatch.setattr(PolicyLearner, "accumulate", accumulate)
    ill(findings(patient(tmp_path), "micro-batches"), "micro-batches")


# 2. temperature


def test_a_learner_at_another_temperature(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        updates,
        "PolicyLearner",
        lambda model, optimizer, steps, t=1.0, *rest, **named: PolicyLearner(
            model, optimizer, steps, 1.0, *rest, **named
        ),
    )
    sick = patient(tmp_path, temperature=0.7)
    assert "the learner works at T=1" in ill(findings(sick, "temperature"), "temperature")
    ill(findings(sick, "sampler and learner"), "sampler and learner")


def test_an_engine_at_another_temperature(tmp_path: Path, monkeypatch: Patch) -> None:
    real = Engine.stream
    warm = lambda self, p, params, *told: real(self, p, replace(params, temperature=1.0), *told)  # noqa: E731
    monkeypatch.setattr(Engine, "stream", warm)
    assert "the sampler works at T=1" in ill(findings(patient(tmp_path, temperature=0.6), "temperature"), "temperature")


def test_a_loop_that_samples_at_another_temperature(tmp_path: Path, monkeypatch: Patch) -> None:
    real = _Loop._sample
    monkeypatch.setattr(_Loop, "_sample", lambda self, s, n, p, count, heat: real(self, s, n, p, count, 0.5 * heat))
    assert "the sampler in the loop works at T=0.5" in ill(findings(patient(tmp_path), "temperature"), "temperature")


def test_both_at_the_same_wrong_temperature(tmp_path: Path, monkeypatch: Patch) -> None:
    real, sample = learner.evaluate_policy, Engine.stream
    monkeypatch.setattr(learner, "evaluate_policy", lambda m, r, n, t, c: real(m, r, n, 2 * t, c))
    hot = lambda self, p, params, *told: sample(self, p, replace(params, temperature=2.0), *told)  # noqa: E731
    monkeypatch.setattr(Engine, "stream", hot)
    found = findings(patient(tmp_path), "temperature", "sampler and learner")
    assert "T=2" in ill(found, "temperature")
    assert found["sampler and learner"].status == "ok"


def test_another_temperature_of_the_evaluation(tmp_path: Path) -> None:
    sick = patient(tmp_path)
    sick.evaluations = (EvaluationSettings(temperature=0.6),)
    assert findings(sick, "temperature")["evaluation temperature"].status == "warn"


# 3. what does not move


def test_a_frozen_layer(tmp_path: Path) -> None:
    sick = patient(tmp_path)
    sick.model.model.layers[1].mlp.requires_grad_(False)
    assert "layers.1.mlp" in ill(findings(sick, "parameters move"), "parameters move")


def test_a_layer_that_the_optimizer_forgets(tmp_path: Path, monkeypatch: Patch) -> None:
    real = AdamW.build

    def build(self, model):
        (optimizer,) = real(self, model)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not model.model.layers[0].mlp.up_proj.weight]
        return [optimizer]

    monkeypatch.setattr(AdamW, "build", build)
    assert "up_proj" in ill(findings(patient(tmp_path), "parameters move"), "parameters move")


def test_a_layer_cut_off_from_the_loss(tmp_path: Path, monkeypatch: Patch) -> None:
    real = Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, layer, *x: real(self, layer, *x).detach() if not layer else real(self, layer, *x)
    )
    assert "no gradient" in ill(findings(patient(tmp_path), "parameters move"), "parameters move")


def test_an_adapter_beside_a_base_that_learns_too(tmp_path: Path, monkeypatch: Patch) -> None:
    real = updates.lora.add

    def add(model, settings, seed):
        real(model, settings, seed)
        model.lm_head.weight.requires_grad_(True)

    sick = patient(tmp_path, adapter=LoRA(4, 8.0))
    assert findings(sick, "parameters move")["parameters move"].status == "ok"
    monkeypatch.setattr(updates.lora, "add", add)
    assert "lm_head" in ill(findings(sick, "parameters move"), "parameters move")


def test_a_learning_rate_that_moves_nothing(tmp_path: Path) -> None:
    ill(findings(patient(tmp_path, optimizer=AdamW(lr=1e-12)), "parameters move"), "parameters move")


# 4. inert knobs (settings of recipes: test_settings)


def test_a_knob_of_an_objective_that_nobody_reads(tmp_path: Path) -> None:
    sick = patient(tmp_path, replace(GRPO, objective=Plain("inert")))
    assert "objective.bound" in ill(findings(sick, "knobs are live"), "knobs are live")


def test_a_bound_that_reads_another_one(tmp_path: Path, monkeypatch: Patch) -> None:
    from longthought.algorithms import objective

    real = objective._clipped
    monkeypatch.setattr(objective, "_clipped", lambda rho, a, low, high: real(rho, a, low, low))
    assert "clip_high" in ill(findings(patient(tmp_path), "knobs are live"), "knobs are live")


def deaf(mask, scale=1.0):
    return token_mean(mask)


@dataclass(frozen=True)
class DeafShaping:
    weight: float = 0.3
    name: str = "deaf"

    def __call__(self, group, /):
        return [0.3 * (len(r.completion.token_ids) % 2) for r in group]


def test_a_knob_of_a_weighting_or_shaping(tmp_path: Path) -> None:
    sick = patient(tmp_path, replace(GRPO, weighting=partial(deaf, scale=2.0), shaping=(DeafShaping(),)))
    told = ill(findings(sick, "knobs are live"), "knobs are live")
    assert "weighting.scale" in told
    assert "shaping[0].weight" in told


def test_clipping_of_the_gradient_that_nobody_does(tmp_path: Path, monkeypatch: Patch) -> None:
    real = learner.clip
    monkeypatch.setattr(learner, "clip", lambda gradients, most: real(gradients, 1.0))
    assert "learner.max_norm" in ill(findings(patient(tmp_path), "the loop is live"), "the loop is live")


def test_a_weight_decay_that_is_dropped(tmp_path: Path, monkeypatch: Patch) -> None:
    real = AdamW.build
    monkeypatch.setattr(AdamW, "build", lambda self, model: real(replace(self, weight_decay=0.0), model))
    assert "optimizer.weight_decay" in ill(findings(patient(tmp_path), "the loop is live"), "the loop is live")


def test_a_filter_that_filters_nothing(tmp_path: Path, monkeypatch: Patch) -> None:
    real = updates._why_not
    monkeypatch.setattr(updates, "_why_not", lambda rollout, cuts, absent: real(rollout, False, absent))
    told = ill(findings(patient(tmp_path, max_tokens=1), "the loop is live"), "the loop is live")
    assert "method.filter_truncated" in told


# 5, 6, 9. graders


@dataclass(frozen=True)
class Graded(Parrot):
    """``fault``: of the grader."""

    fault: str = ""

    def _score(self, problem, reply, number):
        right = super()._score(problem, reply, number)
        words = reply.split()
        paid = {
            "always": True,
            "never": False,
            "not blue": right.correct and problem.answer != "blue",
            "contains": problem.answer in words,
            "raises": None,
        }.get(self.fault, right.correct)
        if paid is None:
            raise KeyError("gold")
        value = float(paid)
        if self.fault == "format":
            value += 1.0 * reply.startswith("<think>")
        return replace(right, value=value, correct=paid, verdict=Verdict(value, Outcome.GRADED, reply))


def test_a_verifier_that_always_passes(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, task=Graded(fault="always")), "gold passes", "verifier", "tricks do not pay")
    assert "yes to nearly everything" in ill(found, "garbage fails")
    ill(found, "gold passes")
    ill(found, "tricks do not pay")
    assert found["signal"].status == "warn"


@pytest.mark.parametrize("fault", ["never", "not blue"])
def test_a_gold_that_fails(fault: str, tmp_path: Path) -> None:
    told = ill(findings(patient(tmp_path, task=Graded(fault=fault)), "gold passes"), "gold passes")
    assert "blue" in told or fault == "never"


def test_a_grader_that_looks_for_the_answer_anywhere(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, task=Graded(fault="contains")), "tricks do not pay")
    assert "many candidate answers" in ill(found, "tricks do not pay")


def test_a_grader_that_raises(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, task=Graded(fault="raises")), "gold passes", "verifier health", "splits")
    assert "KeyError" in ill(found, "gold passes")
    assert found["splits"].status == "warn"


def test_reward_for_the_format_alone(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, task=Graded(fault="format")), "tricks do not pay")
    ill(found, "tricks do not pay")


@dataclass(frozen=True)
class PaysFormat:
    weight: float = 2.0
    name: str = "format"

    def __call__(self, group, /):
        return [self.weight * r.text.startswith("<think>") for r in group]


def test_shaping_that_outweighs_the_answer(tmp_path: Path) -> None:
    sick = patient(tmp_path, replace(GRPO, shaping=(PaysFormat(),)))
    ill(findings(sick, "tricks do not pay"), "tricks do not pay")


def test_a_verifier_that_crashes_on_replies(tmp_path: Path) -> None:
    ill(findings(patient(tmp_path, task=Parrot(Outcome.CRASHED)), "verifier health"), "verifier health")


# 7. padding


@pytest.mark.parametrize("fault", ["padded width", "reads everything"])
def test_an_objective_that_reads_padding(fault: str, tmp_path: Path) -> None:
    ill(findings(patient(tmp_path, replace(GRPO, objective=Plain(fault))), "padding"), "padding")


def by_width(mask):
    return mask.float() / mask.numel()


def test_a_weighting_that_counts_padding(tmp_path: Path) -> None:
    assert "weighting" in ill(findings(patient(tmp_path, replace(GRPO, weighting=by_width)), "padding"), "padding")


def test_a_mask_by_the_padding_token(tmp_path: Path, monkeypatch: Patch) -> None:
    real = batching.lay_out

    def lay_out(rollouts):
        laid = real(rollouts)
        return replace(laid, mask=laid.mask & (laid.tokens != 0))

    for module in _importers("lay_out"):
        monkeypatch.setattr(module, "lay_out", lay_out)
    assert "mask" in ill(findings(patient(tmp_path), "padding"), "padding")


def test_attention_to_padding(tmp_path: Path, monkeypatch: Patch) -> None:
    """Every row is laid out at full width, and the last real token sees what stands behind it."""
    real = learner.hidden_before

    def leaking(model, rows, needed):
        turned = Rows(rows.tokens.clone(), rows.lengths)
        last = rows.lengths - 2
        beyond = rows.tokens[torch.arange(len(last)), (rows.lengths).clamp(max=rows.tokens.shape[1] - 1)]
        turned.tokens[torch.arange(len(last)), last] = beyond
        return real(model, turned, needed)

    monkeypatch.setattr(learner, "hidden_before", leaking)
    ill(findings(patient(tmp_path), "padding"), "padding")


# 8. off by one


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_log_probs_of_the_sampler(shift: int, tmp_path: Path, monkeypatch: Patch) -> None:
    real = Engine._completion

    def completion(self, row):
        made = real(self, row)
        return replace(made, logprobs=tuple(torch.tensor(made.logprobs).roll(shift).tolist()))

    monkeypatch.setattr(Engine, "_completion", completion)
    assert "the sampler" in ill(findings(patient(tmp_path, max_tokens=12), "alignment"), "alignment")


def test_a_missing_log_prob(tmp_path: Path, monkeypatch: Patch) -> None:
    real = Engine._completion

    def completion(self, row):
        made = real(self, row)
        return replace(made, logprobs=made.logprobs[:-1])

    monkeypatch.setattr(Engine, "_completion", completion)
    assert "tokens and" in ill(findings(patient(tmp_path), "alignment"), "alignment")


def test_the_learner_reads_the_state_at_its_own_token(tmp_path: Path, monkeypatch: Patch) -> None:
    real = learner.evaluate_policy

    def shifted(model, rows, needed, temperature, chunk):
        said = real(model, rows, needed, temperature, chunk)
        return replace(said, logp=torch.where(needed, said.logp.roll(1, 1), 0.0))

    monkeypatch.setattr(learner, "evaluate_policy", shifted)
    assert "the learner" in ill(findings(patient(tmp_path, max_tokens=12), "alignment"), "alignment")


def test_the_batch_is_shifted(tmp_path: Path, monkeypatch: Patch) -> None:
    real = batching.lay_out

    def lay_out(rollouts):
        laid = real(rollouts)
        return replace(laid, logp_old=laid.logp_old.roll(-1, 1))

    for module in _importers("lay_out"):
        monkeypatch.setattr(module, "lay_out", lay_out)
    assert "logp_old" in ill(findings(patient(tmp_path, max_tokens=12), "alignment"), "alignment")


# 10. credit


def rolled(rewards, group):
    return PerGroup(group_normalized)(rewards, (group + (torch.arange(len(group)) % 2)) % (group.max() + 1))


def neighbour(rewards, group):
    means = torch.stack([rewards[group == g].mean() for g in group.unique()])
    return rewards - means.roll(1)[group]


def whole(rewards, group):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def in_a_row(rewards, group):
    size = int((group == group[0]).sum())
    return (rewards.view(-1, size) - rewards.view(-1, size).mean(1, keepdim=True)).flatten()


def turned(rewards, group):
    return -PerGroup(group_normalized)(rewards, group)


@pytest.mark.parametrize("wrong", [rolled, neighbour, whole, in_a_row, turned])
def test_credit_of_a_user(wrong: object, tmp_path: Path) -> None:
    ill(findings(patient(tmp_path, replace(GRPO, advantage=wrong)), "credit"), "credit")


def test_groups_that_are_told_by_position(tmp_path: Path, monkeypatch: Patch) -> None:
    """Rows are taken to be interleaved: 0 1 2 0 1 2 …"""
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda self, count: self.repeat(int(count[0])))
    ill(findings(patient(tmp_path), "credit"), "credit")


def test_per_group_that_ignores_the_groups(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(PerGroup, "__call__", lambda self, rewards, group, /: self.credit(rewards))
    assert "mixes groups" in ill(findings(patient(tmp_path), "credit"), "credit")


# the rest


def test_a_sampler_that_keeps_its_old_weights(tmp_path: Path, monkeypatch: Patch) -> None:
    import copy

    from longthought.stages import rl

    monkeypatch.setattr(rl, "Engine", lambda model, settings: Engine(copy.deepcopy(model), settings))
    assert "old weights" in ill(findings(patient(tmp_path), "sampler and learner"), "sampler and learner")


def test_a_machine_that_is_too_small(tmp_path: Path, monkeypatch: Patch) -> None:
    from longthought.diagnosis import check_machine

    sick = patient(tmp_path)
    need = sum(check_machine.estimate(sick).values())
    for free, status in ((need / 2, "fail"), (need / 0.9, "warn"), (2 * need, "ok"), (None, "skipped")):
        monkeypatch.setattr(check_machine, "available", lambda device, free=free: free)
        assert findings(sick, "memory")["memory"].status == status


def test_a_weight_that_is_not_saved(tmp_path: Path, monkeypatch: Patch) -> None:
    from longthought.runs import artifacts

    real = artifacts.weights.load_folder

    def load(config, folder, dtype):
        model = real(config, folder, dtype)
        with torch.no_grad():
            model.model.norm.weight.add_(1e-3)
        return model

    monkeypatch.setattr(artifacts.weights, "load_folder", load)
    sick = patient(tmp_path)
    assert "after saving" in ill(findings(sick, "checkpoint"), "checkpoint")


@dataclass(frozen=True)
class Leaky(Parrot):
    """Fifty prompts, the same in both splits. (The words are of the parrot, so that the model can read them.)"""

    def problem(self, split, index):
        made = super().problem(split, index)
        text = " ".join(WORDS[(index // 3**place) % 3] for place in range(4))
        return replace(made, messages=(replace(made.messages[0], content=text),), answer=text.split()[0])


def test_a_test_that_is_trained_on(tmp_path: Path) -> None:
    ill(findings(patient(tmp_path, task=Leaky()), "splits"), "splits")


def test_replies_that_do_not_fit(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, max_tokens=64), "context")
    assert found["context"].status == "warn"


def test_a_verifier_asked_alone(tmp_path: Path) -> None:
    """A task with a Grading: its verifier is asked by the project's own conformance test."""

    def yes(problem, reply, /):
        return Verdict(1.0, Outcome.GRADED)

    @dataclass(frozen=True)
    class Rules(Parrot):
        grading: Grading = Grading(yes, "free", 0.0)

        def grade(self, problem, replies):
            return self.grading(problem, replies)

    ill(findings(patient(tmp_path, task=Rules()), "verifier"), "verifier conforms")


def test_a_nan_that_reaches_the_gradient(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Infinite(Plain):
        def __call__(self, policy, batch, /):
            loss = super().__call__(policy, batch)
            return Loss(loss.value + 0 * torch.log(batch.weight).sum() * policy.logp.sum(), {})

    found = findings(patient(tmp_path, replace(GRPO, objective=Infinite())), "micro-batches", "parameters move")
    assert "not finite" in ill(found, "micro-batches")
    ill(found, "parameters move")


def _importers(name: str) -> list[object]:
    """Modules of ours that imported a function by its name."""
    import sys

    return [m for n, m in sys.modules.items() if n.startswith("longthought.") and hasattr(m, name)]
