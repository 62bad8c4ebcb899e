"""One side of ``step.py`` in its own process: makes GRPO steps one at a time, each when a line arrives on its input.

    python sides.py '{"side": "ours", "folder": …}'

Answers every line with one of JSON: wall and CPU seconds of the step and of its generation, tokens, memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import cpu_seconds, peak_bytes
from peer import load_ours, text


class Spec(NamedTuple):
    """What a side is to do. ``warm``: the limit of new tokens in the first step, which is not counted."""

    side: str
    folder: str
    prompts: int
    samples: int
    new: int
    warm: int
    steps: int
    threads: int
    precision: str
    rate: float
    micro: int = 0
    trl: dict[str, Any] = {}  # noqa: RUF012, never changed


class Turns:
    """The conversation with ``step.py``, and the clocks of a step."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not part of the conversation
        self.parts: dict[str, float] = {}
        self.tokens = 0

    def begin(self) -> bool:
        """Wait for a turn; False when there will be none."""
        if not sys.stdin.readline():
            return False
        self.parts, self.tokens = {}, 0
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()
        return True

    @contextmanager
    def generation(self) -> Iterator[None]:
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.parts["generate_wall"] = time.perf_counter() - wall
        self.parts["generate_cpu"] = cpu_seconds() - cpu

    def end(self) -> None:
        step = {"wall": time.perf_counter() - self._wall, "cpu": cpu_seconds() - self._cpu}
        self.say({**step, **self.parts, "tokens": self.tokens, "peak_bytes": peak_bytes()})

    def say(self, content: object) -> None:
        self._out.write(json.dumps(content) + "\n")
        self._out.flush()


def reward(tokens: Sequence[int]) -> float:
    """1 for a reply that begins with an odd token: about half of every group."""
    return float(tokens[0] % 2)


def read_prompts(spec: Spec) -> list[tuple[int, ...]]:
    return [tuple(prompt) for prompt in json.loads((Path(spec.folder) / "prompts.json").read_text())]


def run_ours(spec: Spec, turns: Turns) -> None:
    from ours import PRECISIONS, graded, system

    from longthought.core.types import SamplingParams

    prompts = read_prompts(spec)
    stop = tuple(json.loads((Path(spec.folder) / "stop.json").read_text()))
    precision = spec.precision or next(iter(PRECISIONS))
    with system(load_ours(Path(spec.folder)), precision, spec.threads, spec.rate) as ours:
        turns.say("ready")
        for number in range(spec.steps + 1):
            if not turns.begin():
                return
            asked = prompts[number * spec.prompts : (number + 1) * spec.prompts]
            limit = spec.new if number else spec.warm
            with turns.generation():
                groups = ours.sample(asked, SamplingParams(spec.samples, limit, seed=number, stop_tokens=stop))
            turns.tokens = sum(len(completion.token_ids) for group in groups for completion in group)
            ours.step(graded(asked, groups, reward))
            turns.end()


def run_trl(spec: Spec, turns: Turns) -> None:
    torch.set_num_threads(spec.threads)
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    batch = spec.prompts * spec.samples
    settings = GRPOConfig(
        output_dir=str(Path(spec.folder) / "trl"),
        per_device_train_batch_size=spec.micro,
        gradient_accumulation_steps=batch // spec.micro,
        num_generations=spec.samples,
        max_completion_length=spec.new,
        max_steps=spec.steps + 1,
        learning_rate=spec.rate,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **spec.trl,
    )

    class Paced(TrainerCallback):
        """A step begins when it is its turn."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.generation_config.max_new_tokens = spec.new if state.global_step else spec.warm
            if not turns.begin():
                sys.exit()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.end()

    trainer = GRPOTrainer(
        model=spec.folder,
        reward_funcs=lambda completion_ids, **kwargs: [reward(tokens) for tokens in completion_ids],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [text(prompt) for prompt in read_prompts(spec)]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(spec.folder),
        callbacks=[Paced()],
    )
    trainer._generate = clocked(trainer._generate, turns)
    turns.say("ready")
    trainer.train()


def clocked(generate: Callable[..., Any], turns: Turns) -> Callable[..., Any]:
    """TRL's ``_generate``, whose second result are the token ids of the replies, on the clock."""

    def run(*arguments: Any, **named: Any) -> Any:
        with turns.generation():
            made = generate(*arguments, **named)
        turns.tokens = sum(map(len, made[1]))
        return made

    return run


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    (run_ours if spec.side == "ours" else run_trl)(spec, Turns())


if __name__ == "__main__":
    main()
