"""Methods by name: all can be built, a knob that does nothing is refused, and each knob does something."""

from dataclasses import fields, replace
from typing import get_args

import pytest

from longthought.algorithms.objective import GRPO
from longthought.core.errors import SettingsError
from longthought.recipes.methods import Knobs, MethodName, method
from longthought.runs.describe import describe

OTHER = {
    "clip_low": 0.1,
    "clip_high": 0.5,
    "cap": 3.0,
    "dual_clip": 4.0,
    "beta": 0.02,
    "kl": "k2",
    "tau": 0.5,
    "entropy_bonus": 0.01,
    "entropy_target": 0.4,
    "lam": 0.7,
    "critic_lr": 0.1,
    "critic_clip": 0.3,
    "critic_pretrain": 7,
    "bootstrap": True,
    "refill": 5,
    "filter_truncated": True,
    "correction": 3.0,
}
NAMES = get_args(MethodName)


def test_every_knob_is_tried_here() -> None:
    assert OTHER.keys() == {field.name for field in fields(Knobs)}


@pytest.mark.parametrize("name", NAMES)
def test_as_published(name: MethodName) -> None:
    assert describe(method(name, max_tokens=16)) == describe(method(name, Knobs(), 16))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knob", OTHER)
def test_a_knob_changes_the_method_or_is_refused_by_name(name: MethodName, knob: str) -> None:
    base = Knobs(beta=0.01) if knob == "kl" else Knobs()
    try:
        plain = method(name, base, 16)
    except SettingsError:
        return  # the method has no KL at all: the knob cannot be tried
    turned = replace(base, **{knob: (not plain.filter_truncated) if knob == "filter_truncated" else OTHER[knob]})
    refused = ""
    try:
        made = method(name, turned, 16)
    except SettingsError as error:
        refused = str(error)
    if refused:
        assert f"{knob}=" in refused
        assert "changes nothing" in refused
    else:
        assert describe(made) != describe(plain)


def test_where_the_kl_stands() -> None:
    loss, reward = method("grpo", Knobs(beta=0.02)), method("rloo", Knobs(beta=0.02))
    assert isinstance(loss.objective, GRPO)
    assert (loss.objective.beta, loss.kl_reward) == (0.02, None)
    assert isinstance(reward.objective, GRPO)
    assert reward.objective.beta == 0
    assert reward.kl_reward is not None
    assert reward.kl_reward.beta == 0.02
