"""Replies that nobody sampled: groups with every kind of reward, length, cut and text, to try a method on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longthought.core.types import Completion, Finish, Group, Message, Outcome, Problem, Rollout, Score, Verdict

_TEXTS = (
    "<think> try this and check it again </think> <answer> 12 </answer>",
    "<think> 我们 先 试 一下 </think> <answer> 7 </answer>",
    "so it is 3",
    "<think> wait , 不对 , let me try again </think> the answer is 5",
)


def groups(count: int, replies: int, longest: int, problems: Sequence[Problem] = ()) -> list[Group]:
    """``count`` groups of ``replies`` replies of 1 … ``longest`` tokens; some repeat themselves, some are cut."""
    made = [_problem(number) for number in range(count)]
    asked = [problems[n] if n < len(problems) else made[n] for n in range(count)]
    return [tuple(_rollout(problem, n, i, replies, longest) for i in range(replies)) for n, problem in enumerate(asked)]


def rewards(count: int, replies: int) -> Tensor:
    """Distinct rewards (count · replies,), float64; the groups differ in level and spread."""
    generator = torch.Generator().manual_seed(3)
    level = torch.arange(count, dtype=torch.float64)[:, None]
    own = torch.rand(count, replies, generator=generator, dtype=torch.float64)
    return ((1 + 0.5 * level) * own + 0.7 * level).flatten()


def _problem(number: int) -> Problem:
    return Problem(f"doctor/{number}", (Message("user", f"question {number}"),), str(number), {"language": "en"})


def _rollout(problem: Problem, group: int, number: int, replies: int, longest: int) -> Rollout:
    place = (group * 5 + number * 3) % max(replies, 2) / max(replies - 1, 1)
    length = max(1, min(longest, round(math.exp(place * math.log(max(longest, 1))))))
    period = 3 if (group + number) % 2 else length + 1
    ids = tuple(1 + (token % period) % 97 for token in range(length))
    right = (group + number) % 2 == 0
    finish = Finish.LENGTH if (group + number) % 3 == 0 else Finish.STOP
    score = Score(float(right), right, {"accuracy": float(right), "format": 1.0}, Verdict(1.0, Outcome.GRADED))
    completion = Completion(ids, tuple(-0.5 - 0.1 * (t % 5) for t in range(length)), finish)
    return Rollout(problem, (1, 2), completion, _TEXTS[(group + number) % len(_TEXTS)], score)
