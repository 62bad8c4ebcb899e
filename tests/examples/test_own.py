"""The examples of the Python way in, on a model folder that transformers made."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import longthought as lt

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of two layers and problems in the form of GSM8K."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("world")
    rows = [
        {"question": f"Tom has {a} apples and buys {b}. How many?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(1, 9)
        for b in range(1, 9)
    ]
    (folder / "gsm.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([row["question"] for row in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT
    )
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=320,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder / "model")
    return folder


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_policy_and_engine(world: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = lt.load(world / "model")
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    logits = policy.model(tokens)
    theirs = AutoModelForCausalLM.from_pretrained(world / "model")(tokens).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)
    (first, second) = lt.Engine(policy).sample(["Tom has 2", "Tom has 3"], lt.SamplingParams(count=3, max_tokens=5))
    assert len(first) == len(second) == 3
    assert all(len(one.token_ids) <= 5 for one in first)
    with pytest.raises(lt.DataError, match=r"\(N, T\)"):
        policy.model(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("name", "given"), [("own_problems", ("gsm.jsonl",)), ("own_verifier", ()), ("own_objective", ("gsm.jsonl",))]
)
def test_examples_train(name: str, given: tuple[str, ...], world: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = example(name).main(world / "model", *(world / file for file in given), tmp_path / "run", steps=1)
    assert AutoModelForCausalLM.from_pretrained(made.path).config.hidden_size == 32
    assert AutoTokenizer.from_pretrained(made.path).chat_template == CHAT
    again = example(name).main(world / "model", *(world / file for file in given), tmp_path / "run", steps=1)
    assert again.path == made.path


def test_every_public_name_is_there() -> None:
    assert all(getattr(lt, name) is not None for name in lt.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        lt.nothing_like_it  # noqa: B018


def test_a_folder_without_a_chat_template_or_a_tokenizer_can_be_looked_at(world: Path, tmp_path: Path) -> None:
    """What transformers saves of a model alone: token ids in, token ids out, the end token of its settings."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(world / "model")
    theirs.save_pretrained(tmp_path / "alone")
    policy = lt.load(tmp_path / "alone")
    prompt = [5, 6, 7, 8]
    ((reply,),) = lt.Engine(policy).sample([prompt], lt.SamplingParams(temperature=0, max_tokens=6))
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, 4:].tolist()
    assert list(reply.token_ids) == expected
    assert policy.renderer.stop_tokens == (2,)
    with pytest.raises(lt.DataError, match="no tokenizer"):
        lt.Engine(policy).sample(["text"], lt.SamplingParams(max_tokens=2))
    with pytest.raises(lt.CheckpointError):
        lt.Checkpoint(tmp_path / "alone").load()  # what is to be trained needs a format
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "alone" / name).write_bytes((world / "model" / name).read_bytes())
    policy = lt.load(tmp_path / "alone")
    assert policy.renderer.prompt((lt.Message("user", "Tom has 2"),)) == lt.load(
        world / "model"
    ).renderer.tokenizer.encode("Tom has 2")
