"""How far a student is from its teacher: by hand, beside autograd in float64, beside TRL, and in little memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longthought.core.errors import DataError, SettingsError
from longthought.models.teacher_head import Divergence, Said, States, compared

KINDS = [
    Divergence("forward"),
    Divergence("reverse"),
    Divergence("jsd"),
    Divergence("jsd", beta=0.1),
    Divergence("jsd", beta=0.9),
]
HEATS = [0.5, 1.0, 2.0]


def heated(divergence: Divergence, temperature: float) -> Divergence:
    return Divergence(divergence.kind, temperature, divergence.beta)


def noise(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def models(
    seed: int, tokens: int = 7, vocabulary: int = 11, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[States, Tensor, States]:
    """A student of width 4 and a teacher of width 6, and targets."""
    student = States(noise(seed, tokens, 4, scale=scale, dtype=dtype), noise(seed + 1, vocabulary, 4, dtype=dtype))
    teacher = States(noise(seed + 2, tokens, 6, scale=scale, dtype=dtype), noise(seed + 3, vocabulary, 6, dtype=dtype))
    targets = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    return student, targets, teacher


def by_autograd(student: States, targets: Tensor, teacher: States, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """log-probs of the targets and divergences, as the definitions say them, from probabilities."""
    s, t = student.hidden @ student.weight.T, teacher.hidden @ teacher.weight.T
    q, p = (s / divergence.temperature).softmax(-1), (t / divergence.temperature).softmax(-1)
    if divergence.kind == "forward":
        found = (p * (p / q).log()).sum(-1)
    elif divergence.kind == "reverse":
        found = (q * (q / p).log()).sum(-1)
    else:
        beta = 0.5 if divergence.beta is None else divergence.beta
        m = beta * p + (1 - beta) * q
        found = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    return s.log_softmax(-1)[torch.arange(len(s)), targets], found


def tracked(states: States) -> States:
    return States(*(tensor.clone().requires_grad_() for tensor in states))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Divergence("forward"), 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)),
        (Divergence("reverse"), 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)),
        (Divergence("jsd"), 0.5 * (0.5 * math.log(50 / 65) + 0.5 * math.log(50 / 35))
         + 0.5 * (0.8 * math.log(80 / 65) + 0.2 * math.log(20 / 35))),
        (Divergence("forward", 2.0), 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))),
    ],
)  # fmt: skip
def test_two_tokens_by_hand(kind: Divergence, wanted: float) -> None:
    """The teacher says ½ and ½, the student ⅘ and ⅕: at temperature 2, since √4 = 2, ⅔ and ⅓."""
    one = torch.ones(1, 1, dtype=torch.float64)
    student = States(one, torch.tensor([[math.log(4)], [0.0]], dtype=torch.float64))
    said = compared(student, torch.tensor([1]), States(one, torch.zeros(2, 1, dtype=torch.float64)), kind)
    assert float(said.divergence) == pytest.approx(wanted, abs=1e-12)
    assert float(said.logp) == pytest.approx(math.log(0.2), abs=1e-12)
    assert float(said.entropy) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-12)
    assert float(said.agreement) == 1.0  # the first of equals


@pytest.mark.parametrize("temperature", HEATS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_and_gradients_are_those_of_autograd(kind: Divergence, temperature: float) -> None:
    divergence = heated(kind, temperature)
    student, targets, teacher = models(3)
    ours, theirs = tracked(student), tracked(student)
    said = compared(ours, targets, teacher, divergence, chunk=3)
    logp, distance = by_autograd(theirs, targets, teacher, divergence)
    torch.testing.assert_close(said.logp, logp, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(said.divergence, distance, atol=1e-12, rtol=1e-10)
    upstream = noise(9, 2, 7)
    (said.logp * upstream[0] + said.divergence * upstream[1]).sum().backward()
    (logp * upstream[0] + distance * upstream[1]).sum().backward()
    torch.testing.assert_close(ours.hidden.grad, theirs.hidden.grad, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_those_of_differences(kind: Divergence) -> None:
    student, targets, teacher = models(5, tokens=3, vocabulary=5)
    own = tracked(student)

    def outputs(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        said = compared(States(hidden, weight), targets, teacher, heated(kind, 1.5), chunk=2)
        return said.logp, said.divergence

    assert torch.autograd.gradcheck(outputs, (own.hidden, own.weight))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    tokens=st.integers(1, 9),
    chunk=st.integers(1, 10),
    kind=st.sampled_from(KINDS),
    heat=st.sampled_from(HEATS),
)
def test_no_chunk_changes_anything(seed: int, tokens: int, chunk: int, kind: Divergence, heat: float) -> None:
    student, targets, teacher = models(seed, tokens)
    whole, cut = tracked(student), tracked(student)
    divergence = heated(kind, heat)
    for own, size in ((whole, 1000), (cut, chunk)):
        said = compared(own, targets, teacher, divergence, size)
        assert bool((said.divergence >= -1e-12).all())
        (said.logp + 2 * said.divergence).sum().backward()
    torch.testing.assert_close(cut.hidden.grad, whole.hidden.grad)
    torch.testing.assert_close(cut.weight.grad, whole.weight.grad)


@pytest.mark.parametrize("temperature", HEATS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_who_starts_as_the_teacher_has_nothing_to_learn(kind: Divergence, temperature: float) -> None:
    student, targets, _ = models(2, dtype=torch.float32)
    own = tracked(student)
    said = compared(own, targets, student, heated(kind, temperature))
    said.divergence.sum().backward()
    assert said.divergence.tolist() == [0.0] * 7
    assert own.hidden.grad is not None
    assert own.weight.grad is not None
    assert not own.hidden.grad.any()
    assert not own.weight.grad.any()
    assert said.agreement.tolist() == [1.0] * 7


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_certainty_far_apart_stays_finite(kind: Divergence) -> None:
    """Logits of ± 1000 in float32, where probabilities are 0 and 1."""
    student, targets, teacher = models(4, scale=300.0, dtype=torch.float32)
    own = tracked(student)
    said = compared(own, targets, teacher, kind)
    (said.divergence - said.logp).sum().backward()
    assert bool(said.divergence.isfinite().all())
    assert own.hidden.grad is not None
    assert bool(own.hidden.grad.isfinite().all())


def test_the_jensen_shannon_divergence_is_bounded_and_symmetric() -> None:
    student, targets, teacher = models(7, scale=20.0)
    there = compared(student, targets, teacher, Divergence("jsd", beta=0.3)).divergence
    back = compared(teacher, targets, student, Divergence("jsd", beta=0.7)).divergence
    torch.testing.assert_close(there, back)
    bound = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert bool((there <= bound + 1e-9).all())


@pytest.mark.parametrize(("end", "kind"), [(1e-7, "forward"), (1 - 1e-7, "reverse")])
def test_the_mixture_tends_to_both_ends(end: float, kind: Any) -> None:
    student, targets, teacher = models(8, scale=0.3)
    near = compared(student, targets, teacher, Divergence("jsd", beta=end)).divergence / min(end, 1 - end)
    torch.testing.assert_close(
        near, compared(student, targets, teacher, Divergence(kind)).divergence, rtol=1e-4, atol=1e-4
    )


def test_no_gradient_reaches_the_teacher_nor_a_frozen_head() -> None:
    student, targets, teacher = models(1)
    own, told = tracked(student), tracked(teacher)
    frozen = States(own.hidden, own.weight.detach())
    compared(frozen, targets, told, Divergence()).divergence.sum().backward()
    assert own.hidden.grad is not None
    assert (own.weight.grad, told.hidden.grad, told.weight.grad) == (None, None, None)


def test_no_matrix_of_all_tokens_by_all_words_is_made() -> None:
    student, targets, teacher = models(6, tokens=64, vocabulary=50)
    own, largest = tracked(student), [0]

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest[0] = max(largest[0], tensor.numel())
            return out

    with Sizes():
        said = compared(own, targets, teacher, Divergence("jsd", 2.0), chunk=8)
        (said.divergence + said.logp).sum().backward()
    assert largest[0] == 8 * 50


def test_where_both_prefer_the_same_token() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    teacher = States(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64), eye)
    student = States(torch.tensor([[5.0, 0, 0], [1.0, 0, 0], [0, 0, 0.1]], dtype=torch.float64), eye)
    said: Said = compared(student, torch.tensor([0, 0, 0]), teacher, Divergence())
    assert said.agreement.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "kl"}, "choose one of forward, reverse, jsd"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"beta": 0.5}, "beta=0.5 changes nothing"),
        ({"kind": "jsd", "beta": 0.0}, "take forward or reverse"),
        ({"kind": "jsd", "beta": math.nan}, "beta=nan"),
    ],
)
def test_divergences_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Divergence(**wrong)


def test_vocabularies_of_different_sizes_are_refused() -> None:
    student, targets, teacher = models(1)
    with pytest.raises(DataError, match="the student has 11 tokens and the teacher 10"):
        compared(student, targets, States(teacher.hidden, teacher.weight[:10]), Divergence())


@pytest.mark.parity
@pytest.mark.parametrize("temperature", HEATS)
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.2)])
def test_trl_says_the_same(kind: Any, beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="install the extra `parity`")
    student, targets, teacher = models(10)
    divergence = Divergence(kind, temperature, beta if kind == "jsd" else None)
    own, their = tracked(student), tracked(student)
    loss = compared(own, targets, teacher, divergence).divergence.mean()
    s, t = their.hidden @ their.weight.T, teacher.hidden @ teacher.weight.T
    theirs = gkd.GKDTrainer.generalized_jsd_loss(s[None], t[None], targets[None], beta, temperature)
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(own.weight.grad, their.weight.grad, rtol=1e-5, atol=1e-8)
