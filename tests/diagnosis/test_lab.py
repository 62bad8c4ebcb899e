"""The lab against numbers computed by hand, against what is known of the estimators, and against itself."""

from dataclasses import replace
from typing import get_args

import matplotlib.figure
import pytest
import torch

from longthought.algorithms.advantage import leave_one_out, per_group
from longthought.algorithms.objective import GRPO, KL, REINFORCE, Sum
from longthought.algorithms.weighting import sequence_sum
from longthought.core.errors import SettingsError
from longthought.diagnosis import lab, lab_chart
from longthought.diagnosis.estimators import Estimator, bare, chosen, estimators
from longthought.diagnosis.lab import Budget, measure
from longthought.diagnosis.lab_table import note, reading, table
from longthought.diagnosis.toy import Toy, World
from longthought.recipes.methods import Knobs, MethodName, method
from longthought.stages.method import Method

LENGTH = 2
WORLD = World(problems=2, words=2, length=LENGTH)
NAMED = {name: method(name, Knobs(), LENGTH) for name in get_args(MethodName)}
ALL = {one.name: one for one in estimators(NAMED, off_policy=True)}


def one(name, toy, group=2, **budget):
    return measure([ALL[name]], toy, Budget(group, **budget))[0]


def coin(logit):
    """Two actions, the second is right: g = p q (−1, 1)."""
    theta = torch.tensor([[[0.0, logit]]], dtype=torch.float64)
    return Toy(theta, theta, theta + torch.tensor([0.0, 0.7]), torch.tensor([0.0, 1.0]).double(), 1)


@pytest.mark.parametrize("logit", [0.0, 1.0, -2.0])
def test_two_actions_by_hand(logit):
    """Groups of two: only a mixed one, of chance 2pq, pulls, by (−1, 1) · A / 2."""
    toy = coin(logit)
    p = float(torch.sigmoid(torch.tensor(logit, dtype=torch.float64)))
    pq = p * (1 - p)
    torch.testing.assert_close(toy.policy_gradient(), torch.tensor([-pq, pq]).double())
    rloo, grpo = one("rloo", toy), one("grpo", toy)
    assert (rloo.unbiased, rloo.scale, rloo.bias) == ("yes", pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert rloo.variance == pytest.approx(1 / (2 * pq) - 1)
    assert rloo.steps == pytest.approx(100 * rloo.variance)
    assert rloo.signal_to_noise == pytest.approx(1 / rloo.variance)
    assert (grpo.unbiased, grpo.scale) == ("scale only", pytest.approx(0.5**0.5, abs=1e-5))
    assert grpo.variance == pytest.approx(1 / (4 * pq) - 0.5, rel=1e-4)


def test_k1_as_a_loss_by_hand():
    """No gradient on average, and noise: ∇log π(y) · 1, whose square has the mean 2pq; one reply a group."""
    toy = coin(1.0)
    found = one("kl_k1_in_loss", toy, group=1)
    assert (found.unbiased, found.scale) == ("no gradient", pytest.approx(0, abs=1e-9))
    p = float(torch.sigmoid(torch.tensor(1.0)))
    assert found.variance == pytest.approx(2 * p * (1 - p) / float(toy.kl_gradient().square().sum()), rel=1e-5)


def test_the_kl_gradient_by_hand():
    """d/dx KL of two coins with logits x and x + 0.7: pq · (x − (x + 0.7))."""
    p = float(torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)))
    slope = -0.7 * p * (1 - p)
    torch.testing.assert_close(coin(1.0).kl_gradient(), torch.tensor([-slope, slope]).double())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_world_is_what_it_says(seed):
    toy = replace(WORLD, seed=seed, off_policy=0.4).draw()
    for logits in (toy.theta, toy.sampler):
        sums = torch.zeros(2).double().index_add_(0, toy.problem, toy.chance(logits))
        torch.testing.assert_close(sums, torch.ones(2).double())
    step = 1e-6
    for number in range(0, toy.theta.numel(), 5):
        near = [toy.theta.clone() for _ in range(2)]
        near[0].view(-1)[number] += step
        near[1].view(-1)[number] -= step
        high, low = ((toy.chance(logits) * toy.rewards).sum() / 2 for logits in near)
        assert float(toy.policy_gradient()[number]) == pytest.approx(float(high - low) / (2 * step), abs=1e-8)
    earned = toy.chance(toy.sampler) * toy.rewards
    for problem in range(2):
        rows = toy.problem == problem
        assert toy.values("exact")[rows][0, 0] == pytest.approx(float(earned[rows].sum()))
    assert all(toy.problem[row] == problem for problem, row in enumerate(toy.greedy()))
    best = toy.sampler[0, 0].argmax()
    assert toy.replies[toy.greedy()[0]][1][0] == best


def test_skew_sets_how_often_problems_are_solved():
    equal, unequal = (World(problems=3, words=3, length=2, skew=skew).draw().success for skew in (0.0, 1.0))
    assert equal == pytest.approx([0.5] * 3, abs=0.1)
    assert unequal == pytest.approx([0.953, 0.5, 0.047], abs=0.1)
    assert all(0 < rate < 1 for rate in unequal)


EXACT = [
    "rloo",
    "remax",
    "gae_0.95_exact_critic",
    "kl_k1_in_reward",
    *(f"gae_1_{c}_critic" for c in ("exact", "zero", "wrong")),
]


@pytest.mark.parametrize("name", EXACT)
def test_unbiased(name):
    found = one(name, WORLD.draw())
    assert (found.unbiased, found.how) == ("yes", "alone")
    assert found.angle == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "group", "scale"),
    [("dr_grpo", 2, 1 / 2 / LENGTH), ("dr_grpo", 4, 3 / 4 / LENGTH), ("kimi", 3, 2 / 3), ("reinforce", 2, 3 / 4)],
)
def test_right_but_for_a_constant(name, group, scale):
    """(G − 1) / G; REINFORCE's baseline is over the N = 4 replies of the step."""
    found = one(name, WORLD.draw(), group)
    assert (found.unbiased, found.scale) == ("scale only", pytest.approx(scale, abs=1e-5))
    assert found.bias == pytest.approx(1 - scale, abs=1e-5)
    assert found.per_problem == pytest.approx((scale, scale), abs=1e-5)


@pytest.mark.parametrize("name", ["grpo", "gae_0.95_wrong_critic", "gae_0.95_zero_critic", "opo", "rloo_sequence_mean"])
def test_biased(name):
    found = one(name, WORLD.draw())
    assert found.unbiased == "no"
    assert found.angle > 0.1


def test_one_token_long_k2_is_the_reverse_kl_and_k3_is_not():
    toy = World(problems=2, words=3, length=1).draw()
    assert one("kl_k2_in_loss", toy, 1).unbiased == "yes"
    assert one("kl_k3_corrected_in_loss", toy, 1).unbiased == "yes"
    assert one("kl_k3_in_loss", toy, 1).unbiased == "no"


def test_off_policy_only_the_ratio_of_whole_replies_is_unbiased():
    toy = replace(WORLD, off_policy=0.4).draw()
    assert toy.gap > 0.02
    assert one("rloo_sequence_is", toy).unbiased == "yes"
    angles = {name: one(name, toy).angle for name in ("rloo_tis", "rloo_uncorrected")}
    assert 0.1 < angles["rloo_tis"] < angles["rloo_uncorrected"]
    assert one("kl_k3_corrected_in_loss", World(words=3, length=1, off_policy=0.4).draw(), 1).unbiased == "yes"


def test_a_better_critic_has_less_variance_and_a_larger_group_too():
    toy = WORLD.draw()
    exact, zero, wrong = (one(f"gae_1_{critic}_critic", toy).variance for critic in ("exact", "zero", "wrong"))
    assert exact < zero < wrong
    assert one("rloo", toy, 4).variance < one("rloo", toy, 2).variance / 2


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo", "kl_k2_in_loss", "remax"])
def test_groups_that_do_not_act_on_each_other_give_the_same_jointly(name, monkeypatch):
    toy = WORLD.draw()
    alone = one(name, toy)
    monkeypatch.setattr(lab._Bench, "_separable", lambda *_: False)
    jointly = one(name, toy)
    assert (alone.how, jointly.how) == ("alone", "jointly")
    for field in ("scale", "bias", "variance", "steps"):
        assert getattr(alone, field) == pytest.approx(getattr(jointly, field), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo_token_mean", "reinforce_pp", "reinforce_pp_baseline", "dapo"])
def test_sampling_agrees_with_enumeration(name, monkeypatch):
    """To four standard errors, which the controls make small."""
    toy = WORLD.draw()
    jointly = one(name, toy)
    monkeypatch.setattr(lab, "_ENUMERATED", 100)
    sampled = one(name, toy, steps=800, seed=3)
    assert (jointly.how, sampled.how) == ("jointly", "sampled")
    assert jointly.bias_error == 0
    assert 0 < sampled.bias_error < 0.1
    assert sampled.scale == pytest.approx(jointly.scale, abs=4 * sampled.bias_error)
    assert sampled.angle == pytest.approx(jointly.angle, abs=4 * sampled.angle_error)
    assert sampled.variance == pytest.approx(jointly.variance, rel=0.2)


@pytest.mark.parametrize("name", ["grpo", "grpo_token_mean"])
def test_groups_too_many_to_enumerate_are_sampled(name, monkeypatch):
    toy = WORLD.draw()
    exact = one(name, toy)
    monkeypatch.setattr(lab, "_ENUMERATED", 10)
    sampled = one(name, toy, steps=800)
    assert sampled.how == "sampled"
    assert sampled.scale == pytest.approx(exact.scale, abs=4 * sampled.bias_error)
    assert sampled.variance == pytest.approx(exact.variance, rel=0.2)


def test_dynamic_sampling_keeps_the_direction_of_groups_that_are_credited_alone():
    """Groups without a signal pull nowhere; leaving them out scales every problem alike."""
    toy = WORLD.draw()
    plain = ALL["rloo"].method
    refilled = Estimator("refilled", replace(plain, refill=NAMED["dapo"].refill))
    found = measure([refilled], toy, Budget(2))[0]
    assert found.unbiased == "scale only"
    assert found.scale > 1.2


def test_every_named_method_is_measured():
    assert set(get_args(MethodName)) <= set(ALL)
    assert "rloo_tis" not in {one.name for one in estimators(NAMED)}


def test_the_same_seed_gives_the_same_numbers(monkeypatch):
    monkeypatch.setattr(lab, "_ENUMERATED", 100)
    first, again = (one("dapo", WORLD.draw(), steps=200) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    "make",
    [
        lambda: World(skew=1.5),
        lambda: World(problems=0),
        lambda: World(words=9, length=9),
        lambda: Budget(0),
        lambda: Budget(steps=3),
        lambda: measure([ALL["grpo"]], WORLD.draw(), Budget(1)),
        lambda: bare(Method(per_group(leave_one_out), sequence_sum, Sum((REINFORCE(), KL(0.1))))),
        lambda: replace(coin(0.0), length=2),
        lambda: replace(coin(0.0), rewards=torch.zeros(3)),
        lambda: measure([ALL["rloo"]], coin(0.0).without_rewards(), Budget(2)),
    ],
)
def test_what_cannot_be_measured_is_refused(make):
    with pytest.raises(SettingsError, match="lab"):
        make()


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(SettingsError, match="did you mean rloo"):
        chosen(["rlo"], list(ALL.values()))
    with pytest.raises(SettingsError, match="--off-policy"):
        chosen(["rloo_tis"], estimators(NAMED))


def test_a_kl_is_left_out_of_what_is_measured_by_the_reward():
    made = bare(Method(per_group(leave_one_out), sequence_sum, GRPO(beta=0.1, kl="k2")))
    assert made.objective == GRPO()


def test_what_the_table_says():
    toy = World(problems=2, words=2, length=2, skew=1.0).draw()
    found = measure([ALL[name] for name in ("grpo", "rloo", "dr_grpo", "kl_k1_in_loss")], toy, Budget(2))
    assert table(found, "").row_count == 4
    lines = reading(found, toy)
    assert lines[0].startswith("Unbiased: rloo.")
    assert "dr_grpo × 0.25" in lines[0]
    assert lines[-1] == "No gradient at all, only noise: kl_k1_in_loss."
    assert len(lines) <= 5
    turned = replace(found[0], per_problem=(1.0, -0.5))
    assert note(turned) == "pulls the wrong way on problem 2"
    assert reading([found[1]], toy) == ["Unbiased: rloo."]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture(tmp_path, suffix, monkeypatch):
    """No two labels overlap, although many dots do."""
    found = measure([ALL["rloo"], ALL["kl_k1_in_loss"]], WORLD.draw(), Budget(2))
    many = [replace(found[0], name=f"estimator_{i}", steps=100 + i // 3, angle=float(i // 3)) for i in range(24)]
    kept = []
    saved = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda f, *a, **k: (kept.append(f), saved(f, *a, **k))[1])
    file = tmp_path / f"lab{suffix}"
    lab_chart.draw([*many, found[1]], file, "title")
    assert file.stat().st_size > 5000
    axes = kept[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 24
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    with pytest.raises(SettingsError, match="must end in"):
        lab_chart.draw(many, tmp_path / "lab.gif", "title")
