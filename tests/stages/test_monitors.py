"""Monitors: hand-made histories, and what a resumed watch remembers."""

import logging

import pytest

from longthought.core.errors import Alarm, SettingsError
from longthought.stages.monitors import Monitors

USUAL = {"reward": 0.4, "length": 50.0, "entropy": 0.5, "cut": 0.1, "live": 0.5}


def watched(monitors: Monitors, *steps: dict[str, float]) -> list[dict[str, float]]:
    watch = monitors.start()
    return [watch.read(number, {**USUAL, **step}) for number, step in enumerate(steps, 1)]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("reward_jump", {"reward": 0.9}),
        ("length_change", {"length": 120.0}),
        ("length_change", {"length": 20.0}),
        ("entropy_rise", {"entropy": 1.2}),
        ("entropy_low", {"entropy": 0.001}),
        ("cut", {"cut": 0.6}),
        ("kl", {"kl": 2.0}),
    ],
)
def test_an_unusual_step_is_told(name: str, step: dict[str, float]) -> None:
    *calm, last = watched(Monitors(), *[{}] * 6, step)
    assert calm == [{}] * 6
    assert last == {f"alarm/{name}": 1.0}


def test_early_steps_are_compared_with_nothing() -> None:
    assert watched(Monitors(warmup=3), {}, {"reward": 0.9}, {"length": 300.0}) == [{}, {}, {}]


def test_steps_without_a_signal() -> None:
    found = watched(Monitors(dead=2), *[{"live": 0.0}] * 3, {}, *[{"live": 0.0}] * 2)
    assert ["alarm/dead" in one for one in found] == [False, False, True, False, False, False]


def test_an_alarm_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watched(Monitors(), {"cut": 0.9}, {"cut": 0.9}, {}, {"cut": 0.9})
    assert len(caplog.records) == 2


def test_failures_of_the_verifier_are_summed_and_stop_the_run() -> None:
    bad = {"outcome/timed_out": 0.1, "outcome/crashed": 0.06, "outcome/invalid": 0.05, "outcome/graded": 0.79}
    with pytest.raises(Alarm, match="failed on 21%"):
        watched(Monitors(), bad)
    assert watched(Monitors(stop=()), bad) == [{"alarm/failures": 1.0}]
    assert watched(Monitors(failures=0.3), bad) == [{}]


def test_a_resumed_watch_goes_on() -> None:
    steps = [{"reward": 0.1 * n, "live": float(n % 3 == 0)} for n in range(12)]
    whole = Monitors(dead=1).start()
    expected = [whole.read(n, {**USUAL, **step}) for n, step in enumerate(steps, 1)]
    first = Monitors(dead=1).start()
    found = [first.read(n, {**USUAL, **step}) for n, step in enumerate(steps[:7], 1)]
    second = Monitors(dead=1).start()
    second.restore(first.state())
    found += [second.read(n, {**USUAL, **step}) for n, step in enumerate(steps[7:], 8)]
    assert found == expected
    assert second.state() == whole.state()


@pytest.mark.parametrize("changes", [{"cut": -1.0}, {"kl": float("nan")}, {"stop": ("nothing",)}])
def test_bounds_that_cannot_be(changes: dict) -> None:
    with pytest.raises(SettingsError):
        Monitors(**changes)


def test_a_short_run_without_a_signal_says_so_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    for live, told in ((0.0, 1), (0.5, 0)):
        watch = Monitors().start()
        watch.read(1, {**USUAL, "live": live})
        caplog.clear()
        watch.finish()
        assert len(caplog.records) == told
