"""Modules that predict further tokens in a folder: as the official one of DeepSeek-V3 holds them."""

import logging
from pathlib import Path

import pytest
import torch
from hf_models import config_of, of_transformers
from model_folders import logits, read, sound_folder, store, write_json

from longthought.core.errors import CheckpointError
from longthought.models import weights
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.parts import Experts, Latent

WEIGHTS = "model.safetensors"
DEPTH = 2
KIND = {
    "qk_norm": False,
    "num_attention_heads": 2,
    "latent": Latent(6, 6, 4, 5, q_lora_rank=7),
    "experts": Experts(4, 2, 8, 1, dense_layers=(0,)),
    "num_nextn_predict_layers": DEPTH,
}
EMBEDDING, HEAD = "model.layers.2.embed_tokens.weight", "model.layers.3.shared_head.head.weight"


def held(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_the_official_folder(tied: bool, tmp_path: Path) -> None:
    model = sound_folder(tmp_path, **KIND, tie_word_embeddings=tied)
    found, mtp = held(tmp_path), model.model.mtp
    further = {"enorm", "hnorm", "eh_proj", "shared_head", "embed_tokens"}
    for k in range(DEPTH):
        layer = f"model.layers.{2 + k}."
        names = {name.removeprefix(layer) for name in found if name.startswith(layer)}
        before = {name.removeprefix("model.layers.1.") for name in found if name.startswith("model.layers.1.")}
        assert before <= names
        assert {name.split(".")[0] for name in names - before} == further
        assert torch.equal(found[layer + "eh_proj.weight"], mtp[k].eh_proj.weight)
        assert torch.equal(found[layer + "shared_head.norm.weight"], mtp[k].norm.weight)
        assert torch.equal(found[layer + "mlp.experts.3.up_proj.weight"], mtp[k].block.mlp.experts.up_proj[3])
    assert torch.equal(found[EMBEDDING], model.model.embed_tokens.weight)
    assert torch.equal(found[HEAD], model.lm_head.weight)
    again = read(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_transformers_predicts_the_same(tmp_path: Path) -> None:
    """Its own modules, made from our folder, against ``Transformer.ahead``; and its drafts change no greedy reply."""
    transformers = pytest.importorskip("transformers")
    model = sound_folder(tmp_path, **KIND)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[23].*"]
    mtp = transformers.modeling_layers.MtpModel.from_pretrained(theirs).eval()
    tokens = torch.randint(0, 23, (30,), generator=torch.Generator().manual_seed(0))
    attend = PackedAttention([len(tokens)])
    following = torch.stack([tokens.roll(-1), tokens.roll(-2)])
    with torch.no_grad():
        hidden = model(tokens, attend.positions, attend)
        ours = model.ahead(hidden, following, attend.positions, attend)
        state = theirs.model(tokens[None]).last_hidden_state
        torch.testing.assert_close(hidden, state[0], atol=1e-5, rtol=1e-5)
        for k in range(DEPTH):
            state = mtp.forward_layer(k, state, attend.positions[None], None, input_ids=following[k][None])
            torch.testing.assert_close(ours[k], state[0], atol=1e-5, rtol=1e-5)
        plain = theirs.generate(tokens[None, :7], max_new_tokens=15, do_sample=False, eos_token_id=None)
        drafted = theirs.generate(tokens[None, :7], max_new_tokens=15, do_sample=False, eos_token_id=None, use_mtp=True)
    assert torch.equal(plain, drafted)


def test_a_folder_that_has_lost_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``save_pretrained`` writes the config with them and the weights without."""
    of_transformers("deepseek_v3", 0, num_mtp_layers=2).save_pretrained(tmp_path)
    assert ModelConfig.read(tmp_path).num_nextn_predict_layers == 2
    with caplog.at_level(logging.WARNING):
        ours = read(tmp_path)
        read(tmp_path)
    [told] = caplog.messages
    assert f"{tmp_path / WEIGHTS}: its config speaks of 2 module(s)" in told
    assert ours.config.num_nextn_predict_layers == 0
    assert weights.compare(ModelConfig.read(tmp_path), weights.open_folder(tmp_path)) == ours.config
    assert not hasattr(ours.model, "mtp")
    assert ours.config.to_hf(config_of(tmp_path))["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("left_out", [{EMBEDDING}, {HEAD}, {EMBEDDING, HEAD}])
def test_copies_of_shared_matrices_may_be_missing(left_out: set[str], tmp_path: Path) -> None:
    model = sound_folder(tmp_path, **KIND)
    store(tmp_path / WEIGHTS, {name: tensor for name, tensor in held(tmp_path).items() if name not in left_out})
    tokens = torch.arange(20)
    assert torch.equal(logits(read(tmp_path), tokens), logits(model, tokens))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({EMBEDDING: torch.zeros(23, 32)}, f"{EMBEDDING} is not equal to model.embed_tokens.weight, which modules"),
        ({HEAD: torch.ones(23, 32)}, f"{HEAD} is not equal to lm_head.weight"),
        ({HEAD: torch.full((23, 32), torch.nan)}, f"{HEAD} holds numbers that are not finite"),
        ({EMBEDDING: torch.zeros(22, 32)}, rf"{EMBEDDING} has shape \[22, 32\]"),
        ({"model.layers.2.enorm.weight": None}, "lacks model.layers.2.enorm.weight"),
        ({"model.layers.3.mlp.experts.3.up_proj.weight": None}, "lacks model.layers.3.mlp.experts.3.up_proj.weight"),
        ({"model.layers.1.mlp.experts.3.up_proj.weight": None}, "lacks model.layers.1.mlp.experts.3.up_proj.weight"),
        ({"model.layers.1.mlp.experts.4.up_proj.weight": torch.ones(6, 32)}, "holds 'model.layers.1.mlp.experts.4"),
        ({"model.layers.1.mlp.experts.2.down_proj.weight": torch.ones(6, 32)}, r"has shape \[6, 32\].*\[32, 8\]"),
        ({"model.layers.1.mlp.gate.e_score_correction_bias": None}, "lacks .*e_score_correction_bias"),
        ({"model.layers.1.mlp.gate.e_score_correction_bias": torch.ones(5)}, r"\[5\].*\[4\]"),
        ({"model.layers.1.mlp.gate.e_score_correction_bias": torch.full((4,), torch.inf)}, "not finite"),
        ({"model.layers.4.enorm.weight": torch.ones(32)}, "layers.4.enorm.*num_nextn_predict_layers=2"),
        ({f"model.layers.{'9' * 5000}.enorm.weight": torch.ones(32)}, "does not speak of"),
        ({"model.layers.0.mlp.gate.weight": torch.ones(4, 32)}, "holds 'model.layers.0.mlp.gate.weight'"),
    ],
    ids=lambda value: next(iter(value))[:60] if isinstance(value, dict) else "",
)
def test_damage_is_refused_with_the_reason(change: dict, said: str, tmp_path: Path) -> None:
    sound_folder(tmp_path, **KIND)
    found = held(tmp_path) | change
    store(tmp_path / WEIGHTS, {name: tensor for name, tensor in found.items() if tensor is not None})
    with pytest.raises(CheckpointError, match=said) as caught:
        read(tmp_path)
    assert len(str(caught.value)) < 1000


def test_modules_that_the_config_denies_are_refused(tmp_path: Path) -> None:
    model = sound_folder(tmp_path, **KIND)
    write_json(tmp_path / "config.json", model.config.to_hf() | {"num_nextn_predict_layers": 0})
    with pytest.raises(CheckpointError, match=r"model.layers.2.*num_nextn_predict_layers=0"):
        read(tmp_path)
