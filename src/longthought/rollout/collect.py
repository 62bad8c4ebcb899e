"""Play a task: problems in, graded rollouts out. The only place that knows "one prompt, one reply"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longthought.core.protocols import BatchTask, Renderer, Sampler, Task
from longthought.core.types import Completion, Group, Problem, Rollout, SamplingParams, TokenIds


def play(
    problems: Sequence[Problem], sampler: Sampler, renderer: Renderer, params: SamplingParams
) -> list[tuple[TokenIds, list[Completion]]]:
    """Prompt and ``params.count`` completions for every problem. The renderer's stop tokens and strings end a reply."""
    prompts = [renderer.prompt(problem.messages) for problem in problems]
    params = replace(params, stop_tokens=params.stop_tokens or renderer.stop_tokens, stop=params.stop or renderer.stop)
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
    task: Task, problems: Sequence[Problem], sampler: Sampler, renderer: Renderer, params: SamplingParams
) -> list[Group]:
    """``params.count`` graded replies to every problem, in order."""
    return grade_all(task, problems, play(problems, sampler, renderer, params), renderer)
