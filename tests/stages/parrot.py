"""A world small enough to learn in a second: say the word that you are told to say."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from longthought.core.types import Message, Outcome, Problem, Score, Verdict
from longthought.models.config import ModelConfig
from longthought.models.transformer import Transformer, initialize
from longthought.runs.artifacts import Checkpoint, Policy
from longthought.text.renderer import ASSISTANT, BEGIN, END, USER, PlainRenderer
from longthought.text.tokenizer import Tokenizer

WORDS = ("red", "blue", "green")


@dataclass(frozen=True)
class Parrot:
    """The reply must begin with the word of the prompt. ``broken``: outcome of every third reply."""

    broken: Outcome | None = None
    name: str = "parrot"

    def problem(self, split: str, index: int) -> Problem:
        word = WORDS[index % len(WORDS)]
        return Problem(f"{split}/{index}", (Message("user", word),), word)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        return [self._score(problem, reply, i) for i, reply in enumerate(replies)]

    def _score(self, problem: Problem, reply: str, number: int) -> Score:
        if self.broken and number % 3 == 0:
            return Score(None, False, {}, Verdict(None, self.broken, "on purpose"))
        right = reply.split()[:1] == [problem.answer]
        return Score(float(right), right, {"accuracy": float(right)}, Verdict(float(right), Outcome.GRADED, reply))


@dataclass(frozen=True)
class Deadly(Parrot):
    """Dies, with all its process, at a call."""

    dies_at: int = field(default=-1, compare=False)
    calls: list[int] = field(default_factory=list, compare=False)

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        self.calls.append(1)
        if len(self.calls) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().grade(problem, replies)


def checkpoint(folder: Path, seed: int = 0, noise: float = 0.05, **parts: object) -> Checkpoint:
    """A random model of two narrow layers that knows the words. parts: further settings of its shape."""
    tokenizer = Tokenizer.of_words(WORDS, (BEGIN, USER, ASSISTANT, END))
    shape: dict[str, object] = {"max_position_embeddings": 32, **parts}
    model = Transformer(ModelConfig(tokenizer.size, 32, 48, 2, 4, 2, 8, **shape))  # type: ignore[arg-type]
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    return Checkpoint.save(folder, Policy(model.eval(), PlainRenderer(tokenizer)), {})
