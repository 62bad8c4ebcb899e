"""What objectives share: reading the columns of a batch where something is trained, and refusing fields."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from longthought.algorithms.weighting import weighted_sum
from longthought.core.errors import SettingsError
from longthought.core.types import Batch, PolicyOutput


def read(objective: object, batch: Batch, name: str) -> Tensor:
    """The column ``name`` of the batch. Raises SettingsError when there is none."""
    column: Tensor | None = getattr(batch, name)
    if column is None:
        raise SettingsError(
            f"{type(objective).__name__} needs the column {name!r}, but the batch has none; "
            "fill every column that its `reads` names"
        )
    return column


def where(live: Tensor, *columns: Tensor) -> list[Tensor]:
    """The columns with 0 where nothing is trained, so that garbage there enters neither value nor gradient."""
    return [torch.where(live, column, 0.0) for column in columns]


def policy_columns(objective: object, policy: PolicyOutput, batch: Batch, live: Tensor) -> list[Tensor]:
    """logp, logp_old and advantage, 0 outside ``live``."""
    return where(live, policy.logp, read(objective, batch, "logp_old"), read(objective, batch, "advantage"))


def live_rows(batch: Batch) -> Tensor:
    """The tokens of replies that are trained at all, (N, T) bool."""
    return batch.mask & (batch.weight != 0).any(dim=1, keepdim=True)


def share(tokens: Tensor, batch: Batch) -> Tensor:
    """The weight of the tokens that are True, a scalar."""
    return weighted_sum(tokens.to(batch.weight.dtype), batch.weight)


def entropy_metric(policy: PolicyOutput, batch: Batch) -> dict[str, Tensor]:
    """The metric ``entropy``."""
    return {"entropy": weighted_sum(policy.entropy.detach(), batch.weight)}


def check(field: str, value: object, holds: Callable[[float], bool], wanted: str) -> None:
    """Raises SettingsError unless ``value`` is a finite number that ``holds``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
        raise SettingsError(f"{field} must be {wanted}, got {value!r}")
