"""The engine against ``transformers.generate``, over folders that transformers itself has saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longthought.core.types import Finish, SamplingParams
from longthought.engine.engine import Engine, EngineSettings
from longthought.engine.sampling import distribution
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer
from longthought.models.weights import load

transformers = pytest.importorskip("transformers")

FLOAT32 = EngineSettings(precision="float32")
pytestmark = pytest.mark.usefixtures("computed_by")
VOCABULARY = 37
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.5,
}
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
}
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 2, 7)


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(4)
    return [tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()) for length in LENGTHS]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Any]:
    """The same weights, here and there."""
    torch.manual_seed(7)
    theirs = transformers.AutoModelForCausalLM.from_config(KINDS[request.param]()).eval()
    folder: Path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    return load(config, folder / "model.safetensors").eval(), theirs


def generate(theirs: Any, prompt: tuple[int, ...], **options: Any) -> Any:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 30, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **{**settings, **options})


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
@pytest.mark.parametrize("stops", [(), (3, 9, 20)], ids=["to the end", "three stop tokens"])
def test_greedy_is_generate_token_by_token(
    pair: tuple[Transformer, Any], penalty: float, stops: tuple[int, ...]
) -> None:
    ours, theirs = pair
    params = SamplingParams(1, 30, 0.0, 0, stops, repetition_penalty=penalty)
    groups = Engine(ours, EngineSettings(4, "float32")).sample(prompts(), params)
    assert len({completion.token_ids for [completion] in groups}) > 5
    for prompt, [completion] in zip(prompts(), groups):
        done = generate(theirs, prompt, do_sample=False, repetition_penalty=penalty, eos_token_id=list(stops) or None)
        assert completion.token_ids == tuple(done.sequences[0, len(prompt) :].tolist())
        assert completion.finish is (Finish.STOP if completion.token_ids[-1] in stops else Finish.LENGTH)


@pytest.mark.parametrize("least", [0, 12])
def test_greedy_with_bans_biases_and_a_least_length(pair: tuple[Transformer, Any], least: int) -> None:
    ours, theirs = pair
    stops, bad, bias = (3, 9, 20), (4, 5), ((6, 2.5), (7, -1.0))
    params = SamplingParams(1, 30, 0.0, 0, stops, (), least, bad_tokens=bad, logit_bias=bias, repetition_penalty=1.2)
    options = {
        "min_new_tokens": least,
        "suppress_tokens": list(bad),
        "sequence_bias": [[[token], value] for token, value in bias],
        "repetition_penalty": 1.2,
        "eos_token_id": list(stops),
    }
    for prompt, [completion] in zip(prompts(), Engine(ours, FLOAT32).sample(prompts(), params)):
        done = generate(theirs, prompt, do_sample=False, **options)
        assert completion.token_ids == tuple(done.sequences[0, len(prompt) :].tolist())


def test_what_generate_samples_from_is_our_distribution(pair: tuple[Transformer, Any]) -> None:
    """The scores that ``generate`` reports are those after all of its processors, in its own order."""
    _, theirs = pair
    kept = {"temperature": 1.4, "top_k": 11, "top_p": 0.85, "min_p": 0.08, "repetition_penalty": 1.25}
    params = SamplingParams(**kept, min_tokens=4, stop_tokens=(3, 9), logit_bias=((6, 2.5),), bad_tokens=(4,))
    torch.manual_seed(1)
    for prompt in prompts():
        done = generate(
            theirs,
            prompt,
            do_sample=True,
            output_logits=True,
            max_new_tokens=10,
            min_new_tokens=4,
            eos_token_id=[3, 9],
            sequence_bias=[[[6], 2.5]],
            suppress_tokens=[4],
            **kept,
        )
        said = done.sequences[0].tolist()
        for place, (raw, scores) in enumerate(zip(done.logits, done.scores)):
            logp = distribution(raw, [said[: len(prompt) + place]], params, [place])
            torch.testing.assert_close(logp.exp(), scores.softmax(-1), atol=1e-6, rtol=0)
