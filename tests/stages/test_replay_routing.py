"""The experts that a token chose when it was sampled, it chooses when it is learned from."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from parrot import WORDS, Parrot, checkpoint

from conftest import tiny_model
from longthought.algorithms.advantage import group_normalized, per_group
from longthought.algorithms.correction import Truncated
from longthought.algorithms.credit import GAE
from longthought.algorithms.objective import GRPO, NLL, MultiToken
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import DataError, SettingsError
from longthought.core.types import Batch, Completion, Finish, Outcome, Problem, Rollout, SamplingParams, Score, Verdict
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sharding import ShardedEngine
from longthought.models.attention import PackedAttention
from longthought.models.lora import LoRA
from longthought.models.parts import Experts, Latent
from longthought.models.routing import Routing
from longthought.models.transformer import Transformer
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.stages.method import Critic, Method
from longthought.stages.rl import RL
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer
from longthought.training.balancing import routers_of
from longthought.training.batching import lay_out
from longthought.training.learner import LearnerSettings, LogprobHead, PolicyLearner
from longthought.training.optimizer import AdamW
from longthought.training.team import Team

V3 = {"qk_norm": False, "latent": Latent(16, 8, 8, 8), "experts": Experts(8, 2, 16, 1, dense_layers=(0,))}
SOFTMAX = {"experts": Experts(4, 2, 16, score="softmax")}
GROUPED = Method(per_group(group_normalized), token_mean, GRPO(beta=0.01))
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (1, 2, 3), (11, 12)]
RECORDED = EngineSettings(slots=4, routing=True)
ASKED = SamplingParams(count=3, max_tokens=8, seed=4, stop_tokens=(0, 1))


def deep(seed: int = 0, **changes: object) -> Transformer:
    return tiny_model(seed, **{"num_hidden_layers": 3, "num_nextn_predict_layers": 1, **V3, **changes})


def rollouts(sampler: Transformer, settings: EngineSettings = RECORDED, **asked: object) -> list[Rollout]:
    problem, score = Problem("p", (), ""), Score(1.0, True, {}, Verdict(1.0, Outcome.GRADED))
    said = Engine(sampler, settings).sample(PROMPTS, replace(ASKED, **asked))  # type: ignore[arg-type]
    return [Rollout(problem, p, one, "", score) for p, group in zip(PROMPTS, said) for one in group]


def batch_of(sampler: Transformer, settings: EngineSettings = RECORDED, **asked: object) -> Batch:
    batch = lay_out(rollouts(sampler, settings, **asked))
    return replace(batch, weight=token_mean(batch.mask))


def perturbed(model: Transformer) -> Transformer:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, router in routers_of(other)[0].items():
            noise = torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(number))
            router.weight.add_(0.1 * noise.to(router.weight.dtype))
    return other


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("parts", [V3, SOFTMAX], ids=["v3", "softmax"])
def test_what_every_token_chose_is_recorded(parts: dict[str, object], draft: bool) -> None:
    """Refilled slots, a prompt of one token and one that comes twice; against a pass over the whole sequence."""
    if draft and parts is SOFTMAX:
        pytest.skip("nothing in it drafts")
    model = (deep() if parts is V3 else tiny_model(**parts)).double()
    plain = Engine(model, EngineSettings(slots=4)).sample(PROMPTS, ASKED)
    found = Engine(model, replace(RECORDED, draft=draft)).sample(PROMPTS, ASKED)
    assert [[one.token_ids for one in group] for group in found] == [[one.token_ids for one in g] for g in plain]
    assert all(one.routing is None for group in plain for one in group)
    for prompt, group in zip(PROMPTS, found):
        for one in group:
            fed = torch.tensor((*prompt, *one.token_ids)[:-1])
            routing, attend = Routing(model.config.routed_layers), PackedAttention([len(fed)])
            with torch.no_grad():
                model(fed, attend.positions, attend, routing)
            assert one.routing is not None
            assert one.routing.dtype == np.int16
            assert one.routing.tolist() == routing.choices().tolist()


def test_the_team_records_the_same() -> None:
    model = deep()
    alone = Engine(model, RECORDED).sample(PROMPTS, ASKED)
    engine = ShardedEngine(Engine(model, RECORDED))
    with Team(2, engine.handlers) as team:
        engine.join(team)
        found = engine.sample(PROMPTS, ASKED)
    for left, right in zip(chain.from_iterable(alone), chain.from_iterable(found), strict=True):
        assert left.token_ids == right.token_ids
        assert np.array_equal(left.routing, right.routing)


def test_rollouts_are_laid_out_with_their_experts() -> None:
    made = rollouts(deep())
    bare = replace(made[1], completion=replace(made[1].completion, routing=None))
    laid = lay_out([made[0], bare, made[2]])
    assert laid.routing is not None
    assert laid.routing.shape == (*laid.tokens.shape, 2, 2)
    assert (laid.routing[1] == -1).all()
    for row, rollout in ((0, made[0]), (2, made[2])):
        fed = len(rollout.prompt) + len(rollout.completion.token_ids) - 1
        assert laid.routing[row, :fed].tolist() == rollout.completion.routing.tolist()
        assert (laid.routing[row, fed:] == -1).all()
    part = laid.select(torch.tensor([2])).to(torch.device("cpu"))
    assert torch.equal(part.routing, laid.routing[2:, : part.tokens.shape[1]])
    assert lay_out([bare]).routing is None


def test_experts_that_do_not_fit_the_reply_are_refused() -> None:
    one = rollouts(deep())[0]
    short = replace(one, completion=replace(one.completion, routing=one.completion.routing[1:]))
    with pytest.raises(DataError, match="tokens were fed"):
        lay_out([one, short])


def test_completions_stay_values() -> None:
    """Arrays have no truth value: they take no part in comparisons, nor in what is printed."""
    one = Completion((1, 2), (-1.0, -1.0), Finish.STOP, routing=np.zeros((3, 1, 2), np.int16))
    assert one == replace(one, routing=None)
    assert "routing" not in repr(one)
    assert hash(one) == hash(replace(one, routing=None))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).routing, one.routing)


@pytest.mark.parametrize("why", ["perturbed", "bfloat16"])
def test_the_learner_runs_the_net_that_sampled(why: str) -> None:
    learned = deep()
    if why == "perturbed":
        batch = batch_of(perturbed(learned))
    else:  # close calls are rare
        batch = batch_of(learned, EngineSettings(64, "bfloat16", routing=True), count=16, max_tokens=24, stop_tokens=())
    seen = {}
    for replay in (True, False):
        head = LogprobHead(1.0, 64, replay=replay)
        settings = LearnerSettings(40 if why == "perturbed" else 1000, precision="float32")
        learner = PolicyLearner(learned, AdamW(), 1, settings=settings, head=head)
        tally, output = learner.accumulate(batch, NLL())
        evaluated = torch.where(batch.mask, learner.logprobs(batch), 0.0)
        torch.testing.assert_close(output.logp, evaluated, rtol=1e-5, atol=1e-5)
        seen[replay] = tally
    assert batch.routing is not None
    computed = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None] - 1
    sampled = torch.stack(
        [batch.routing[computed][:, layer].flatten().long().bincount(minlength=8) for layer in (0, 1)]
    )
    assert seen[True].routed is not None
    assert seen[True].routed.loads[:2].tolist() == sampled.tolist()
    without, with_replay = seen[False].means(), seen[True].means()
    assert 0 < without["routing_disagreement"] < 0.5
    assert with_replay["routing_disagreement"] <= without["routing_disagreement"]  # states differ less
    assert with_replay["logprob_gap"] < without["logprob_gap"]


def test_replay_of_the_own_choice_changes_nothing() -> None:
    model = deep().double()
    batch = batch_of(model)
    found = []
    for rows in (batch, replace(batch, routing=None)):
        learner = PolicyLearner(model, AdamW(), 1)
        model.zero_grad(set_to_none=True)
        tally, output = learner.accumulate(rows, NLL())
        found.append((torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), output.logp))
        assert tally.means().get("routing_disagreement", 0.0) == 0
        assert ("routing_disagreement" in tally.means()) == (rows is batch)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def base(folder: Path, noise: float = 0.05, **parts: object) -> Checkpoint:
    """The parrot's model, with experts."""
    plain = checkpoint(folder / "plain", noise=noise).load()
    if not parts:
        return Checkpoint(folder / "plain")
    tokenizer = Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END))
    config = replace(plain.model.config, **parts)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if parameter.dim() == 1:
                parameter.fill_(1.0)
        model.lm_head.weight.mul_(0.1)
    return Checkpoint.save(folder / "base", Policy(model.eval(), PlainRenderer(tokenizer)), {})


V3_PARROT = {**V3, "num_nextn_predict_layers": 1}


def rl(method: Method = GROUPED, **changes: object) -> RL:
    fields = {"steps": 3, "prompts": 6, "samples": 8, "updates": 2, "max_tokens": 4, "quiet": True}
    return RL(Parrot(), method, **{**fields, "optimizer": AdamW(lr=6e-3), **changes})  # type: ignore[arg-type]


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("parts", "workers", "steps"), [(V3_PARROT, 2, 18), (SOFTMAX, 1, 2)], ids=["v3", "softmax"])
def test_reinforcement_learning_replays_and_tells(
    parts: dict[str, object], workers: int, steps: int, tmp_path: Path
) -> None:
    given = base(tmp_path, **parts)
    with Place(tmp_path / "rl") as place:
        made = rl(steps=steps, workers=workers).run(given, place)
    lines = metrics(tmp_path / "rl")
    for line in lines:
        assert line["routing_disagreement"] == pytest.approx(0.0, abs=0.02)
        assert line["logprob_gap"] < 1e-5
        assert line["max_violation"] >= 0
    assert steps < 18 or sum(line["accuracy"] for line in lines[-3:]) / 3 > 0.7
    before, after = (one.load().model for one in (given, made))
    for old, new in zip(routers_of(before)[0].values(), routers_of(after)[0].values()):
        assert not torch.equal(old.weight, new.weight) or parts is V3_PARROT
        if old.shape.corrects:
            assert torch.equal(old.e_score_correction_bias, new.e_score_correction_bias)


def test_a_gap_that_replay_closes(tmp_path: Path) -> None:
    """The sampler computes in bfloat16: some choices are close calls."""
    given = base(tmp_path, **V3_PARROT)
    found = {}
    for replay in (None, False):
        stage = rl(
            steps=2,
            samples=32,
            replay_routing=replay,
            engine=EngineSettings(precision="bfloat16"),
            learner=LearnerSettings(precision="float32"),
            gap_limit=1.0,
        )
        with Place(tmp_path / f"rl-{replay}") as place:
            stage.run(given, place)
        found[replay] = metrics(tmp_path / f"rl-{replay}")[0]
    assert found[False]["routing_disagreement"] > 0
    assert found[None]["logprob_gap_max"] < found[False]["logprob_gap_max"]


@pytest.mark.parametrize(
    "stage",
    [
        rl(replace(GROUPED, correction=Truncated())),
        rl(Method(GAE(), token_mean, GRPO(), critic=Critic(AdamW(lr=1e-2)))),
        rl(replace(GROUPED, objective=MultiToken(GRPO(beta=0.01), 0.1))),
        rl(adapter=LoRA(4, 8.0), optimizer=AdamW(lr=2e-2)),
        rl(engine=EngineSettings(draft=True)),
    ],
    ids=["correction", "critic", "further tokens", "adapter", "draft"],
)
def test_with_every_part_that_reads_log_probs(stage: RL, tmp_path: Path) -> None:
    with Place(tmp_path / "rl") as place:
        stage.run(base(tmp_path, **V3_PARROT), place)
    for line in metrics(tmp_path / "rl"):
        assert line["logprob_gap"] < 1e-5
        assert line.get("ratio", 1.0) == pytest.approx(1.0, abs=0.2)
        assert "critic/routing_disagreement" not in line
        assert ("mtp_nll_1" in line) == isinstance(stage.method.objective, MultiToken)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_is_an_uninterrupted_one(workers: int, tmp_path: Path) -> None:
    stage, given = rl(steps=3, workers=workers), base(tmp_path, **V3_PARROT)
    with Place(tmp_path / "whole") as place:
        stage.run(given, place)

    class Stopped(Exception): ...

    def save_and_stop(place: Place, step: int, tensors: dict, values: dict) -> None:
        Place.save_state(place, step, tensors, values)
        if step == 2:
            raise Stopped

    with Place(tmp_path / "cut") as place:
        place.save_state = partial(save_and_stop, place)  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            stage.run(given, place)
    with Place(tmp_path / "cut") as place:
        stage.run(given, place)
    for name in ("metrics.jsonl", "model/model.safetensors", "traces/step-000003.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_what_makes_no_sense_without_experts_is_refused(tmp_path: Path) -> None:
    given = base(tmp_path)
    with Place(tmp_path / "rl") as place, pytest.raises(SettingsError, match="no routed experts"):
        rl(replay_routing=True).run(given, place)
    with pytest.raises(SettingsError, match="no routed experts"):
        Engine(tiny_model(), RECORDED)
    with pytest.raises(SettingsError, match="must be True or False"):
        EngineSettings(routing=1)  # type: ignore[arg-type]
    with Place(tmp_path / "rl") as place:
        rl(steps=1, replay_routing=False).run(given, place)
    assert "routing_disagreement" not in metrics(tmp_path / "rl")[0]
