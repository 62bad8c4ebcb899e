"""What an optimizer step of distillation learns from: examples, and replies that the student samples itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from tokenizers import Tokenizer as Backend

from longthought.core.errors import DataError, SettingsError
from longthought.core.protocols import Renderer, Sampler, Task, Weighting
from longthought.core.types import Batch, Message, SamplingParams, TokenIds
from longthought.runs.artifacts import Policy
from longthought.stages.sft_rows import Rendered
from longthought.text.tokenizer_files import TOKENIZER
from longthought.training.batching import documents

_ROUND = 1_000_000_007  # between the seeds of replies to equal prompts of one step
_SHOWN = 3


class Step(NamedTuple):
    """``taught``: rows of the examples that are learned as they are.  ``asked``: prompts that the student replies to,
    as rows of the examples, or as numbers of a task's problems."""

    taught: list[int]
    asked: list[int]


class Replies(NamedTuple):
    """Rows of prompt and reply, and which tokens of each are the reply's."""

    rows: list[TokenIds]
    masks: list[list[bool]]


def planned(steps: Sequence[Sequence[int]], share: float, from_task: bool) -> list[Step]:
    """Of every step's rows the first ones are asked, so many that after every step ``share`` of all rows were, to the
    nearest below.

    from_task: problems 0, 1, 2, … of a task are asked in their stead.
    """
    found: list[Step] = []
    seen = before = 0
    for rows in steps:
        seen += len(rows)
        after = int(share * seen + 1e-9)
        count = after - before
        asked = list(range(before, after)) if from_task else list(rows[:count])
        found.append(Step(list(rows[count:]), asked))
        before = after
    return found


@dataclass(frozen=True)
class Prompts:
    """The prompts of the tokens ``rows`` (examples), or of a task's problems where there is one, of less than
    ``context`` tokens."""

    rows: Rendered | None
    task: Task | None
    renderer: Renderer
    context: int

    def some(self, numbers: Sequence[int], split: str = "train") -> list[TokenIds]:
        """Raises DataError for a problem that leaves no room for a reply."""
        return [self._of_problem(split, n) if self.task is not None else self._of_example(n) for n in numbers]

    def _of_example(self, number: int) -> TokenIds:
        """What stands before the first token that is learned."""
        assert self.rows is not None
        start, end = self.rows.ends[number : number + 2].tolist()
        length = int(self.rows.trained[start:end].argmax())
        return tuple(self.rows.tokens[start : start + length].tolist())

    def _of_problem(self, split: str, number: int) -> TokenIds:
        assert self.task is not None
        problem = self.task.problem(split, number)
        prompt = self.renderer.prompt(problem.messages)
        if len(prompt) >= self.context:
            raise DataError(
                f"{problem.id}: its prompt has {len(prompt):,} tokens, which leaves no room for a reply in a context "
                f"of {self.context:,}"
            )
        return prompt


def sampled(sampler: Sampler, prompts: Sequence[TokenIds], params: SamplingParams, context: int) -> Replies:
    """One reply to each prompt, cut at the context. Equal prompts get different replies."""
    replies: list[TokenIds] = [()] * len(prompts)
    rounds: list[list[int]] = []
    times: dict[TokenIds, int] = {}
    for place, prompt in enumerate(prompts):
        again = times[prompt] = times.get(prompt, -1) + 1
        if again == len(rounds):
            rounds.append([])
        rounds[again].append(place)
    for number, places in enumerate(rounds):
        varied = replace(params, count=1, seed=params.seed + number * _ROUND)
        for place, (one,) in zip(places, sampler.sample([prompts[p] for p in places], varied), strict=True):
            replies[place] = one.token_ids
    rows = [(prompt + reply)[:context] for prompt, reply in zip(prompts, replies)]
    return Replies(rows, [[place >= len(prompt) for place in range(len(row))] for prompt, row in zip(prompts, rows)])


def batch_of(rows: Rendered | None, taught: Sequence[int], own: Replies, weighting: Weighting) -> Batch:
    """One optimizer step with its final weights. ``imitation`` is the weight of the tokens of examples alone."""
    spans = [slice(*rows.ends[n : n + 2].tolist()) for n in taught] if rows is not None else []
    told = [] if rows is None else [tuple(rows.tokens[span].tolist()) for span in spans]
    flags = [] if rows is None else [rows.trained[span].tolist() for span in spans]
    laid = documents([*told, *own.rows], [*flags, *own.masks])
    weight = weighting(laid.mask)
    from_examples = torch.arange(len(laid.tokens)) < len(told)
    return replace(laid, weight=weight, imitation=torch.where(from_examples[:, None], weight, 0.0))


def check_vocabularies(student: Policy, teacher: Policy) -> None:
    """Raises SettingsError, naming what differs, unless both models have the same tokens under the same ids."""
    told: list[str] = []
    sizes = [policy.model.config.vocab_size for policy in (student, teacher)]
    if sizes[0] != sizes[1]:
        told.append(f"the student's embeddings have {sizes[0]:,} rows, the teacher's {sizes[1]:,}")
    own, other = (_ids(policy) for policy in (student, teacher))
    moved = [name for name in own.keys() & other.keys() if own[name] != other[name]]
    for names, what in (
        (own.keys() - other.keys(), "the student alone has"),
        (other.keys() - own.keys(), "the teacher alone has"),
        (moved, "other ids have"),
    ):
        if names:
            shown = ", ".join(map(repr, sorted(names)[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
            told.append(f"{what} {len(names):,} tokens: {shown}")
    if told:
        raise SettingsError(
            f"distillation: student and teacher need the same vocabulary: {'; '.join(told)}. Take a teacher of the "
            "student's family, or learn from the teacher's replies as text, with SFT"
        )


def same_prompt(student: Policy, teacher: Policy, messages: Sequence[Message]) -> bool:
    """Whether both chat formats write a prompt alike, if it is one in the student's."""
    try:
        prompt = student.renderer.prompt(messages)
    except DataError:
        return True
    try:
        return teacher.renderer.prompt(messages) == prompt
    except DataError:
        return False


def _ids(policy: Policy) -> Mapping[str, int]:
    """Names of all tokens → ids."""
    tokenizer = policy.renderer.tokenizer  # type: ignore[union-attr]  # a Checkpoint is loaded with one
    named: dict[str, int] = Backend.from_str(tokenizer.files[TOKENIZER].decode()).get_vocab(with_added_tokens=True)
    return named | {name: number for number, name in tokenizer.marks.items()}
