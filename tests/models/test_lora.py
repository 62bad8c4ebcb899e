"""A LoRA changes what it should and nothing else, and PEFT computes the same."""

import json
from pathlib import Path

import pytest
import torch
from model_folders import change_json, logits, read, sound_folder, store, write_json
from torch.nn.functional import cross_entropy

from conftest import tiny_model
from longthought.core.errors import CheckpointError, SettingsError
from longthought.models import lora, weights
from longthought.models.attention import PackedAttention
from longthought.models.lora import LoRA
from longthought.models.transformer import Transformer

TOKENS = torch.tensor([1, 5, 2, 9, 9, 3, 0, 22])
BLOCK = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def trained(settings: LoRA | None = None, **kind: object) -> Transformer:
    """A model with a LoRA whose B is not zero any more."""
    model = tiny_model(**kind)
    lora.add(model, settings or LoRA(rank=3, alpha=5.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora.adapter_state(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    model, plain = tiny_model(), tiny_model()
    lora.add(model, LoRA(rank=3), seed=0)
    assert torch.equal(logits(model, TOKENS), logits(plain, TOKENS))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(lora.adapter_state(model))
    assert len(trainable) == 2 * 2 * len(BLOCK)
    assert {name.split(".")[-3] for name in trainable} == BLOCK
    attend = PackedAttention([len(TOKENS)])
    hidden = model(TOKENS, attend.positions, attend)
    cross_entropy(hidden @ model.lm_head.weight.T, TOKENS).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trainable)


def test_what_it_computes_by_hand() -> None:
    base = torch.nn.Linear(2, 2, bias=True)
    layer = lora.AdaptedLinear(base, rank=1, alpha=3.0, rslora=False)
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        base.bias.copy_(torch.tensor([10.0, 20.0]))
        layer.lora_A.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([1.0, 1.0])
    assert layer(x).tolist() == [10 + 1 + 9, 20 + 1 - 9]
    assert layer.merged().tolist() == [[4.0, 6.0], [-3.0, -5.0]]
    assert lora.AdaptedLinear(base, rank=4, alpha=3.0, rslora=True).scale == pytest.approx(1.5)
    assert lora.AdaptedLinear(base, rank=4, alpha=3.0, rslora=False).scale == pytest.approx(0.75)


def test_the_first_matrix_depends_on_seed_and_name_alone() -> None:
    def first(settings: LoRA, seed: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        lora.add(model, settings, seed)
        return {name: tensor for name, tensor in lora.adapter_state(model).items() if "lora_A" in name}

    everything, some, other = first(LoRA(), 0), first(LoRA(targets=("v_proj",)), 0), first(LoRA(), 1)
    assert all(torch.equal(tensor, everything[name]) for name, tensor in some.items())
    assert not any(torch.equal(tensor, everything[name]) for name, tensor in other.items())
    for name, tensor in everything.items():
        bound = tensor.shape[1] ** -0.5
        assert 0.9 * bound < tensor.abs().max() <= bound, name
        assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("kind", [{}, {"tie_word_embeddings": True}, {"qk_norm": False, "qkv_bias": True}], ids=str)
def test_merged_is_the_same_function(kind: dict, tmp_path: Path) -> None:
    model, plain = trained(**kind), tiny_model(**kind)
    expected, names = logits(model, TOKENS), set(plain.state_dict())
    assert not torch.allclose(expected, logits(plain, TOKENS), atol=1e-2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain.load_state_dict(lora.merged_state(model))
    torch.testing.assert_close(logits(plain, TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    weights.save_folder(model, tmp_path)
    write_json(tmp_path / "config.json", model.config.to_hf())
    assert torch.equal(logits(read(tmp_path), TOKENS), logits(plain, TOKENS))

    lora.merge(model)
    assert not lora.is_adapted(model)
    assert set(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model, TOKENS), logits(plain, TOKENS))


def test_disabled_is_the_model_before() -> None:
    model, plain = trained(), tiny_model()
    adapted = logits(model, TOKENS)
    with lora.disabled(model):
        assert torch.equal(logits(model, TOKENS), logits(plain, TOKENS))
        with lora.disabled(model):
            pass
        assert torch.equal(logits(model, TOKENS), logits(plain, TOKENS))
    with pytest.raises(KeyError), lora.disabled(model):
        raise KeyError
    assert torch.equal(logits(model, TOKENS), adapted)


def test_the_state_of_training_goes_into_another_adapted_model() -> None:
    model, other = trained(), trained(seed=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, TOKENS), logits(model, TOKENS))


def test_adapters_of_a_narrow_model_are_wide() -> None:
    model = tiny_model().to(torch.bfloat16)
    lora.add(model, LoRA(rank=2), seed=0)
    assert {tensor.dtype for tensor in lora.adapter_state(model).values()} == {torch.float32}
    assert logits(model, TOKENS).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in lora.merged_state(model).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"targets": ()}, "targets"),
        ({"targets": "q_proj"}, "targets"),
        ({"targets": ("q_prj",)}, "'q_prj' names no linear.*'q_proj'"),
        ({"targets": ("q_proj", "lm_head")}, "lm_head"),
        ({"targets": ("proj",)}, "proj"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict, said: str) -> None:
    model = tiny_model()
    with pytest.raises(SettingsError, match=said):
        lora.add(model, LoRA(**settings), seed=0)
    assert not lora.is_adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_and_none_are_refused(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(SettingsError, match="already"):
        lora.add(model, LoRA(), seed=0)
    with pytest.raises(SettingsError, match="no LoRA"):
        lora.save(tiny_model(), tmp_path, "base")


@pytest.mark.parametrize(
    "settings",
    [
        LoRA(rank=3, alpha=5.0),
        LoRA(rank=2, alpha=0.5, targets=("q_proj", "layers.1.mlp.up_proj"), rslora=True),
        LoRA(rank=40, targets=("self_attn.o_proj",)),
    ],
    ids=str,
)
def test_a_saved_adapter_is_loaded(settings: LoRA, tmp_path: Path) -> None:
    model, again = trained(settings), tiny_model()
    lora.save(model, tmp_path, "some/base")
    lora.load(again, tmp_path)
    assert torch.equal(logits(again, TOKENS), logits(model, TOKENS))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(lora.adapter_state(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"


def of_peft(folder: Path, layers: dict[str, int] | None = None, **config: object) -> dict[str, torch.Tensor]:
    """A folder as PEFT writes it for a tiny model."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, rank in (layers or {"0.self_attn.q_proj": 2, "1.mlp.down_proj": 2}).items():
        wide, out = (48, 32) if "down" in layer else (32, 32)
        for half, shape in (("A", (rank, wide)), ("B", (out, rank))):
            name = f"base_model.model.model.layers.{layer}.lora_{half}.weight"
            tensors[name] = torch.randn(shape, generator=generator)
    store(folder / "adapter_model.safetensors", tensors)
    entries = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "some/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(folder / "adapter_config.json", entries | config)
    return tensors


def test_a_folder_of_peft_by_hand(tmp_path: Path) -> None:
    tensors = of_peft(tmp_path)
    model, plain = tiny_model(), tiny_model()
    lora.load(model, tmp_path)
    for layer in ("0.self_attn.q_proj", "1.mlp.down_proj"):
        a, b = (tensors[f"base_model.model.model.layers.{layer}.lora_{half}.weight"] for half in "AB")
        with torch.no_grad():
            plain.get_submodule(f"model.layers.{layer}").weight.add_(8 / 2 * b @ a)
    torch.testing.assert_close(logits(model, TOKENS), logits(plain, TOKENS), atol=1e-4, rtol=1e-4)


def test_patterns_of_ranks_and_alphas(tmp_path: Path) -> None:
    layers = {"0.self_attn.q_proj": 4, "1.self_attn.q_proj": 2, "0.mlp.down_proj": 3}
    patterns = {"rank_pattern": {"0.self_attn.q_proj": 4, "^model\\.layers\\.0\\.mlp\\.down_proj": 3}}
    patterns |= {"alpha_pattern": {"down_proj": 30}, "target_modules": ".*(q|down)_proj", "use_rslora": True}
    of_peft(tmp_path, layers, **patterns)
    model = tiny_model()
    lora.load(model, tmp_path)
    scales = {name: model.get_submodule(f"model.layers.{name}").scale for name in layers}
    assert scales == pytest.approx(
        {"0.self_attn.q_proj": 4, "1.self_attn.q_proj": 8 / 2**0.5, "0.mlp.down_proj": 30 / 3**0.5}
    )
    lora.save(model, tmp_path / "again", "some/base")
    again = tiny_model()
    lora.load(again, tmp_path / "again")
    assert torch.equal(logits(again, TOKENS), logits(model, TOKENS))


HOSTILE = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "a pickle": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "pickle"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "missing"),
    "cut": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"123"), "cut short"),
    "another width": (
        lambda f: store(
            f / "adapter_model.safetensors",
            {f"base_model.model.model.layers.0.mlp.up_proj.lora_{h}.weight": torch.ones(2, 2) for h in "AB"},
        ),
        "up_proj has shapes",
    ),
    "no B": (
        lambda f: store(
            f / "adapter_model.safetensors",
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)},
        ),
        "q_proj has shapes",
    ),
    "the head": (
        lambda f: store(f / "adapter_model.safetensors", {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 32)}),
        "lm_head",
    ),
    "whole modules": (
        lambda f: store(f / "adapter_model.safetensors", {"base_model.model.lm_head.weight": torch.ones(23, 32)}),
        "lm_head.weight",
    ),
    "magnitudes": (
        lambda f: store(
            f / "adapter_model.safetensors",
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(32)},
        ),
        "magnitude",
    ),
    "empty": (lambda f: store(f / "adapter_model.safetensors", {}), "which has no weights"),
    "not a number": (
        lambda f: store(f / "adapter_model.safetensors", {n: t * float("nan") for n, t in of_peft(f).items()}),
        "not finite",
    ),
}
ENTRIES = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"peft_type": None}, "peft_type"),
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "all"}, "bias"),
    ({"lora_bias": True}, "lora_bias"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"something_new": 3}, "something_new"),
    ({"r": 3}, "rank 2.*says 3"),
    ({"r": 0}, "'r'"),
    ({"r": "2"}, "'r'"),
    ({"r": True}, "'r'"),
    ({"lora_alpha": -1}, "lora_alpha"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"rank_pattern": {"(a+)+": 2}}, "regular expression"),
    ({"rank_pattern": [2]}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": "8"}}, "q_proj"),
    ({"target_modules": None}, "target_modules"),
    ({"target_modules": [3]}, "target_modules"),
    ({"target_modules": ["q_proj", "down_proj"]}, "layers.0.mlp.down_proj, which has no weights|layers.1.self_attn"),
    ({"target_modules": ["layers.0.self_attn.q_proj"]}, "does not name it"),
]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_folder_is_refused_and_the_model_stays(kind: str, tmp_path: Path) -> None:
    damage, said = HOSTILE[kind]
    of_peft(tmp_path)
    damage(tmp_path)
    model = tiny_model()
    with pytest.raises(CheckpointError, match=said):
        lora.load(model, tmp_path)
    assert not lora.is_adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("change", "said"), ENTRIES, ids=str)
def test_another_kind_of_adapter_is_refused_with_the_reason(change: dict, said: str, tmp_path: Path) -> None:
    of_peft(tmp_path)
    change_json(tmp_path / "adapter_config.json", **change)
    with pytest.raises(CheckpointError, match=f"adapter_.*{said}"):
        lora.load(tiny_model(), tmp_path)


def test_a_regular_expression_that_would_never_end_is_not_run(tmp_path: Path) -> None:
    of_peft(tmp_path, target_modules="(.*)*" * 30 + "x")
    lora.load(tiny_model(), tmp_path)


@pytest.mark.parametrize("kind", [{}, {"qk_norm": False, "qkv_bias": True}, {"qk_norm": False}], ids=str)
@pytest.mark.parametrize(
    "settings",
    [LoRA(rank=3, alpha=5.0), LoRA(rank=2, targets=("v_proj", "layers.1.mlp.up_proj"), rslora=True)],
    ids=str,
)
def test_peft_computes_the_same_with_ours(kind: dict, settings: LoRA, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sound_folder(tmp_path / "base", **kind)
    model = trained(settings, **kind)
    lora.save(model, tmp_path / "lora", str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS[None]).logits[0], logits(model, TOKENS), atol=1e-4, rtol=1e-4)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in lora.merged_state(model).items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "lora_dropout": 0.1},
        {"r": 3, "target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 5}},
        {
            "r": 3,
            "target_modules": r".*\.(up|o)_proj",
            "alpha_pattern": {"up_proj": 20},
            "init_lora_weights": "gaussian",
        },
        {"r": 3, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
    ids=str,
)
def test_we_compute_the_same_with_theirs(settings: dict, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = sound_folder(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "lora")
    lora.load(model, tmp_path / "lora")
    with torch.no_grad():
        torch.testing.assert_close(logits(model, TOKENS), theirs(TOKENS[None]).logits[0], atol=1e-4, rtol=1e-4)
