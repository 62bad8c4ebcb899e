"""``longthought inspect``: published numbers from a config alone, headers of weights, and folders that are wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from longthought.cli.cost_view import short, size
from longthought.cli.main import main
from longthought.cli.parser import amount
from longthought.models import weights

Capture = pytest.CaptureFixture[str]

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def told(capsys: Capture, *words: object, code: int = 0) -> str:
    assert main(["inspect", *map(str, words)]) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


def config_of(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def model_in(folder: Path, dtype: torch.dtype = torch.float32, shard_bytes: int = 2**30) -> Path:
    model = tiny_model()
    weights.save_folder(model, folder, shard_bytes, dtype)
    return config_of(folder, model.config.to_hf(dtype=dtype))


def test_deepseek_v3(tmp_path: Path, capsys: Capture) -> None:
    lines = told(capsys, config_of(tmp_path, V3), "--memory", "80GB").splitlines()
    cells = [line.split() for line in lines]
    assert ["parameters", "671,026,404,352", "671.03", "B"] in cells
    assert ["of", "these", "active", "37,552,282,624", "37.55", "B"] in cells
    assert ["MTP", "modules", "11,610,067,968", "11.61", "B"] in cells
    assert ["MLA", "(this", "model)", "1", "35,136", "70,272", "140,544", "1.00", "×"] in cells
    assert any(line.startswith("98.24 % less than MHA") for line in lines)
    assert any(line.endswith("does not fit: weights alone take 1.34 TB") for line in lines)
    assert lines[-1] == "weights  none"


def test_llama_3_1(tmp_path: Path, capsys: Capture) -> None:
    lines = told(capsys, config_of(tmp_path, LLAMA) / "config.json", "--memory", "80GB", "--context", 8192).splitlines()
    cells = [line.split() for line in lines]
    assert ["parameters", "8,030,261,248", "8.03", "B"] in cells
    assert ["GQA", "(this", "model)", "8", "65,536", "131,072", "262,144", "1.00", "×"] in cells
    assert ["sequences", "59", "(activations", "are", "not", "counted)"] in cells


def test_json_holds_the_same_numbers(tmp_path: Path, capsys: Capture) -> None:
    found = json.loads(told(capsys, config_of(tmp_path, V3), "--json", "--memory", "1.5TB", "--precision", "bfloat16"))
    assert found["architecture"] == "deepseek_v3"
    assert found["attention"] == "MLA"
    assert found["parameters"]["total"] == sum(found["parameters"]["parts"].values()) == 671_026_404_352
    assert found["parameters"]["active"] == 37_552_282_624
    assert found["cache"][0]["bfloat16_bytes"] == 70_272
    assert found["flops"]["context"] == 4096
    assert found["flops"]["training"] == 3 * found["flops"]["reading"]
    assert found["flops"]["decoding"] - found["flops"]["matrices"] == 61 * 4096 * 2 * 128 * (192 + 128)
    assert found["flops"]["decoding_absorbed"] - found["flops"]["matrices"] == 61 * 4096 * 2 * 128 * (576 + 512)
    left = 15 * 10**11 - 2 * 671_026_404_352
    assert found["fit"]["sequences"] == left // (4096 * 70_272)
    assert found["weights"] is None


def test_a_folder_with_weights(tmp_path: Path, capsys: Capture) -> None:
    folder = model_in(tmp_path, torch.bfloat16, shard_bytes=4000)
    numbers = tiny_model().config.parameters()
    found = json.loads(told(capsys, folder, "--json"))["weights"]
    assert found["bytes"] == 2 * numbers == sum(found["files"].values())
    assert found["files"].keys() == {file.name for file in folder.glob("*.safetensors")}
    assert found["dtypes"] == {"bfloat16": found["tensors"]}
    assert found["fault"] is None
    count = len(found["files"])
    assert [line.split(maxsplit=1)[1] for line in told(capsys, folder).splitlines()[-4:]] == [
        f"model-00001-of-{count:05}.safetensors and {count - 1} more files",
        f"{2 * numbers / 1000:.2f} kB",
        f"{found['tensors']}: bfloat16 ({found['tensors']})",
        "and shapes  those of the config",
    ]


def test_only_headers_are_read(tmp_path: Path, capsys: Capture) -> None:
    """A sparse file whose header speaks of more numbers than any memory has."""
    config = {**LLAMA, "num_hidden_layers": 1, "vocab_size": 2**40, "tie_word_embeddings": True}
    entry = {"dtype": "BF16", "shape": [2**40, 4096], "data_offsets": [0, 2**53]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    folder = config_of(tmp_path, config)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "is cut short" in told(capsys, folder, code=2)


def test_weights_of_another_model_are_told_after_the_arithmetic(tmp_path: Path, capsys: Capture) -> None:
    folder = model_in(tmp_path)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    )
    assert main(["inspect", str(folder)]) == 2
    shown = capsys.readouterr()
    assert "parameters" in shown.out
    assert "not those of the config" in shown.out
    assert len(shown.err.splitlines()) == 1
    assert "config says [" in shown.err
    assert main(["inspect", str(folder), "--json"]) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["weights"]["fault"] in shown.err


def test_a_shard_that_is_missing(tmp_path: Path, capsys: Capture) -> None:
    folder = model_in(tmp_path, shard_bytes=4000)
    min(folder.glob("*.safetensors")).unlink()
    assert "is missing" in told(capsys, folder, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "float32"], "changes nothing without --memory"),
        (["--context", "200000"], "the model has 131,072 positions"),
        (["--context", "0"], "at least 1"),
        (["--memory", "80 gigs"], "a number of bytes is needed"),
        (["--memory", "0GB"], "at least one byte"),
        (["--memroy", "80GB"], "did you mean --memory"),
        (["--memory", "80GB", "--precision", "int8"], "invalid choice"),
    ],
    ids=str,
)
def test_bad_options(words: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    error = told(capsys, config_of(tmp_path, LLAMA), *words, code=2)
    assert message in error
    assert len(error.splitlines()) == 1


def test_bad_folders(tmp_path: Path, capsys: Capture) -> None:
    assert "is missing" in told(capsys, tmp_path / "nowhere", code=2)
    assert "config.json is missing" in told(capsys, tmp_path, code=2)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read as JSON" in told(capsys, tmp_path, code=2)
    config_of(tmp_path, {"model_type": "mamba"})
    error = told(capsys, tmp_path, code=2)
    assert "what can: deepseek_v3, llama, mistral, qwen2, qwen3, qwen3_moe" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("huge", ["num_hidden_layers", "vocab_size", "intermediate_size", "n_routed_experts"])
def test_a_config_of_any_size_takes_no_time(huge: str, tmp_path: Path, capsys: Capture) -> None:
    llama = {**LLAMA, huge: 10**15} if huge in LLAMA else {**V3, huge: 10**15 * 8}
    assert "parameters" in told(capsys, config_of(tmp_path, llama), "--memory", "80GB")
    llama[huge] = 10**400
    assert f"{huge} must be less than 2^63" in told(capsys, config_of(tmp_path, llama), code=2)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        *(("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("1.5 tb", 15 * 10**11), ("512", 512), ("1KiB", 1024)),
        *(
            (text, None)
            for text in ("", "5e", "-1GB", "iB", "nan", "infGB", "0.1B", "80 GB!", "8_0GB", "9" * 400, "8PB" * 2)
        ),
        *((text, None) for text in ("9999999PB", "0GB")),
    ],
)
def test_amounts(text: str, bytes_: int | None) -> None:
    if bytes_ is None:
        with pytest.raises(Exception, match="byte"):
            amount(text)
    else:
        assert amount(text) == bytes_


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (0, 999, 70_272, 16_060_522_496, 1_342_052_808_704)] == [
        "0 B",
        "999 B",
        "70.27 kB",
        "16.06 GB",
        "1.34 TB",
    ]
    assert [short(n) for n in (7, 8_030_261_248, 494_032_768, 671_026_404_352)] == [
        "7",
        "8.03 B",
        "494.03 M",
        "671.03 B",
    ]
