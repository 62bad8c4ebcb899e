"""Schedules, by hand."""

import math

import pytest

from longthought.core.errors import SettingsError
from longthought.training.schedule import Leg, Ramp, Schedule, Switch

V3 = Schedule.deepseek_v3(warmup=20)


def test_the_old_schedule_is_what_it_was() -> None:
    falling = Schedule(warmup=4, decay=0.5, final=0.2)
    expected = [0.25, 0.5, 0.75, 1, 1, 1 - 0.8 / 5, 1 - 1.6 / 5, 1 - 2.4 / 5, 1 - 3.2 / 5, 0.2]
    assert [falling.factor(step, 10) for step in range(10)] == pytest.approx(expected)
    assert {Schedule().factor(step, 3) for step in range(3)} == {1.0}


def test_legs_begin_where_the_one_before_ended() -> None:
    course = Schedule(
        legs=(Leg("constant", 0.2), Leg("cosine", 0.4, 0.5), Leg("linear", 0.2, 0.1), Leg("constant", 0.2, 0.3))
    )
    middle = 0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2
    expected = [1, 1, middle, 0.75, 0.5 + 0.5 * (1 + math.cos(3 * math.pi / 4)) / 2, 0.5, 0.3, 0.1, 0.3, 0.3]
    assert [course.factor(step, 10) for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 2.2e-4 / 20),
        (9, 2.2e-4 / 2),
        (19, 2.2e-4),
        (9_999, 2.2e-4),  # 10 T tokens
        (9_999 + 2_150, (2.2e-4 + 2.2e-5) / 2),  # half of the cosine
        (14_299, 2.2e-5),  # 14.3 T
        (14_632, 2.2e-5),
        (14_633, 7.3e-6),  # 333 B later
        (14_799, 7.3e-6),
    ],
)
def test_deepseek_v3(step: int, rate: float) -> None:
    """Section 4.2 of the report; a step stands for 1 B tokens."""
    assert 2.2e-4 * V3.factor(step, 14_800) == pytest.approx(rate, rel=1e-9)


def test_warm_up_multiplies_the_legs() -> None:
    course = Schedule(warmup=4, legs=(Leg("linear", 1.0, 0.0),))
    assert [course.factor(step, 4) for step in range(4)] == pytest.approx([0.75 / 4, 0.5 * 2 / 4, 0.25 * 3 / 4, 0])


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 33, 1000])
def test_no_step_falls_between_two_legs(steps: int) -> None:
    thirds = Schedule(legs=(Leg("constant", 1 / 3), Leg("linear", 1 / 3, 0.5), Leg("constant", 1 / 3, 0.1)))
    found = [thirds.factor(step, steps) for step in range(steps)]
    assert found[-1] == 0.1
    assert set(found) <= {1.0, 0.1} | {f for f in found if 0.5 <= f <= 1}
    assert V3.factor(steps - 1, steps) == pytest.approx(7.3e-6 / 2.2e-4 * min(1, steps / 20))


def test_ramp_and_switch() -> None:
    ramp = Ramp(first=1000, share=0.5)
    assert [ramp.tokens(step, 10, 5000) for step in range(8)] == [1000, 1800, 2600, 3400, 4200, 5000, 5000, 5000]
    switch = Switch(0.3, 0.1, 0.7)
    assert [switch.value(step, 10) for step in range(10)] == [0.3] * 7 + [0.1] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule(legs=(Leg("constant", 0.5),)),
        lambda: Schedule(decay=0.5, legs=(Leg("constant", 1.0),)),
        lambda: Leg("square", 0.5),  # type: ignore[arg-type]
        lambda: Leg("linear", 0.0),
        lambda: Leg("linear", 1.0, -0.1),
        lambda: Leg("linear", 1.0, math.nan),
        lambda: Ramp(0, 0.5),
        lambda: Ramp(10, 0.0),
        lambda: Switch(0.3, 0.1, 1.0),
        lambda: Switch(-0.3, 0.1, 0.5),
        lambda: Switch(0.3, math.inf, 0.5),
    ],
)
def test_refusals(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError):
        make()
