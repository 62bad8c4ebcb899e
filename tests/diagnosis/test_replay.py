"""A recorded step, again: bit by bit with the weights, nearly without them; with another method, what should differ."""

import hashlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longthought.cli.main import main
from longthought.cli.replay import _context
from longthought.core.errors import RunError, SettingsError
from longthought.diagnosis.replay import changed, checks, cosines, pull_cosine, read, replay
from longthought.models.lora import LoRA
from longthought.recipes.catalogue import find
from longthought.recipes.methods import Knobs, method
from longthought.runs.artifacts import Checkpoint
from longthought.runs.place import Place
from longthought.runs.record import Record
from longthought.runs.run import Run
from longthought.runs.settings import override
from longthought.stages.rl import RL

STAGES = Path(__file__).parents[1] / "stages"
RECIPE = f"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append({str(STAGES)!r})
from parrot import Parrot

from longthought.core.types import Message
from longthought.recipes.methods import Knobs, MethodName, method
from longthought.rollout.shaping import Repetition
from longthought.runs.artifacts import Checkpoint
from longthought.runs.run import Run
from longthought.stages.rl import RL
from longthought.training.optimizer import AdamW


@dataclass(frozen=True)
class Settings:
    base: Path = Path("base")
    method: MethodName = "grpo"
    steps: int = 5
    lr: float = 6e-3
    workers: int = 1
    reference_every: int = 0
    repetition: float = 0.0
    knobs: Knobs = Knobs()


def recipe(settings: Settings, run: Run) -> Checkpoint:
    shaping = (Repetition(settings.repetition),) if settings.repetition else ()
    chosen = method(settings.method, settings.knobs, 4, shaping)
    stage = RL(
        Parrot(), chosen, steps=settings.steps, prompts=6, samples=8, updates=2, max_tokens=4, quiet=True,
        reference_every=settings.reference_every, optimizer=AdamW(lr=settings.lr), workers=settings.workers,
    )
    return run.do("rl", stage, Checkpoint(settings.base))
"""

RUNS = {
    "grpo": ("method=grpo", "knobs.beta=0.01"),
    "renewed reference": ("method=grpo", "knobs.beta=0.01", "reference_every=2"),
    "rloo, KL in the reward": ("method=rloo", "knobs.beta=0.01"),
    "dapo": ("method=dapo",),
    "ppo": ("method=ppo",),
    "remax": ("method=remax",),
    "kimi": ("method=kimi",),
    "correction": ("method=dr_grpo", "knobs.correction=2"),
    "entropy target": ("method=grpo", "knobs.entropy_target=0.5"),
    "shaping": ("method=tiny", "repetition=0.1"),
    "two workers": ("method=rloo", "workers=2"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A recipe file, a base, and the runs that were asked for."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "mine.py").write_text(RECIPE, encoding="utf-8")
    sys.path.append(str(STAGES))
    from parrot import checkpoint

    checkpoint(folder / "base")
    return folder


def run(world, name):
    folder = world / name.replace(" ", "_").replace(",", "")
    if not folder.exists():
        recipe = find(str(world / "mine.py"))
        settings = override(recipe.settings, [f"base={world / 'base'}", *RUNS[name]])
        with Run.open(folder, recipe=recipe.name, settings=settings, command="test", threads=1) as opened:
            recipe.function(settings, opened)
    return folder


def stage_of(folder):
    return _context(Record.read(folder), None).rl


def recorded(world, name, step):
    folder = run(world, name)
    return read(folder / "01-rl", stage_of(folder), step), Checkpoint(world / "base").load().model


@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("name", RUNS)
def test_the_recorded_method_gives_what_was_logged(world, name, step):
    """Bit by bit, but with several workers, where a gradient is added up in another order."""
    given, model = recorded(world, name, step)
    assert given.exact
    found = replay(given, model)
    tested = checks(given, found)
    assert {"loss", "grad_norm", "entropy", "lr", "updates", "logprob_gap"} <= {one.name for one in tested}
    if name == "two workers":
        assert all(one.holds for one in tested)
    else:
        assert [(one.name, one.found) for one in tested] == [(one.name, one.logged) for one in tested]
    assert len(found.gradients) == 2
    again = replay(given, model)
    assert again == found
    assert all(torch.equal(a, b) for a, b in zip(found.gradients, again.gradients))


@pytest.mark.parametrize("name", ["grpo", "dapo", "correction", "shaping", "kimi"])
def test_without_the_weights_the_recorded_log_probs_stand_in(world, name):
    given, model = recorded(world, name, 3)
    assert not given.exact
    assert "not kept" in given.notes[0]
    found = replay(given, model)
    tested = checks(given, found)
    assert {"loss", "entropy", "updates"} <= {one.name for one in tested}
    assert "grad_norm" not in found.metrics
    assert all(one.holds for one in tested), tested
    assert found.gradients == ()


def test_with_and_without_the_weights_rollouts_are_pulled_alike(world):
    given, model = recorded(world, "dapo", 5)
    exact, without = replay(given, model), replay(replace(given, before=None), model)
    assert exact.pulls == pytest.approx(without.pulls, abs=1e-6)
    assert pull_cosine(exact, without) == pytest.approx(1)


def test_another_clip_changes_what_it_should(world):
    """Not the first update, whose ratios are 1; in the second it stops tokens that rise."""
    given, model = recorded(world, "grpo", 5)
    found = replay(given, model)
    tight = replay(given, model, method("grpo", Knobs(beta=0.01, clip_high=0.001), 4))
    assert tight.metrics["clip_high_share"] > found.metrics["clip_high_share"]
    assert tight.metrics["entropy"] == found.metrics["entropy"]
    assert tight.advantage == found.advantage
    first, second = cosines(found, tight)
    assert first == pytest.approx(1, abs=1e-9)
    assert second < 0.9999
    moved = {one.row for one in changed(found, tight)}
    assert moved
    assert all(given.rows[row]["advantage"] > 0 for row in [one.row for one in changed(found, tight)[:3]])


def test_pulls_and_scale(world):
    """A scaled advantage pulls as much in proportion; the group deviation does not."""
    given, model = recorded(world, "kimi", 1)
    found = {name: replay(given, model, method(name, Knobs(), 4)) for name in ("rloo", "dr_grpo", "grpo")}
    assert pull_cosine(found["rloo"], found["dr_grpo"]) == pytest.approx(1, abs=1e-6)
    assert pull_cosine(found["rloo"], found["grpo"]) < 0.999
    first = cosines(found["rloo"], found["dr_grpo"])[0]
    assert first == pytest.approx(1, abs=1e-5)
    rewards = [row["reward"] for row in given.rows]
    assert all((pull > 0) == (reward == 1) for pull, reward in zip(found["rloo"].pulls, rewards) if pull)


def test_every_rollout_is_counted_where_it_was_trained(world):
    given, model = recorded(world, "grpo", 5)
    found = replay(given, model, method("rloo", Knobs(), 4))
    assert [pull != 0 for pull in found.pulls] == [row["advantage"] != 0 for row in given.rows]


@pytest.mark.parametrize(
    ("name", "step", "asked", "words"),
    [
        ("grpo", 5, "ppo", "the run has none"),
        ("ppo", 3, "vapo", "not kept"),
        ("grpo", 5, "remax", "greedy replies"),
        ("shaping", 5, "rloo", "rewards are those that were recorded"),
        ("renewed reference", 3, "grpo", "renewed"),
    ],
)
def test_what_the_run_did_not_keep_is_told(world, name, step, asked, words):
    given, model = recorded(world, name, step)
    with pytest.raises(SettingsError, match=words):
        replay(given, model, method(asked, Knobs(), 4))


def test_the_runs_own_critic_is_read(world):
    given, model = recorded(world, "ppo", 5)
    found = replay(given, model, method("vapo", Knobs(), 4))
    assert found.metrics["updates"] == 2
    assert math.isfinite(found.metrics["loss"])


def digests(folder):
    return {
        p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_the_command(world, capsys):
    folder = run(world, "grpo")
    before = digests(folder)
    assert (
        main(["replay", str(folder), "--step", "5", "knobs.clip_high=0.001", "--grid", "knobs.clip_low=0.1,0.2"]) == 0
    )
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "reproduced: 1" in shown.out
    assert "with knobs.clip_high=0.001" in shown.out
    assert "cosine of the gradients, update by update: 1.0000, 0." in shown.out
    assert "rollouts that change most" in shown.out
    assert "knobs.clip" in shown.out
    assert main(["replay", str(folder), "--step", "5", "--json", "--method", "dr_grpo", "knobs.clip_low=0.1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["reproduced"]
    assert content["exact"]
    assert len(content["changed"]) == 5
    assert len(content["asked"]["pulls"]) == 48
    assert digests(folder) == before


def test_a_step_that_does_not_come_out_again_is_told(world, tmp_path, capsys):
    folder = Path(shutil.copytree(run(world, "grpo"), tmp_path / "run"))
    file = folder / "01-rl" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[-1]["grad_norm"] += 1.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["replay", str(folder), "--step", "5"]) == 0
    out = capsys.readouterr().out
    assert "not reproduced: 1 of" in out
    assert "grad_norm: logged" in out


def test_a_run_that_goes_on_and_one_without_a_log(world, tmp_path, capsys):
    folder = Path(shutil.copytree(run(world, "grpo"), tmp_path / "run"))
    (folder / "01-rl" / "done.json").unlink()
    (folder / "01-rl" / "metrics.jsonl").write_bytes(b'{"step": 1, "lo')
    assert main(["replay", str(folder), "--step", "5"]) == 0
    shown = capsys.readouterr()
    assert "nothing can be checked" in shown.err
    assert "nothing was logged that could be checked" in shown.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--step", "9"], "step 9 of .* was not recorded: there are 1 to 5"),
        (["--step", "0"], "at least 1"),
        (["--step", "5", "--stage", "base"], "no stage base"),
        (["--step", "5", "--method", "grop"], "did you mean grpo"),
        (["--step", "5", "--method", "dapo", "clip_hgh=1"], "clip_high"),
        (["--step", "5", "--method", "dapo", "tau=1"], "changes nothing with method=dapo"),
        (["--step", "5", "clip_high=0.3"], "did you mean knobs.clip_high"),
        (["--step", "5", "lr=0.1"], "changes nothing in the method"),
        (["--step", "5", "repetition=0.1"], "rewards are those that were recorded"),
        (["--step", "5", "--grid", "lr=0.1,0.2"], "changes nothing in the method"),
        (["--step", "5", "--grid", "knobs.clip_high"], "give a key and values"),
    ],
)
def test_what_cannot_be_replayed_is_told_plainly(world, capsys, words, told):
    assert main(["replay", str(run(world, "grpo")), *words]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert "Traceback" not in error


@pytest.mark.parametrize("what", ["traces/step-000005.parquet", "state/step-000004/tensors.safetensors"])
def test_damage_is_told(world, tmp_path, capsys, what):
    folder = Path(shutil.copytree(run(world, "grpo"), tmp_path / "run"))
    file = folder / "01-rl" / what
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["replay", str(folder), "--step", "5"]) == 2
    assert "truncated or altered" in capsys.readouterr().err


def test_another_base_is_refused(world, tmp_path, capsys):
    folder = Path(shutil.copytree(run(world, "grpo"), tmp_path / "run"))
    file = folder / "01-rl" / "stage.json"
    asked = json.loads(file.read_text())
    asked["given"]["files"] = "0" * 64
    file.write_text(json.dumps(asked))
    assert main(["replay", str(folder), "--step", "5"]) == 2
    assert "bring it back" in capsys.readouterr().err


def test_a_place_without_steps(tmp_path, world):
    with Place(tmp_path / "empty"):
        pass
    with pytest.raises(RunError, match="there is none yet"):
        read(tmp_path / "empty", stage_of(run(world, "grpo")), 1)


def test_an_adapter(world, tmp_path):
    """The reference is the model without it; only its weights are in the state and in the gradient."""
    base = Checkpoint(world / "base")
    chosen = method("rloo", Knobs(beta=0.01), 4)
    stage = replace(stage_of(run(world, "grpo")), method=chosen, adapter=LoRA(4, 8.0), steps=3)
    with Place(tmp_path / "rl") as place:
        stage.run(base, place)
    for step in (1, 3):
        given, model = read(tmp_path / "rl", stage, step), base.load().model
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = replay(given, model)
        assert [(one.name, one.found) for one in checks(given, found)] == [
            (one.name, one.logged) for one in checks(given, found)
        ]
        assert len(found.gradients[0]) < sum(tensor.numel() for tensor in weights.values())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_stage_is_one_of_rl(world):
    assert isinstance(stage_of(run(world, "grpo")), RL)
