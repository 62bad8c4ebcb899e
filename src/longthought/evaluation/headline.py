"""The result in one sentence and one table, in words that page and terminal share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from longthought.evaluation.report_data import Estimate, EvaluationSummary, ReportData

NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. A fact that concerns the whole run stands in ``base`` with the others None."""

    label: str
    base: str
    trained: str | None = None
    change: str | None = None


@dataclass(frozen=True, slots=True)
class _Measure:
    label: str
    field: str
    show: Callable[[float | None], str]
    ratio: bool


def number(value: float | None) -> str:
    """Three significant digits, thousands apart; ``not measured yet`` for None and NaN."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value == 0:
        return "0"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float | None) -> str:
    """A fraction of one as per cent with one decimal."""
    return NOT_MEASURED if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def decimal(value: float | None) -> str:
    """Two decimals: for small counts per reply, which stand below each other in a table."""
    return NOT_MEASURED if value is None or not math.isfinite(value) else f"{value:,.2f}"


def with_interval(estimate: Estimate | None, show: Callable[[float | None], str] = number) -> str:
    """``48.4 % [45.1, 51.7]``; the unit is said once."""
    if estimate is None or not math.isfinite(estimate.value):
        return NOT_MEASURED
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    low, high = (show(bound).removesuffix(" %") for bound in (estimate.low, estimate.high))
    return f"{show(estimate.value)} [{low}, {high}]"


MEASURES: tuple[_Measure, ...] = (
    _Measure("pass@1", "accuracy", percent, True),
    _Measure("response length (tokens)", "length", number, True),
    _Measure("rejected attempts per answer", "rejections", decimal, True),
    _Measure("reflection words per answer", "reflections", decimal, True),
    _Measure("answers in the right format", "format_rate", percent, False),
    _Measure("answers that mix languages", "mixing", percent, False),
    _Measure("answers cut by the token limit", "cut", percent, False),
)


def rows(data: ReportData) -> list[Row]:
    """The headline table: every measure of base and trained model, then the facts of the run."""
    table = [_measure_row(data, measure) for measure in MEASURES]
    if data.difference is not None:
        table.insert(1, Row("pass@1, trained − base on the same problems", "", None, _points(data.difference)))
    sizes = [_size(data.base), _size(data.trained)]
    table.append(Row("problems × samples", sizes[0], sizes[1], ""))
    table.append(Row("seed", _count(data.seed)))
    table.append(Row("RL steps", _count(data.steps)))
    return table


def sentence(data: ReportData) -> str:
    """What happened, in plain words; never more than was measured."""
    base, trained = _estimate(data.base, "accuracy"), _estimate(data.trained, "accuracy")
    if base is None and trained is None:
        return "Neither the base model nor the trained model was evaluated yet, so there is no result to state."
    if trained is None or base is None:
        model, known = ("base", base) if trained is None else ("trained", trained)
        other = "trained" if trained is None else "base"
        return (
            f"The {model} model solves {percent(_value(known))} of the test problems at the first try; "
            f"the {other} model is {NOT_MEASURED}."
        )
    steps = f"After {data.steps:,} RL steps the" if data.steps is not None else "The"
    result = (
        f"{steps} trained model solves {percent(trained.value)} of the test problems at the first try; "
        f"its base solved {percent(base.value)}{_times(base, trained)}."
    )
    return result + _thinking(data) + _certainty(data, base, trained)


def _times(base: Estimate, trained: Estimate) -> str:
    ratio = _ratio(base, trained)
    return f" (× {ratio:.1f})" if ratio is not None else ""


def _thinking(data: ReportData) -> str:
    before, after = _estimate(data.base, "length"), _estimate(data.trained, "length")
    if before is None or after is None:
        return ""
    text = f" It writes {after.value:,.0f} tokens per answer where the base wrote {before.value:,.0f}"
    tried, retried = _estimate(data.base, "rejections"), _estimate(data.trained, "rejections")
    if tried is None or retried is None or tried.value == retried.value == 0:
        return text + "."
    return f"{text}, and rejects {retried.value:.1f} of its own attempts instead of {tried.value:.1f}."


def _certainty(data: ReportData, base: Estimate, trained: Estimate) -> str:
    chance = " The difference is within the 95 % interval: it may be chance."
    if data.difference is not None and data.difference.low is not None and data.difference.high is not None:
        return chance if data.difference.low <= 0 <= data.difference.high else ""
    bounds = (base.low, base.high, trained.low, trained.high)
    if any(bound is None for bound in bounds):
        return " No interval was computed: how much of this is chance is unknown."
    base_low, base_high, low, high = (bound or 0.0 for bound in bounds)
    return (
        " The 95 % intervals overlap: part of the difference may be chance."
        if low <= base_high and base_low <= high
        else ""
    )


def _measure_row(data: ReportData, measure: _Measure) -> Row:
    base, trained = _estimate(data.base, measure.field), _estimate(data.trained, measure.field)
    shown = [with_interval(estimate, measure.show) for estimate in (base, trained)]
    return Row(measure.label, shown[0], shown[1], _change(measure, base, trained))


def _change(measure: _Measure, base: Estimate | None, trained: Estimate | None) -> str:
    if base is None or trained is None:
        return ""
    if not measure.ratio:
        return f"{_signed(trained.value - base.value)} points"
    ratio = _ratio(base, trained)
    return f"× {ratio:.2f}" if ratio is not None else "from zero"


def _points(difference: Estimate) -> str:
    text = f"{_signed(difference.value)} points"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _ratio(base: Estimate, trained: Estimate) -> float | None:
    return trained.value / base.value if base.value > 0 else None


def _estimate(summary: EvaluationSummary | None, field: str) -> Estimate | None:
    estimate: Estimate | None = getattr(summary, field) if summary is not None else None
    return estimate if estimate is not None and math.isfinite(estimate.value) else None


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate is not None else None


def _size(summary: EvaluationSummary | None) -> str:
    return NOT_MEASURED if summary is None else f"{summary.problems:,} × {summary.samples:,}"


def _count(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,}"
