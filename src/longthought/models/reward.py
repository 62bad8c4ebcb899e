"""A reward model: the trunk of a language model, and one number per sequence, read at its last token.

The folder is that of a sequence classification model of ``transformers`` with one label, such as
``Qwen3ForSequenceClassification``; every architecture that we run has one, deepseek_v3 among them. ``score.weight`` is
the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from longthought.core.errors import CheckpointError, DataError
from longthought.models import weights
from longthought.models.attention import Attention, PackedAttention
from longthought.models.config import ModelConfig
from longthought.models.precision import Precision, autocast
from longthought.models.routing import Routing
from longthought.models.safetensors_file import TensorFile
from longthought.models.transformer import Transformer

HEAD = "score.weight"
_CAUSAL, _CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
_SHARD_BYTES = 5 * 2**30


class RewardModel(nn.Module):
    """r of a sequence, from the state after its last token. What predicts tokens is left out."""

    def __init__(self, trunk: Transformer) -> None:
        super().__init__()
        self.config = trunk.config
        self.trunk = trunk
        self.trunk.lm_head = nn.Identity()  # type: ignore[assignment]  # no logits, and nothing that never moves
        self.score = nn.Linear(trunk.config.hidden_size, 1, bias=False).to(trunk.model.embed_tokens.weight)

    @classmethod
    def of(cls, policy: Transformer, seed: int) -> RewardModel:
        """A copy of the policy's trunk, and a head N(0, 1/(D + 1)).

        Source: Stiennon et al., arXiv:2009.01325, appendix: a head of zeros would hold the trunk still for a step.
        """
        trunk = Transformer(_headless(policy.config)).to(policy.model.embed_tokens.weight)
        told = policy.state_dict()
        told["lm_head.weight"] = told["model.embed_tokens.weight"]
        trunk.load_state_dict({name: told[name] for name in trunk.state_dict()})
        made = cls(trunk)
        width = policy.config.hidden_size
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5
        with torch.no_grad():
            made.score.weight.copy_(drawn)
        return made

    def forward(
        self, tokens: Int[Tensor, " s"], positions: Int[Tensor, " s"], attend: Attention, routing: Routing | None = None
    ) -> Float[Tensor, "s d"]:
        """Hidden states; tokens, positions: (S,) int64 → (S, D)."""
        out: Tensor = self.trunk(tokens, positions, attend, routing)
        return out

    def value(self, states: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The rewards that states at the ends of sequences give, float32 or wider in any precision: (N, D) → (N,)."""
        wide = torch.promote_types(states.dtype, torch.float32)
        return (states.to(wide) * self.score.weight[0].to(wide)).sum(-1)


@torch.no_grad()
def rewards(
    model: RewardModel,
    sequences: Sequence[Sequence[int] | NDArray[np.int32]],
    pass_tokens: int = 4096,
    precision: Precision = "auto",
) -> Float[Tensor, " n"]:
    """r of every sequence, (N,) float32 or wider, on the CPU.

    pass_tokens: of one forward pass, in which sequences of similar length stand together; a longer one stands alone.

    Raises DataError for a sequence that is empty or longer than the model's context.
    """
    most = model.config.max_position_embeddings
    lengths = [len(sequence) for sequence in sequences]
    for length in lengths:
        if not 0 < length <= most:
            raise DataError(f"a reward model reads from 1 to {most:,} tokens, not {length:,}")
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    passes: list[list[int]] = []
    room = 0
    for number in order:
        if not passes or lengths[number] > room:
            passes.append([])
            room = pass_tokens
        passes[-1].append(number)
        room -= lengths[number]
    found = torch.zeros(len(lengths))
    device = model.score.weight.device
    for numbers in passes:
        tokens = torch.cat([torch.as_tensor(np.asarray(sequences[number]), dtype=torch.int64) for number in numbers])
        sizes = [lengths[number] for number in numbers]
        attend = PackedAttention(sizes, device)
        with autocast(model, precision):
            states = model(tokens.to(device), attend.positions, attend)
        found[numbers] = model.value(states[torch.tensor(sizes).cumsum(0) - 1]).float().cpu()
    return found


def written_config(model: RewardModel, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``config.json`` of the folder. base: that of the policy, of which the entries on tokens are kept."""
    config = model.config.to_hf(base)
    (kind,) = config["architectures"]
    return config | {
        "architectures": [kind.removesuffix(_CAUSAL) + _CLASSIFIER],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",
    }


def read_config(config: Mapping[str, Any], origin: object) -> ModelConfig:
    """The shape of the trunk. Raises CheckpointError for the folder of another kind of model."""
    kinds = config.get("architectures")
    if not (isinstance(kinds, list) and len(kinds) == 1 and str(kinds[0]).endswith(_CLASSIFIER)):
        raise CheckpointError(f"{origin}: architectures {kinds!r:.80}: this is no reward model (…{_CLASSIFIER})")
    causal = str(kinds[0]).removesuffix(_CLASSIFIER) + _CAUSAL
    return _headless(ModelConfig.from_hf({**config, "architectures": [causal]}, origin))


def save(model: RewardModel, folder: Path) -> None:
    """Write the weights under the names of ``transformers``. Raises OSError when the disk is full."""
    found = {**weights.state(model.trunk), HEAD: model.score.weight.detach()}
    weights.write_folder(folder, found, {name: tensor.dtype for name, tensor in found.items()}, _SHARD_BYTES)


def load(config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> RewardModel:
    """The reward model in a folder. Raises CheckpointError when a file is missing, damaged, or of another model."""
    files = weights.open_folder(folder)
    heads = [file for file in files if HEAD in file.entries]
    if len(heads) != 1 or heads[0].entries[HEAD].shape != (1, config.hidden_size):
        raise CheckpointError(f"{folder} has no {HEAD} of shape [1, {config.hidden_size}]: this is no reward model")
    made = RewardModel(weights.load_files(config, [_without_head(file) for file in files], dtype))
    with torch.no_grad():
        made.score.weight.copy_(heads[0].tensors()[HEAD])
    if not bool(made.score.weight.isfinite().all()):
        raise CheckpointError(f"{heads[0].name}: {HEAD} holds numbers that are not finite")
    return made.eval()


def _headless(config: ModelConfig) -> ModelConfig:
    """Without what predicts tokens: with a head that is tied, no folder needs to hold one."""
    return replace(config, tie_word_embeddings=True, num_nextn_predict_layers=0)


def _without_head(file: TensorFile) -> TensorFile:
    return replace(file, entries={name: entry for name, entry in file.entries.items() if name != HEAD})
