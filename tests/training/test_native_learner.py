"""The native core under the learner: gradients, precision, prompts that are computed once, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import tiny_model as tiny_model_of
from longthought.algorithms.objective import GRPO, NLL
from longthought.algorithms.weighting import token_mean
from longthought.core.errors import LongthoughtError, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Rows, SamplingParams, rows_of
from longthought.engine.engine import Engine, EngineSettings
from longthought.models import lora
from longthought.models.attention import PackedAttention
from longthought.models.kernels import library
from longthought.models.precision import Precision
from longthought.models.transformer import Transformer
from longthought.training.batching import documents
from longthought.training.learner import LearnerSettings, LogprobHead, PolicyLearner, WithoutAdapter, hidden_before
from longthought.training.optimizer import AdamW
from longthought.training.packing import layout, micro_batches, prompts_of

tiny_model = partial(tiny_model_of, head_dim=16, max_position_embeddings=256)
few = settings(max_examples=12, deadline=None, derandomize=True)


with_core = pytest.mark.usefixtures("served")


def groups(seed: int, prompts: Sequence[int] = (12, 9, 30, 3, 1), replies: int = 4, vocabulary: int = 23) -> Batch:
    """Several replies to each prompt, one of them never trained, one of a single token."""
    g = torch.Generator().manual_seed(seed)
    sequences, starts = [], []
    for length in prompts:
        prompt = torch.randint(0, vocabulary, (length,), generator=g).tolist()
        for reply in range(replies):
            size = 1 if reply == 1 else int(torch.randint(2, 25, (1,), generator=g))
            sequences.append((*prompt, *torch.randint(0, vocabulary, (size,), generator=g).tolist()))
            starts.append(length)
    rows = rows_of(sequences)
    position = torch.arange(rows.tokens.shape[1])
    mask = (position >= torch.tensor(starts)[:, None]) & (position < rows.lengths[:, None])
    trained = torch.arange(len(sequences)) % replies != 2
    noise = torch.randn(3, *mask.shape, generator=g)
    advantage = torch.where(mask, noise[0][:, :1], 0.0)
    old, ref = (torch.where(mask, -3.0 + 0.3 * n, 0.0) for n in noise[1:])
    return Batch(rows.tokens, rows.lengths, mask, token_mean(mask & trained[:, None]), advantage, old, ref)


def gradient(
    model: Transformer, batch: Batch, objective: Objective, precision: Precision, micro_tokens: int = 2048
) -> dict[str, Tensor]:
    learner = PolicyLearner(model, AdamW(), 1, 0.9, LearnerSettings(micro_tokens, precision=precision))
    model.zero_grad(set_to_none=True)
    learner.accumulate(batch, objective)
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def exact(model: Callable[[], Transformer], batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """In float64, which is PyTorch's."""
    return gradient(model().double(), batch, objective, "float32")


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """‖found - truth‖ / ‖truth‖ over all parameters."""
    assert found.keys() == truth.keys()
    apart = torch.cat([(found[name] - truth[name]).flatten() for name in truth])
    return float(apart.norm() / torch.cat([tensor.flatten() for tensor in truth.values()]).norm())


KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True, "qkv_bias": True},
    "wide": {"vocab_size": 1041, "head_dim": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
}
FULL = GRPO(clip_high=0.28, beta=0.1, entropy_bonus=0.01, dual_clip=3.0)


@with_core
@pytest.mark.parametrize("objective", [NLL(), GRPO(), FULL], ids=["nll", "grpo", "kl and entropy"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_pytorch(kind: str, objective: Objective) -> None:
    model, batch = partial(tiny_model, **KINDS[kind]), groups(3)
    truth = exact(model, batch, objective)
    for found in (
        gradient(model(), batch, objective, "float32"),
        gradient(model(), batch, objective, "float32", micro_tokens=50),
    ):
        assert error(found, truth) < 1e-5
        for name, tensor in truth.items():
            assert error({name: found[name]}, {name: tensor}) < 1e-4, name


@with_core
@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([(12, 9), (20,), (2, 1, 3), (8, 50)]))
@few
def test_no_cut_changes_the_gradient(seed: int, micro_tokens: int, prompts: tuple[int, ...]) -> None:
    batch = groups(seed, prompts)
    truth = exact(tiny_model, batch, FULL)
    assert error(gradient(tiny_model(), batch, FULL, "float32", micro_tokens), truth) < 1e-5


@with_core
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", ["lm_head", "embed_tokens", "layers.0", "norm", "proj", "layers"])
def test_frozen_parameters_have_no_gradient_and_change_no_other(frozen: str, precision: Precision) -> None:
    model, batch = tiny_model(), groups(5)
    whole = gradient(model, batch, FULL, precision)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    found = gradient(model, batch, FULL, precision)
    assert found.keys() == {name for name in whole if frozen not in name}
    for name, tensor in found.items():
        assert torch.equal(tensor, whole[name])


def broad_model() -> Transformer:
    return tiny_model(vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=3, head_dim=32, seed=2)


@with_core
def test_bfloat16_errs_no_more_than_pytorch_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """In gradients and log-probs; the truth is float64."""
    batch = groups(1, (30, 60, 12), 4, 512)
    truth = exact(broad_model, batch, FULL)
    exactly = PolicyLearner(broad_model().double(), AdamW(), 1).logprobs(batch)

    def errors() -> tuple[float, float]:
        learner = PolicyLearner(broad_model(), AdamW(), 1, settings=LearnerSettings(precision="bfloat16"))
        gap = float((learner.logprobs(batch) - exactly).abs().mean())
        return error(gradient(broad_model(), batch, FULL, "bfloat16"), truth), gap

    found = errors()
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    peer = errors()
    assert 1e-5 < found[0] < 1.5 * peer[0]
    assert 1e-5 < found[1] < 1.5 * peer[1]


@with_core
@pytest.mark.parametrize(("precision", "bound"), [("float32", 3e-6), ("bfloat16", 0.002)])
def test_sampler_and_learner_agree(precision: Precision, bound: float) -> None:
    """What the trust region sees before the first update: the two sum in different orders, and round to bfloat16."""
    model = broad_model()
    batch = groups(4, (10, 40, 97), 1, 512)
    prompts = [tuple(batch.tokens[row, :length].tolist()) for row, length in enumerate((10, 40, 97))]
    sampled = Engine(model, EngineSettings(precision=precision)).sample(prompts, SamplingParams(8, 50))
    learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision=precision))
    gaps = []
    for prompt, group in zip(prompts, sampled):
        said = learner.logprobs(rows_of([prompt + completion.token_ids for completion in group]))
        for row, completion in enumerate(group):
            gaps.append((said[row, len(prompt) :] - torch.tensor(completion.logprobs)).abs())
    assert float(torch.cat(gaps).mean()) < bound


@with_core
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_stored_in_bfloat16_are_trained(precision: Precision) -> None:
    batch = groups(6)

    def stored() -> Transformer:
        model = tiny_model()
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        return model

    found = gradient(stored(), batch, FULL, precision)
    assert error(found, exact(stored, batch, FULL)) < (0.01 if precision == "float32" else 0.05)


@with_core
def test_a_model_that_is_bfloat16_as_a_whole() -> None:
    """``model.bfloat16()`` also narrows the tables of angles."""
    model, rows = tiny_model().bfloat16(), groups(7)
    found = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision="float32")).logprobs(rows)
    truth = PolicyLearner(model.double(), AdamW(), 1).logprobs(rows)
    assert float((found - truth).abs().mean()) < 0.01


@with_core
def test_what_is_outside_of_the_model_is_refused() -> None:
    """The core reads memory by these numbers: a place behind the context, a last token that nobody embeds."""
    learner = PolicyLearner(tiny_model(max_position_embeddings=16), AdamW(), 1)
    for rows in (rows_of([tuple(range(20))]), rows_of([(1, 2, 23)])):
        with pytest.raises((LongthoughtError, IndexError, RuntimeError)):
            learner.logprobs(rows)


@with_core
def test_what_is_not_finite_is_seen() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[11, 3] = torch.nan
    for precision in ("float32", "bfloat16"):
        learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision=precision))
        assert learner.logprobs(rows_of([(1, 2, 3)]))[0, 1:].isnan().all()
        with pytest.raises(LongthoughtError, match="not finite"):
            learner.step(groups(1), GRPO())


# --- what is computed --------------------------------------------------------------------------------------------


def needing(sequences: Sequence[Sequence[int]], needed: Sequence[Sequence[int]]) -> tuple[Rows, Tensor]:
    rows = rows_of([tuple(sequence) for sequence in sequences])
    asked = torch.zeros(rows.tokens.shape, dtype=torch.bool)
    for row, places in enumerate(needed):
        asked[row, list(places)] = True
    return rows, asked


A, B = list(range(10)), list(range(11))  # B goes on where A ends
COUNTED = {
    "one row": ([[*A, 1, 2, 3]], [[10, 11, 12]], 12),
    "nothing behind the last": ([[*A, 1, 2, 3]], [[10]], 10),
    "a hole": ([[*A, 1, 2, 3]], [[10, 12]], 12),
    "a group": ([[*A, 1, 2, 3], [*A, 4, 5]], [[10, 11, 12], [10, 11]], 10 + 2 + 1),
    "replies of one token": ([[*A, 1], [*A, 2], [*A, 3]], [[10]] * 3, 10),
    "one reply without any": ([[*A, 1, 2, 3], [*A, 4, 5]], [[10, 11, 12], []], 12 + 1),
    "none at all": ([A, B], [[], []], 2),
    "a prompt that begins like another": ([[*A, 1, 2], [*B, 1, 2]], [[10, 11], [11, 12]], 11 + 12),
    "two groups in turns": ([[*A, 1], [*B, 1], [*A, 2, 3], [*B, 2, 3]], [[10], [11], [10, 11], [11, 12]], 11 + 12),
}


@pytest.mark.parametrize("case", COUNTED)
def test_exactly_what_is_needed_is_computed(case: str) -> None:
    sequences, needed, count = COUNTED[case]
    rows, asked = needing(sequences, needed)
    found = layout(rows, asked, share=True)
    assert len(found.tokens) == len(found.attend.positions) == count
    alone = layout(rows, asked, share=False)
    assert len(alone.tokens) == sum(max([1, *places]) for places in needed)
    for one in (found, alone):
        assert torch.equal(rows.tokens.flatten()[one.where], rows.tokens[asked])
        before = rows.tokens.flatten()[one.tokens][one.before]
        assert torch.equal(before, rows.tokens.roll(1, 1)[asked])
        assert torch.equal(one.attend.positions[one.before] + 1, asked.nonzero()[:, 1])


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_computed_is_the_whole_forward_pass(data: st.DataObject) -> None:
    """Any needed tokens, of sequences that often begin alike: the states of full rows, in PyTorch and float64."""
    seeds = data.draw(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(2, 14)), min_size=1, max_size=6)
    )
    heads = {"a": [1] * 9, "b": [1] * 8 + [2]}
    sequences = [[*heads[head], *([tail] * length)] for head, tail, length in seeds]
    places = [data.draw(st.sets(st.sampled_from(range(1, len(s))), max_size=4)) for s in sequences]
    starts = data.draw(st.sampled_from([1, 5, 9]))
    rows, asked = needing(sequences, [[p for p in chosen if p >= starts] for chosen in places])
    if not asked.any():
        return
    model = tiny_model().double()
    attend = PackedAttention([asked.shape[1]] * len(sequences))
    with torch.no_grad():
        full = model(rows.tokens.flatten(), attend.positions, attend).view(*asked.shape, -1)
        for share in (False, True):
            laid = layout(rows, asked, share)
            hidden = model(rows.tokens.flatten()[laid.tokens], laid.attend.positions, laid.attend)
            torch.testing.assert_close(hidden[laid.before], full.roll(1, 1)[asked])
            assert len(laid.tokens) <= len(layout(rows, asked, False).tokens)


@with_core
def test_native_states_are_those_of_pytorch_where_prompts_are_shared() -> None:
    rows = groups(8)
    found = PolicyLearner(tiny_model(), AdamW(), 1, settings=LearnerSettings(precision="float32"))
    assert found.shares_prompts
    model = tiny_model().double()
    with torch.no_grad():
        states, where = hidden_before(model, rows, rows.mask)
        logq = (states @ model.lm_head.weight.T).log_softmax(-1)
    expected = logq.gather(-1, rows.tokens.flatten()[where, None]).squeeze(-1)
    _, output = found.accumulate(rows, NLL())
    torch.testing.assert_close(output.logp.flatten()[where].double(), expected, atol=2e-5, rtol=0)
    assert not output.logp[~rows.mask].any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=25), st.integers(1, 120))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_micro_batches_count_a_prompt_once(rows: list[tuple[int, int]], tokens: int) -> None:
    sizes = {number: 5 * number + 1 for number, _ in rows}
    prompts = [(number, sizes[number]) for number, _ in rows]
    lengths = torch.tensor([sizes[number] + reply for number, reply in rows])
    cuts = micro_batches(lengths, tokens, prompts)
    order = [row for cut in cuts for row in cut.tolist()]
    assert sorted(order) == list(range(len(rows)))
    asked = [rows[row][0] for row in order]
    assert len(set(asked)) == 1 + sum(a != b for a, b in pairwise(asked))  # a prompt's rows stand together

    def cost(chosen: Sequence[int]) -> int:
        return sum(rows[row][1] for row in chosen) + sum(sizes[number] for number in {rows[row][0] for row in chosen})

    for cut in cuts:
        assert len(cut) == 1 or cost(cut.tolist()) <= tokens
    for cut, following in pairwise(cuts):
        assert cost([*cut.tolist(), int(following[0])]) > tokens  # no cut is made before it is needed


def test_the_prompts_of_a_batch() -> None:
    found = prompts_of(groups(2, (12, 9), 3))
    assert found == [(0, 12)] * 3 + [(3, 9)] * 3


@given(st.integers(0, 1000), st.lists(st.sampled_from([1, 2, 5, 11]), min_size=1, max_size=6), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_attention_with_parents_is_that_of_whole_sequences(seed: int, sizes: list[int], grouped: bool) -> None:
    """Values and gradients; the first and the third run are parents where there are runs enough."""
    parents = [-1 if run in (0, 2) else 2 * (run > 2 and run % 2) for run in range(len(sizes))]
    g = torch.Generator().manual_seed(seed)
    tokens, heads = sum(sizes), 4 if grouped else 2
    q, k, v, pull = (torch.randn(tokens, n, 6, generator=g, dtype=torch.float64) for n in (heads, 2, 2, heads))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attend = PackedAttention(sizes, parents=parents)
    found = attend(0, *inputs)
    starts = [sum(sizes[:run]) for run in range(len(sizes))]
    expected = []
    for run, parent in enumerate(parents):
        own = range(starts[run], starts[run] + sizes[run])
        whole = [*(range(starts[parent], starts[parent] + sizes[parent]) if parent >= 0 else ()), *own]
        index = torch.tensor(whole)
        assert attend.positions[list(own)].tolist() == list(range(len(whole)))[-sizes[run] :]
        expected.append(PackedAttention([len(whole)])(0, *(x[index] for x in inputs))[-sizes[run] :])
    together = torch.cat(expected)
    torch.testing.assert_close(found, together)
    left, right = (torch.autograd.grad((x * pull).sum(), inputs) for x in (found, together))
    torch.testing.assert_close(left, right)


MEASURED = """
import resource, torch
from longthought.core.types import Batch
from longthought.algorithms.objective import GRPO
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.training.learner import LearnerSettings, PolicyLearner
from longthought.training.optimizer import AdamW

torch.set_num_threads(1)
model = Transformer(ModelConfig(32768, 64, 176, 1, max_position_embeddings=1024))
initialize(model, 0)
learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(micro_tokens=4096, precision="float32"))

def pass_over(rows):
    tokens = torch.arange(rows * 1024).view(rows, 1024) % 32768
    mask = torch.ones(rows, 1024, dtype=torch.bool)
    mask[:, 0] = False
    zeros = torch.zeros(rows, 1024)
    learner.accumulate(Batch(tokens, torch.full((rows,), 1024), mask, zeros + 1e-3, zeros + 1, zeros), GRPO())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(pass_over(1), pass_over(4))
"""


@with_core
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of ru_maxrss is Linux's")
def test_memory_does_not_grow_with_tokens_times_vocabulary(tmp_path: Path) -> None:
    """3072 more tokens: their logits in float32 are 384 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, env=os.environ, cwd=tmp_path
    )
    few_tokens, many = map(int, done.stdout.split())
    assert many - few_tokens < 60 * 1024


def test_the_gradient_of_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA is trained natively: PyTorch carries the gradient from the matrix that it makes to A and B."""
    model = tiny_model(head_dim=16)
    lora.add(model, lora.LoRA(4), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
    batch = documents([tuple(range(1, 20)), (3, 1, 4, 1, 5, 9, 2, 6)])
    found = []
    for wanted in (library.OFF, ""):
        monkeypatch.setenv(library.VARIABLE, wanted)
        learner = PolicyLearner(model, AdamW(), 1, settings=LearnerSettings(precision="float32"))
        _, output = learner.accumulate(batch, NLL())
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        off = PolicyLearner(model, AdamW(), 1, settings=learner.settings, head=WithoutAdapter(LogprobHead(1.0, 64)))
        found[-1]["without"], found[-1]["with"] = off.evaluate(batch).logp, output.logp
    torch_s, native_s = found
    assert torch_s.keys() == native_s.keys()
    assert any("lora_A" in name for name in torch_s)
    assert not torch.allclose(torch_s["with"], torch_s["without"], atol=1e-3)
    for name, expected in torch_s.items():
        torch.testing.assert_close(native_s[name], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("settings_of", [LearnerSettings, EngineSettings])
def test_an_unknown_precision_is_refused(settings_of: Any) -> None:
    with pytest.raises(SettingsError, match="precision='fp16': must be one of auto, float32, bfloat16"):
        settings_of(precision="fp16")
