"""Folders of others are read as transformers reads them, and what we write it reads."""

import json
from pathlib import Path

import pytest
import torch
from model_folders import change_json, logits, read, sound_folder, store, write_json

from conftest import tiny_model
from longthought.core.errors import CheckpointError, SettingsError
from longthought.models import weights
from longthought.models.config import ModelConfig

BASE = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
THEIRS = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, **LLAMA3}, "head_dim": 16}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    ("qwen2", {"num_key_value_heads": 4, "use_sliding_window": True, "max_window_layers": 2}),
    ("qwen3", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}),
]


def theirs(kind: str, change: dict) -> torch.nn.Module:
    """A random model of transformers with weights that matter."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **BASE, max_position_embeddings=128, **change)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0.3, 0.4, generator=generator)
    return model


def as_of_version_4(config: dict) -> dict:
    rope = dict(config["rope_parameters"])
    old = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype")}
    old |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config["dtype"]}
    return old | ({"rope_scaling": rope} if rope["rope_type"] != "default" else {})


@pytest.mark.parametrize(("kind", "change"), THEIRS, ids=str)
def test_their_folder_gives_their_logits_and_goes_back(kind: str, change: dict, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = theirs(kind, change)
    model.save_pretrained(tmp_path / "theirs")
    tokens = torch.randint(0, 37, (100,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    ours = read(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours, tokens), expected, atol=1e-4, rtol=1e-5)

    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert ModelConfig.from_hf(as_of_version_4(config)) == ours.config
    weights.save_folder(ours, tmp_path / "ours", shard_bytes=15_000)
    write_json(tmp_path / "ours" / "config.json", ours.config.to_hf(config))
    again, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert [list(told[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [[], [], []]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens[None]).logits[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 20_000, 10**9])
@pytest.mark.parametrize("tied", [True, False])
def test_shards_hold_everything_once(shard_bytes: int, tied: bool, tmp_path: Path) -> None:
    model = sound_folder(tmp_path, shard_bytes, tie_word_embeddings=tied)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), read(tmp_path).parameters(), strict=True))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (files == [tmp_path / "model.safetensors"]) == (shard_bytes == 10**9)
    largest = max(tensor.nbytes for tensor in weights.state(model).values())
    assert all(file.stat().st_size <= max(shard_bytes, largest) + 4096 for file in files)


def test_a_later_save_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    for shard_bytes in (10**9, 20_000, 5_000, 10**9):
        model = sound_folder(tmp_path, shard_bytes, seed=shard_bytes % 7)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), read(tmp_path).parameters(), strict=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(SettingsError, match="shard_bytes"):
        weights.save_folder(model, tmp_path, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_numbers_are_stored_and_read(dtype: torch.dtype, tmp_path: Path) -> None:
    model = sound_folder(tmp_path)
    weights.save_folder(model, tmp_path, dtype=dtype)
    wide, narrow = read(tmp_path), read(tmp_path, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(wide.state_dict()[name], tensor.to(dtype).float())
        assert torch.equal(narrow.state_dict()[name], tensor.to(dtype))
    assert model.config.to_hf(dtype=dtype)["dtype"] == str(dtype).removeprefix("torch.")
    assert logits(narrow, torch.arange(9)).dtype == dtype


def test_training_in_place_does_not_write_to_the_folder(tmp_path: Path) -> None:
    sound_folder(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = read(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not torch.equal(next(model.parameters()), next(read(tmp_path).parameters()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_library_reads_what_we_write_at_odd_places_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = sound_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.state(model).items())
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little") + 3  # the numbers begin three bytes later: no alignment
    file.write_bytes(length.to_bytes(8, "little") + data[8 : 5 + length] + b"   " + data[5 + length :])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), read(tmp_path).parameters(), strict=True))


@pytest.mark.parametrize("how", ["only embeddings", "both", "only head", "no prefix", "no prefix, head"])
def test_every_way_to_store_a_tied_head(how: str, tmp_path: Path) -> None:
    model = sound_folder(tmp_path, tie_word_embeddings=True)
    tensors = weights.state(model)
    embedding = tensors["model.embed_tokens.weight"]
    if "prefix" in how:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if how in ("both", "only head", "no prefix, head"):
        tensors["lm_head.weight"] = embedding
    if how == "only head":
        del tensors["model.embed_tokens.weight"]
    store(tmp_path / "model.safetensors", tensors)
    loaded = read(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, embedding)


def test_a_head_that_contradicts_its_config_is_refused(tmp_path: Path) -> None:
    model = sound_folder(tmp_path, tie_word_embeddings=True)
    tensors = weights.state(model)
    store(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    with pytest.raises(CheckpointError, match="ties lm_head"):
        read(tmp_path)
    change_json(tmp_path / "config.json", tie_word_embeddings=False)
    read(tmp_path)
    store(tmp_path / "model.safetensors", {name.removeprefix("model."): t for name, t in tensors.items()})
    with pytest.raises(CheckpointError, match="without a language-model head"):
        read(tmp_path)


def test_tables_of_angles_in_old_folders_are_not_needed(tmp_path: Path) -> None:
    model = sound_folder(tmp_path, qk_norm=False)
    table = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    store(tmp_path / "model.safetensors", weights.state(model) | table)
    assert torch.equal(logits(read(tmp_path), torch.arange(9)), logits(model, torch.arange(9)))


def test_a_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    model = sound_folder(tmp_path / "made")
    for number, name in enumerate(("config.json", "model.safetensors")):
        (tmp_path / "made" / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert torch.equal(next(read(snapshot).parameters()), next(model.parameters()))


def test_one_file_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model()
    weights.save(model, tmp_path / "any.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.parameters(), weights.load(model.config, tmp_path / "any.safetensors").parameters(), strict=True
        )
    )
