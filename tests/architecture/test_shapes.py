"""The shapes in annotations are really executed by the tests, and hold for the decoder as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from executable_annotations import unchecked
from longthought.algorithms.weighting import token_mean
from longthought.engine.sampling import draw
from longthought.models.heads import token_logprobs
from longthought.models.rope import angles, rotate
from longthought.training.packing import micro_batches

TESTS = Path(__file__).parents[1]
DECODER = """
import torch
from executable_annotations import install
install(["longthought.models"])
from conftest import tiny_model
from jaxtyping import TypeCheckError
from longthought.core.types import SamplingParams
from longthought.engine.engine import Engine
from longthought.models.attention import PackedAttention
model = tiny_model(num_attention_heads=4, num_key_value_heads=2)
attend = PackedAttention([3, 2])
tokens = torch.tensor([1, 2, 3, 4, 5])
assert model(tokens, attend.positions, attend).shape == (5, 32)
Engine(model).sample([(1, 2, 3), (4,)], SamplingParams(count=2, max_tokens=6, stop_tokens=(2,)))
for wrong in ((tokens[None], attend.positions), (tokens, attend.positions[:4])):
    try:
        model(*wrong, attend)
    except TypeCheckError:
        print("refused")
"""


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool)], ids=["float", "one axis"])
def test_a_mask_is_boolean_and_has_two_axes(mask: torch.Tensor) -> None:
    with pytest.raises(TypeCheckError, match="mask"):
        token_mean(mask)


def test_shapes_are_compared_between_arguments() -> None:
    hidden, weight, targets = torch.zeros(5, 4), torch.zeros(7, 4), torch.zeros(5, dtype=torch.int64)
    token_logprobs(hidden, weight, targets)
    for wrong in [(hidden, weight.T, targets), (hidden, weight, targets[:4]), (hidden, weight, targets.double())]:
        with pytest.raises(TypeCheckError):
            token_logprobs(*wrong)
    with pytest.raises(TypeCheckError):
        draw(torch.zeros(3, 9), torch.full((2,), 0.5), 1.0)


def test_every_checked_package_is_checked() -> None:
    cos, sin = angles(8, 6, 1e4)
    with pytest.raises(TypeCheckError):
        rotate(torch.zeros(6, 2, 8), cos, sin)
    with pytest.raises(TypeCheckError):
        micro_batches(torch.tensor([3.0, 4.0]), 5)


def test_what_is_returned_is_checked() -> None:
    """The width of the tables is an argument; an odd one cannot be kept."""
    with pytest.raises(TypeCheckError, match="return value"):
        angles(7, 6, 1e4)


def test_the_decoder_keeps_its_shapes() -> None:
    command = [sys.executable, "-c", DECODER]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused"]), done.stderr


def test_users_do_not_pay() -> None:
    """The package imports no type checker, and unchecked functions are themselves."""
    program = "import sys, longthought.stages.rl; print('beartype' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    with unchecked():
        assert token_mean(torch.ones(2, 3) > 0).sum() == pytest.approx(1)
