"""Weights of eight bits with a scale for every block, as the official folder of DeepSeek-V3 has them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_models import config_of, of_transformers, opened
from hypothesis import given
from hypothesis import strategies as st
from model_folders import change_json, logits, read, store, write_json

from longthought.core.errors import CheckpointError
from longthought.models import weights
from longthought.models.config import ModelConfig
from longthought.models.float8 import Blocks

WEIGHTS, SCALE = "model.safetensors", "_scale_inv"
QUANTIZED = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [8, 16], "activation_scheme": "dynamic"}
MATRIX = "model.layers.1.mlp.experts.2.down_proj.weight"


def test_by_hand() -> None:
    """Blocks of 2 × 3, of which those at the edges are smaller."""
    stored = torch.arange(20).reshape(4, 5).to(torch.float8_e4m3fn)
    out = torch.empty(4, 5)
    Blocks(2, 3).dequantize(stored, torch.tensor([[1.0, 2.0], [0.5, -1.0]]), out)
    assert out[0].tolist() == [0, 1, 2, 3 * 2, 4 * 2]
    assert out[3].tolist() == [15 / 2, 16 / 2, 8, -18, -20]  # 17 and 19 are no numbers of this format


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), high=st.integers(1, 4), wide=st.integers(1, 4))
def test_every_number_is_multiplied_by_the_scale_of_its_block(rows: int, columns: int, high: int, wide: int) -> None:
    blocks = Blocks(high, wide)
    stored = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(blocks.scales((rows, columns)))
    out = torch.empty(rows, columns)
    blocks.dequantize(stored, scale, out)
    for row in range(rows):
        for column in range(columns):
            assert out[row, column] == stored[row, column].float() * scale[row // high, column // wide]


def quantized(folder: Path) -> dict[str, torch.Tensor]:
    """A folder with eight bits, and what its matrices are. Router, norms, embeddings and head stay wide."""
    from safetensors.torch import load_file

    of_transformers("deepseek_v3", 1, first_k_dense_replace=1, n_routed_experts=4, n_group=1).save_pretrained(folder)
    meant, held = load_file(folder / WEIGHTS), {}
    for name, tensor in meant.items():
        if tensor.dim() == 2 and not any(part in name for part in ("gate.weight", "embed", "lm_head")):
            rows, columns = -(-tensor.shape[0] // 8), -(-tensor.shape[1] // 16)
            scale = torch.rand(rows, columns) + 0.5
            held[name + SCALE] = scale
            by_number = scale.repeat_interleave(8, 0).repeat_interleave(16, 1)[: tensor.shape[0], : tensor.shape[1]]
            held[name] = (tensor / by_number).to(torch.float8_e4m3fn)
            meant[name] = held[name].float() * by_number
        else:
            held[name] = tensor.bfloat16() if tensor.dim() == 2 else tensor
            meant[name] = held[name].float()
    store(folder / WEIGHTS, held)
    change_json(folder / "config.json", quantization_config=QUANTIZED)
    return meant


def test_a_folder_is_read_and_saved_without_them(tmp_path: Path) -> None:
    meant = quantized(tmp_path / "theirs")
    ours = read(tmp_path / "theirs")
    found = weights.state(ours)
    assert found.keys() == meant.keys()
    assert all(torch.equal(tensor, meant[name]) for name, tensor in found.items())
    narrow = weights.state(read(tmp_path / "theirs", torch.bfloat16))
    assert all(torch.equal(narrow[name], meant[name].to(narrow[name].dtype)) for name in meant)
    config = ours.config.to_hf(config_of(tmp_path / "theirs"))
    assert "quantization_config" not in config
    weights.save_folder(ours, tmp_path / "ours")
    write_json(tmp_path / "ours" / "config.json", config)
    tokens = torch.arange(30)
    with torch.no_grad():
        expected = opened(tmp_path / "ours")(tokens[None]).logits[0]
    torch.testing.assert_close(logits(ours, tokens), expected, atol=1e-5, rtol=1e-5)


def test_one_block_may_be_larger_than_every_matrix(tmp_path: Path) -> None:
    quantized(tmp_path)
    held = weights.open_folder(tmp_path)[0].tensors()
    one = {name: torch.full((1, 1), 2.0) if name.endswith(SCALE) else tensor for name, tensor in held.items()}
    store(tmp_path / WEIGHTS, one)
    change_json(tmp_path / "config.json", quantization_config={**QUANTIZED, "weight_block_size": [10**30, 10**30]})
    assert torch.equal(weights.state(read(tmp_path))[MATRIX], 2 * one[MATRIX].float())


def test_scales_may_lie_in_another_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    meant = quantized(tmp_path)
    held = load_file(tmp_path / WEIGHTS)
    shards = {"a.safetensors": {n: t for n, t in held.items() if n.endswith(SCALE)}}
    shards["b.safetensors"] = {n: t for n, t in held.items() if not n.endswith(SCALE)}
    for name, shard in shards.items():
        store(tmp_path / name, shard)
    places = {name: file for file, shard in shards.items() for name in shard}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": places})
    (tmp_path / WEIGHTS).unlink()
    assert all(torch.equal(tensor, meant[name]) for name, tensor in weights.state(read(tmp_path)).items())


Damage = Callable[[dict[str, torch.Tensor]], object]
DAMAGED: dict[str, tuple[Damage, str]] = {
    "no scale": (lambda held: held.pop(MATRIX + SCALE), f"lacks {MATRIX}{SCALE}"),
    "scale of another shape": (
        lambda held: held.update({MATRIX + SCALE: torch.ones(3, 2)}),
        rf"{MATRIX}{SCALE} has shape \[3, 2\].*blocks of 8 × 16 need scales of shape \[4, 1\]",
    ),
    "scale of eight bits": (
        lambda held: held.update({MATRIX + SCALE: held[MATRIX + SCALE].to(torch.float8_e4m3fn)}),
        "in torch.float8_e4m3fn; blocks of 8 × 16 need scales",
    ),
    "scale of nothing": (
        lambda held: held.update({"model.norm.weight" + SCALE: torch.ones(1, 1)}),
        f"holds 'model.norm.weight{SCALE}'",
    ),
    "a scale that is not finite": (lambda held: held[MATRIX + SCALE].fill_(torch.inf), f"{MATRIX} holds numbers"),
    "not a number": (
        lambda held: held[MATRIX].view(torch.uint8).fill_(0x7F),
        f"{MATRIX} holds numbers that are not finite",
    ),
    "a norm of eight bits": (
        lambda held: held.update({"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}),
        "model.norm.weight has eight bits, which only matrices",
    ),
    "another matrix": (
        lambda held: held.update({MATRIX: torch.ones(32, 11).to(torch.float8_e4m3fn)}),
        rf"{MATRIX} has shape \[32, 11\]",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    damage, said = DAMAGED[kind]
    quantized(tmp_path)
    held = load_file(tmp_path / WEIGHTS)
    damage(held)
    store(tmp_path / WEIGHTS, held)
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path)


def test_eight_bits_that_the_config_does_not_explain(tmp_path: Path) -> None:
    quantized(tmp_path)
    change_json(tmp_path / "config.json", quantization_config=None)
    with pytest.raises(CheckpointError, match=r"has eight bits, and config.json has no quantization_config"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "gptq"}, "quantized by 'gptq'.*known is fp8"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme='static'"),
        ({"weight_block_size": None}, "weight_block_size"),
        ({"weight_block_size": [128]}, "weight_block_size"),
        ({"weight_block_size": [0, 128]}, "weight_block_size"),
        ({"weight_block_size": [128, True]}, "weight_block_size"),
        ({"weight_block_size": "128"}, "weight_block_size"),
        ({"expert_dtype": "fp4"}, "expert_dtype='fp4'"),
        ({"bits": 4}, "bits=4"),
    ],
)
def test_other_ways_to_quantize_are_refused_with_the_reason(change: dict, said: str) -> None:
    config = {"model_type": "deepseek_v3", "quantization_config": QUANTIZED}
    ModelConfig.from_hf(config)
    with pytest.raises(CheckpointError, match=said):
        ModelConfig.from_hf({**config, "quantization_config": {**QUANTIZED, **change}})
    with pytest.raises(CheckpointError, match="fp8"):
        ModelConfig.from_hf({**config, "quantization_config": ["fp8"]})
