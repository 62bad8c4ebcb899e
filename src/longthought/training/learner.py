"""The learner: forward, equation, backward. It knows no algorithm: what to minimise arrives as an ``Objective``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from longthought.core.errors import NotFinite, RunMismatch, SettingsError
from longthought.core.protocols import Objective
from longthought.core.types import Batch, Metrics, PolicyOutput, Rows, Update
from longthought.models import lora
from longthought.models.precision import Precision, autocast, check_precision, computed, native
from longthought.models.transformer import Transformer
from longthought.training.balancing import Balancing, Routed, Watch, Watched, bias_spread, routers_of
from longthought.training.optimizer import OptimizerSettings, set_lr
from longthought.training.packing import Layout, layout, micro_batches, prompts_of
from longthought.training.tally import Part, kept, merged
from longthought.training.tally import Tally as Tally

_PASSES = 1_000_003  # between the seeds of the noise of two parts of a step


@dataclass(frozen=True)
class LearnerSettings:
    """micro_tokens: tokens of one forward pass (memory, not mathematics). max_norm: gradient clipping, L2.

    precision: of the matrix products; weights, gradients and sums are float32. See ``models/precision.py``.
    balancing: of routed experts, a part of pretraining; None: their biases stay as they are, as reinforcement learning
    needs it, where sampler and learner have to choose alike.
    """

    micro_tokens: int = 2048
    max_norm: float = 1.0
    head_chunk: int = 1024
    precision: Precision = "auto"
    balancing: Balancing | None = None

    def __post_init__(self) -> None:
        for name in ("micro_tokens", "max_norm", "head_chunk"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}={getattr(self, name)}: must be positive")
        check_precision("learner", self.precision)


class Head(Protocol):
    """What a model says about the tokens in ``needed`` (N, T), zero elsewhere. Never asked about t = 0.

    A head whose ``replay`` is True gets a model whose tokens choose the experts that the rows tell.
    """

    def __call__(self, model: Any, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput: ...


@dataclass(frozen=True)
class LogprobHead:
    """log-prob and entropy of softmax(logits / temperature). chunk: tokens whose logits exist at a time.

    ahead: also what the modules that predict further tokens say; no prompt is then computed for several rows at once,
    since what follows its last token differs.
    replay: where the rows tell which experts their tokens chose when they were sampled, they choose these again;
    otherwise it is only measured how many differ.
    """

    temperature: float
    chunk: int
    ahead: bool = False
    replay: bool = True

    def __call__(self, model: Transformer, rows: Rows, needed: Bool[Tensor, "n t"], /) -> PolicyOutput:
        ask = evaluate_ahead if self.ahead else evaluate_policy
        return ask(model, rows, needed, self.temperature, self.chunk)


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
    laid, hidden = _computed(model, rows, needed, share=getattr(model, "shares_prompts", False))
    return Hidden(hidden.index_select(0, laid.before), laid.where)


def _computed(model: Any, rows: Rows, needed: Bool[Tensor, "n t"], share: bool) -> tuple[Layout, Float[Tensor, "s d"]]:
    """The tokens that the needed ones depend on, and their states."""
    laid = layout(rows, needed, share)
    if isinstance(model, Watched):
        model.begin(rows, laid)
    return laid, model(rows.tokens.flatten()[laid.tokens], laid.attend.positions, laid.attend)


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


def evaluate_ahead(model: Any, rows: Rows, needed: Bool[Tensor, "n t"], temperature: float, chunk: int) -> PolicyOutput:
    """As ``evaluate_policy``, and the log-probs of the modules that predict further tokens.

    Token t gets that of module k from the state k tokens further back than the state that predicts it first.

    Raises SettingsError for a model without such modules.
    """
    if not model.config.num_nextn_predict_layers:
        raise SettingsError(
            "the model has no modules that predict further tokens (num_nextn_predict_layers=0): ask for its log-probs "
            "alone, and take the objective without MultiToken"
        )
    laid, hidden = _computed(model, rows, needed, share=False)
    tokens, left = rows.tokens.flatten(), laid.left
    depth, place = model.config.num_nextn_predict_layers, torch.arange(len(left), device=left.device)
    following = torch.stack([tokens[laid.tokens[place + left.clamp(max=k)]] for k in range(1, depth + 1)])
    states = [hidden, *model.ahead(hidden, following, laid.attend.positions, laid.attend)]
    time = laid.where % rows.tokens.shape[1] - 1
    said: list[Tensor] = []
    for k, state in enumerate(states):
        far = time >= k
        where, before = laid.where[far], laid.before[far] - k
        pair = model.token_logprobs(state.index_select(0, before), tokens[where], temperature, chunk)
        said += [spread(column, where, needed) for column in (pair if not k else pair[:1])]
    return PolicyOutput(said[0], said[1], ahead=torch.stack(said[2:], -1))


def spread(values: Float[Tensor, " m"], where: Int[Tensor, " m"], like: Shaped[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Values at their places in (N·T), zero elsewhere, (N, T)."""
    return values.new_zeros(like.numel()).index_copy(0, where, values).view(like.shape)


class Ask(Protocol):
    """Asks the head about a model that is ready, watching its routers."""

    def __call__(self, rows: Rows, needed: Tensor, watch: Watch | None, /) -> PolicyOutput: ...


class PolicyLearner:
    """Optimizes a model in place.

    ``step`` minimises an objective over a batch whose weights were decided beforehand over the whole batch; any cut
    into micro-batches gives the same gradient. ``temperature`` is the sampler's: log-probs are those of
    softmax(logits / temperature). ``head``: what the model is asked, if not its log-probs. Only parameters that
    require a gradient are optimized and stored; one that no loss reaches, such as those of modules that predict further
    tokens and are not asked, stays as it is.
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
        self._routers, self._depth = routers_of(model)
        if settings.balancing is not None:
            settings.balancing.check(self._routers)
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
        alone = self.settings.balancing is not None or getattr(self.head, "ahead", False)
        return not alone and native(self.model, self.settings.precision) is not None

    @contextmanager
    def _asking(self, backward: bool) -> Iterator[Ask]:
        """What asks the head about the model as it is now, in its precision."""
        with lora.disabled(self.model) if isinstance(self.head, WithoutAdapter) else nullcontext():
            core = native(self.model, self.settings.precision)
            model = computed(self.model, core, backward)
            cast = autocast(self.model, self.settings.precision) if core is None else nullcontext()

            def ask(rows: Rows, needed: Tensor, watch: Watch | None) -> PolicyOutput:
                seen = model if watch is None else Watched(model, watch, share=self.settings.balancing is None)
                with cast:
                    return self.head(seen, rows, needed)

            yield ask

    def _watch(self, seed: int | None) -> Watch | None:
        """For one pass, if the model has routers."""
        if not self._routers:
            return None
        return Watch(self._routers, self._depth, replay=getattr(self.head, "replay", False), seed=seed)

    def step(self, batch: Batch, objective: Objective) -> Update:
        """One optimizer step. Its metrics are ``loss``, the means of the objective's metrics over the batch's weight,
        ``logprob_gap`` and ``logprob_gap_max``, ``grad_norm`` (before clipping) and ``lr``.

        Raises NotFinite when the gradient is not finite: the weights are then untouched.
        """
        tally, output = self.accumulate(batch, objective)
        return Update(self.apply(tally), output)

    def accumulate(self, batch: Batch, objective: Objective, part: Part | None = None) -> tuple[Tally, PolicyOutput]:
        """Add the batch's gradient to the parameters' and count what was seen on the way.

        part: of which optimizer step, if the batch is not the whole of it.
        """
        whole = part or Part(len(batch.tokens), self._version)
        prompts = prompts_of(batch) if self.shares_prompts else None
        cuts = micro_batches(batch.lengths, self.settings.micro_tokens, prompts)
        balancing = self.settings.balancing
        tally, said = Tally(), []
        with self._asking(backward=True) as ask:
            for number, index in enumerate(cuts):
                micro = batch.select(index).to(self.device)
                watch = self._watch(None if balancing is None else whole.number * _PASSES + number)
                policy = ask(micro, micro.mask, watch)
                loss = objective(policy, micro)
                routed, extra = self._balance(watch, len(index), whole.sequences)
                (loss.value + extra).backward()
                tally = tally + replace(Tally.of(policy, micro, loss), routed=routed)
                said.append(kept(policy))
        return tally, merged(batch, cuts, said)

    def _balance(self, watch: Watch | None, rows: int, sequences: int) -> tuple[Routed | None, Tensor | float]:
        """What the routers did with so many rows, of all sequences of the step; and what is added to the loss."""
        if watch is None:
            return None, 0.0
        notes = watch.notes()
        balancing = self.settings.balancing
        return watch.sums(notes), 0.0 if balancing is None else balancing.loss(notes.values(), rows, sequences)

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
        if self.settings.balancing is not None and tally.routed is not None:
            self.settings.balancing.move(self._routers, tally.routed)
        self._version += 1
        rate = self.optimizers[-1].param_groups[0]["lr"]
        return {**tally.means(), **bias_spread(self._routers), "grad_norm": float(norm), "lr": float(rate)}

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> PolicyOutput:
        """What the head says of every token but the first, (N, T), float32; zero at the first and in the padding."""
        rows = Rows(rows.tokens, rows.lengths, routing=rows.routing)
        cuts, said = micro_batches(rows.lengths, self.settings.micro_tokens), []
        with self._asking(backward=False) as ask:
            for index in cuts:
                micro = rows.select(index).to(self.device)
                positions = torch.arange(micro.tokens.shape[1], device=self.device)
                needed = (positions > 0) & (positions < micro.lengths[:, None])
                said.append(kept(ask(micro, needed, self._watch(None))))
        return merged(rows, cuts, said)

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
        """The whole model, or, when a part is frozen, what is trained or balanced: the rest is where it came from."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        state = self.model.state_dict()
        if all(p.requires_grad for p in parameters.values()):
            return state
        kept = {name for name, p in parameters.items() if p.requires_grad}
        if self.settings.balancing is not None:
            kept |= state.keys() - parameters.keys()
        return {name: tensor for name, tensor in state.items() if name in kept}


def clip(gradients: list[Tensor], largest: float) -> Tensor:
    """Scale gradients, in place, to an L2 norm of at most ``largest`` over all of them; returns the norm before."""
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
