"""The distillation objective: by hand, from logits, and the same however it is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from longthought.algorithms.distillation import Distill, Taught, distillation, jensen_shannon
from longthought.algorithms.weighting import sequence_mean, token_mean
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, PolicyOutput

LN2 = math.log(2)


def test_two_tokens_by_hand() -> None:
    """p = (½, ½), q = (⅘, ⅕) at temperature 2. At temperature 1 the logits are twice as far apart: CE is log 17."""
    student = torch.tensor([[2 * math.log(4), 0.0]], dtype=torch.float64)
    found = distillation(student, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1]), 0.25, 2.0)
    kl = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert float(found) == pytest.approx(0.25 * 4 * kl + 0.75 * math.log(17), abs=1e-12)


def test_the_loss_of_hinton_as_pytorch_writes_it() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    targets = torch.randint(7, (5,))
    found = distillation(student, teacher, targets, alpha=0.3, temperature=3.0).mean()
    soft = kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(found, 0.3 * 9 * soft + 0.7 * cross_entropy(student, targets))


def test_high_temperature_matches_logits() -> None:
    """Hinton et al., equation 4: for large T the gradient of T² KL is that of half the squared distance of centred
    logits, over their number; T² is what keeps it from vanishing."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, dtype=torch.float64).unbind()
    own = student.clone().requires_grad_()
    distillation(own, teacher, torch.tensor([0]), alpha=1.0, temperature=1e4).sum().backward()
    wanted = ((student - student.mean()) - (teacher - teacher.mean())) / 6
    torch.testing.assert_close(own.grad, wanted, atol=1e-4, rtol=1e-3)


def test_the_mixture_of_certain_opposites_is_one_bit() -> None:
    far = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    assert float(jensen_shannon(far, far.flip(-1))) == pytest.approx(LN2, abs=1e-9)
    assert float(jensen_shannon(far, far)) == pytest.approx(0.0, abs=1e-12)


def columns(rows: int, width: int, seed: int = 0) -> tuple[Taught, Batch]:
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, width + 1, (rows,), generator=made)
    mask = (torch.arange(width) < lengths[:, None]) & (torch.arange(width) > 0)
    said = [torch.rand(rows, width, generator=made) for _ in range(4)]
    policy = Taught(-said[0], said[1], said[2], (said[3] > 0.5).float())
    return policy, Batch(torch.zeros(rows, width, dtype=torch.int64), lengths, mask, token_mean(mask))


def part(policy: Taught, rows: Tensor, width: int) -> Taught:
    return Taught(*(getattr(policy, name)[rows, :width] for name in ("logp", "entropy", "divergence", "agreement")))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cut=st.lists(st.integers(0, 2), min_size=6, max_size=6), seed=st.integers(0, 99), mixed=st.booleans())
def test_any_cut_has_the_same_sums(cut: list[int], seed: int, mixed: bool) -> None:
    policy, batch = columns(6, 5, seed)
    batch = replace(batch, weight=sequence_mean(batch.mask))
    if mixed:
        batch = replace(batch, imitation=batch.weight * (torch.arange(6) % 2)[:, None])
    objective = Distill(0.4, 1.5)
    whole = objective(policy, batch)
    pieces = []
    for number in range(3):
        rows = torch.tensor([row for row, place in enumerate(cut) if place == number], dtype=torch.int64)
        some = batch.select(rows)
        pieces.append(objective(part(policy, rows, some.tokens.shape[1]), some))
    torch.testing.assert_close(torch.stack([loss.value for loss in pieces]).sum(), whole.value)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(torch.stack([loss.metrics[name] for loss in pieces]).sum(), value)


def test_the_likelihood_of_own_samples_is_left_out() -> None:
    policy, batch = columns(2, 4)
    own = replace(batch, imitation=batch.weight * torch.tensor([[1.0], [0.0]]))
    loss = Distill(0.5, 2.0)(policy, own)
    kl = (policy.divergence * batch.weight).sum()
    ce = -(policy.logp * batch.weight)[0].sum()
    torch.testing.assert_close(loss.value, 0.5 * 4 * kl + 0.5 * ce)
    torch.testing.assert_close(loss.metrics["ce"], ce)
    torch.testing.assert_close(Distill(1.0, 2.0)(policy, own).value, 4 * kl)


def test_what_is_not_trained_is_not_read() -> None:
    policy, batch = columns(3, 4)
    wanted = Distill()(policy, batch).value
    for name in ("logp", "divergence", "agreement", "entropy"):
        getattr(policy, name)[~batch.mask] = math.nan
    torch.testing.assert_close(Distill()(policy, batch).value, wanted)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": 0.0}, "without a teacher take NLL"),
        ({"alpha": 1.5}, "at most 1"),
        ({"alpha": math.nan}, "Distill.alpha"),
        ({"temperature": 0.0}, "Distill.temperature must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Distill(**wrong)


def test_a_policy_without_a_teacher_is_refused() -> None:
    _, batch = columns(2, 3)
    blank = torch.zeros(2, 3)
    with pytest.raises(SettingsError, match="BesideTeacher"):
        Distill()(PolicyOutput(blank, blank), batch)


def test_a_mixture_without_a_side_is_refused() -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        jensen_shannon(torch.zeros(1, 2), torch.zeros(1, 2), beta=1.0)
