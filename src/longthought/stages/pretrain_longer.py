"""A longer context: pretraining goes on with longer windows and stretched positions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from longthought.core.errors import SettingsError
from longthought.models.config import ModelConfig
from longthought.models.precision import Precision
from longthought.models.rope import YarnScaling
from longthought.models.transformer import Transformer
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.place import Place
from longthought.stages.guard import Spikes
from longthought.stages.held_out import HeldOut
from longthought.stages.pretrain_loop import AFTERWARDS, Experts, Phase, Pretraining, Usual, check_course
from longthought.stages.pretrain_reading import Packing, Pages
from longthought.tasks.corpus import Corpus
from longthought.text.fim import FIM_TOKENS, FillInTheMiddle
from longthought.text.folder import Renderer
from longthought.text.renderer import TokensOnly
from longthought.training.optimizer import AdamW, OptimizerSettings
from longthought.training.schedule import Ramp, Schedule, Switch


@dataclass(frozen=True)
class LongContext:
    """A model goes on with windows of ``context`` tokens, its positions stretched by YaRN (arXiv:2309.00071).

    factor: s of YaRN, at least the new context over that of pretraining, which it is if it is not given. DeepSeek-V3
    (section 4.3) goes from 4K to 32K and then to 128K with s = 40 both times, 1000 steps each, at the last learning
    rate of its pretraining; this stage twice is that.
    The other fields are those of ``Pretrain``; experts and modules that predict further go on as they were in the end.
    """

    corpus: Corpus
    context: int
    factor: float | None = None
    steps: int = 1000
    tokens_per_step: int = 32_768
    seed: int = 0
    save_every: int = 100
    workers: int = 1
    precision: Precision = "auto"
    optimizer: OptimizerSettings = AdamW(lr=1e-4, weight_decay=0.1, schedule=Schedule(warmup=20))
    quiet: bool = field(default=False, compare=False)
    packing: Packing = "in_order"
    ramp: Ramp | None = None
    fim: float = 0.0
    held_out: HeldOut | None = None
    spikes: Spikes = Spikes()
    mtp_weight: Switch | None = None
    balancing: Experts | None = None

    def __post_init__(self) -> None:
        check_course(self)
        if self.fim:
            FillInTheMiddle(self.fim)

    def run(self, given: Checkpoint, place: Place) -> Checkpoint:
        policy = self.stretched(given.load())
        pages = Pages(self.corpus, policy.renderer, self.context, self._fim(policy.renderer))
        work = Pretraining(self, policy.model, [Phase("documents", pages, range(self.steps))])
        work.run(place, "long context")
        provenance = {
            "stage": "long_context",
            "context": self.context,
            "steps": self.steps,
            "tokens": work.tokens,
            "seed": self.seed,
        }
        return Checkpoint.save(place.path / "model", policy, provenance)

    def load(self, place: Place) -> Checkpoint:
        return Checkpoint(place.path / "model")

    @property
    def usual(self) -> Usual:
        """What experts and further tokens weigh if nothing is said."""
        return AFTERWARDS

    def stretched(self, policy: Policy) -> Policy:
        """The model before its first step: the same weights at stretched positions."""
        model = Transformer(longer(policy.model.config, self.context, self.factor))
        model.load_state_dict(policy.model.state_dict())
        return policy._replace(model=model)

    def _fim(self, renderer: Renderer) -> FillInTheMiddle | None:
        if not self.fim:
            return None
        if isinstance(renderer, TokensOnly) or not all(map(renderer.tokenizer.knows, FIM_TOKENS)):
            raise SettingsError(f"long context: fim={self.fim}, but the model has no tokens {', '.join(FIM_TOKENS)}")
        return FillInTheMiddle(self.fim, f"{self.seed}/long")


def longer(config: ModelConfig, context: int, factor: float | None = None) -> ModelConfig:
    """The shape of a model with a longer context.

    A model that was stretched by YaRN before keeps its first context as the original one.

    Raises SettingsError when the context is no longer than before, the factor does not reach it, or positions were
    stretched in another way.
    """
    before = config.rope_scaling
    if before is not None and not isinstance(before, YarnScaling):
        raise SettingsError(
            f"long context: the positions of this model were stretched by {before.rope_type}; only those of YaRN, and "
            "positions that never were, can be stretched on"
        )
    if context <= config.max_position_embeddings:
        raise SettingsError(
            f"long context: context={context:,} is no longer than the {config.max_position_embeddings:,} that it was"
        )
    original = config.max_position_embeddings if before is None else before.original_max_position_embeddings
    factor = context / original if factor is None else factor
    if not context / original <= factor < math.inf:
        raise SettingsError(
            f"long context: factor={factor:g} times the {original:,} positions of pretraining does not reach "
            f"context={context:,}; it must be at least {context / original:g}"
        )
    if before is not None:
        scaling = replace(before, factor=float(factor))
    elif config.latent is not None:  # the scores of latent attention grow, as in DeepSeek-V3
        scaling = YarnScaling(float(factor), original, mscale=1.0, mscale_all_dim=1.0)
    else:
        scaling = YarnScaling(float(factor), original)
    return replace(config, rope_scaling=scaling, max_position_embeddings=context)
