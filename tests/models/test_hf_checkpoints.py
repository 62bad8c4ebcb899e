"""Checkpoints and LoRAs of models with latent attention, routed experts and further predictions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_folders import logits

from longthought.models import lora
from longthought.models.cache import Prefill
from longthought.models.lora import LoRA
from longthought.models.parts import Experts
from longthought.models.presets import sized
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.of_words(["use", "make", *"0123456789"], (BEGIN, USER, ASSISTANT, END))
TOKENS = torch.tensor([1, 5, 2, 9, 9, 3, 0, 11])


def model(**change: object) -> Transformer:
    """A DeepSeek-V3 in which everything matters."""
    made = Transformer(replace(sized("deepseek_v3", 32, TOKENIZER.size), **change))
    initialize(made, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.add_(0.15 * torch.randn(tensor.shape, generator=generator))
    return made.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_is_loaded_again_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    made = model()
    again = Checkpoint.save(tmp_path / "model", Policy(made, PlainRenderer(TOKENIZER)), {}).load(dtype)
    assert again.model.config == made.config
    loaded = again.model.state_dict()
    assert loaded.keys() == made.state_dict().keys()
    for name, tensor in made.state_dict().items():
        wanted = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        assert loaded[name].dtype == wanted
        assert torch.equal(loaded[name], tensor.to(wanted))
    second = Checkpoint.save(tmp_path / "again", again, {}).load(dtype)
    assert all(torch.equal(tensor, second.model.state_dict()[name]) for name, tensor in loaded.items())


def test_a_noisy_gate_is_kept(tmp_path: Path) -> None:
    """Transformers passes it over: where nothing is trained, there is no noise."""
    experts = Experts(4, 2, 16, score="softmax", noisy=True)
    made = model(latent=None, experts=experts, qk_norm=True, num_nextn_predict_layers=0)
    Checkpoint.save(tmp_path / "model", Policy(made, PlainRenderer(TOKENIZER)), {})
    again = Checkpoint(tmp_path / "model").load().model
    assert again.config == made.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in made.state_dict().items())
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS[None]).logits[0], logits(made, TOKENS), atol=1e-5, rtol=1e-5)


def adapted(made: Transformer, settings: LoRA | None = None) -> Transformer:
    lora.add(made, settings or LoRA(rank=3, alpha=5.0), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in lora.adapter_state(made).values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return made


def test_a_lora_adapts_the_linear_layers_of_the_blocks_alone() -> None:
    made = adapted(model())
    names = {name.removesuffix(".lora_A.weight") for name in lora.adapter_state(made) if "lora_A" in name}
    assert not any(part in name for name in names for part in (".gate.", ".experts.", ".mtp."))
    last = {name.removeprefix("model.layers.1.") for name in names if name.startswith("model.layers.1.")}
    nets = {f"mlp.shared_experts.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    attention = {f"self_attn.{name}" for name in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
    assert last == nets | attention


def test_a_lora_is_merged_when_it_is_saved(tmp_path: Path) -> None:
    made = adapted(model())
    Checkpoint.save(tmp_path / "model", Policy(made, PlainRenderer(TOKENIZER)), {})
    plain = Checkpoint(tmp_path / "model").load().model
    torch.testing.assert_close(logits(plain, TOKENS), logits(made, TOKENS), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.mtp.parameters(), made.model.mtp.parameters()))
    told = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert told["target_modules"] == sorted(
        {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    )
    again = model()
    lora.load(again, tmp_path / "model" / "adapter")
    assert torch.equal(logits(again, TOKENS), logits(made, TOKENS))


def test_a_lora_is_part_of_what_decoding_absorbs() -> None:
    made = adapted(model())
    attend = Prefill([len(TOKENS)])
    with torch.no_grad():
        absorbed = made(TOKENS, attend.positions, attend) @ made.lm_head.weight.T
        torch.testing.assert_close(absorbed, logits(made, TOKENS), atol=1e-5, rtol=1e-5)
        with lora.disabled(made):
            plain = made(TOKENS, attend.positions, attend) @ made.lm_head.weight.T
    assert not torch.allclose(plain, absorbed, atol=1e-2)


def test_peft_reads_a_lora_of_the_attention(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    made = model()
    Checkpoint.save(tmp_path / "model", Policy(made, PlainRenderer(TOKENIZER)), {})
    adapted(made, LoRA(3, 5.0, ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")))
    lora.save(made, tmp_path / "adapter", "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS[None]).logits[0], logits(made, TOKENS), atol=1e-5, rtol=1e-5)
