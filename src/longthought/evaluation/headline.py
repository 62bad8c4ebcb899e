"""The result in one sentence and one table, in words that page and terminal share."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from longthought.evaluation.report_data import Estimate, EvaluationSummary, ReportData
from longthought.evaluation.road_data import Measurement, Road, Stop

NOT_MEASURED = "not measured yet"
_TELLING = ("tokens read", "tokens sampled", "examples", "judgements", "held-out accuracy", "kept", "pairs")
_THOUSANDS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


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


def printable(text: str) -> str:
    """The text with control characters and lone surrogates replaced by ``�``; new lines and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)


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


def points(difference: Estimate) -> str:
    """A difference of two shares: ``+33.2 points [29.0, 37.4]``."""
    text = f"{_signed(difference.value)} points"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{_signed(difference.low)}, {_signed(difference.high)}]"


def duration(value: float) -> str:
    """``59.0 s``, ``14 min 03 s``, ``2 h 05 min``."""
    if not math.isfinite(value):
        return NOT_MEASURED
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def flops(value: float) -> str:
    """``761 GFLOP``: three digits, by thousands."""
    return f"{scaled(value)}FLOP" if math.isfinite(value) else NOT_MEASURED


def scaled(value: float) -> str:
    """``761 G``, ``7.48 M``, ``12 ``: three digits and a prefix; the unit is to follow."""
    power = min(len(_THOUSANDS) - 1, max(0, math.floor(math.log10(value) / 3))) if value > 0 else 0
    return f"{value / 1000**power:.3g} {_THOUSANDS[power]}"


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
        table.insert(1, Row("pass@1, trained − base on the same problems", "", None, points(data.difference)))
    sizes = [_size(data.base), _size(data.trained)]
    table.append(Row("problems × samples", sizes[0], sizes[1], ""))
    table.append(Row("seed", _count(data.seed)))
    table.append(Row("RL steps", _count(data.steps)))
    return table


def sentence(data: ReportData) -> str:
    """What happened, in plain words; never more than was measured."""
    if data.road is not None:
        return road_sentence(data.road)
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


def road_sentence(road: Road) -> str:
    """How far the road went, what it cost, and on every task the best model beside the one that it comes from."""
    done = sum(stop.finished for stop in road.stops)
    state = "all finished" if done == len(road.stops) else f"{done:,} finished"
    seconds = sum(stop.seconds or 0.0 for stop in road.stops)
    work = sum(stop.flops or 0.0 for stop in road.stops)
    costs = f", {duration(seconds)} of work{f', {flops(work)}' if work else ''}" if seconds else ""
    stages = f"{len(road.stops):,} stage{'' if len(road.stops) == 1 else 's'}"
    results = [_best(road, task) for task in road.tasks] or [
        "No model was evaluated yet, so there is no result to state."
    ]
    return f"{stages}, {state}{costs}. {' '.join(results)}"


def _best(road: Road, task: str) -> str:
    models = dict.fromkeys(one.model for one in road.measurements if one.task == task)
    known = [(estimate.value, one) for m in models if (one := road.measured(m, task)) and (estimate := _of(one))]
    if not known:
        return f"On {task}, accuracy is {NOT_MEASURED}."
    value, best = max(known, key=lambda pair: pair[0])
    text = f"On {task}, {best.model} solves {percent(value)} at the first try"
    first = road.measured(best.total.against, task) if best.total is not None else None
    if best.total is None or first is None:
        others = len(known) - 1
        return f"{text}{f', the most of {others + 1} models' if others else ''}."
    was = percent(_value(_of(first)))
    return f"{text}; {first.model}, from which it comes, solves {was}: {points(best.total.accuracy)}."


def _of(measurement: Measurement) -> Estimate | None:
    return _estimate(measurement.summary, "accuracy")


def facts(stop: Stop) -> list[str]:
    """What a stage used and made, each with its number."""
    told = [f"task: {stop.task}"] if stop.task else []
    if stop.steps is not None and stop.makes in ("model", "reward model", "other"):
        unfinished = stop.planned is not None and stop.planned != stop.steps
        told.append(f"steps {stop.steps:,}" + (f" of {stop.planned:,}" if unfinished else ""))
    return told + [
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {number(value)}" for name, value in stop.data
    ]


def brief(stop: Stop) -> str:
    """The most telling facts of a stage, short: ``120 steps, 2.81 M tokens sampled``."""
    told = [f"{stop.steps:,} steps"] if stop.steps is not None and stop.makes == "model" else []
    if told and stop.planned is not None and stop.planned != stop.steps:
        told = [f"{stop.steps:,} of {stop.planned:,} steps"]
    known = [(name, value) for name, value in stop.data if name.startswith(_TELLING)]
    return ", ".join(
        told + [f"{scaled(value).strip() if value >= 1 else number(value)} {name}" for name, value in known]
    )


def shown_parts(measurements: Iterable[Measurement]) -> list[str]:
    """Parts of the score that have no column of their own."""
    names = dict.fromkeys(name for one in measurements for name in one.summary.parts)
    return [name for name in names if name not in ("accuracy", "format")]


def difference(estimate: Estimate) -> str:
    """``+0.31 [0.22, 0.40]``, of what is no share."""
    text = f"{estimate.value:+.2f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:+.2f}, {estimate.high:+.2f}]"
    return text.replace("-", "−")


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
