"""Where long chains of thought come from: the three sources of R1's cold start that a model can be asked for.

DeepSeek-R1 (arXiv:2501.12948, section 2.3.1): few-shot prompting with a long chain of thought as an example, asking
directly for detailed answers with reflection and verification, and the outputs of R1-Zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from longthought.core.errors import SettingsError
from longthought.core.types import Message, Problem
from longthought.rollout.filters import language_of
from longthought.stages.sifting import asked, lot
from longthought.tasks.examples import Examples
from longthought.text.reasoning import CLOSE, OPEN, split

REFLECT = "Answer in detail. Reflect on every step, and verify the result before you give it."


@dataclass(frozen=True, kw_only=True)
class Source:
    """``samples`` replies of a model to each of the first ``prompts`` problems of the training split.

    model: its name among those that the stage is given.
    most: examples that are kept of this source; None: no limit.
    top_p: only the most likely tokens that together have this probability; 1: all.
    """

    model: str
    prompts: int = 256
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 192
    seed: int = 0
    most: int | None = None

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "max_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{self.kind}: {name}={getattr(self, name)} must be at least 1")
        if self.most is not None and self.most < 1:
            raise SettingsError(f"{self.kind}: most={self.most} must be at least 1; leave the source out for none")
        if self.temperature < 0 or (self.temperature == 0 and self.samples > 1):
            raise SettingsError(
                f"{self.kind}: temperature={self.temperature}, samples={self.samples}: at 0 all replies to a prompt "
                "are equal; set samples=1 or a positive temperature"
            )
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"{self.kind}: top_p={self.top_p} must be above 0, and at most 1")

    def asked(self, problem: Problem, single: bool) -> tuple[Message, ...]:
        """What the model is asked, so that it answers a problem at length.

        single: the chat format knows one question and no earlier turns.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Outputs(Source):
    """What a model says when it is asked plainly: R1-Zero's own outputs, at temperature 1."""

    model: str = "zero"

    kind: ClassVar[str] = "outputs"

    def asked(self, problem: Problem, single: bool) -> tuple[Message, ...]:
        """The problem."""
        return problem.messages


@dataclass(frozen=True, kw_only=True)
class Direct(Source):
    """The problem, with an instruction to reflect and verify after it. What is kept does not hold the instruction.

    instruction: one text, or one for each language, as ``{"en": "check", "zh": "查"}``.
    between: what stands before it.
    """

    model: str = "base"
    instruction: str | Mapping[str, str] = REFLECT
    between: str = "\n\n"

    kind: ClassVar[str] = "direct"

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = [self.instruction] if isinstance(self.instruction, str) else list(self.instruction.values())
        if not texts or not all(text.strip() for text in texts):
            raise SettingsError(f"direct: instruction={self.instruction!r} asks for nothing; use Outputs")

    def asked(self, problem: Problem, single: bool) -> tuple[Message, ...]:
        """The problem and the instruction. Raises SettingsError where there is none in its language."""
        *before, last = problem.messages
        return (*before, replace(last, content=f"{last.content}{self.between}{self._instruction(problem)}"))

    def _instruction(self, problem: Problem) -> str:
        if isinstance(self.instruction, str):
            return self.instruction
        language, texts = language_of(problem), self.instruction
        if language not in texts:
            raise SettingsError(
                f"direct: problem {problem.id} is in {language!r}, and there are instructions in "
                f"{', '.join(texts)} alone; add one"
            )
        return texts[language]


@dataclass(frozen=True, kw_only=True)
class FewShot(Source):
    """The problem after ``shots`` worked ones.

    demonstrations: questions with long worked replies, ``<think> … </think>`` and all; or conversations, as
    ``Examples.read("worked.jsonl")`` (those it holds out are left out).
    shots: of them for each prompt, by lot; those in its language first, and none that asks the same.
    turns: they are earlier turns of the conversation; if not, or where the chat format has none, all is one question.
    """

    demonstrations: tuple[tuple[str, str], ...] | Examples
    model: str = "base"
    shots: int = 2
    turns: bool = True

    kind: ClassVar[str] = "few-shot"

    def __post_init__(self) -> None:
        super().__post_init__()
        shown = self._shown()
        if not 1 <= self.shots <= len(shown):
            raise SettingsError(
                f"few-shot: shots={self.shots}, and there are {len(shown)} demonstrations: show at least 1, and give "
                "enough of them"
            )
        if any(message.role == "system" for one in shown for message in one):
            raise SettingsError("few-shot: a demonstration has a system message; put the text into its question")

    def asked(self, problem: Problem, single: bool) -> tuple[Message, ...]:
        """The demonstrations and the problem."""
        mine = language_of(problem)
        others = [one for one in self._shown() if asked(one) != asked(problem.messages)]
        shown = sorted(
            enumerate(others),
            key=lambda one: (_language(one[1]) != mine, lot(self.seed, "shot", problem.id, one[0])),
        )
        before = [message for _, one in shown[: self.shots] for message in one]
        if self.turns and not single:
            first = next((place for place, one in enumerate(problem.messages) if one.role != "system"), 0)
            return (*problem.messages[:first], *before, *problem.messages[first:])
        *earlier, last = problem.messages
        return (*earlier, replace(last, content="\n\n".join(map(_written, (*before, last)))))

    def _shown(self) -> list[tuple[Message, ...]]:
        given = self.demonstrations
        if isinstance(given, Examples):
            return [given.messages("train", index) for index in range(given.size("train"))]
        return [(Message("user", question), _reply(text)) for question, text in given]


def _reply(text: str) -> Message:
    thought, content = (part.strip() for part in split(text))
    return Message("assistant", content, thought)


def _written(message: Message) -> str:
    thought = f"{OPEN} {message.reasoning} {CLOSE} " if message.reasoning else ""
    return thought + message.content


def _language(demonstration: Sequence[Message]) -> str:
    return language_of(Problem("demonstration", tuple(demonstration[:-1]), ""))
