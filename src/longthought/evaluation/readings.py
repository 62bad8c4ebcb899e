"""What the files of a run say. Every value is checked; a part that is damaged costs a warning, and hides no other."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from longthought.core.errors import LongthoughtError
from longthought.evaluation.report_data import Curve, Estimate, EvaluationSummary, Reply
from longthought.runs.logs import read_log

Row = Mapping[str, Any]
T = TypeVar("T")
_warn = logging.getLogger(__name__).warning
_ESTIMATES = ("accuracy", "length", "rejections", "reflections", "format_rate", "mixing", "cut")
_CLIPPED = ("clip_low_share", "clip_high_share")


def attempt(what: object, reader: Callable[[], T], default: T) -> T:
    """What ``reader`` gives; ``default``, with a warning, when what it reads is damaged in whatever way."""
    try:
        return reader()
    except (LongthoughtError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    except (IndexError, ArithmeticError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    _warn(f"{what} cannot be read and counts as not measured ({problem})")
    return default


def part(stage: Path | None, names: Sequence[str], read: Callable[[Any], T], default: T) -> T:
    """What ``read`` makes of the first of the files that exists in the folder of a stage."""
    found = next((stage / name for name in names if (stage / name).is_file()), None) if stage else None
    if found is None:
        return default
    return attempt(found, lambda: read(json.loads(found.read_text(encoding="utf-8"))), default)


def log(stage: Path | None, name: str) -> list[dict[str, Any]]:
    """The lines of a log; none where it is missing or damaged."""
    return attempt(stage / name, lambda: read_log(stage / name), []) if stage else []


def mapping(found: Any) -> dict[str, Any]:
    """A JSON object. Raises TypeError."""
    if not isinstance(found, dict):
        raise TypeError(f"a JSON object is needed, not {type(found).__name__}")
    return found


def number(value: object) -> float:
    """A number, finite or not. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def optional(value: object) -> float | None:
    """A number; None for None and for what is not finite. Raises TypeError."""
    found = None if value is None else number(value)
    return found if found is not None and math.isfinite(found) else None


def finite(value: object) -> float:
    """A number that is finite. Raises TypeError, ValueError."""
    found = number(value)
    if not math.isfinite(found):
        raise ValueError(f"{found} is not finite")
    return found


def whole(value: object) -> int:
    """A whole number. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def optional_whole(value: object) -> int | None:
    """A whole number, or None. Raises TypeError."""
    return None if value is None else whole(value)


def estimate(found: Mapping[str, Any]) -> Estimate:
    """A mean with its interval. Raises TypeError, KeyError."""
    return Estimate(number(found["value"]), optional(found.get("low")), optional(found.get("high")))


def summary_of(found: Mapping[str, Any], step: int | None = None) -> EvaluationSummary | None:
    """What an evaluation has measured, by its file; None for an empty one. Raises TypeError, KeyError."""
    if not found:
        return None
    told = found["summary"]
    return EvaluationSummary(
        problems=whole(told["problems"]),
        samples=whole(told["samples"]),
        pass_at_k=tuple((whole(k), estimate(value)) for k, value in told["pass_at_k"]),
        step=step,
        parts={str(name): estimate(value) for name, value in mapping(told.get("parts") or {}).items()},
        **{name: estimate(told[name]) for name in _ESTIMATES if told.get(name) is not None},
    )


def reply_of(found: Mapping[str, Any] | None) -> Reply | None:
    """One reply of an evaluation's transcripts. Raises TypeError, KeyError."""
    if found is None:
        return None
    correct = found["correct"] if isinstance(found["correct"], bool) else None
    evidence = str(found.get("evidence", ""))
    return Reply(str(found["text"]), whole(found["tokens"]), str(found["finish"]), correct, evidence)


def curves_of(metrics: Sequence[Row], names: Iterable[str]) -> dict[str, Curve]:
    """One curve for every one of these quantities that was logged at any step. Raises TypeError."""
    steps = tuple(row["step"] for row in metrics)
    curves: dict[str, Curve] = {}
    for name in names:
        values = _column(metrics, name)
        if any(value is not None for value in values):
            low, high = (_column(metrics, f"{name}_{bound}") for bound in ("low", "high"))
            banded = any(value is not None for value in (*low, *high))
            curves[name] = Curve(steps, values, low, high) if banded else Curve(steps, values)
    sides = [_column(metrics, name) for name in _CLIPPED]
    clipped = tuple(None if a is None or b is None else a + b for a, b in zip(*sides))
    if any(value is not None for value in clipped):
        curves["clip_share"] = Curve(steps, clipped)
    return curves


def _column(metrics: Sequence[Row], name: str) -> tuple[float | None, ...]:
    return tuple(optional(row.get(name)) for row in metrics)
