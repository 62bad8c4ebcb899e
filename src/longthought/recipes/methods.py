"""Algorithms, a few lines each: the four small functions in which the papers differ."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

from longthought.algorithms.advantage import (
    batch_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
    per_group,
)
from longthought.algorithms.objective import GRPO
from longthought.algorithms.weighting import constant, sequence_mean, sequence_sum, token_mean
from longthought.core.protocols import Shaping
from longthought.stages.rl import Method

MethodName: TypeAlias = Literal["tiny", "grpo", "dr_grpo", "dapo", "rloo"]


def method(name: MethodName, objective: GRPO, max_tokens: int, shaping: tuple[Shaping, ...]) -> Method:
    """``grpo``: DeepSeekMath (arXiv:2402.03300).  ``dr_grpo``: arXiv:2503.20783.  ``dapo``: arXiv:2503.14476, with the
    overlong filter.  ``rloo``: arXiv:2402.14740.  ``tiny``: GRPO with REINFORCE++'s batch deviation and DAPO's token
    mean, the default of the laptop run."""
    match name:
        case "grpo":
            return Method(per_group(group_normalized), sequence_mean, objective, shaping)
        case "dr_grpo":
            return Method(per_group(group_centered), partial(constant, length=max_tokens), objective, shaping)
        case "dapo":
            return Method(per_group(group_normalized), token_mean, objective, shaping, filter_truncated=True)
        case "rloo":
            return Method(per_group(leave_one_out), sequence_sum, objective, shaping)
        case "tiny":
            return Method(batch_normalized, token_mean, objective, shaping)
