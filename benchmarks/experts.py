"""Routed experts, forward and backward: ours in the native core and in PyTorch, and the loop of ``transformers``.

First a layer of experts with its router and its shared expert, at several sizes; only packing the weights, which is
done once for many passes, is left out. Then the training pass of whole models, of the DeepSeek-V3 architecture and of
dense ones as wide, in FLOP per active parameter: what experts and latent attention cost beyond their products.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measure import Sample, arguments, interleaved, median, spread, table, write_json
from ours import DTYPES, PRECISIONS, learner
from torch import Tensor, nn

from longthought.algorithms.objective import GRPO
from longthought.core.types import Batch
from longthought.models.config import ModelConfig
from longthought.models.experts import MixtureOfExperts
from longthought.models.kernels import library
from longthought.models.kernels.core import core
from longthought.models.kernels.experts import NativeExperts, parameters
from longthought.models.kernels.packed import pack_experts
from longthought.models.parts import Experts, Latent
from longthought.models.presets import sized
from longthought.models.transformer import Transformer
from longthought.training.learner import PolicyLearner
from training import ragged

VOCABULARY = 512
ARCHITECTURES = ("dense", "deepseek_v3")


@dataclass(frozen=True)
class Layer:
    """width: of the model.  wide: of one expert.  tokens: of one pass."""

    width: int
    wide: int
    experts: int
    chosen: int
    tokens: int = 2048

    def config(self) -> ModelConfig:
        experts = Experts(self.experts, self.chosen, self.wide, 1)
        latent = Latent(16, 16, 16, 16)  # which sigmoids and shared experts come with
        return ModelConfig(16, self.width, num_hidden_layers=1, qk_norm=False, latent=latent, experts=experts)

    def flop(self) -> float:
        """Of one pass, forward and backward."""
        nets = 3 * self.width * self.wide * (self.chosen + 1)
        return 6.0 * self.tokens * (nets + self.width * self.experts)

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens, each to {self.chosen} of {self.experts} experts {self.width} × {self.wide}, "
            "and to a shared one"
        )


LAYERS = {
    "8": Layer(256, 224, 8, 2),
    "32": Layer(512, 256, 32, 4),
    "64": Layer(512, 128, 64, 6),
    "64-few": Layer(512, 128, 64, 6, tokens=256),
}


def drawn(module: nn.Module) -> None:
    """Matrices N(0, 1/fan-in), norms one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)


def peer_of(module: MixtureOfExperts, layer: Layer) -> nn.Module:
    """The same layer in ``transformers``, with its loop over the experts."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=layer.width,
        moe_intermediate_size=layer.wide,
        n_routed_experts=layer.experts,
        num_experts_per_tok=layer.chosen,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
    )
    config._experts_implementation = "eager"
    peer, state = DeepseekV3MoE(config), module.state_dict()
    state["experts.gate_up_proj"] = torch.cat([state.pop(f"experts.{name}_proj") for name in ("gate", "up")], 1)
    peer.load_state_dict(state)
    return peer


def passed(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, given: Tensor) -> float:
    """Forward and backward; the norm of all gradients."""
    module.zero_grad(set_to_none=True)
    inside = x.detach().requires_grad_()
    forward(inside).float().backward(given)
    gradients = [inside.grad, *(p.grad for p in module.parameters())]
    return float(torch.stack([g.float().norm() for g in gradients if g is not None]).norm())


def natively(module: MixtureOfExperts, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    by = core(library.load(), dtype)
    packed = pack_experts(module, by, backward=True)

    def forward(x: Tensor) -> Tensor:
        chosen, gates = module.route(0, x, None)
        out: Tensor = NativeExperts.apply((by, packed), torch.zeros_like(x), x, chosen, gates, *parameters(module))
        return out

    return forward


def cast(call: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return call(x)

    return forward


def layer_sides(layer: Layer) -> dict[str, Callable[[], float]]:
    """By who computes and in which precision; the first is what the others are compared with."""
    drawn(module := MixtureOfExperts(layer.config()))
    peer = peer_of(module, layer)
    g = torch.Generator().manual_seed(1)
    x, given = (torch.randn(layer.tokens, layer.width, generator=g) for _ in range(2))
    sides: dict[str, Callable[[], float]] = {}
    for name, dtype in reversed(DTYPES.items()):
        if library.available() is not None:
            sides[f"native {name}"] = partial(passed, natively(module, dtype), module, x, given)
        sides[f"our PyTorch {name}"] = partial(passed, cast(lambda x: module(0, x, None), dtype), module, x, given)
        theirs = cast(lambda x: peer(x.unsqueeze(0)).squeeze(0), dtype)
        sides[f"transformers {name}"] = partial(passed, theirs, peer, x, given)
    return sides


def layers(layer: Layer, repetitions: int) -> dict[str, list[Sample]]:
    """A table of one layer."""
    sides = layer_sides(layer)
    for run in sides.values():
        run()  # what a first call costs is not measured
    samples = interleaved(sides, repetitions)
    cpu = {name: [1e3 * sample.cpu for sample in each] for name, each in samples.items()}
    first = median(next(iter(cpu.values())))
    lines: list[tuple[object, ...]] = []
    for name, each in cpu.items():
        rate, norm = layer.flop() / median(each) / 1e6, samples[name][0].result
        lines.append((name, spread(each, ",.1f"), f"{rate:.0f}", f"{median(each) / first:.2f} x", f"{norm:.2f}"))
    print(f"\n{layer}")
    table(("side", "CPU ms", "GFLOP/s", "takes", "grad norm"), lines)
    return samples


def model_sides(width: int, precision: str, batch: Batch) -> dict[str, Callable[[], Mapping[str, float]]]:
    """Optimizer steps at learning rate 0, by architecture and by who computes."""
    sides: dict[str, Callable[[], Mapping[str, float]]] = {}
    for arch in ARCHITECTURES:
        drawn(model := Transformer(sized(arch, width, VOCABULARY, 1024, ahead=0)))
        trainer = learner(model, precision, rate=0.0)
        for by, wish in {"native": "", "PyTorch": library.OFF}.items():
            sides[f"{arch} {by}"] = partial(step, trainer, batch, wish)
    return sides


def step(trainer: PolicyLearner, batch: Batch, wish: str) -> Mapping[str, float]:
    """wish: what LONGTHOUGHT_NATIVE says meanwhile."""
    before = os.environ.get(library.VARIABLE, "")
    os.environ[library.VARIABLE] = wish
    try:
        return trainer.step(batch, GRPO()).metrics
    finally:
        os.environ[library.VARIABLE] = before


def models(width: int, options: Any) -> dict[str, list[Sample]]:
    """A table of whole models of one width."""
    batch = ragged(options.rows, 32, 32, options.longest, VOCABULARY, group=8)
    tokens = int(batch.lengths.sum())
    sides = model_sides(width, options.precision, batch)
    for run in sides.values():
        run()
    samples = interleaved(sides, options.repetitions)
    rates: dict[str, float] = {}
    lines: list[tuple[object, ...]] = []
    for name, each in samples.items():
        arch = next(one for one in ARCHITECTURES if name.startswith(one))
        active = sized(arch, width, VOCABULARY, 1024, ahead=0).active_parameters()
        cpu = [tokens / sample.cpu for sample in each]
        rates[name] = 6e-9 * active * median(cpu)
        share, norm = rates[name] / rates[f"{ARCHITECTURES[0]} native"], each[0].result["grad_norm"]
        lines.append((name, f"{active:,}", spread(cpu), f"{rates[name]:.0f}", f"{share:.2f}", f"{norm:.4f}"))
    print(f"\nwhole models of width {width}: {options.rows} rows, {tokens:,} tokens, {options.precision}")
    table(("side", "active", "tokens/CPU s", "GFLOP/s", "of the dense", "grad norm"), lines)
    return samples


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=list(LAYERS), help="layers alone, by experts")
    parser.add_argument("--widths", nargs="*", type=int, default=[128, 256, 512], help="of whole models")
    parser.add_argument("--rows", type=int, default=32, help="sequences of a whole pass (default: 32)")
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest reply (default: 256)")
    parser.add_argument("--precision", choices=PRECISIONS, default=next(iter(PRECISIONS)), help="of whole models")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured: dict[str, Any] = {name: layers(LAYERS[name], options.repetitions) for name in options.layers}
    measured |= {f"width {width}": models(width, options) for width in options.widths}
    write_json(options.json, options, measured)


if __name__ == "__main__":
    main()
