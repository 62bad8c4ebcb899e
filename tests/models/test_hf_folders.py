"""Folders of every family are read as transformers reads them, and what we write it reads: bit for bit."""

from pathlib import Path

import pytest
import torch
from hf_models import FAMILIES, config_of, of_transformers, opened
from model_folders import logits, read, write_json

from longthought.models import weights
from longthought.models.config import ModelConfig

TOKENS = torch.randint(0, 37, (60,), generator=torch.Generator().manual_seed(0))
SEEDS = [(kind, seed) for kind, count in zip(FAMILIES, (8, 6, 3, 2, 2, 2)) for seed in range(count)]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("kind", "seed"), SEEDS)
def test_their_folder_gives_their_logits_and_goes_back(kind: str, seed: int, tmp_path: Path) -> None:
    theirs = of_transformers(kind, seed)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=["1GB", "20KB"][seed % 2])
    with torch.no_grad():
        expected = theirs(TOKENS[None]).logits[0]
        greedy = theirs.generate(TOKENS[None, :9], max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
    ours = read(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours, TOKENS), expected, atol=1e-5, rtol=1e-5)
    tokens = TOKENS[:9]
    for _ in range(12):
        tokens = torch.cat((tokens, logits(ours, tokens)[-1:].argmax(-1)))
    assert torch.equal(tokens, greedy)

    config = config_of(tmp_path / "theirs")
    weights.save_folder(ours, tmp_path / "ours", shard_bytes=[10**9, 20_000][seed % 2])
    write_json(tmp_path / "ours" / "config.json", ours.config.to_hf(config))
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "ours")(TOKENS[None]).logits[0], expected, atol=0, rtol=0)
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    again = read(tmp_path / "ours")
    assert again.config == ours.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_of_our_own_is_theirs(kind: str, tmp_path: Path) -> None:
    """Without the config that the model came with."""
    theirs = of_transformers(kind, 1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read(tmp_path / "theirs")
    weights.save_folder(ours, tmp_path / "ours")
    write_json(tmp_path / "ours" / "config.json", ours.config.to_hf())
    assert ModelConfig.read(tmp_path / "ours") == ours.config
    with torch.no_grad():
        torch.testing.assert_close(
            opened(tmp_path / "ours")(TOKENS[None]).logits[0], theirs(TOKENS[None]).logits[0], atol=0, rtol=0
        )


def test_a_mistral_stays_one(tmp_path: Path) -> None:
    of_transformers("mistral", 0).save_pretrained(tmp_path)
    config, ours = config_of(tmp_path), read(tmp_path)
    assert ours.config.model_type == "llama"
    written = ours.config.to_hf(config)
    assert (written["model_type"], written["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert written["sliding_window"] is None
    assert ModelConfig.from_hf(written) == ours.config


def test_the_bias_of_the_choice_is_float32_in_a_model_of_any_type(tmp_path: Path) -> None:
    of_transformers("deepseek_v3", 0, first_k_dense_replace=0).save_pretrained(tmp_path / "theirs")
    wide, narrow = read(tmp_path / "theirs"), read(tmp_path / "theirs", torch.bfloat16)
    weights.save_folder(narrow, tmp_path / "narrow")
    weights.save_folder(wide, tmp_path / "half", dtype=torch.float16)
    for name, tensor in wide.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(narrow.state_dict()[name], tensor)
            for folder in ("narrow", "half"):
                assert torch.equal(stored(tmp_path / folder)[name], tensor)
        else:
            assert narrow.state_dict()[name].dtype == torch.bfloat16
    write_json(tmp_path / "narrow" / "config.json", narrow.config.to_hf(dtype=torch.bfloat16))
    theirs = opened(tmp_path / "narrow").state_dict()
    assert all(torch.equal(theirs[name], wide.state_dict()[name]) for name in theirs if name.endswith("_bias"))
