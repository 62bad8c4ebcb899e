"""Weights written anew: the same numbers in another type, one tensor at a time."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from hf_models import FAMILIES, config_of, of_transformers, opened
from model_folders import change_json, logits, read, sound_folder, store, write_json
from torch import Tensor

from longthought.core.errors import CheckpointError
from longthought.models import lora, weights
from longthought.models.config import ModelConfig
from longthought.models.conversion import Conversion, natural_type, stored_types
from longthought.models.presets import sized
from longthought.models.reading import Plan, plan
from longthought.models.safetensors_file import TensorFile
from longthought.models.transformer import Transformer, initialize

TOKENS = torch.arange(20)


def conversion(folder: Path, dtype: torch.dtype | None = None, adapter: Path | None = None) -> Conversion:
    source = plan(ModelConfig.read(folder), weights.open_folder(folder))
    return Conversion(source, dtype or natural_type(source), adapter)


def converted(folder: Path, target: Path, dtype: torch.dtype | None = None, shard_bytes: int = 2**30) -> Conversion:
    work = conversion(folder, dtype)
    work.write(target, shard_bytes)
    write_json(target / "config.json", work.config.to_hf(config_of(folder), work.dtype))
    work.verify(target)
    return work


def stored(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def v3(folder: Path) -> Transformer:
    """A small model with latent attention, experts and a module that predicts further, on the disk."""
    model = Transformer(sized("deepseek_v3", 64, 50))
    initialize(model, 0)
    weights.save_folder(model, folder)
    write_json(folder / "config.json", model.config.to_hf())
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_computes_what_it_did(kind: str, tmp_path: Path) -> None:
    theirs = of_transformers(kind, 3)
    theirs.save_pretrained(tmp_path / "theirs")
    work = converted(tmp_path / "theirs", tmp_path / "ours", shard_bytes=20_000)
    assert work.exact
    assert work.dtype == torch.float32
    with torch.no_grad():
        again = opened(tmp_path / "ours")(TOKENS[None]).logits
        torch.testing.assert_close(again, theirs(TOKENS[None]).logits, atol=0, rtol=0)
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3"])
def test_a_narrow_type_is_rounded_once_and_the_bias_of_the_choice_is_not(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    of_transformers(kind, 3).save_pretrained(tmp_path / "theirs")
    work = converted(tmp_path / "theirs", tmp_path / "ours", dtype)
    assert not work.exact
    after = stored(tmp_path / "ours")
    for name, tensor in stored(tmp_path / "theirs").items():
        assert torch.equal(after[name], tensor if name.endswith("correction_bias") else tensor.to(dtype))
    assert config_of(tmp_path / "ours")["dtype"] == str(dtype).removeprefix("torch.")
    size = sum(tensor.numel() * tensor.element_size() for tensor in after.values())
    assert work.bytes == size
    assert converted(tmp_path / "ours", tmp_path / "again").exact
    assert all(torch.equal(tensor, after[name]) for name, tensor in stored(tmp_path / "again").items())


def test_eight_bits_are_multiplied_by_the_scales_of_their_blocks(tmp_path: Path) -> None:
    v3(tmp_path)
    tensors, expected = stored(tmp_path), {}
    narrow: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or ".layers." not in name or "gate.weight" in name:
            expected[name] = narrow[name] = tensor
            continue
        rows, columns = -(-tensor.shape[0] // 16), -(-tensor.shape[1] // 24)
        scale = torch.rand(rows, columns, generator=generator) + 0.5
        narrow[name] = torch.randn(tensor.shape, generator=generator).to(torch.float8_e4m3fn)
        narrow[f"{name}_scale_inv"] = scale
        spread = scale.repeat_interleave(16, 0).repeat_interleave(24, 1)[: tensor.shape[0], : tensor.shape[1]]
        expected[name] = narrow[name].float() * spread
    for name, shared in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        copy = f"model.layers.3.{name}.weight"
        narrow.pop(f"{copy}_scale_inv")
        expected[copy] = narrow[copy] = tensors[f"{shared}.weight"]
    store(tmp_path / "model.safetensors", narrow)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 24]}
    change_json(tmp_path / "config.json", quantization_config=quantization)

    work = converted(tmp_path, tmp_path / "wide", torch.float32)
    assert stored_types(work.source).most_common(1)[0][0] == torch.float8_e4m3fn
    after = stored(tmp_path / "wide")
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())
    assert "quantization_config" not in config_of(tmp_path / "wide")
    natural = converted(tmp_path, tmp_path / "natural")
    assert natural.dtype == torch.bfloat16
    assert torch.equal(stored(tmp_path / "natural")["lm_head.weight"], tensors["lm_head.weight"].bfloat16())
    assert all(
        torch.equal(tensor, expected[name].to(tensor.dtype)) for name, tensor in stored(tmp_path / "natural").items()
    )


def test_copies_that_are_missing_are_written_and_copies_that_differ_refused(tmp_path: Path) -> None:
    v3(tmp_path)
    tensors = stored(tmp_path)
    copy = "model.layers.3.embed_tokens.weight"
    store(tmp_path / "model.safetensors", {name: tensor for name, tensor in tensors.items() if name != copy})
    converted(tmp_path, tmp_path / "whole")
    assert torch.equal(stored(tmp_path / "whole")[copy], tensors["model.embed_tokens.weight"])
    store(tmp_path / "model.safetensors", tensors | {copy: tensors[copy] + 1})
    with pytest.raises(CheckpointError, match="is not equal to"):
        conversion(tmp_path).write(tmp_path / "never", 2**30)
    assert not (tmp_path / "never").exists()


def test_modules_that_are_not_there_are_not_written(tmp_path: Path) -> None:
    v3(tmp_path)
    store(tmp_path / "model.safetensors", {n: t for n, t in stored(tmp_path).items() if ".layers.3." not in n})
    assert converted(tmp_path, tmp_path / "ours").config.num_nextn_predict_layers == 0
    assert config_of(tmp_path / "ours")["num_nextn_predict_layers"] == 0
    assert not any(".layers.3." in name for name in stored(tmp_path / "ours"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_lora_is_merged_as_in_memory(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    model = sound_folder(tmp_path, tie_word_embeddings=tied)
    lora.add(model, lora.LoRA(4, 8.0, ("q_proj", "down_proj")), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    lora.save(model, tmp_path / "lora", "base")
    work = conversion(tmp_path, dtype, tmp_path / "lora")
    work.write(tmp_path / "merged", 2**30)
    write_json(tmp_path / "merged" / "config.json", work.config.to_hf(dtype=dtype))
    work.verify(tmp_path / "merged")
    assert not work.exact
    expected, found = weights.state(model), stored(tmp_path / "merged")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in expected.items())
    if dtype == torch.float32:
        torch.testing.assert_close(logits(read(tmp_path / "merged"), TOKENS), logits(model, TOKENS), atol=1e-4, rtol=0)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    other = sound_folder(tmp_path / "other", hidden_size=64)
    lora.add(other, lora.LoRA(4), 0)
    lora.save(other, tmp_path / "lora", "other")
    sound_folder(tmp_path / "base")
    with pytest.raises(CheckpointError, match="fits"):
        conversion(tmp_path / "base", adapter=tmp_path / "lora").write(tmp_path / "never", 2**30)


@pytest.mark.parametrize(("number", "dtype"), [(float("nan"), None), (float("-inf"), None), (7e4, torch.float16)])
def test_numbers_that_are_not_finite_are_refused_by_name(
    number: float, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    sound_folder(tmp_path)
    tensors = stored(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    store(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        conversion(tmp_path, dtype).write(tmp_path / "never", 2**30)


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v3(tmp_path)
    alive: list[weakref.ref[Tensor]] = []
    most, read_it = [0], Plan.read

    def counted(self: Plan, item: object, out: Tensor) -> Tensor:
        gc.collect(0)
        alive.append(weakref.ref(out))
        most[0] = max(most[0], sum(other() is not None for other in alive))
        return read_it(self, item, out)

    work = conversion(tmp_path, torch.bfloat16)
    monkeypatch.setattr(Plan, "read", counted)
    monkeypatch.setattr(Conversion, "_check_copies", lambda *_: None)  # these take two
    told = iter(range(10**6))
    work.write(tmp_path / "ours", 30_000, lambda: next(told))
    assert len(alive) == next(told) == len(work.written)
    assert most == [1]


def test_a_file_that_is_larger_than_the_memory_is_read(tmp_path: Path) -> None:
    """A terabyte of nothing, which takes no place on the disk, and four numbers after it."""
    huge = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    last = {"dtype": "F32", "shape": [4], "data_offsets": [2**40, 2**40 + 16]}
    header = json.dumps({"huge": huge, "last": last}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)
        file.seek(0, 2)
        file.write(torch.arange(4.0).numpy().tobytes())
    tensors = TensorFile.open(tmp_path, "model.safetensors").tensors()
    assert torch.equal(tensors["last"], torch.arange(4.0))
    assert not tensors["huge"][[0, 2**30, -1]].any()
    tensors["huge"][7] = 1  # in this process alone
    assert not TensorFile.open(tmp_path, "model.safetensors").tensors()["huge"][7]


def test_a_folder_that_was_not_written_as_planned_is_refused(tmp_path: Path) -> None:
    sound_folder(tmp_path)
    work = converted(tmp_path, tmp_path / "ours", torch.bfloat16)
    store(tmp_path / "ours" / "model.safetensors", {n: t.float() for n, t in stored(tmp_path / "ours").items()})
    with pytest.raises(CheckpointError, match="headers"):
        work.verify(tmp_path / "ours")
    change_json(tmp_path / "ours" / "config.json", rms_norm_eps=0.5)
    with pytest.raises(CheckpointError, match="config"):
        work.verify(tmp_path / "ours")
