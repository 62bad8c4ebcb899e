"""The learner: forward, equation, backward. It knows no algorithm: what to minimise arrives as an ``Objective``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from longthought.core.errors import NotFinite, RunMismatch, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Loss, Metrics, PolicyOutput, Rows, Update
from longthought.models import lora
from longthought.models.precision import Precision, autocast, check_precision, computed, native
from longthought.models.transformer import Transformer
from longthought.training.optimizer import OptimizerSettings, set_lr
from longthought.training.packing import layout, micro_batches, prompts_of


@dataclass(frozen=True)
class LearnerSettings:
    """micro_tokens: tokens of one forward pass (memory, not mathematics). max_norm: gradient clipping, L2.

    precision: of the matrix products; weights, gradients and sums are float32. See ``models/precision.py``.
    """

    micro_tokens: int = 2048
    max_norm: float = 1.0
    head_chunk: int = 1024
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("micro_tokens", "max_norm", "head_chunk"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}={getattr(self, name)}: must be positive")
        check_precision("learner", self.precision)


@dataclass(frozen=True)
class Tally:
    """Sums over rows, so that those of micro-batches and shards add up.

    ``gap`` sums |logp − logp_old| over the ``tokens`` of the replies: before the first update of a step, what sampler
    and learner disagree about.
    """

    loss: float = 0.0
    weight: float = 0.0
    sums: Mapping[str, float] = field(default_factory=dict)
    gap: float = 0.0
    gap_max: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, policy: PolicyOutput, batch: Batch, loss: Loss) -> Tally:
        sums = {name: float(value.detach()) for name, value in loss.metrics.items()}
        weight = float(batch.weight.sum())
        if batch.logp_old is None:
            return cls(float(loss.value.detach()), weight, sums)
        gap = torch.where(batch.mask, (policy.logp.detach() - batch.logp_old).abs(), 0.0)
        largest = float(gap.max()) if gap.numel() else 0.0
        return cls(float(loss.value.detach()), weight, sums, float(gap.sum()), largest, int(batch.mask.sum()))

    def __add__(self, other: Tally) -> Tally:
        names = {**self.sums, **other.sums}
        return Tally(
            self.loss + other.loss,
            self.weight + other.weight,
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names},
            self.gap + other.gap,
            max(self.gap_max, other.gap_max),
            self.tokens + other.tokens,
        )

    def means(self) -> dict[str, float]:
        """The loss as it is; metrics divided by the total weight; the gap by the number of tokens."""
        means = {name: value / (self.weight or 1.0) for name, value in self.sums.items()}
        gap = {"logprob_gap": self.gap / self.tokens, "logprob_gap_max": self.gap_max} if self.tokens else {}
        return {"loss": self.loss, **means, **gap}


class Head(Protocol):
    """What a model says about the tokens in ``needed`` (N, T), zero elsewhere. Never asked about t = 0."""

    def __call__(self, model: Any, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput: ...


@dataclass(frozen=True)
class LogprobHead:
    """log-prob and entropy of softmax(logits / temperature). chunk: tokens whose logits exist at a time."""

    temperature: float
    chunk: int

    def __call__(self, model: Transformer, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput:
        return evaluate_policy(model, rows, needed, self.temperature, self.chunk)


@dataclass(frozen=True)
class WithoutAdapter:
    """What the model would say without its LoRA: the free reference policy. The learner takes the adapter off."""

    head: Head

    def __call__(self, model: Transformer, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput:
        return self.head(model, rows, needed)


class Hidden(NamedTuple):
    """Hidden states (M, D) of the M tokens *before* the needed ones, whose places in (N·T) are ``where`` (M,)."""

    states: Tensor
    where: Tensor


def hidden_before(model: Any, rows: Rows, needed: Bool[Tensor, "n t"]) -> Hidden:
    """The states that predict the needed tokens: the state at t − 1 predicts token t.

    Only tokens that these depend on are computed; a prompt once for all rows that have it, if the model can.
    """
    laid = layout(rows, needed, share=getattr(model, "shares_prompts", False))
    hidden = model(rows.tokens.flatten()[laid.tokens], laid.attend.positions, laid.attend)
    return Hidden(hidden.index_select(0, laid.before), laid.where)


def evaluate_policy(
    model: Any, rows: Rows, needed: Bool[Tensor, "n t"], temperature: float, chunk: int
) -> PolicyOutput:
    """log π(token | tokens before) and the entropy there, for the tokens in ``needed``; zero elsewhere.

    model: a ``Transformer``, or what ``models.precision.computed`` makes of one.
    rows: N sequences; needed: (N, T) bool, never true at t = 0, which nothing predicts → two (N, T) tensors.
    """
    predicting, where = hidden_before(model, rows, needed)
    targets = rows.tokens.flatten()[where]
    logp, entropy = model.token_logprobs(predicting, targets, temperature, chunk)
    return PolicyOutput(spread(logp, where, needed), spread(entropy, where, needed))


def spread(values: Float[Tensor, " m"], where: Int[Tensor, " m"], like: Shaped[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Values at their places in (N·T), zero elsewhere, (N, T)."""
    return values.new_zeros(like.numel()).index_copy(0, where, values).view(like.shape)


class PolicyLearner:
    """Optimizes a model in place.

    ``step`` minimises an objective over a batch whose weights were decided beforehand over the whole batch; any cut
    into micro-batches gives the same gradient. ``temperature`` is the sampler's: log-probs are those of
    softmax(logits / temperature). ``head``: what the model is asked, if not its log-probs. Only parameters that
    require a gradient are optimized and stored.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerSettings,
        steps: int,
        temperature: float = 1.0,
        settings: LearnerSettings = LearnerSettings(),
        head: Head | None = None,
    ) -> None:
        if temperature <= 0:
            raise SettingsError(f"temperature={temperature}: must be positive")
        self.model, self.settings = model, settings
        self.head: Head = head or LogprobHead(temperature, settings.head_chunk)
        self.optimizers = optimizer.build(model)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._schedule, self._steps, self._version = optimizer.schedule, steps, 0

    @property
    def version(self) -> int:
        """Optimizer steps done."""
        return self._version

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is computed once for all of its replies that are in a micro-batch."""
        return native(self.model, self.settings.precision) is not None

    @contextmanager
    def _asking(self, backward: bool) -> Iterator[Callable[[Rows, Tensor], PolicyOutput]]:
        """What asks the head about the model as it is now, in its precision."""
        with lora.disabled(self.model) if isinstance(self.head, WithoutAdapter) else nullcontext():
            core = native(self.model, self.settings.precision)
            model = computed(self.model, core, backward)
            cast = autocast(self.model, self.settings.precision) if core is None else nullcontext()

            def ask(rows: Rows, needed: Tensor) -> PolicyOutput:
                with cast:
                    return self.head(model, rows, needed)

            yield ask

    def step(self, batch: Batch, objective: Objective) -> Update:
        """One optimizer step. Its metrics are ``loss``, the means of the objective's metrics over the batch's weight,
        ``logprob_gap`` and ``logprob_gap_max``, ``grad_norm`` (before clipping) and ``lr``.

        Raises NotFinite when the gradient is not finite: the weights are then untouched.
        """
        tally, output = self.accumulate(batch, objective)
        return Update(self.apply(tally), output)

    def accumulate(self, batch: Batch, objective: Objective) -> tuple[Tally, PolicyOutput]:
        """Add the batch's gradient to the parameters' and count what was seen on the way."""
        tally, output = Tally(), _blank(batch)
        prompts = prompts_of(batch) if self.shares_prompts else None
        with self._asking(backward=True) as ask:
            for index in micro_batches(batch.lengths, self.settings.micro_tokens, prompts):
                micro = batch.select(index).to(self.device)
                policy = ask(micro, micro.mask)
                loss = objective(policy, micro)
                loss.value.backward()
                tally = tally + Tally.of(policy, micro, loss)
                _keep(output, policy, index)
        return tally, output

    def apply(self, tally: Tally) -> Metrics:
        """Step with the gradient that was accumulated."""
        norm = clip([p.grad for p in self._trained if p.grad is not None], self.settings.max_norm)
        if not torch.isfinite(norm):
            self.model.zero_grad(set_to_none=True)
            raise NotFinite(
                f"the gradient of optimizer step {self._version + 1} is not finite; the weights were left as they are. "
                "Lower the learning rate, or look at the rewards of this step's traces"
            )
        set_lr(self.optimizers, self._schedule.factor(self._version, self._steps))
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self._version += 1
        rate = self.optimizers[-1].param_groups[0]["lr"]
        return {**tally.means(), "grad_norm": float(norm), "lr": float(rate)}

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> PolicyOutput:
        """What the head says of every token but the first, (N, T), float32; zero at the first and in the padding."""
        output = _blank(rows)
        with self._asking(backward=False) as ask:
            for index in micro_batches(rows.lengths, self.settings.micro_tokens):
                micro = Rows(rows.tokens, rows.lengths).select(index).to(self.device)
                positions = torch.arange(micro.tokens.shape[1], device=self.device)
                needed = (positions > 0) & (positions < micro.lengths[:, None])
                _keep(output, ask(micro, needed), index)
        return output

    def logprobs(self, rows: Rows) -> Float[Tensor, "n t"]:
        """log π of every token but the first (which is 0), (N, T)."""
        return self.evaluate(rows).logp

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and numbers from which ``restore`` continues bit for bit."""
        tensors = {f"model.{name}": tensor.detach().clone() for name, tensor in self._stored().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                for name, value in entries.items():
                    tensors[f"optimizer.{number}.{index}.{name}"] = value.detach().clone()
        return tensors, {"version": self._version}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, int]) -> None:
        """Undo everything since ``state``."""
        saved_model = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        if saved_model.keys() != self._stored().keys():
            raise RunMismatch("the training state belongs to another model: its parameters have other names")
        self.model.load_state_dict(saved_model, strict=False)
        for number, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            saved["state"] = defaultdict(dict)
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    index, name = key.split(".", 3)[2:]
                    saved["state"][int(index)][name] = value.clone()  # the optimizer works on what it is given
            saved["state"] = dict(saved["state"])
            optimizer.load_state_dict(saved)
        self._version = values["version"]

    def _stored(self) -> dict[str, Tensor]:
        """The whole model, or, when a part is frozen, what is trained: the rest is where it came from."""
        trained = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad}
        frozen = {name for name, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {k: v for k, v in self.model.state_dict().items() if not frozen or k in trained}


def clip(gradients: list[Tensor], largest: float) -> Tensor:
    """Scale gradients, in place, to an L2 norm of at most ``largest`` over all of them; returns the norm before."""
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _blank(rows: Rows) -> PolicyOutput:
    return PolicyOutput(*(torch.zeros(rows.tokens.shape) for _ in range(3)))


def _keep(output: PolicyOutput, said: PolicyOutput, index: Tensor) -> None:
    """Put what was said of some rows into its place."""
    width = said.logp.shape[1]
    pairs = ((output.logp, said.logp), (output.entropy, said.entropy), (output.values, said.values))
    for column, values in pairs:
        if column is not None and values is not None:
            column[index, :width] = values.detach().float().cpu()
