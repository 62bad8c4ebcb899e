"""The data and the servers that recipe ``r1_model`` may be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longthought.core.errors import SettingsError


@dataclass(frozen=True)
class ProblemFiles:
    """Problems with answers, and how these are graded.

    file: .jsonl, .json, .parquet, .csv or .tsv; prompt and answer are found by the names of the columns.
    mix: further sources, each FILE, GENERATOR:LEVEL or gym:NAME, with @WEIGHT for another share than 1.
    test: a file of held-out problems; none: a share of the problems, chosen by their text.
    fields: which columns hold what, as prompt=question,answer=final; empty: found by themselves.
    bad: rows that cannot be used are listed and refused, or skipped and counted.
    test_share: share of the problems that is held out when there is no test file.
    verifier: math, exact, number, choice, set, or a function of yours, as mine.py:verify.
    strict: a reply without the form earns nothing.
    instruction: follows every question of a file on a line of its own, such as how to write the answer.
    """

    file: Path | None = Path("problems.jsonl")
    mix: tuple[str, ...] = ()
    test: Path | None = None
    fields: str = ""
    bad: Literal["refuse", "skip"] = "refuse"
    test_share: float = 0.10
    verifier: str = "math"
    strict: bool = True
    instruction: str = ""


@dataclass(frozen=True)
class Server:
    """A language model behind an OpenAI-compatible address.

    url: up to and including /v1; empty: there is none.
    model: its name there.
    key: the environment variable that holds the key; empty: none is sent.
    temperature: of its replies.
    max_tokens: of a reply, its thinking included.
    concurrency: questions that are under way at a time.
    """

    url: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 8192
    concurrency: int = 16

    def __post_init__(self) -> None:
        if self.model and not self.url:
            raise SettingsError(f"model={self.model} changes nothing without url=…/v1")


@dataclass(frozen=True)
class Judging(Server):
    """A server that judges: answers that no rule can grade, pairs of replies, and whether a reply is safe.

    votes: how often each pair is shown in both orders; R1: 4.
    least_gap: a pair is kept whose mean margin, from −2 to 2, is further from 0; R1: 1.
    prompts: to which replies are compared, and for which as many are called safe or not; R1: 66,000 pairs.
    samples: replies to each.
    pairs: of one prompt, at most.
    principles: by which a reply is called safe; none: nothing is.
    """

    temperature: float = 0.7
    votes: int = 4
    least_gap: float = 1.0
    prompts: int = 4000
    samples: int = 4
    pairs: int = 2
    principles: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneralFile:
    """Conversations about other things than problems.

    file: .jsonl, .json, .parquet, .csv or .tsv: messages, ShareGPT, Alpaca, or a prompt and its reply; none: no such.
    share: of all examples after rejection sampling; R1: 200,000 of 800,000.
    bad: rows that cannot be used, or are not learned by the model's format, are refused, or skipped and counted.
    """

    file: Path | None = None
    share: float = 0.25
    bad: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SettingsError(f"share={self.share:g} must lie between 0 and 1; leave out general.file for none")


@dataclass(frozen=True)
class PromptFile:
    """Prompts without answers, for the last part of the RL.

    file: .jsonl, .json, .parquet, .csv or .tsv; none: that part is left out.
    column: that holds them; empty: found by its name.
    bad: rows that cannot be used are listed and refused, or skipped and counted.
    share: of the prompts of a step. R1 does not tell.
    test_share: held out, so that reward models are measured on other prompts than they learn from.
    """

    file: Path | None = None
    column: str = ""
    bad: Literal["refuse", "skip"] = "refuse"
    share: float = 0.4
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.test_share <= 0.5):
            raise SettingsError(
                f"share={self.share:g} must lie between 0 and 1, test_share={self.test_share:g} above 0 and at most 0.5"
            )


@dataclass(frozen=True)
class JudgementFile:
    """Judgements of replies: pairs of which one is better, or replies that are called safe or not.

    file: .jsonl, .json, .parquet, .csv or .tsv; none: there is no such file.
    held_out: share of the prompts that the reward model is measured on.
    bad: rows that cannot be used are listed and refused, or skipped and counted.
    """

    file: Path | None = None
    held_out: float = 0.1
    bad: Literal["refuse", "skip"] = "refuse"
