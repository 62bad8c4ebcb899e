"""Steps that go wrong: told, counted, left out; and when it is enough."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from longthought.algorithms.objective import NLL
from longthought.core.errors import NotFinite, SettingsError
from longthought.core.types import Batch, Loss, PolicyOutput
from longthought.runs.place import Place
from longthought.stages import pretrain_loop
from longthought.stages.guard import Guard, Spikes
from longthought.stages.pretrain import Pretrain
from longthought.tasks.countdown import Countdown
from longthought.tasks.countdown_web import CountdownWeb, vocabulary


def fed(guard: Guard, values: list[float]) -> Guard:
    for step, value in enumerate(values):
        guard.took(step, value, 1.0)
    return guard


def test_a_spike_by_hand() -> None:
    """Of 1, 2, 3, … 8 the median is 4.5 and the median distance 2: a deviation is 2.9652, ten above is 34.152."""
    guard = fed(Guard(Spikes(window=32)), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert guard.spike(1e9, 1e9) == ""  # not enough is known yet
    guard.took(7, 8.0, 1.0)
    assert guard.spike(34.15, 1.0) == ""
    assert guard.spike(34.16, 1.0).startswith("the loss is 34.16, 10 deviations above 4.5, the median of the last 8")
    assert guard.spike(1.0, 10.99) == ""  # norms that never change: a deviation is 1, their median
    assert "the gradient norm is 11.01" in guard.spike(1.0, 11.01)


def test_one_spike_does_not_hide_the_next() -> None:
    guard = fed(Guard(Spikes(window=8)), [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.0, 900.0, 900.0])
    assert guard.spikes == 2
    assert guard.spike(100.0, 1.0)


def test_the_state_is_all_there_is() -> None:
    first = fed(Guard(Spikes(window=8)), [2.0, 2.1, 1.9, 2.0, 50.0])
    first.left_out(6, NotFinite("no"))
    second = Guard(Spikes(window=8))
    second.restore(first.state())
    assert second.state() == first.state()
    assert second.spike(50.0, 9.0) == first.spike(50.0, 9.0)


@pytest.mark.parametrize("changes", [{"above": 0.5}, {"above": float("nan")}, {"window": 4}, {"patience": 0}])
def test_refusals(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Spikes(**changes)


@dataclass(frozen=True)
class Faulty:
    """NLL whose value or gradient is spoilt."""

    times: float = 1.0
    plus: float = 0.0
    reads = frozenset[str]()
    silent_without_advantage = False

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss:
        loss = NLL()(policy, batch)
        return Loss(self.times * loss.value + self.plus, loss.metrics)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[int, Faulty]:
    """By step, from 1 on."""
    plain = pretrain_loop.objective_at
    found: dict[int, Faulty] = {}
    monkeypatch.setattr(
        pretrain_loop, "objective_at", lambda course, config, step: found.get(step + 1) or plain(course, config, step)
    )
    return found


def stage(workers: int = 1, **changes: Any) -> Pretrain:
    task = Countdown()
    made: dict[str, Any] = {"width": 32, "steps": 14, "tokens_per_step": 256, "save_every": 1, "quiet": True}
    return Pretrain(CountdownWeb(task), tuple(vocabulary(task)), workers=workers, **{**made, **changes})


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    from longthought.runs.state import folder_of, read

    tensors = read(folder_of(folder / "state", step), step).tensors
    return {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}


def go(made: Pretrain, folder: Path) -> None:
    with Place(folder) as place:
        made.run(None, place)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fault", ["nan", "inf", "loss"])
def test_a_step_that_is_not_finite_changes_no_weight(
    workers: int, fault: str, faults: dict[int, Faulty], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults[14] = Faulty(plus=float("inf")) if fault == "loss" else Faulty(times=float(fault))
    with caplog.at_level(logging.WARNING):
        go(stage(workers), tmp_path / "run")
    before, after = weights(tmp_path / "run", 13), weights(tmp_path / "run", 14)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "step 14 was left out" in caplog.text
    last = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    assert '"skipped": 1' in last
    assert '"loss"' not in last


def test_too_many_in_a_row_end_the_stage(faults: dict[int, Faulty], tmp_path: Path) -> None:
    faults |= {step: Faulty(times=float("nan")) for step in (2, 3, 6, 7, 8)}
    with pytest.raises(NotFinite, match=r"step 8: 3 steps in a row were left out.*lower learning rate"):
        go(stage(spikes=Spikes(patience=3)), tmp_path / "run")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_spike_is_told_and_skipped_if_so_asked(
    skip: bool, workers: int, faults: dict[int, Faulty], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults[14] = Faulty(times=1e4)
    with caplog.at_level(logging.WARNING):
        go(stage(workers, spikes=Spikes(window=32, skip=skip)), tmp_path / "run")
    before, after = weights(tmp_path / "run", 13), weights(tmp_path / "run", 14)
    same = all(torch.equal(before[name], after[name]) for name in before)
    assert same == skip
    told = [record.message for record in caplog.records if record.message.startswith("pretraining, step 14")]
    assert len(told) == 1
    assert ("was left out" if skip else "the step was made") in told[0]
    last = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    assert f'"skipped": {int(skip)}, "spikes": 1' in last
