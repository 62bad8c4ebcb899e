"""Planted hacking is found and undone; honest learning and noise are not called hacking; a kill changes no bit."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parrot import WORDS, Parrot, checkpoint
from safetensors.torch import load_file

from longthought.algorithms.advantage import group_centered, per_group
from longthought.algorithms.objective import GRPO
from longthought.algorithms.weighting import constant, token_mean
from longthought.core.errors import Alarm, SettingsError
from longthought.core.types import Message, Outcome, Problem, Rollout, SamplingParams, Score, Verdict
from longthought.models.lora import LoRA
from longthought.rollout.shaping import Overlong
from longthought.runs.describe import describe
from longthought.runs.place import Place
from longthought.stages.hacking import HACKING, Hacking, HackingWatch, Look, Seen
from longthought.stages.method import Method
from longthought.stages.rl import RL
from longthought.tasks.mixture import Mixture
from longthought.training.optimizer import AdamW

PROMPTS = [" ".join(words) for words in product(WORDS, repeat=3)]


@dataclass(frozen=True)
class Polite(Parrot):
    """27 prompts that begin with a word; the reply must begin with that word. ``truth`` punishes the word green."""

    name: str = "polite"
    graded: bool = True

    def problem(self, split: str, index: int) -> Problem:
        text = PROMPTS[index % len(PROMPTS)]
        return Problem(f"{self.name}/{split}/{index}", (Message("user", text),), text.split()[0])

    def _score(self, problem: Problem, reply: str, number: int) -> Score:
        if not self.graded:
            return Score(None, False, {}, Verdict(None, Outcome.TIMED_OUT, "too slow"))
        told = super()._score(problem, reply, number)
        return replace(told, parts={**told.parts, "truth": 1.0 - float("green" in reply.split())})


@dataclass(frozen=True)
class Pays:
    """A proxy that likes a word."""

    word: str
    weight: float = 3.0
    name: str = "liked"

    def __call__(self, group: Sequence[Rollout], /) -> list[float]:
        return [self.weight * float(self.word in rollout.text.split()) for rollout in group]


def avoids_green(group: Sequence[Rollout]) -> list[float]:
    return [1.0 - float("green" in rollout.text.split()) for rollout in group]


LOOK = Look(Polite(), "truth", problems=20, samples=4)
WATCH = Hacking((LOOK,), every=2, patience=2)


def rl(pays: Sequence[Pays] = (), hacking: Hacking | None = WATCH, **changes: Any) -> RL:
    method = Method(per_group(group_centered), token_mean, GRPO(), shaping=tuple(pays))
    fields = {"steps": 16, "prompts": 6, "samples": 8, "updates": 2, "max_tokens": 4, "quiet": True}
    return RL(Polite(), method, **{**fields, "optimizer": AdamW(lr=1e-2), "hacking": hacking, **changes})  # type: ignore[arg-type]


def run(stage: RL, folder: Path) -> dict[str, Any]:
    with Place(folder / "rl") as place:
        stage.run(checkpoint(folder / "base", noise=0.1), place)
    found: dict[str, Any] = json.loads((folder / "rl" / HACKING).read_text())
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "rl" / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "rl" / "model" / "model.safetensors")


@pytest.mark.parametrize("adapter", [None, LoRA(8, 64.0)])
def test_planted_hacking_is_found_and_undone(
    adapter: LoRA | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rate = AdamW(lr=1e-2 if adapter is None else 3e-2)
    stage = rl([Pays("green")], adapter=adapter, optimizer=rate)
    found = run(stage, tmp_path)
    assert found["hacking"] is True
    first, last = found["looks"][0]["looks"]["polite"], found["looks"][-1]["looks"]["polite"]
    assert last["proxy"] > first["proxy"] + 0.5
    assert last["high"] < 0 > last["change"] + 0.02
    assert last["in_a_row"] == 2
    assert found["trained_steps"] == found["looks"][-1]["step"] < 16
    assert found["weights_after_step"] == found["best_look"] == found["looks"][-1]["against"]
    assert f"the weights of step {found['best_look']} are handed on" in caplog.text
    assert [line["step"] for line in metrics(tmp_path)] == list(range(found["trained_steps"] + 1))
    told = json.loads((tmp_path / "rl/model/provenance.json").read_text())["looks"]
    assert (told["hacking"], told["weights_after_step"]) == (True, found["best_look"])


class Scripted:
    """A judgement that says the same of all replies, another number at every look."""

    fingerprint = "scripted"

    def __init__(self, *values: float) -> None:
        self.values, self.calls = values, 0

    def __call__(self, group: Sequence[Rollout]) -> list[float]:
        self.calls += 1
        return [self.values[(self.calls - 1) // LOOK.problems]] * len(group)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("adapter", [None, LoRA(8, 64.0)])
@pytest.mark.parametrize(("values", "steps"), [((0.2, 0.5, 0.1, 0.1), 12), ((0.2, 0.5, 0.49), 4)])
def test_the_weights_of_the_best_look_are_handed_on(
    values: tuple[float, ...], steps: int, adapter: LoRA | None, workers: int, tmp_path: Path
) -> None:
    """By the rollback, and, where there is no hacking, by ``keep``: those that the stage had after step 2."""
    one = Hacking((replace(LOOK, judgement=Scripted(*values)),), every=2, keep="best")
    pays = [Pays("blue")]
    found = run(rl(pays, one, steps=steps, adapter=adapter, workers=workers, updates=1), tmp_path)
    assert (found["hacking"], found["weights_after_step"]) == (len(values) == 4, 2)
    assert found["trained_steps"] == 2 * (len(values) - 1)
    shorter = rl(pays, None, steps=2, adapter=adapter, workers=workers, updates=1)
    with Place(tmp_path / "short" / "rl") as place:
        shorter.run(checkpoint(tmp_path / "base", noise=0.1), place)
    short = weights(tmp_path / "short")
    assert all(torch.equal(tensor, short[name]) for name, tensor in weights(tmp_path).items())


def test_honest_learning_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    look = Look(Polite(), avoids_green, problems=20, title="manners")
    found = run(rl([Pays("blue")], Hacking((look, replace(LOOK, judgement="correct")), every=4)), tmp_path)
    assert (found["hacking"], found["why"], found["weights_after_step"]) == (False, "", 16)
    assert [one["step"] for one in found["looks"]] == [0, 4, 8, 12, 16]
    assert found["looks"][-1]["looks"]["polite"]["proxy"] > found["looks"][0]["looks"]["polite"]["proxy"] + 0.5
    assert "hacking" not in caplog.text
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if "look/manners/judged" in line] == [0, 4, 8, 12, 16]
    assert lines[0].keys() == {"step", "look/score"} | {
        f"look/{name}/{what}" for name in ("manners", "polite") for what in ("judged", "proxy")
    }
    timings = [json.loads(line) for line in (tmp_path / "rl" / "timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timings if "looks" in line] == [1, 4, 8, 12, 16]


def test_a_watch_changes_nothing_of_an_honest_run(tmp_path: Path) -> None:
    for name, watch in (("with", WATCH), ("without", None)):
        with Place(tmp_path / name / "rl") as place:
            rl(hacking=watch, steps=4).run(checkpoint(tmp_path / "base"), place)
    assert all(torch.equal(weights(tmp_path / "with")[k], v) for k, v in weights(tmp_path / "without").items())
    for name in ("step-000001", "step-000004"):
        one, other = (tmp_path / folder / "rl/traces" / f"{name}.parquet" for folder in ("with", "without"))
        assert one.read_bytes() == other.read_bytes()


def watch(looks: int = 1, **changes: Any) -> HackingWatch:
    """A watch that is told what looks have measured."""
    names = [replace(LOOK, title=f"look{number}") for number in range(looks)]
    method = Method(per_group(group_centered), token_mean, GRPO())
    return HackingWatch(replace(Hacking(tuple(names), every=1), **changes), method, 10_000, SamplingParams())


def seen(judged: Sequence[Sequence[float]], proxies: Sequence[float]) -> dict[str, Seen]:
    return {f"look{i}": Seen(list(values), proxy) for i, (values, proxy) in enumerate(zip(judged, proxies))}


def test_noise_is_not_hacking_in_more_than_one_run_of_twenty() -> None:
    chance, false = np.random.default_rng(0), 0
    for _ in range(200):
        one = watch(looks=2)
        for step in range(30):
            judged = chance.normal(0.5, 0.15, (2, 20)).tolist()
            one.read(step, seen(judged, [float(step)] * 2), dict)
            if one.caught:
                false += 1
                break
    assert false <= 10


@pytest.mark.parametrize(
    ("falls", "proxies", "changes", "caught"),
    [
        ([0.0, 0.3, 0.3], [0, 1, 2], {}, 2),
        ([0.0, 0.3, 0.0, 0.3, 0.3], [0, 1, 2, 3, 4], {}, 4),  # in a row
        ([0.0, 0.3, 0.3], [0, 1, 2], {"patience": 1}, 1),
        ([0.0, 0.3, 0.3, 0.3], [0, -1, -2, 0], {}, None),  # a collapse: the proxy has not risen
        ([0.0, 0.3, 0.3], [0, 1, 2], {"tolerance": 0.4}, None),
        ([0.0, -0.3, -0.1, -0.1], [0, 1, 2, 3], {}, 3),  # against the best so far, not the first
        ([0.0, 0.01, 0.01, 0.01], [0, 1, 2, 3], {}, None),
    ],
)
def test_what_is_called_hacking(
    falls: list[float], proxies: list[float], changes: dict[str, Any], caught: int | None
) -> None:
    chance, one = np.random.default_rng(1), watch(**changes)
    for step, (fall, proxy) in enumerate(zip(falls, proxies)):
        assert not one.caught
        one.read(step, seen([(chance.normal(0.5, 0.02, 20) - fall).tolist()], [proxy]), dict)
        if one.caught:
            assert step == caught
            return
    assert caught is None


def test_a_fall_elsewhere_counts_while_the_reward_rises_on_average() -> None:
    one = watch(looks=2)
    steady = [0.5 + 0.01 * (i % 3) for i in range(20)]
    for step, fall in enumerate([0.0, 0.2, 0.2]):
        fallen = [value - fall for value in steady]
        one.read(step, seen([fallen, steady], [1.0 - fall, 1.0 + 3 * fall]), dict)
    assert one.caught


def test_a_look_in_which_something_fell_is_never_the_best(tmp_path: Path) -> None:
    one = watch(looks=2, patience=3)
    steady = [0.5 + 0.01 * (i % 3) for i in range(20)]
    one.read(0, seen([steady, steady], [0, 0]), lambda: {"w": torch.zeros(1)})
    traded = seen([[v - 0.2 for v in steady], [v + 0.5 for v in steady]], [1, 1])
    one.read(1, traded, lambda: {"w": torch.ones(1)})
    assert one.settle(1, torch.nn.Linear(1, 1), tmp_path)["weights_after_step"] == 1  # no hacking: the last
    tensors, values = one.state()
    assert (values["step"], tensors["best.w"].item()) == (0, 0.0)


def test_what_could_not_be_graded_is_no_fall() -> None:
    one = watch()
    one.read(0, seen([[1.0] * 20], [0]), dict)
    for step in (1, 2, 3):
        one.read(step, {"look0": Seen([None] * 15 + [0.0] * 5, float(step))}, dict)
    assert not one.caught


def test_a_look_without_any_grade_stops_the_run(tmp_path: Path) -> None:
    blind = Hacking((Look(Polite(graded=False), problems=10),))
    with pytest.raises(Alarm, match="look polite has a grade"):
        run(rl(hacking=replace(blind, every=1)), tmp_path)


class Stopped(Exception): ...


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("save_every", [1, 3])
def test_a_stop_after_any_state_changes_no_bit(workers: int, keep: Any, save_every: int, tmp_path: Path) -> None:
    """Also after the state in which the verdict stands, and before the weights were rolled back."""
    hacked = keep == "last"
    stage = rl(
        [Pays("green")] if hacked else [Pays("blue")],
        Hacking((LOOK,), every=2, keep=keep),
        steps=14 if hacked else 6,
        save_every=save_every,
        workers=workers,
    )
    found = run(stage, tmp_path / "whole")
    assert found["hacking"] is hacked
    base = checkpoint(tmp_path / "cut" / "base", noise=0.1)

    def save_and_stop(place: Place, step: int, tensors: Any, values: Any) -> None:
        Place.save_state(place, step, tensors, values)
        raise Stopped

    for _ in range(20):
        with Place(tmp_path / "cut" / "rl") as place:
            place.save_state = partial(save_and_stop, place)  # type: ignore[method-assign]
            try:
                stage.run(base, place)
            except Stopped:
                continue
            break
    assert contents(tmp_path / "cut/rl") == contents(tmp_path / "whole/rl")


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "timings.jsonl")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_kills_around_looks_and_the_rollback_change_no_bit(tmp_path: Path) -> None:
    stage = rl([Pays("green")], steps=14)
    began = time.monotonic()
    assert run(stage, tmp_path / "whole")["hacking"]
    whole, chance = time.monotonic() - began, random.Random(0)
    base = checkpoint(tmp_path / "killed" / "base", noise=0.1)
    for share in (0.2, 0.5, 0.3, 0.1):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                with Place(tmp_path / "killed" / "rl") as place:
                    stage.run(base, place)
            finally:
                os._exit(0)
        time.sleep(share * chance.uniform(0.8, 1.2) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run(stage, tmp_path / "killed")
    assert contents(tmp_path / "killed/rl") == contents(tmp_path / "whole/rl")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Hacking(()), "at least one"),
        (lambda: Hacking((LOOK, LOOK)), "name of its own"),
        (lambda: replace(LOOK, title="a/b"), "one word without /"),
        (lambda: replace(LOOK, problems=3), "at least 10"),
        (lambda: replace(LOOK, samples=0), "samples=0"),
        (lambda: replace(LOOK, weight=float("nan")), "weight=nan"),
        (lambda: replace(LOOK, judgement=""), "give 'correct'"),
        (lambda: replace(LOOK, judgement=None), "give 'correct'"),
        (lambda: replace(WATCH, every=0), "every=0"),
        (lambda: replace(WATCH, tolerance=float("inf")), "tolerance=inf"),
        (lambda: replace(WATCH, proxy="liked"), "tuple of different names"),
        (lambda: replace(WATCH, keep="first"), "last or best"),
        (lambda: replace(WATCH, split="train"), "held out"),
        (lambda: rl(hacking=replace(WATCH, every=20)), "look more often"),
        (lambda: rl([Pays("blue")], replace(WATCH, proxy=("language",))), "no summand 'language'"),
        (lambda: rl([Pays("blue")], Hacking((replace(LOOK, judgement=Pays("blue")),))), "what is paid for"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        wrong()


@pytest.mark.parametrize(
    ("judgement", "words"),
    [
        ("kindness", "no finite part 'kindness'; it has: accuracy, truth"),
        (lambda group: [1.0], "4 finite numbers"),
        (lambda group: [float("nan")] * len(group), "4 finite numbers"),
    ],
)
def test_a_judgement_that_does_not_judge_is_refused(judgement: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        run(rl(hacking=Hacking((replace(LOOK, judgement=judgement),))), tmp_path)


def test_the_watch_is_part_of_what_the_stage_is() -> None:
    assert describe(rl()) != describe(rl(hacking=None))
    assert describe(rl()) != describe(rl(hacking=replace(WATCH, tolerance=0.03)))
    assert describe(rl()) != describe(rl(hacking=replace(WATCH, looks=(replace(LOOK, judgement=avoids_green),))))


def test_the_proxy_may_be_one_summand(tmp_path: Path) -> None:
    paid = [Pays("blue"), Pays("red", 1.0, "other")]
    total = run(rl(paid, WATCH, steps=3), tmp_path / "total")["looks"][0]["looks"]["polite"]["proxy"]
    each = [
        run(rl(paid, replace(WATCH, proxy=names), steps=3), tmp_path / "-".join(names))["looks"][0]["looks"]["polite"][
            "proxy"
        ]
        for names in (("liked",), ("other",), ("liked", "other"))
    ]
    assert each[2] == pytest.approx(each[0] + each[1])
    assert each[2] < total  # the task pays, too


# The limit that grows, and what a mixture logs.


def test_replies_may_grow_longer(tmp_path: Path) -> None:
    stage = rl(hacking=None, steps=5, max_tokens=2, longer=((3, 4), (5, 7)), optimizer=AdamW(lr=1e-6))
    with Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)
    lines = metrics(tmp_path)
    assert [line["max_tokens"] for line in lines] == [2, 2, 4, 4, 7]
    assert all(line["cut"] > 0 for line in lines)
    assert all(line["length"] <= line["max_tokens"] for line in lines)
    assert lines[2]["length"] > 2
    assert lines[4]["length"] > 4
    assert (stage.limit(1), stage.limit(4), stage.longest) == (2, 4, 7)
    assert (rl().limit(9), rl().longest) == (4, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"longer": ((1, 8),)}, "steps must rise from 2 on"),
        ({"longer": ((3, 4),)}, "tokens from max_tokens=4"),
        ({"longer": ((3, 8), (3, 9))}, "steps must rise"),
        ({"longer": ((3, 8), (5, 8))}, "tokens from"),
        ({"longer": ((99, 8),)}, "after the last of 16"),
        ({"longer": (3, 8)}, "pairs"),
        ({"longer": ((3, 8, 1),)}, "pairs"),
    ],
)
def test_limits_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        rl(**changes)


def test_a_limit_beyond_the_context_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="longer=32 does not fit"):
        run(rl(longer=((15, 32),)), tmp_path)


def test_what_else_knows_a_length() -> None:
    with pytest.raises(SettingsError, match="overlong: replies of 4 tokens"):
        rl([Overlong(4, 2)], longer=((3, 8),))  # type: ignore[list-item]
    rl([Overlong(8, 2)], longer=((3, 8),))  # type: ignore[list-item]
    method = Method(per_group(group_centered), partial(constant, length=4), GRPO())
    assert replace(rl(longer=((3, 8),)), method=method).longest == 8


def test_a_mixture_shows_what_each_of_its_tasks_does(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Plain(Polite):
        name: str = "plain"

        def _score(self, problem: Problem, reply: str, number: int) -> Score:
            return replace(Parrot._score(self, problem, reply, number), parts={"format": 1.0})

    mixed = Mixture(((Polite(), 1.0), (Plain(), 2.0)))
    stage = replace(rl([Pays("blue")], None, steps=2), task=mixed)
    with Place(tmp_path / "rl") as place:
        stage.run(checkpoint(tmp_path / "base"), place)
    line = metrics(tmp_path)[0]
    for name in ("reward", "accuracy", "length", "shaping/liked"):
        assert line[name] == pytest.approx((line[f"{name}/polite"] + 2 * line[f"{name}/plain"]) / 3)
    assert line["part/truth"] == line["part/truth/polite"]
    assert (line["format_rate/plain"], line["format_rate/polite"]) == (1.0, 0.0)
    assert "part/truth/plain" not in line
    assert line["reward/polite"] == pytest.approx(line["accuracy/polite"] + line["shaping/liked/polite"])
