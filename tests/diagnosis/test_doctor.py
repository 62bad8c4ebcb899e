"""What is healthy passes every check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from clinic import GRPO, findings, patient, stage

from longthought.algorithms.objective import MultiToken
from longthought.diagnosis.doctor import checks
from longthought.diagnosis.finding import Finding, listed, ordered, worst
from longthought.diagnosis.patient import Patient
from longthought.models.lora import LoRA
from longthought.models.parts import Experts, Latent
from longthought.recipes.methods import Knobs, MethodName, method
from longthought.stages.method import Method
from longthought.text.renderer import PlainRenderer, TemplateRenderer
from longthought.text.templates import Template
from stages.parrot import checkpoint

SLOW = frozenset({"the loop is live", "checkpoint"})  # looked at once below
MACHINE = frozenset({"native core"})  # depends on its compiler: see tests/models/test_native_build.py


def unwell(found: dict[str, Finding]) -> dict[str, Finding]:
    return {name: finding for name, finding in found.items() if finding.status == "fail"}


@pytest.mark.parametrize("name", get_args(MethodName))
def test_every_method_is_healthy(name: MethodName, tmp_path: Path) -> None:
    sick = patient(tmp_path, method(name, Knobs(), 4))
    found = findings(sick, *(checks(sick).keys() - SLOW - MACHINE))
    assert unwell(found) == {}
    assert {name for name, finding in found.items() if finding.status == "skipped"} == {"settings are live"}
    assert {name for name, finding in found.items() if finding.status == "warn"} <= {"signal", "splits"}


@pytest.mark.parametrize("name", ["reinforce", "vapo"])
def test_every_setting_of_the_loop_is_live(name: MethodName, tmp_path: Path) -> None:
    assert unwell(findings(patient(tmp_path, method(name, Knobs(), 4)), *SLOW)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": LoRA(4, 8.0)},
        {"temperature": 0.6},
        {"samples": 1, "prompts": 12, "method": method("reinforce", Knobs(), 4)},
        {"prompts": 1, "max_tokens": 1},
        {"method": method("dapo", Knobs(beta=0.01, kl="k2", dual_clip=3.0, entropy_bonus=0.01, correction=2.0), 4)},
        {"method": method("ppo", Knobs(beta=0.01, critic_clip=0.5, entropy_target=0.3), 4)},
    ],
    ids=["LoRA", "cooler", "one reply", "smallest", "many knobs", "critic"],
)
def test_other_settings_are_healthy(changes: dict, tmp_path: Path) -> None:
    chosen: Method = changes.get("method", GRPO)
    sick = patient(tmp_path, chosen, **{name: value for name, value in changes.items() if name != "method"})
    assert unwell(findings(sick, *(checks(sick).keys() - SLOW))) == {}


@pytest.mark.parametrize("objective", ["GRPO", "MultiToken"])
def test_experts_and_modules_that_predict_further_are_healthy(objective: str, tmp_path: Path) -> None:
    """The modules stay where they are unless the objective trains them."""
    parts = {"qk_norm": False, "latent": Latent(16, 8, 8, 8), "experts": Experts(4, 2, 16, 1)}
    policy = checkpoint(tmp_path / "base", noise=0.3, **parts, num_nextn_predict_layers=1).load()
    chosen = GRPO if objective == "GRPO" else replace(GRPO, objective=MultiToken(GRPO.objective, 0.1))
    sick = Patient(stage(chosen), policy)
    found = findings(sick, *(checks(sick).keys() - MACHINE - {"the loop is live"}))
    assert unwell(found) == {}
    assert ("no part in the objective" in found["parameters move"].what) == (objective == "GRPO")


def test_a_prompt_template_whose_replies_end_at_a_string(tmp_path: Path) -> None:
    policy = checkpoint(tmp_path / "base", noise=0.4).load()
    plain = policy.renderer
    assert isinstance(plain, PlainRenderer)
    renderer = TemplateRenderer(
        plain.tokenizer, Template("said", "{question}", "a test", ("green",)), plain.stop_tokens
    )
    found = findings(Patient(stage(), policy._replace(renderer=renderer)), "sampler and learner", "temperature")
    assert unwell(found) == {}


def test_a_model_without_a_thought(tmp_path: Path) -> None:
    """Matrices that are all zero would hide every fault: noise is put there, and said."""
    import torch

    sick = patient(tmp_path)
    with torch.no_grad():
        sick.model.lm_head.weight.zero_()
    found = findings(Patient(sick.stage, sick.policy), "temperature", "parameters move", "verifier")
    assert found["temperature"].status == found["parameters move"].status == "ok"
    assert found["signal"].status == "skipped"
    assert "noise" in found["model"].what


def test_the_worst_comes_first() -> None:
    some = [Finding(status, status, "") for status in ("ok", "fail", "skipped", "warn", "ok")]
    assert [finding.status for finding in ordered(some)] == ["fail", "warn", "skipped", "ok", "ok"]
    assert (worst(some), worst(some[2:]), worst(some[2:3]), worst([])) == ("fail", "warn", "ok", "ok")
    assert listed("abcdef") == "a, b, c, d and 2 more"
