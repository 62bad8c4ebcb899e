"""The verbs: what the parts of the system ask of each other. Protocols only; nothing here runs.

Callables take positional-only arguments, so that an equation may keep its paper's letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from longthought.core.types import (
    Batch,
    Completion,
    Loss,
    Message,
    PolicyOutput,
    Problem,
    Rollout,
    Rows,
    SamplingParams,
    Score,
    TokenIds,
    Update,
    Verdict,
)


class Verifier(Protocol):
    """Grade one reply by rule. Never raises; what went wrong stands in the verdict."""

    def __call__(self, problem: Problem, reply: Message, /) -> Verdict: ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A verifier that grades many replies at once, on several cores or over a network."""

    def many(self, pairs: Sequence[tuple[Problem, Message]], /) -> list[Verdict]:
        """A verdict for every pair, in order: what one call for each would say."""
        ...


class Task(Protocol):
    """Problems and how they are graded."""

    @property
    def name(self) -> str: ...

    def problem(self, split: str, index: int) -> Problem:
        """Problem ``index`` of a split: the same object for the same arguments, without limit on ``index``."""
        ...

    def grade(self, problem: Problem, replies: Sequence[str]) -> list[Score]:
        """Grade the G replies (raw text of the model) to one problem."""
        ...


@runtime_checkable
class BatchTask(Protocol):
    """A task that grades the replies to many problems at once."""

    def grade_together(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Score]]:
        """As ``Task.grade`` for every group, in order."""
        ...


class Renderer(Protocol):
    """Messages to tokens and back: the only place that knows a chat format."""

    @property
    def stop_tokens(self) -> tuple[int, ...]: ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a reply, where tokens cannot."""
        ...

    def prompt(self, messages: Sequence[Message]) -> TokenIds:
        """Tokens that end where the assistant starts."""
        ...

    def example(self, messages: Sequence[Message]) -> tuple[TokenIds, tuple[bool, ...]]:
        """Tokens of a finished conversation, and a mask that is True on its last message, the end included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of any tokens."""
        ...

    def text(self, completion: TokenIds) -> str:
        """The assistant's reply, stop token removed. What the prompt put into its mouth (``<think>``) is part of it."""
        ...


class Sampler(Protocol):
    """Engine, remote client, any search, or a scripted double."""

    def sample(self, prompts: Sequence[TokenIds], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt, in order."""
        ...


Finished: TypeAlias = Callable[[int, list[Completion]], object]
"""Is told the index of a prompt and its completions, once they are all there."""


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """A sampler that hands over the completions of a prompt as soon as it has them all.

    The method has a name of its own: whether ``sample`` takes a further argument cannot be seen from outside.
    """

    def stream(self, prompts: Sequence[TokenIds], params: SamplingParams, finished: Finished) -> list[list[Completion]]:
        """As ``sample``. Calls ``finished(index of the prompt, completions)`` once for every prompt, in any order.

        In the caller's thread; ``finished`` returns at once. What it raises ends the sampling and is raised here.
        """
        ...


class Advantage(Protocol):
    """Credit inside one group, (G,) → (G,)."""

    def __call__(self, rewards: Tensor, /) -> Tensor: ...


class Weighting(Protocol):
    """How tokens are averaged, (N, T) bool → (N, T) weights of the whole optimizer step."""

    def __call__(self, mask: Tensor, /) -> Tensor: ...


class Shaping(Protocol):
    """A named summand of the reward beside the task's: one value per rollout of a group, (G,)."""

    @property
    def name(self) -> str: ...

    def __call__(self, group: Sequence[Rollout], /) -> list[float]: ...


class Objective(Protocol):
    """A weighted sum over a batch, to be minimised."""

    @property
    def reads(self) -> frozenset[str]:
        """Optional columns of the batch that it needs, so that a stage fills only those."""
        ...

    @property
    def silent_without_advantage(self) -> bool:
        """Whether a row whose advantage is zero has no gradient, so that a stage may leave it out."""
        ...

    def __call__(self, policy: PolicyOutput, batch: Batch, /) -> Loss: ...


class Learner(Protocol):
    """Backward passes. Knows no algorithm."""

    @property
    def version(self) -> int: ...

    def step(self, batch: Batch, objective: Objective) -> Update: ...

    def logprobs(self, rows: Rows) -> Tensor: ...


class Artifact(Protocol):
    """What a stage makes: a file or folder. (What a stage is stands in ``runs.run``, beside what runs it.)"""

    @property
    def path(self) -> Path: ...
