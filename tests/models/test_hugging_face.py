"""What we save, transformers loads, and computes the same."""

import json

import pytest
import torch

from conftest import tiny_model
from longthought.core.errors import CheckpointError, SettingsError
from longthought.core.types import Message
from longthought.models.attention import PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.rope import LinearScaling, Llama3Scaling, YarnScaling
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

WORDS = [*map(str, range(10)), "use", "make", "<think>", "</think>", "得"]
KINDS = [
    {},
    {"tie_word_embeddings": True},
    {"qkv_bias": True},
    {"qk_norm": False},
    {"qk_norm": False, "qkv_bias": True},
    {"qk_norm": False, "tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 5e5},
    {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    {"qk_norm": False, "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 16), "rope_theta": 100.0},
    {"rope_scaling": LinearScaling(4.0), "head_dim": 12, "rms_norm_eps": 1e-3},
    {"rope_scaling": YarnScaling(4.0, 16), "rope_theta": 100.0},
    {"qk_norm": False, "qkv_bias": True, "rope_scaling": YarnScaling(8.0, 8, attention_factor=1.5, truncate=False)},
]


def policy(**kind: object) -> Policy:
    tokenizer = Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END))
    return Policy(tiny_model(vocab_size=tokenizer.size, **kind), PlainRenderer(tokenizer))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_transformers_computes_the_same_logits(kind: dict, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    made = policy(**kind)
    Checkpoint.save(tmp_path / "model", made, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokens = torch.randint(0, made.model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    attend = PackedAttention([40])
    with torch.no_grad():
        ours = made.model(tokens[0], attend.positions, attend) @ made.model.lm_head.weight.T
        torch.testing.assert_close(ours, theirs(tokens).logits[0], atol=1e-5, rtol=1e-5)
    assert theirs.generation_config.eos_token_id == made.renderer.tokenizer.id_of(END)


def test_transformers_tokenizes_the_same(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    made = policy()
    Checkpoint.save(tmp_path / "model", made, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    chat = [{"role": "user", "content": "use 9 4 3 make 3 3"}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tuple(ids) == made.renderer.prompt((Message("user", "use 9 4 3 make 3 3"),))
    reply = (*ids, *made.renderer.tokenizer.encode("<think> 得 </think>"), made.renderer.tokenizer.id_of(END))
    assert theirs.decode(reply[len(ids) :], skip_special_tokens=True) == made.renderer.text(reply[len(ids) :])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_round_trip(kind: dict, tmp_path) -> None:
    made = policy(**kind)
    again = Checkpoint.save(tmp_path / "model", made, {"note": "x"}).load()
    assert again.model.config == made.model.config
    assert made.model.config.parameters() == sum(p.numel() for p in again.model.parameters())
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert again.renderer.tokenizer.encode("use 9 得") == made.renderer.tokenizer.encode("use 9 得")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_one_flipped_byte_is_refused(name: str, tmp_path) -> None:
    Checkpoint.save(tmp_path / "model", policy(), {})
    file = tmp_path / "model" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint(tmp_path / "model").load()


def test_a_truncated_or_missing_file_is_refused(tmp_path) -> None:
    Checkpoint.save(tmp_path / "model", policy(), {})
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="altered or cut short"):
        Checkpoint(tmp_path / "model").load()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors (cannot be read|is missing)"):
        Checkpoint(tmp_path / "model").load()
    with pytest.raises(CheckpointError, match=r"no model folder|config.json is missing"):
        Checkpoint(tmp_path).load()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}, "dynamic"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "sliding"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": None}, "hidden_size|needed entry"),
    ],
)
def test_what_we_cannot_run_is_refused_with_the_reason(change: dict, said: str) -> None:
    config = {**ModelConfig(vocab_size=10).to_hf(), "rope_parameters": None, **change}
    with pytest.raises(CheckpointError, match=said):
        ModelConfig.from_hf(config)


def test_shapes_that_make_no_sense_are_refused() -> None:
    for change in ({"num_key_value_heads": 3}, {"head_dim": 7}, {"vocab_size": 0}):
        with pytest.raises(SettingsError):
            ModelConfig(**{"vocab_size": 10, **change})


@pytest.mark.parametrize("width", [32, 64, 96, 128, 256, 512])
def test_one_dial_gives_sizes_that_grow(width: int) -> None:
    config = ModelConfig.sized(width, 100)
    assert config.head_dim * config.num_attention_heads == config.hidden_size == width
    assert config.parameters() > ModelConfig.sized(max(32, width - 32), 100).parameters() or width == 32
    assert json.loads(json.dumps(config.to_hf()))["hidden_size"] == width
