"""The models that are measured, ours and in ``transformers``, and the settings with which TRL drives the latter."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer
from longthought.models.weights import load_folder, save_folder

SIZES = ("1m", "4m", "15m")


def shape(name: str, vocabulary: int | None = None) -> ModelConfig:
    """A Qwen2 of about 1, 4 or 15 million parameters, embeddings tied."""
    width, layers, heads, head, inner, words = {
        "1m": (128, 4, 4, 32, 384, 512),
        "4m": (256, 5, 4, 64, 704, 1024),
        "15m": (512, 5, 8, 64, 1408, 4096),
    }[name]
    return ModelConfig(
        vocabulary or words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=head,
        max_position_embeddings=8192,
        qk_norm=False,
        qkv_bias=True,
        tie_word_embeddings=True,
    )


def random_model(name: str, vocabulary: int | None = None) -> Transformer:
    """Weights as ``transformers`` draws them: matrices N(0, 0.02²), biases 0, norms 1."""
    model = Transformer(shape(name, vocabulary))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if parameter_name.endswith("bias") else 1.0)
    return model.eval()


def stop_tokens(vocabulary: int, mean: int) -> tuple[int, ...]:
    """As many stop tokens, the last of the vocabulary, as end a nearly uniform reply after ``mean`` tokens on average.

    mean 0: none, so that every reply runs to its limit.
    """
    return tuple(range(vocabulary - max(1, round(vocabulary / mean)), vocabulary)) if mean else ()


def random_prompts(count: int, length: int, vocabulary: int, seed: int = 2) -> list[tuple[int, ...]]:
    """Prompts without token 0, which pads, and without the tokens that may stop."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(row) for row in torch.randint(1, vocabulary * 7 // 8, (count, length), generator=generator).tolist()]


def write_folder(model: Transformer, folder: Path, stop: Sequence[int] = ()) -> None:
    """The model in Hugging Face layout with a tokenizer whose words are ``t0``, ``t1`` and so on.

    Without stop tokens the tokenizer's end token is one that the model has not, since TRL asks for one.
    """
    vocabulary = model.config.vocab_size
    save_folder(model, folder)
    end = list(stop) or [vocabulary]
    settings = {**model.config.to_hf(), "pad_token_id": 0, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 0, "eos_token_id": end}))
    words = Tokenizer(
        WordLevel({f"t{number}": number for number in range(max(vocabulary - 1, *end) + 1)}, unk_token="t0")
    )
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "t0", "eos_token": f"t{end[0]}", "tokenizer_class": "PreTrainedTokenizerFast"}
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": template}))


def text(tokens: Sequence[int]) -> str:
    """Tokens as that tokenizer reads them."""
    return " ".join(f"t{token}" for token in tokens)


def load_ours(folder: Path) -> Transformer:
    return load_folder(ModelConfig.read(folder), folder).eval()


def theirs(model: Transformer, dtype: torch.dtype = torch.float32) -> Any:
    """The same model in ``transformers``."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def generation(new: int, stop: Sequence[int]) -> Any:
    """The generation config that TRL's ``GRPOTrainer`` makes."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=new,
        do_sample=True,
        pad_token_id=0,
        eos_token_id=list(stop) or None,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        disable_compile=True,
    )


def generate(peer: Any, batch: torch.Tensor, new: int, stop: Sequence[int]) -> torch.Tensor:
    """Replies (N, ≤ new) of ``transformers.generate``, as ``GRPOTrainer`` calls it."""
    peer.generation_config = settings = generation(new, stop)
    with torch.no_grad():
        out = peer.generate(input_ids=batch, attention_mask=torch.ones_like(batch), generation_config=settings)
    replies: torch.Tensor = out[:, batch.shape[1] :]
    return replies


def kept(replies: torch.Tensor, stop: Sequence[int]) -> int:
    """Tokens up to and including the first stop token of every row."""
    hit = torch.isin(replies, torch.tensor(stop, dtype=torch.int64))
    before = hit.long().cumsum(1) - hit.long()
    return int((before == 0).sum())
