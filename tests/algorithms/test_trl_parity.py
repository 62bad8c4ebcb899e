"""The losses of TRL, computed by TRL: the same number and the same gradient for the same batch.

Runs where the extra ``parity`` is installed. ``_compute_loss`` is private, so the extra pins TRL's minor version.
"""

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from longthought.algorithms.advantage import group_centered, group_normalized
from longthought.algorithms.objective import CISPO, GRPO, GSPO, KL, SAPO, Sum
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.types import Batch, PolicyOutput

trl = pytest.importorskip("trl", reason="install the extra `parity`")
datasets = pytest.importorskip("datasets", reason="install the extra `parity`")

pytestmark = pytest.mark.parity

ROWS, PROMPT, REPLY, VOCABULARY = 4, 3, 6, 11
REPLIES = torch.tensor([6, 2, 4, 5])
BOTH = {"epsilon": 0.2, "epsilon_high": 0.28}
WHOLE = {"importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.06}

# name, TRL's settings, our objective, our weighting
LOSSES = [
    ("grpo", BOTH | {"loss_type": "grpo", "beta": 0.04}, GRPO(0.2, 0.28, beta=0.04), sequence_mean),
    ("dr_grpo", BOTH | {"loss_type": "dr_grpo", "beta": 0.0}, GRPO(0.2, 0.28), partial(constant, length=REPLY)),
    ("dapo", BOTH | {"loss_type": "dapo", "beta": 0.0}, GRPO(0.2, 0.28), token_mean),
    ("dapo_kl", BOTH | {"loss_type": "dapo", "beta": 0.1}, GRPO(0.2, 0.28, beta=0.1), token_mean),
    ("cispo", {"loss_type": "cispo", "beta": 0.0, "epsilon_high": 1.2}, CISPO(cap=1.2), token_mean),
    (
        "kl_corrected",
        BOTH | {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True},
        GRPO(0.2, 0.28, beta=0.1, kl="k3_corrected"),
        token_mean,
    ),
    ("delta", BOTH | {"loss_type": "dapo", "beta": 0.0, "delta": 1.4}, GRPO(0.2, 0.28, dual_clip=1.4), token_mean),
    ("sapo", {"loss_type": "sapo", "beta": 0.0}, SAPO(), sequence_mean),
    ("gspo", WHOLE | {"loss_type": "grpo"}, GSPO(0.05, 0.06), sequence_mean),
    ("gspo_kl", WHOLE | {"loss_type": "grpo", "beta": 0.1}, Sum((GSPO(0.05, 0.06), KL(0.1))), sequence_mean),
    ("luspo", WHOLE | {"loss_type": "luspo", "beta": 0.0}, GSPO(0.05, 0.06), sequence_sum),
]


def tokenizer():
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )


def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).double()


def batch_columns():
    torch.manual_seed(1)
    mask = torch.arange(REPLY) < REPLIES[:, None]
    prompts = torch.randint(2, VOCABULARY, (ROWS, PROMPT))
    replies = torch.randint(2, VOCABULARY, (ROWS, REPLY)) * mask
    noise = 0.3 * torch.randn(2, ROWS, REPLY, dtype=torch.float64)
    return prompts, replies, mask, noise


def token_logps(network, prompts, replies):
    tokens = torch.cat((prompts, replies), 1)
    logits = network(input_ids=tokens).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return logits.gather(-1, replies[..., None]).squeeze(-1)


def trainer_of(folder, network, settings):
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        max_completion_length=REPLY,
        use_cpu=True,
        bf16=False,
        report_to="none",
        temperature=1.0,
        **{"use_bias_correction_kl": False, **settings},
    )
    network.save_pretrained(folder)  # with beta > 0 the trainer loads its reference from there
    network.config._name_or_path = str(folder)
    trainer = trl.GRPOTrainer(
        model=network,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "w2"}] * ROWS),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    return trainer


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("settings", "objective", "weighting"), [row[1:] for row in LOSSES], ids=[x[0] for x in LOSSES]
)
def test_same_loss_and_gradient(tmp_path, settings, objective, weighting):
    network = model()
    prompts, replies, mask, noise = batch_columns()
    old, ref = token_logps(network, prompts, replies).detach() + noise
    advantage = torch.tensor([1.5, -0.5, -1.2, 0.7], dtype=torch.float64)
    trainer = trainer_of(tmp_path, network, settings)
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": replies,
            "completion_mask": mask.long(),
            "advantages": advantage,
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "num_items_in_batch": mask.sum(),
        },
    )
    their_gradients = gradients(network, theirs)

    columns = advantage[:, None].expand(ROWS, REPLY)
    batch = Batch(replies, REPLIES, mask, weighting(mask).double(), columns, old, ref)
    logp = token_logps(network, prompts, replies)
    ours = objective(PolicyOutput(logp, torch.zeros_like(logp)), batch).value
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=2e-7)
    for mine, other in zip(gradients(network, ours), their_gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-6, rtol=1e-5)


CREDITS = [("group", partial(group_normalized, epsilon=1e-4)), ("none", group_centered)]


@pytest.mark.parametrize(("scale", "credit"), CREDITS)
def test_same_advantages(scale, credit):
    """TRL's formula as its documentation writes it: sample std, and an epsilon of 1e-4."""
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    centered = rewards - rewards.mean(1, keepdim=True)
    theirs = centered / (rewards.std(1, keepdim=True) + 1e-4) if scale == "group" else centered
    ours = torch.stack([credit(group) for group in rewards])
    torch.testing.assert_close(ours, theirs)
