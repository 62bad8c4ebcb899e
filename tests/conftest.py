"""Shapes in annotations are executed by the tests."""

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from executable_annotations import install, unchecked

install()  # before anything of the package is imported

from longthought.models.config import ModelConfig  # noqa: E402
from longthought.models.kernels import library  # noqa: E402
from longthought.models.transformer import Transformer, initialize  # noqa: E402

WITHOUT_CHECKS = frozenset({"test_advantage.test_refusals", "test_advantage.test_batch_normalized_degenerate"})
"""Tests that pass wrong shapes on purpose: what they ask for is the package's own refusal."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    name = f"{item.path.stem}.{getattr(item, 'originalname', '')}"
    with unchecked() if name in WITHOUT_CHECKS else nullcontext():
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def named(value: object) -> str:
    """Name of a test's parameter, the same in every process: functions have no addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def tiny_model(seed: int = 0, **changes: object) -> Transformer:
    """A random model of two layers whose output is not degenerate."""
    sizes = {"vocab_size": 23, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    model = Transformer(ModelConfig(**{**sizes, "max_position_embeddings": 64, **changes}))
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture
def model() -> Transformer:
    return tiny_model()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native core computes; the test is skipped where it cannot."""
    found = library.available()
    if found is None:
        pytest.skip(library.why_not())
    if found.name == "plain":
        monkeypatch.setenv(library.VARIABLE, "plain")


@pytest.fixture(params=["torch", "native"])
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two computes: the test runs with PyTorch alone, and with the native core."""
    if request.param == "torch":
        monkeypatch.setenv(library.VARIABLE, library.OFF)
    elif library.available() is None:
        pytest.skip(library.why_not())
    return str(request.param)
