"""What the doctor says of the native core: who samples and who trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conftest import tiny_model
from longthought.diagnosis import check_native
from longthought.diagnosis.finding import Finding
from longthought.engine.engine import EngineSettings
from longthought.models.parts import Experts, Latent
from longthought.training.learner import LearnerSettings

V3 = {"num_attention_heads": 2, "qk_norm": False, "latent": Latent(16, 16, 16, 16), "experts": Experts(4, 2, 16, 1)}


def said(sampling: Any = "float32", training: Any = "float32", **shape: Any) -> Finding:
    stage = SimpleNamespace(engine=EngineSettings(precision=sampling), learner=LearnerSettings(precision=training))
    [finding] = check_native.native(SimpleNamespace(model=tiny_model(**shape), stage=stage))  # type: ignore[arg-type]
    return finding


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("shape", [{"head_dim": 16}, V3], ids=["dense", "deepseek_v3"])
def test_it_serves_for_both(shape: dict[str, Any]) -> None:
    finding = said("float32", "bfloat16", **shape)
    assert finding.status == "ok"
    assert "sampling in float32, training in bfloat16" in finding.what


@pytest.mark.usefixtures("served")
def test_what_it_cannot_compute_is_named() -> None:
    finding = said(**V3 | {"latent": Latent(16, 16, 8, 16)})
    assert finding.status == "warn"
    assert finding.what == "cannot compute this model: qk_rope_head_dim=8 is not a multiple of 16"
    assert "PyTorch does it" in finding.why
