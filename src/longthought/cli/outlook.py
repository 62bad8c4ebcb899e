"""The arithmetic of a run, stage by stage, as text."""

from __future__ import annotations

import math
from typing import NamedTuple

from longthought.cli.probe import RLRate, pretraining_rate, rl_rate, tuning_rate
from longthought.cli.rehearsal import Rehearsal, Step
from longthought.models.config import ModelConfig
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.runs.state import KEPT
from longthought.stages.measure import CheckReadiness, Evaluate
from longthought.stages.pretrain import Pretrain
from longthought.stages.rl import RL
from longthought.stages.sft import SFT
from longthought.training.learner import LearnerSettings

_FLOAT = 4  # bytes
_TRACED = 14  # bytes of a token in the traces, not compressed: id, log-prob and text
_SHARE = 1 / 3  # of the token limit: a usual mean length

ASSUMPTIONS = (
    "Times: about a second of each kind of work was done on this machine, with an untrained model of the same shape; "
    "what else the machine did meanwhile is in them.",
    f"The first time of a span is for answers of {_SHARE:.0%} of their token limit on average, the second for all at "
    "the limit; training time counts every answer, though groups without a difference are left out in the end.",
    "Token counts of RL and evaluation are upper bounds. Memory is that of the named parts; PyTorch itself and the "
    "activations of one micro-batch come on top.",
)


class Span(NamedTuple):
    """Seconds: expected, and at most."""

    usual: float
    most: float


class Section(NamedTuple):
    """One stage: its title, (label, value) lines, and its time, where one could be measured."""

    title: str
    lines: list[tuple[str, str]]
    time: Span | None = None


class _Machine:
    """What the probes of earlier stages found out."""

    def __init__(self) -> None:
        self.policy: Policy | None = None
        self.rate: RLRate | None = None


def outlook(rehearsal: Rehearsal) -> str:
    """Sections for every stage, the total, and what was assumed."""
    found = _Machine()
    found.rate = _rate(rehearsal, found)
    sections = [_section(step, found) for step in rehearsal.steps]
    blocks = [_block(section) for section in sections]
    times = [section.time for section in sections if section.time is not None]
    if times:
        total = Span(sum(t.usual for t in times), sum(t.most for t in times))
        unknown = [s.title for s in sections if s.time is None]
        rest = f" (without {', '.join(unknown)})" if unknown else ""
        blocks.append(f"in all{rest}: {_span(total)}")
    if rehearsal.stopped:
        blocks.append(
            f"The recipe looks at a result before it goes on; later stages are not known ({rehearsal.stopped})."
        )
    return "\n\n".join([*blocks, "\n".join(f"- {line}" for line in ASSUMPTIONS)])


def _rate(rehearsal: Rehearsal, found: _Machine) -> RLRate | None:
    """Measure sampling and training with the first RL stage, if a model of its shape can be had."""
    for step in rehearsal.steps:
        if isinstance(step.stage, Pretrain):
            found.policy = step.stage.new_policy()
        elif isinstance(step.given, Checkpoint):
            found.policy = step.given.load()
        if isinstance(step.stage, RL) and found.policy is not None:
            return rl_rate(step.stage, found.policy)
    return None


def _section(step: Step, found: _Machine) -> Section:
    stage = step.stage
    title = f"{step.name} ({type(stage).__name__})"
    if isinstance(stage, Pretrain):
        return _pretraining(title, stage)
    if isinstance(stage, SFT):
        return _fine_tuning(title, stage, found)
    if isinstance(stage, RL):
        return _rl(title, stage, found)
    if isinstance(stage, Evaluate | CheckReadiness):
        return _evaluation(title, stage, found)
    return Section(title, [("", "nothing is known about the cost of this stage")])


def _pretraining(title: str, stage: Pretrain) -> Section:
    policy = stage.new_policy()
    config = policy.model.config
    rate = pretraining_rate(stage, policy)
    seconds = rate.seconds * stage.steps
    weights = config.parameters() * _FLOAT
    lines = [
        ("model", _shape(config)),
        ("optimizer steps", f"{stage.steps:,}, one micro-batch in each of {_workers(stage.workers)}"),
        ("tokens", f"at most {stage.steps * stage.tokens_per_step:,} ({stage.tokens_per_step:,} a step)"),
        ("memory", _training_memory(weights, 0, rate.optimizer, stage.workers)),
        ("head chunk", _head_chunk(config, LearnerSettings().head_chunk)),
        ("disk", f"model {_size(weights)}; training states {KEPT} × {_size(weights + rate.optimizer)}"),
        ("speed", f"{1 / rate.seconds:,.1f} steps/s, {stage.tokens_per_step / rate.seconds:,.0f} tokens/s"),
    ]
    return Section(title, lines, Span(seconds, seconds))


def _fine_tuning(title: str, stage: SFT, found: _Machine) -> Section:
    count = stage.examples.size("train")
    lines = [("examples", f"{count:,}, {stage.epochs} times each; {stage.examples.size('held_out'):,} held out")]
    if found.policy is None:
        return Section(title, lines)
    rate, config = tuning_rate(stage, found.policy), found.policy.model.config
    steps = stage.epochs * math.ceil(count / stage.examples_in_step(rate.tokens))
    weights = config.parameters() * _FLOAT
    memory, states = f"weights {_size(weights)}, and what the LoRA takes", ""
    if stage.adapter is None:
        memory = _training_memory(weights, 0, rate.optimizer, stage.workers)
        states = f"; training states {KEPT} × {_size(weights + rate.optimizer)}"
    lines += [
        ("model", _shape(config)),
        ("optimizer steps", f"about {steps:,}, shared by {_workers(stage.workers)}"),
        ("tokens", f"about {count * stage.epochs * rate.tokens:,.0f} ({rate.tokens:,.0f} an example)"),
        ("memory", memory),
        ("head chunk", _head_chunk(config, stage.learner.head_chunk)),
        ("disk", f"model {_size(weights)}{states}"),
        ("speed", f"{1 / rate.seconds:,.2f} steps/s"),
    ]
    seconds = rate.seconds * steps
    return Section(title, lines, Span(seconds, seconds))


def _rl(title: str, stage: RL, found: _Machine) -> Section:
    replies = stage.prompts * stage.samples
    limit = stage.longest
    sampled = replies * sum(map(stage.limit, range(1, stage.steps + 1)))
    mean = sampled / (stage.steps * replies)
    lines = [
        ("prompts", f"{stage.prompts:,} groups a step × {stage.samples:,} samples = {replies:,} answers a step"),
        ("steps", f"{stage.steps:,}, with {stage.steps * replies:,} answers in all"),
        ("optimizer steps", f"{stage.steps * stage.updates:,} ({stage.updates} on each step's answers)"),
        ("tokens", f"at most {sampled:,} sampled ({limit:,} an answer)"),
    ]
    looked = 0 if stage.hacking is None else stage.hacking.replies(stage.steps)
    if looked:
        lines.append(("looks", f"{looked:,} answers to held-out prompts, for signs of reward hacking"))
    if found.policy is None or found.rate is None:
        return Section(title, lines)
    rate, config = found.rate, found.policy.model.config
    weights = config.parameters() * _FLOAT
    reference = weights if "logp_ref" in stage.method.objective.reads else 0
    row = rate.prompt + limit
    micro = math.ceil(replies / stage.updates * row / stage.learner.micro_tokens)
    lines += [
        (
            "micro-batches",
            f"at most {micro:,} of {stage.learner.micro_tokens:,} tokens an optimizer step, "
            f"shared by {_workers(stage.workers)}",
        ),
        ("memory", _training_memory(weights, reference, rate.optimizer, stage.workers)),
        ("key/value cache", _cache(config, stage, replies, math.ceil(row))),
        ("head chunk", _head_chunk(config, stage.learner.head_chunk)),
        ("disk", _rl_disk(stage, weights, rate.optimizer + reference + (weights if stage.hacking else 0))),
        ("speed", f"sampling {rate.sampled:,.0f} tokens/s, training {rate.trained:,.0f} tokens/s"),
    ]

    def seconds(length: float) -> float:
        trained = stage.steps * replies
        return (trained + looked) * length / rate.sampled + trained * (rate.prompt + length) / rate.trained

    return Section(title, lines, Span(seconds(mean * _SHARE), seconds(mean)))


def _rl_disk(stage: RL, weights: int, rest: int) -> str:
    traced = stage.prompts * stage.samples * sum(map(stage.limit, range(1, stage.steps + 1))) * _TRACED
    return f"model {_size(weights)}; training states {KEPT} × {_size(weights + rest)}; traces at most {_size(traced)}"


def _evaluation(title: str, stage: Evaluate | CheckReadiness, found: _Machine) -> Section:
    settings = stage.settings
    replies = settings.problems * settings.samples
    tokens = replies * settings.max_tokens
    lines = [
        ("answers", f"{settings.problems:,} problems × {settings.samples:,} samples = {replies:,}"),
        ("tokens", f"at most {tokens:,} ({settings.max_tokens:,} an answer)"),
    ]
    if found.policy is None or found.rate is None:
        return Section(title, lines)
    width = math.ceil(found.rate.prompt) + settings.max_tokens
    lines.append(("key/value cache", _cache(found.policy.model.config, stage, replies, width)))
    seconds = tokens / found.rate.sampled
    return Section(title, lines, Span(seconds * _SHARE, seconds))


def _shape(config: ModelConfig) -> str:
    active = f" ({config.active_parameters():,} active)" if config.experts is not None else ""
    return (
        f"{config.parameters():,} parameters{active}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.vocab_size:,} words"
    )


def _training_memory(weights: int, reference: int, optimizer: int, workers: int) -> str:
    parts = [f"weights {_size(weights)}", f"gradients {_size(workers * weights)}", f"optimizer {_size(optimizer)}"]
    return ", ".join([*parts, *([f"reference {_size(reference)}"] if reference else [])])


def _workers(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process"


def _cache(config: ModelConfig, stage: RL | Evaluate | CheckReadiness, replies: int, width: int) -> str:
    """What the ``SlotCache`` of all processes hold: what every layer keeps of all tokens that are sampled together."""
    slots = stage.workers * min(stage.engine.slots, math.ceil(replies / stage.workers))
    width = min(width, config.max_position_embeddings)
    return f"{_size(slots * width * config.cache_numbers * _FLOAT)} ({slots:,} answers together × {width:,} tokens)"


def _head_chunk(config: ModelConfig, chunk: int) -> str:
    return f"{_size(2 * chunk * config.vocab_size * _FLOAT)} (logits and gradient of {chunk:,} tokens)"


def _block(section: Section) -> str:
    lines = [*section.lines, *([("time", _span(section.time))] if section.time is not None else [])]
    width = max(len(label) for label, _ in lines)
    return "\n".join([section.title, *(f"  {label:<{width}}  {value}" for label, value in lines)])


def _span(span: Span) -> str:
    usual, most = _duration(span.usual), _duration(span.most)
    return usual if usual == most else f"{usual} to {most}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:.0f} B"
