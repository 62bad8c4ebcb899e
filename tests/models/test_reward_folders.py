"""Reward models beside transformers' sequence classification models, of every architecture; folders that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from longthought.core.errors import CheckpointError, DataError
from longthought.core.types import Rows
from longthought.models import reward
from longthought.models.parts import Experts
from longthought.models.presets import sized
from longthought.models.reward import RewardModel, rewards
from longthought.models.transformer import Transformer, initialize
from longthought.training.reward import RewardHead

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [3, 4], [22], [5, 6, 7, 1]]
ROUTED = Experts(4, 2, 16, score="softmax", norm_topk_prob=True)
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Qwen2": {"qk_norm": False, "qkv_bias": True},
    "Llama": {"qk_norm": False, "tie_word_embeddings": True},
    "Mistral": {"qk_norm": False},
    "Qwen3Moe": {"experts": ROUTED},
    "DeepseekV3": {},
}


def policy(kind: str) -> Transformer:
    if kind != "DeepseekV3":
        return tiny_model(**KINDS[kind])
    model = Transformer(sized("deepseek_v3", 32, 23, 64))
    initialize(model, 0)
    return model.eval()


def saved(kind: str, folder: Path, **entries: object) -> RewardModel:
    model = RewardModel.of(policy(kind), seed=3).eval()
    base = {"model_type": "mistral"} if kind == "Mistral" else None
    reward.save(model, folder)
    (folder / "config.json").write_text(json.dumps(reward.written_config(model, base) | entries))
    return model


def loaded(folder: Path) -> RewardModel:
    config = json.loads((folder / "config.json").read_text())
    return reward.load(reward.read_config(config, folder), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_rewards(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = saved(kind, tmp_path, pad_token_id=0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == f"{kind}ForSequenceClassification"
    padded = torch.tensor([[*ids, *[0] * (6 - len(ids))] for ids in TEXTS])
    with torch.no_grad():
        logits = theirs(padded, attention_mask=(padded != 0).long()).logits
    ours = rewards(model, TEXTS)
    assert float(ours.std()) > 0.05
    torch.testing.assert_close(logits.squeeze(-1), ours, atol=1e-5, rtol=1e-5)
    assert torch.equal(rewards(loaded(tmp_path), TEXTS), ours)


def test_a_padding_token_that_ends_replies_makes_transformers_read_the_one_before(tmp_path: Path) -> None:
    """Why ``RewardFolder`` names none in that case."""
    transformers = pytest.importorskip("transformers")
    model = saved("Qwen3", tmp_path, pad_token_id=1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        (logit,) = theirs(torch.tensor([TEXTS[4]])).logits.flatten()
    before, ended = rewards(model, [TEXTS[4][:-1], TEXTS[4]])
    assert float(logit) == pytest.approx(float(before), abs=1e-5)
    assert abs(float(ended - before)) > 0.01
    theirs.config.pad_token_id = None
    with torch.no_grad():
        (logit,) = theirs(torch.tensor([TEXTS[4]])).logits.flatten()
    assert float(logit) == pytest.approx(float(ended), abs=1e-5)


@pytest.mark.parametrize("pass_tokens", [1, 7, 4096])
def test_a_reward_does_not_depend_on_its_neighbours(pass_tokens: int) -> None:
    model = RewardModel.of(tiny_model(), seed=0).eval()
    alone = torch.cat([rewards(model, [text]) for text in TEXTS])
    torch.testing.assert_close(rewards(model, TEXTS, pass_tokens), alone, atol=1e-6, rtol=1e-5)
    if pass_tokens == 1:
        assert torch.equal(rewards(model, TEXTS, pass_tokens), alone)  # every text has a pass of its own


def test_sequences_of_one_row_do_not_see_each_other() -> None:
    model = RewardModel.of(tiny_model(), seed=0).eval()
    row = TEXTS[0] + TEXTS[1]
    rows = Rows(torch.tensor([row, [*TEXTS[2], *TEXTS[4], 0, 0, 0]]), torch.tensor([9, 6]))
    ends = torch.zeros(2, 9, dtype=torch.bool)
    ends[0, [2, 8]] = ends[1, [1, 5]] = True
    values = RewardHead()(model, rows, ends).values
    assert values is not None
    torch.testing.assert_close(values[ends], rewards(model, [TEXTS[n] for n in (0, 1, 2, 4)]), atol=1e-6, rtol=1e-5)
    assert not values[~ends].any()


def test_a_new_head_is_drawn_by_its_seed_and_the_trunk_is_the_policys() -> None:
    base = tiny_model()
    one, same, other = (RewardModel.of(base, seed) for seed in (0, 0, 1))
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    told = base.state_dict()
    assert all(torch.equal(tensor, told[name]) for name, tensor in one.trunk.state_dict().items())
    with torch.no_grad():
        next(one.trunk.parameters()).zero_()
    assert base.model.embed_tokens.weight.any()  # a copy


@pytest.mark.parametrize("length", [0, 65])
def test_a_text_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(DataError, match="reads from 1 to 64 tokens"):
        rewards(RewardModel.of(tiny_model(), seed=0), [[1] * length])


def damaged(folder: Path, how: str) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    if how == "without head":
        del tensors["score.weight"]
    elif how == "two labels":
        tensors["score.weight"] = torch.zeros(2, 32)
    elif how == "not finite":
        tensors["score.weight"] = torch.full((1, 32), float("nan"))
    elif how == "an extra tensor":
        tensors["score.bias"] = torch.zeros(1)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("without head", "no score.weight of shape"),
        ("two labels", "no score.weight of shape"),
        ("not finite", "not finite"),
        ("an extra tensor", "score.bias"),
    ],
)
def test_damaged_folders_are_refused(how: str, words: str, tmp_path: Path) -> None:
    saved("Qwen3", tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(CheckpointError, match=words):
        loaded(tmp_path)


@pytest.mark.parametrize("kinds", [None, [], ["Qwen3ForCausalLM"], ["LlamaForSequenceClassification"], 3])
def test_a_folder_of_another_kind_is_refused(kinds: object, tmp_path: Path) -> None:
    saved("Qwen3", tmp_path, architectures=kinds)
    with pytest.raises(CheckpointError, match="architectures"):
        loaded(tmp_path)
