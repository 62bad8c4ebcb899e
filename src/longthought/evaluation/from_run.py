"""The report of a run, from what its folder holds: finished, stopped, or still going on.

A part that is missing is left out, and the report says that it is not measured yet. So is a part whose file is damaged,
with a warning: a report is for looking, and one bad file must not hide the others.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from longthought.algorithms.statistics import mean_interval
from longthought.core.errors import LongthoughtError
from longthought.evaluation.report_data import (
    Curve,
    DocumentKind,
    Estimate,
    EvaluationSummary,
    GateCheck,
    Reply,
    ReportData,
    TimePart,
    Transcript,
)
from longthought.runs.logs import read_log
from longthought.runs.place import METRICS, TIMINGS
from longthought.runs.record import Launch, Record
from longthought.runs.run import STAGE

BASE, READINESS, BEFORE, RL, AFTER = "base", "readiness", "before", "rl", "after"
SUMMARIES = ("evaluation/summary.json",)
CHECKS = ("readiness/checks.json", "checks.json")  # in the stage's own folder when a bound was missed
CORPUS = ("corpus.json",)
CURVES = (
    "accuracy",
    "length",
    "rejections",
    "reflections",
    "format_rate",
    "mixing",
    "live",
    "entropy",
    "cut",
    "kl",
    "grad_norm",
    "logprob_gap",
    "reward",
    "consistency",
)
_CLIPPED = ("clip_low_share", "clip_high_share")
_COUNTS = frozenset({"step", "tokens"})  # in timings.jsonl, beside seconds
_GIB = 1 << 30

Row = Mapping[str, Any]
T = TypeVar("T")
_warn = logging.getLogger(__name__).warning


def report_data(record: Record) -> ReportData:
    """Everything that a run folder tells, by the names of its stages: base, readiness, before, rl, after.

    Raises nothing for files that are missing or damaged.
    """
    nothing: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    stages = _read(record.path, lambda: {stage.name: stage.path for stage in record.stages()}, folders)
    metrics = _log(stages.get(RL), METRICS)
    steps = metrics[-1]["step"] if metrics else None
    asked = _json(stages.get(RL), (STAGE,), lambda found: _mapping(found["stage"]), nothing)
    before = _json(stages.get(BEFORE), SUMMARIES, _mapping, nothing)
    after = _json(stages.get(AFTER), SUMMARIES, _mapping, nothing)
    timings = {name: _log(path, TIMINGS) for name, path in stages.items()}
    launch = record.launches[-1]
    return ReportData(
        title=f"{_short(record.recipe)} · {record.path.resolve().name}",
        task=_read("the task", lambda: _task(asked.get("task")), ""),
        seed=_read("the seed", lambda: _optional_int(record.settings.get("seed")), None),
        steps=steps,
        base=_read("the evaluation of the base", lambda: _summary(before, 0), None),
        trained=_read("the evaluation of the trained model", lambda: _summary(after, steps), None),
        difference=_read("the difference of the two evaluations", lambda: _difference(before, after), None),
        curves=_read("the curves", lambda: _curves(metrics), {}),
        transcripts=_read("the transcripts", lambda: _transcripts(before, after), ()),
        own_base=not stages or BASE in stages or READINESS in stages,
        seen=_json(stages.get(BASE), CORPUS, _seen, ""),
        document_kinds=_json(stages.get(BASE), CORPUS, _kinds, ()),
        gate=_json(stages.get(READINESS), CHECKS, _gate, ()),
        time_parts=_read("the timings", lambda: _time_parts(timings), ()),
        speeds=_speeds(timings, _log(stages.get(BASE), METRICS), metrics, asked),
        machine=_read("the machine", lambda: _machine(launch), {}),
        versions=_read("the versions", lambda: {str(k): str(v) for k, v in launch.versions.items()}, {}),
        settings=record.settings,
        command=_command(record),
    )


def _read(what: object, reader: Callable[[], T], default: T) -> T:
    """What ``reader`` gives; ``default``, with a warning, when what it reads is damaged in whatever way."""
    try:
        return reader()
    except (LongthoughtError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    except (IndexError, ArithmeticError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    _warn(f"{what} cannot be read and counts as not measured ({problem})")
    return default


def _json(stage: Path | None, names: Sequence[str], read: Callable[[Any], T], default: T) -> T:
    """What ``read`` makes of the first of the files that exists in the folder of a stage."""
    found = next((stage / name for name in names if (stage / name).is_file()), None) if stage else None
    if found is None:
        return default
    return _read(found, lambda: read(json.loads(found.read_text(encoding="utf-8"))), default)


def _mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError(f"a JSON object is needed, not {type(found).__name__}")
    return found


def _log(stage: Path | None, name: str) -> list[dict[str, Any]]:
    return _read(stage / name, lambda: read_log(stage / name), []) if stage else []


def _short(recipe: str) -> str:
    return recipe.rpartition("/")[2]


def _task(asked: Any) -> str:
    """``Countdown: count 3, largest 28, …``, of the stage's own description."""
    if not isinstance(asked, Mapping):
        return ""
    parts = [
        f"{name.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in asked.items()
        if name != "is" and not isinstance(value, Mapping)
    ]
    return f"{asked['is']}: {', '.join(parts)}" if parts else str(asked["is"])


def _summary(found: Mapping[str, Any], step: int | None) -> EvaluationSummary | None:
    if not found:
        return None
    summary = found["summary"]
    names = ("accuracy", "length", "rejections", "reflections", "format_rate", "mixing", "cut")
    return EvaluationSummary(
        problems=_int(summary["problems"]),
        samples=_int(summary["samples"]),
        pass_at_k=tuple((_int(k), _estimate(value)) for k, value in summary["pass_at_k"]),
        step=step,
        **{name: _estimate(summary[name]) for name in names if summary.get(name) is not None},
    )


def _estimate(found: Mapping[str, Any]) -> Estimate:
    return Estimate(_number(found["value"]), _optional(found.get("low")), _optional(found.get("high")))


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Estimate | None:
    """Trained − base in pass@1, problem by problem, with its interval; None unless the problems are the same."""
    if not before or not after or before["problems"] != after["problems"] or len(before["problems"]) < 2:
        return None
    was, now = before["accuracy_by_problem"], after["accuracy_by_problem"]
    gaps = [[_number(now[str(i)]) - _number(was[str(i)])] for i in range(len(before["problems"]))]
    low, high = mean_interval(gaps)
    return Estimate(sum(gap for (gap,) in gaps) / len(gaps), low, high)


def _curves(metrics: Sequence[Row]) -> dict[str, Curve]:
    """One curve for every quantity that was logged at any step."""
    steps = tuple(row["step"] for row in metrics)
    curves: dict[str, Curve] = {}
    for name in CURVES:
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
    return tuple(_optional(row.get(name)) for row in metrics)


def _transcripts(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Transcript, ...]:
    """The same problems in both evaluations, side by side; those of the one where there is no other yet."""
    was, now = ({str(t["problem"]): t for t in found.get("transcripts", ())} for found in (before, after))
    names = [name for name in was if name in now] if was and now else [*was, *now]
    return tuple(
        Transcript(name, str((was.get(name) or now[name])["prompt"]), _reply(was.get(name)), _reply(now.get(name)))
        for name in names
    )


def _reply(found: Mapping[str, Any] | None) -> Reply | None:
    if found is None:
        return None
    correct = found["correct"] if isinstance(found["correct"], bool) else None
    evidence = str(found.get("evidence", ""))
    return Reply(str(found["text"]), _int(found["tokens"]), str(found["finish"]), correct, evidence)


def _seen(corpus: Mapping[str, Any]) -> str:
    text = str(corpus["description"])
    if "tokens" in corpus and "parameters" in corpus:
        tokens, parameters = _int(corpus["tokens"]), _int(corpus["parameters"])
        text += f"\n\nThe base has {parameters:,} parameters and read {tokens:,} tokens."
    return text


def _kinds(corpus: Mapping[str, Any]) -> tuple[DocumentKind, ...]:
    return tuple(DocumentKind(str(k["name"]), _number(k["share"]), str(k["example"])) for k in corpus["kinds"])


def _gate(found: Mapping[str, Any]) -> tuple[GateCheck, ...]:
    return tuple(
        GateCheck(
            str(check["check"]),
            _optional(check["measured"]),
            str(check["needed"]),
            check["passed"] if isinstance(check["passed"], bool) else None,
        )
        for check in found["checks"]
    )


def _time_parts(timings: Mapping[str, Sequence[Row]]) -> tuple[TimePart, ...]:
    """Seconds of every part of every stage, summed over its steps, in the order in which they came."""
    parts: list[TimePart] = []
    for stage, rows in timings.items():
        names = dict.fromkeys(name for row in rows for name in row if name not in _COUNTS)
        parts += [TimePart(stage, name, sum(_number(row.get(name, 0.0)) for row in rows)) for name in names]
    return tuple(parts)


def _speeds(
    timings: Mapping[str, Sequence[Row]], base: Sequence[Row], metrics: Sequence[Row], asked: Mapping[str, Any]
) -> tuple[tuple[str, float], ...]:
    """Tokens per second of what was timed."""

    def generated() -> dict[int, float]:
        replies = _int(asked["prompts"]) * _int(asked["samples"])
        return {row["step"]: replies * _number(row["length"]) for row in metrics}

    readers: dict[str, Callable[[], float | None]] = {
        "pretraining": lambda: _pretraining_speed(timings.get(BASE, ()), base),
        "sampling in RL": lambda: _speed(timings.get(RL, ()), "sampling", generated),
        "training in RL (on what was sampled)": lambda: _speed(timings.get(RL, ()), "training", generated),
        "evaluation of the base": lambda: _evaluation_speed(timings.get(BEFORE, ())),
        "evaluation of the trained model": lambda: _evaluation_speed(timings.get(AFTER, ())),
    }
    found = [(what, _read(f"the speed of {what}", reader, None)) for what, reader in readers.items()]
    return tuple((what, speed) for what, speed in found if speed is not None)


def _pretraining_speed(timings: Sequence[Row], metrics: Sequence[Row]) -> float | None:
    """Tokens up to the last step that was timed and logged, by the seconds up to there."""
    read = {row["step"]: _number(row["tokens"]) for row in metrics}
    known = [row["step"] for row in timings if row["step"] in read]
    if not known:
        return None
    seconds = sum(_number(row["training"]) for row in timings if row["step"] <= known[-1])
    return _ratio(read[known[-1]], seconds)


def _speed(timings: Sequence[Row], part: str, tokens: Callable[[], Mapping[int, float]]) -> float | None:
    if not timings:
        return None
    done = tokens()
    known = [row for row in timings if row["step"] in done]
    return _ratio(sum(done[row["step"]] for row in known), sum(_number(row[part]) for row in known))


def _evaluation_speed(timings: Sequence[Row]) -> float | None:
    tokens, seconds = (sum(_number(row[name]) for row in timings) for name in ("tokens", "evaluation"))
    return _ratio(tokens, seconds)


def _ratio(tokens: float, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None


def _machine(launch: Launch) -> dict[str, str]:
    facts = {str(name): str(value) for name, value in launch.machine.items()}
    memory = launch.machine.get("memory")
    if isinstance(memory, int):
        facts["memory"] = f"{memory / _GIB:.1f} GiB"
    return {**facts, "threads": str(launch.threads)}


def _command(record: Record) -> str:
    """The command of the last launch; with a note when launches differ in what the bits of a result depend on."""
    command = str(record.launches[-1].command)
    conditions = [_read("the launches", launch.conditions, None) for launch in record.launches]
    if any(other != conditions[-1] for other in conditions):
        return command + "\n# parts of this run were computed with other versions, threads or CPU (see run.json)"
    return command


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _optional(value: object) -> float | None:
    """A number; None for None and for what is not finite."""
    number = None if value is None else _number(value)
    return number if number is not None and math.isfinite(number) else None


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _optional_int(value: object) -> int | None:
    return None if value is None else _int(value)
