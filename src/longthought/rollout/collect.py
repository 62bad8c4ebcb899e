"""Play a task: problems in, graded rollouts out. The only place that knows "one prompt, one reply"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from longthought.core.errors import DataError
from longthought.core.protocols import BatchTask, Renderer, Sampler, StreamingSampler, Task
from longthought.core.types import Completion, Group, Problem, Rollout, SamplingParams, TokenIds
from longthought.rollout.beside import Beside


def play(
    problems: Sequence[Problem], sampler: Sampler, renderer: Renderer, params: SamplingParams
) -> list[tuple[TokenIds, list[Completion]]]:
    """Prompt and ``params.count`` completions for every problem. The renderer's stop tokens and strings end a reply."""
    with _naming_the_longest(problems):
        prompts, params = _asked(problems, renderer, params)
        return list(zip(prompts, sampler.sample(prompts, params), strict=True))


def grade_all(
    task: Task,
    problems: Sequence[Problem],
    played: Sequence[tuple[TokenIds, list[Completion]]],
    renderer: Renderer,
) -> list[Group]:
    """The rollouts of many problems, graded in one call where the task can."""
    texts = [[renderer.text(completion.token_ids) for completion in completions] for _, completions in played]
    asked = list(zip(problems, texts, strict=True))
    if isinstance(task, BatchTask):
        scores = task.grade_together(asked)
    else:
        scores = [task.grade(problem, replies) for problem, replies in asked]
    return [
        tuple(Rollout(problem, prompt, *one) for one in zip(completions, replies, row, strict=True))
        for problem, (prompt, completions), replies, row in zip(problems, played, texts, scores, strict=True)
    ]


def grade(task: Task, problem: Problem, played: tuple[TokenIds, list[Completion]], renderer: Renderer) -> Group:
    """The rollouts of one problem, graded together."""
    return grade_all(task, [problem], [played], renderer)[0]


def collect(
    task: Task,
    problems: Sequence[Problem],
    sampler: Sampler,
    renderer: Renderer,
    params: SamplingParams,
    sampled: Callable[[], object] = lambda: None,
) -> list[Group]:
    """``params.count`` graded replies to every problem, in order. ``sampled`` is called after the last completion.

    While a ``StreamingSampler`` goes on, a thread of its own grades what has been finished, all that came in the
    meantime in one call. Nobody else asks the task then, and a score must not depend on what is graded before it or
    with it. An error in grading ends the sampling.
    """
    if not isinstance(sampler, StreamingSampler):
        played = play(problems, sampler, renderer, params)
        sampled()
        return grade_all(task, problems, played, renderer)
    with _naming_the_longest(problems):
        prompts, params = _asked(problems, renderer, params)
    graded: dict[int, Group] = {}

    def grade_some(numbered: list[tuple[int, list[Completion]]]) -> None:
        chosen = [number for number, _ in numbered]
        played = [(prompts[number], completions) for number, completions in numbered]
        groups = grade_all(task, [problems[number] for number in chosen], played, renderer)
        graded.update(zip(chosen, groups, strict=True))

    with Beside(grade_some, "grading") as beside, _naming_the_longest(problems):
        sampler.stream(prompts, params, lambda number, completions: beside.give((number, completions)))
        sampled()
    return [graded[number] for number in range(len(problems))]


def _asked(
    problems: Sequence[Problem], renderer: Renderer, params: SamplingParams
) -> tuple[list[TokenIds], SamplingParams]:
    ends = replace(params, stop_tokens=params.stop_tokens or renderer.stop_tokens, stop=params.stop or renderer.stop)
    return [renderer.prompt(problem.messages) for problem in problems], ends


@contextmanager
def _naming_the_longest(problems: Sequence[Problem]) -> Iterator[None]:
    """Add to what is wrong with a prompt the problem that it is likely to come from."""
    try:
        yield
    except DataError as error:
        longest = max(problems, key=lambda problem: sum(len(message.content) for message in problem.messages))
        raise DataError(f"{error}. The longest of these problems is {longest.id}") from error
